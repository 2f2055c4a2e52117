// Package audit keeps the audit log: a record of decisions, and of every event in
// the life of keys, that nobody can edit unseen.
package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/internal/limit"
)

// ErrUnavailable says that a record was not written: what it is about must not
// happen.
var ErrUnavailable = errors.New("the audit log cannot be written")

// Config configures a Log. Only the first three fields have no default.
type Config struct {
	// Log is the log's origin, from NewOrigin. Required.
	Log string
	// Sink takes the lines. Required. Close closes it.
	Sink Sink
	// Logger gets what an operator should know. Required.
	Logger *slog.Logger
	// Interval is how often counted operations are written. Zero means 1 min.
	Interval time.Duration
	// CheckpointInterval is how often a checkpoint is written, when there is
	// anything new. Zero means 10 s.
	CheckpointInterval time.Duration
	// AliveInterval is after how long without a record one is written that says
	// that the sidecar lives. Zero means 10 min.
	AliveInterval time.Duration
	// WriteSoon and Sync, if both are set, are for records of class Data. WriteSoon
	// is Sink's Write, but what it has written is safe from a crash of the
	// machine only when Sync or a later Write has returned; it is safe from the
	// end of the process at once. After an error of Sync it is still there. Nil
	// means that all records are safe when Append returns.
	WriteSoon func(seq int64, lines []byte) error
	Sync      func() error
	// SyncInterval is how long after WriteSoon Sync is called. Zero means 50 ms.
	SyncInterval time.Duration
	// WriteTimeout is how long an operation waits for its record. Zero means
	// 2 s.
	WriteTimeout time.Duration
	// Room, if set, returns how many bytes the sink has used, and may use at most.
	// From three quarters on there are no more records of class Data, and
	// denials are counted; the last sixteenth is for the log and the
	// configuration.
	Room func() (used, most int64)
	// Now is the clock that records are dated by. Nil means time.Now.
	Now func() time.Time
	// Rows is how many different operations are counted apart in an interval, a
	// quarter of them of one caller. Zero means 10,000.
	Rows int
	// DenialsPerMinute is how many denials of each caller get a record each;
	// further ones are counted. Zero means 600.
	DenialsPerMinute int
}

// Sink is where the lines go.
type Sink interface {
	// Write appends whole lines, the first of which is record seq. With begin,
	// they begin a segment. They are safe from a crash when it returns. After an
	// error none of them is in the log.
	Write(seq int64, lines []byte, begin bool) error
	// Full reports whether the next record should begin a segment.
	Full() bool
	// Close ends what Write waits for.
	Close() error
}

// NewOrigin returns an origin that no other log has. Name says whose log it is:
// of what is not allowed in origins it keeps an underscore.
func NewOrigin(name string, now time.Time) string {
	var id [6]byte
	_, _ = rand.Read(id[:]) // it never fails
	clean := []byte(name[:min(len(name), record.MaxOrigin/2)])
	for i, c := range clean {
		if record.CheckOrigin(string(rune(c))) != nil || c == '/' {
			clean[i] = '_'
		}
	}
	return "keysidecar/" + cmp.Or(string(clean), "_") + "/" + now.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(id[:])
}

// Log is an audit log. It is safe for concurrent use.
type Log struct {
	cfg     Config
	signer  note.Signer
	key     string
	rows    *rows
	denials *limit.Table
	wake    chan struct{} // holds one when there is something to write
	enough  chan struct{} // holds one when as many wait as are expected
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when all is written
	failing atomic.Int64  // since when nothing could be written, Unix ns; 0: it can
	records atomic.Int64

	certificate atomic.Pointer[string] // of key; nil: none yet

	pressing bool // the writer's own: what warnRoom has said

	begun bool  // the opening records are written; set before stop is closed
	last  error // of the last writes, when done is closed

	mu     sync.Mutex
	next   *batch  // nil: empty
	notes  []entry // to be written when it can be, whoever waits
	lost   int64   // entries that found no room in notes
	expect int     // entries that the next batch will have, if all who wait come again
	closed bool

	pen pen // the writer's own
}

// New returns a log whose first record is start, of kind Start, followed by the
// others. They are written already.
func New(cfg Config, start *record.Event, others ...*record.Event) (*Log, error) {
	if cfg.Sink == nil || cfg.Logger == nil {
		return nil, errors.New("audit config: Log, Sink and Logger are required")
	}
	if err := record.CheckOrigin(cfg.Log); err != nil {
		return nil, fmt.Errorf("audit config: %w", err)
	}
	cfg.Interval = cmp.Or(cfg.Interval, time.Minute)
	cfg.CheckpointInterval = cmp.Or(cfg.CheckpointInterval, 10*time.Second)
	cfg.AliveInterval = cmp.Or(cfg.AliveInterval, 10*time.Minute)
	cfg.SyncInterval = cmp.Or(cfg.SyncInterval, 50*time.Millisecond)
	cfg.WriteTimeout = cmp.Or(cfg.WriteTimeout, 2*time.Second)
	cfg.DenialsPerMinute = cmp.Or(cfg.DenialsPerMinute, 600)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	signer, key, err := record.NewKey(cfg.Log)
	if err != nil {
		return nil, err
	}
	denials, err := limit.New(limit.Config{})
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg: cfg, signer: signer, key: key, rows: newRows(cmp.Or(cfg.Rows, 10_000), cfg.Now()), denials: denials,
		wake: make(chan struct{}, 1), enough: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	l.pen = pen{log: l}
	first := *start
	first.Kind, first.Key = record.Start, key
	go l.run()
	if err := l.begin(append([]*record.Event{&first}, others...)); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), cfg.WriteTimeout)
		defer cancel()
		return nil, errors.Join(err, l.Close(ctx))
	}
	return l, nil
}

// begin writes the opening records, if it can all at once.
func (l *Log) begin(all []*record.Event) error {
	var batches []*batch
	for _, e := range all {
		b, err := l.enqueue(entry{record.Keys, encode(e)})
		if err != nil {
			return err
		}
		batches = append(batches, b)
	}
	for _, b := range batches {
		<-b.done // giveUp sees to it
		if b.err != nil {
			return b.err
		}
	}
	l.begun = true
	return nil
}

// Origin returns the log's origin.
func (l *Log) Origin() string { return l.cfg.Log }

// Key returns the log's public key, as a C2SP signed-note verifier key.
func (l *Log) Key() string { return l.key }

// Certify records a certificate of the log's key, and repeats it in every
// segment: see record.Certificate. The error is as Append's.
func (l *Log) Certify(ctx context.Context, signed string) error {
	l.certificate.Store(&signed)
	return l.Append(ctx, record.Keys, &record.Event{Kind: record.Certified, Note: signed})
}

// entry is a record without its place.
type entry struct {
	class record.Class
	event []byte
}

// batch is what is written at once.
type batch struct {
	entries []entry
	bytes   int
	data    bool // all are of class Data
	written atomic.Bool
	taken   bool // guarded by Log.mu: being written
	timer   *time.Timer
	once    sync.Once
	done    chan struct{} // closed when err says what became of it
	err     error
}

// finish reports whether it is the first.
func (b *batch) finish(err error) (first bool) {
	b.once.Do(func() {
		first, b.err = true, err
		b.timer.Stop()
		close(b.done)
	})
	return first
}

// What waits to be written, at most.
const (
	maxWaiting = 8 << 20 // bytes
	maxNotes   = 1000
)

// maxEvent is the longest event: a line has room for it and its header.
const maxEvent = record.MaxLine - 512

// What of an event is cut when it is too long, in bytes as it is encoded.
const (
	maxDetail = 1000
	maxValue  = 100
)

// encode returns the event's bytes. Of one that is too long for a line, it cuts
// what can be long.
func encode(e *record.Event) []byte {
	event := e.Append(make([]byte, 0, 256))
	if len(event) <= maxEvent {
		return event
	}
	short := *e
	short.Detail = fmt.Sprintf("%s (cut: the event has %d bytes)", record.Cut(e.Detail, maxDetail), len(event))
	short.Context = cut(e.Context, maxValue)
	short.Files = cut(e.Files, maxValue)
	if event = short.Append(event[:0]); len(event) > maxEvent { // file names may be longer
		short.Context, short.Files = nil, nil
		event = short.Append(event[:0])
	}
	return event
}

func cut(all map[string]string, most int) map[string]string {
	out := make(map[string]string, len(all))
	for k, v := range all {
		out[k] = record.Cut(v, most)
	}
	return out
}

// The parts of the sink's room that records may use up.
const (
	dataPart = 3.0 / 4   // for those of class Data
	keyPart  = 15.0 / 16 // for steps in a key's life
	warnPart = 1.0 / 2
)

// pressed reports whether more than part of the sink's room is used.
func (l *Log) pressed(part float64) bool {
	if l.cfg.Room == nil {
		return false
	}
	used, most := l.cfg.Room()
	return float64(used) > part*float64(most)
}

// room returns an error if there is no room for an event.
func (l *Log) room(class record.Class, e *record.Event) error {
	part := 1.0
	switch {
	case class != record.Keys:
		part = dataPart
	case e.Kind == record.KeyStep:
		part = keyPart
	}
	if part < 1 && l.pressed(part) {
		used, most := l.cfg.Room()
		return fmt.Errorf("%w: %d of %d bytes are used, the rest is for what matters more: make room in its directory",
			ErrUnavailable, used, most)
	}
	return nil
}

// warnRoom says when room runs out.
func (l *Log) warnRoom() {
	if was := l.pressing; l.pressed(warnPart) == was {
		return
	} else if l.pressing = !was; was {
		return
	}
	used, most := l.cfg.Room()
	l.cfg.Logger.LogAttrs(context.Background(), slog.LevelWarn,
		"audit directory is half full: from three quarters on, calls of tenants with audit full are refused, and denials are only counted",
		slog.String("log", l.cfg.Log), slog.Int64("bytes", used), slog.Int64("max_bytes", most))
}

// Append writes a record, and returns when it is written. Otherwise the error is
// ErrUnavailable, or ctx's: then it may be written all the same.
func (l *Log) Append(ctx context.Context, class record.Class, e *record.Event) error {
	if err := l.room(class, e); err != nil {
		return err
	}
	b, err := l.enqueue(entry{class, encode(e)})
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Log) enqueue(e entry) (*batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("%w: it is closed", ErrUnavailable)
	}
	b := l.next
	if b == nil {
		b = &batch{done: make(chan struct{}), data: true}
		b.timer = time.AfterFunc(l.cfg.WriteTimeout, func() { l.giveUp(b) })
		l.next = b
	}
	if b.bytes+len(e.event) > maxWaiting {
		return nil, fmt.Errorf("%w: %d bytes wait for it already", ErrUnavailable, b.bytes)
	}
	b.entries = append(b.entries, e)
	b.bytes += len(e.event)
	b.data = b.data && e.class == record.Data
	if len(b.entries) == l.expect {
		select {
		case l.enough <- struct{}{}:
		default:
		}
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return b, nil
}

// giveUp ends the wait for a batch that is not written in time. Unless it is
// being written, it will not be.
func (l *Log) giveUp(b *batch) {
	l.mu.Lock()
	if !b.taken && l.next == b {
		l.next = nil
	}
	l.mu.Unlock()
	err := fmt.Errorf("%w: not within %v", ErrUnavailable, l.cfg.WriteTimeout)
	if !b.finish(err) {
		return
	}
	l.tell(err)
	if b.written.Load() { // in the meantime, and told before
		l.tell(nil)
	}
}

// take returns the batch that is to be written, if any.
func (l *Log) take() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.next
	if b != nil {
		b.taken = true
	}
	l.next = nil
	return b
}

// Note has a record written as soon as it can be. It is for what must happen
// whether or not it can be recorded, and does not wait. While nothing can be
// written it is kept, with 1,000 others; how many more there were is recorded.
func (l *Log) Note(class record.Class, e *record.Event) {
	event := encode(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.cfg.Logger.LogAttrs(context.Background(), slog.LevelError, "event after the end of the audit log is not in it",
			slog.String("log", l.cfg.Log), slog.String("event", string(event)))
		return
	}
	if len(l.notes) >= maxNotes {
		l.lost++
		return
	}
	l.notes = append(l.notes, entry{class, event})
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Denied records an operation that was refused; it is Append for class Denials,
// but counts the denials of a caller who has very many, or when room runs out.
// Then the tenant is not recorded: whoever is refused can name any.
func (l *Log) Denied(ctx context.Context, e *record.Event) error {
	n := l.cfg.DenialsPerMinute
	_, ok := l.denials.Take(e.Caller, limit.Limit{Rate: float64(n) / 60, Burst: n})
	if !ok || l.pressed(dataPart) {
		l.Count(Row{Class: record.Denials, Caller: e.Caller, Verb: e.Verb, Result: e.Result}, e.Bytes)
		return nil
	}
	return l.Append(ctx, record.Denials, e)
}

// Count counts an operation of class Data, or Denials, for the record of its
// interval. It does not wait, and never allocates but for the first of its kind.
func (l *Log) Count(r Row, bytes int64) { l.rows.add(r, sums{1, bytes}) }

// Stats are the figures of a log.
type Stats struct {
	// Records is how many records were written.
	Records int64
	// Failing is since when nothing could be written; zero if it can be.
	Failing time.Time
	// Bytes is how many bytes the sink has used, MaxBytes how many it may; zero
	// if it has no bound.
	Bytes, MaxBytes int64
}

// Stats returns the figures of now.
func (l *Log) Stats() Stats {
	s := Stats{Records: l.records.Load()}
	if since := l.failing.Load(); since != 0 {
		s.Failing = time.Unix(0, since)
	}
	if l.cfg.Room != nil {
		s.Bytes, s.MaxBytes = l.cfg.Room()
	}
	return s
}

// Close writes what is left, a record that the log ends, and a checkpoint, and
// closes the sink. When ctx ends before, it returns ctx's error, and the sink is
// closed as it is. Operations after Close are ErrUnavailable. It is called once.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	var err error
	select {
	case <-l.done:
		err = l.last
	case <-ctx.Done():
		err = fmt.Errorf("closing the audit log: %w", ctx.Err())
	}
	return errors.Join(err, l.cfg.Sink.Close())
}
