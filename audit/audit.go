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
	// WriteTimeout is how long an operation waits for its record. Zero means
	// 2 s.
	WriteTimeout time.Duration
	// Now is the clock that records are dated by. Nil means time.Now.
	Now func() time.Time
	// Rows is how many different operations are counted apart in an interval.
	// Zero means 10,000.
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
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when all is written
	failing atomic.Int64  // since when nothing could be written, Unix ns; 0: it can
	records atomic.Int64

	certificate atomic.Pointer[string] // of key; nil: none yet

	mu     sync.Mutex
	next   *batch  // nil: empty
	notes  []entry // to be written when it can be, whoever waits
	lost   int64   // entries that found no room in notes
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
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	l.pen = pen{log: l}
	first := *start
	first.Kind, first.Key = record.Start, key
	go l.run()
	for _, e := range append([]*record.Event{&first}, others...) {
		if err := l.Append(context.Background(), record.Keys, e); err != nil {
			return nil, errors.Join(err, l.Close(context.Background()))
		}
	}
	return l, nil
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
	taken   bool // guarded by Log.mu: being written
	timer   *time.Timer
	once    sync.Once
	done    chan struct{} // closed when err says what became of it
	err     error
}

func (b *batch) finish(err error) {
	b.once.Do(func() {
		b.err = err
		b.timer.Stop()
		close(b.done)
	})
}

// What waits to be written, at most.
const (
	maxWaiting = 8 << 20 // bytes
	maxNotes   = 1000
)

// maxEvent is the longest event: a line has room for it and its header.
const maxEvent = record.MaxLine - 512

// encode returns the event's bytes. Of one that is too long for a line, it
// leaves out what can be long.
func encode(e *record.Event) []byte {
	event := e.Append(make([]byte, 0, 256))
	if len(event) <= maxEvent {
		return event
	}
	short := *e
	short.Context, short.Files = nil, nil
	short.Detail = fmt.Sprintf("%.1000s (shortened: the event has %d bytes)", e.Detail, len(event))
	return short.Append(event[:0])
}

// Append writes a record, and returns when it is written. Otherwise the error is
// ErrUnavailable, or ctx's: then it may be written all the same.
func (l *Log) Append(ctx context.Context, class record.Class, e *record.Event) error {
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
		b = &batch{done: make(chan struct{})}
		b.timer = time.AfterFunc(l.cfg.WriteTimeout, func() { l.giveUp(b) })
		l.next = b
	}
	if b.bytes+len(e.event) > maxWaiting {
		return nil, fmt.Errorf("%w: %d bytes wait for it already", ErrUnavailable, b.bytes)
	}
	b.entries = append(b.entries, e)
	b.bytes += len(e.event)
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
	b.finish(fmt.Errorf("%w: not within %v", ErrUnavailable, l.cfg.WriteTimeout))
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
	if len(l.notes) >= maxNotes || l.closed {
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
// but counts the denials of a caller who has very many.
func (l *Log) Denied(ctx context.Context, e *record.Event) error {
	n := l.cfg.DenialsPerMinute
	if _, ok := l.denials.Take(e.Caller, limit.Limit{Rate: float64(n) / 60, Burst: n}); !ok {
		l.Count(Row{Class: record.Denials, Caller: e.Caller, Tenant: e.Tenant, Verb: e.Verb, Result: e.Result}, e.Bytes)
		return nil
	}
	return l.Append(ctx, record.Denials, e)
}

// Count counts an operation of class Data, or Denials, for the record of its
// interval. It does not wait, and never allocates but for the first of its kind.
func (l *Log) Count(r Row, bytes int64) { l.rows.add(r, bytes) }

// Stats are the figures of a log.
type Stats struct {
	// Records is how many records were written.
	Records int64
	// Failing is since when nothing could be written; zero if it can be.
	Failing time.Time
}

// Stats returns the figures of now.
func (l *Log) Stats() Stats {
	s := Stats{Records: l.records.Load()}
	if since := l.failing.Load(); since != 0 {
		s.Failing = time.Unix(0, since)
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
		err = l.pen.last
	case <-ctx.Done():
		err = fmt.Errorf("closing the audit log: %w", ctx.Err())
	}
	return errors.Join(err, l.cfg.Sink.Close())
}
