package audit

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// run writes until stop is closed, and then the rest.
func (l *Log) run() {
	defer close(l.done)
	checkpoint := time.NewTicker(l.cfg.CheckpointInterval)
	defer checkpoint.Stop()
	interval := time.NewTicker(l.cfg.Interval)
	defer interval.Stop()
	sync := time.NewTimer(l.cfg.SyncInterval)
	sync.Stop()
	for {
		select {
		case <-l.wake:
			l.gather()
			if unsafe := l.pen.unsafe; l.write(false) && l.pen.unsafe && !unsafe {
				sync.Reset(l.cfg.SyncInterval)
			}
		case <-sync.C:
			if l.pen.unsafe && !l.sync() {
				sync.Reset(l.cfg.SyncInterval)
			}
		case <-checkpoint.C:
			if l.write(l.cfg.Now().Sub(l.pen.high) >= l.cfg.AliveInterval) {
				l.checkpoint()
			}
			l.warnRoom()
		case <-interval.C:
			l.writeRows()
		case <-l.stop:
			l.last = l.end()
			return
		}
	}
}

// gathering is how long a write waits for further records at most.
const gathering = 200 * time.Microsecond

// gather waits until as many records wait as the last write had, and as came
// while it was written: who waited for that is likely to come again, and a write
// costs the same for one record as for a hundred. A single caller's never waits.
func (l *Log) gather() {
	l.mu.Lock()
	few := l.next != nil && len(l.next.entries) < l.expect
	if few {
		select {
		case <-l.enough: // of a batch before
		default:
		}
	}
	l.mu.Unlock()
	if !few {
		return
	}
	timer := time.NewTimer(gathering)
	defer timer.Stop()
	select {
	case <-l.enough:
	case <-timer.C:
	case <-l.stop:
	}
}

// sync makes safe what is only written.
func (l *Log) sync() bool {
	err := l.cfg.Sync()
	l.tell(err)
	l.pen.unsafe = err != nil
	return err == nil
}

// end writes what is left, and that the log ends.
func (l *Log) end() error {
	ok := l.write(false) && l.writeRows()
	if ok && l.begun {
		ok = l.try(func() error {
			return l.pen.write(l.rows.start(), func(now time.Time) { l.pen.add(now, record.Keys, &record.Event{Kind: record.Stop}) })
		}) &&
			l.checkpoint()
	}
	if ok {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rest, since := l.rows.take(l.cfg.Now())
	return fmt.Errorf("%d records and %d counts since %v are lost: %w", len(l.notes)+int(l.lost), len(rest), since, l.pen.last)
}

// try runs a write, and tells when writing begins to fail, and when it works
// again.
func (l *Log) try(write func() error) bool {
	before := l.pen.frontier.Size()
	err := write()
	if err != nil || l.pen.frontier.Size() > before {
		l.tell(err)
	}
	return err == nil
}

// write writes what waits. What cannot be written stays where it is, but for
// the batch: nobody waits for it any more.
func (l *Log) write(alive bool) bool {
	b := l.take()
	notes, lost := l.waiting()
	var err error
	ok := l.try(func() error {
		l.pen.soon = b != nil && b.data && len(notes) == 0
		err = l.pen.write(l.rows.start(), func(now time.Time) { l.pen.waiting(now, b, notes, lost, alive) })
		l.pen.soon = false
		l.written(b, len(notes), lost, err)
		if b != nil {
			b.written.Store(err == nil) // before it is told: see giveUp
			b.finish(notWritten(err))
		}
		return err
	})
	return ok
}

func notWritten(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// rowsAtOnce is how many rows are written at once: about half a megabyte.
const rowsAtOnce = 2000

// writeRows writes what was counted.
func (l *Log) writeRows() bool {
	until := l.cfg.Now()
	all, since := l.rows.take(until)
	if l.pressed(dataPart) {
		all = coarse(all)
	}
	for len(all) > 0 {
		n := min(len(all), rowsAtOnce)
		ok := l.try(func() error {
			return l.pen.write(since, func(now time.Time) {
				for i := range all[:n] {
					l.pen.add(now, all[i].row.Class, all[i].event(since, until))
				}
			})
		})
		if !ok {
			l.rows.putBack(all, since)
			return false
		}
		all = all[n:]
	}
	return true
}

// checkpoint writes a checkpoint of what is written: apart from it, so that no
// two checkpoints of one size are ever signed with different roots.
func (l *Log) checkpoint() bool {
	// A clock that was set back is told before. The first record of a segment is
	// a checkpoint itself.
	if l.pen.frontier.Size() <= l.pen.covered+1 || !l.try(func() error { return l.pen.write(l.rows.start(), func(time.Time) {}) }) ||
		l.cfg.Sink.Full() {
		return true
	}
	return l.try(func() error {
		return l.pen.write(l.rows.start(), func(now time.Time) { l.pen.checkpoint(now, record.CheckpointMade, l.rows.start()) })
	})
}

func (l *Log) waiting() ([]entry, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.notes), l.lost
}

// written forgets what was written of what waiting returned, and notes how many
// waited: for b, and while it was written.
func (l *Log) written(b *batch, notes int, lost int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b != nil {
		l.expect = len(b.entries)
		if l.next != nil {
			l.expect += len(l.next.entries)
		}
	}
	if err != nil {
		return
	}
	l.notes, l.lost = l.notes[notes:], l.lost-lost
	if len(l.notes) == 0 {
		l.notes = nil
	}
}

// tell keeps the time since when writing fails, and logs when it begins and ends.
func (l *Log) tell(err error) {
	if err != nil {
		if l.failing.CompareAndSwap(0, time.Now().UnixNano()) {
			l.cfg.Logger.LogAttrs(context.Background(), slog.LevelError,
				"audit log cannot be written: denials, key events and tenants with audit full are refused; see its directory or collector",
				slog.String("log", l.cfg.Log), slog.Any("cause", err))
		}
		return
	}
	if since := l.failing.Swap(0); since != 0 {
		l.cfg.Logger.LogAttrs(context.Background(), slog.LevelInfo, "audit log is written again",
			slog.String("log", l.cfg.Log), slog.Duration("after", time.Since(time.Unix(0, since))))
	}
}

// pen gives records their places. It is the writer's own.
type pen struct {
	log  *Log
	last error // of the last write that failed

	place
	buf    []byte
	soon   bool // what is written now may become safe later
	unsafe bool // something was written that is not safe yet
}

// place is where a log is.
type place struct {
	frontier record.Frontier
	prev     record.Link
	high     time.Time // the latest time of a record
	covered  int64     // by the last checkpoint, which is a record itself
}

// write writes what fill adds, all of it or nothing. Since is from when counts
// are missing as long as it is not written.
func (p *pen) write(since time.Time, fill func(now time.Time)) error {
	before := p.place
	before.frontier = p.frontier.Clone()
	now := p.log.cfg.Now().Round(0).UTC() // without the monotonic clock, which is not set back
	first := p.frontier.Size()
	begin := first == 0 || p.log.cfg.Sink.Full()
	p.buf = p.buf[:0]
	if begin && first > 0 {
		p.checkpoint(now, record.Segment, since)
	}
	start := len(p.buf)
	if p.high.Sub(now) > time.Second {
		p.add(now, record.Keys, &record.Event{Kind: record.Clock, From: p.high, To: now})
		p.high = now
	}
	filled := len(p.buf)
	fill(now)
	if len(p.buf) == filled && filled == start {
		p.place = before
		return nil
	}
	if now.After(p.high) {
		p.high = now
	}
	if err := p.send(first, begin); err != nil {
		p.place, p.last = before, err
		return err
	}
	p.log.records.Store(p.frontier.Size())
	if cap(p.buf) > maxBuffer {
		p.buf = nil
	}
	return nil
}

// send writes the lines: so that they are safe, unless that is for later.
func (p *pen) send(first int64, begin bool) error {
	if cfg := &p.log.cfg; p.soon && !begin && cfg.WriteSoon != nil && cfg.Sync != nil {
		err := cfg.WriteSoon(first, p.buf)
		p.unsafe = p.unsafe || err == nil
		return err
	}
	err := p.log.cfg.Sink.Write(first, p.buf, begin)
	p.unsafe = p.unsafe && err != nil
	return err
}

// maxBuffer is the largest buffer that is kept.
const maxBuffer = 1 << 20

// waiting adds what waits.
func (p *pen) waiting(now time.Time, b *batch, notes []entry, lost int64, alive bool) {
	for _, e := range notes {
		p.line(now, e.class, e.event)
	}
	if lost > 0 {
		p.add(now, record.Keys, &record.Event{Kind: record.Lost, Count: lost})
	}
	if b != nil {
		for _, e := range b.entries {
			p.line(now, e.class, e.event)
		}
	}
	if alive {
		p.add(now, record.Keys, &record.Event{Kind: record.Alive})
	}
}

func (p *pen) add(now time.Time, class record.Class, e *record.Event) { p.line(now, class, encode(e)) }

// line adds a record.
func (p *pen) line(now time.Time, class record.Class, event []byte) {
	h := record.Header{Log: p.log.cfg.Log, Seq: p.frontier.Size(), Time: now, Class: class, Prev: p.prev}
	var leaf [32]byte
	p.buf, leaf = record.Append(p.buf, &h, event)
	p.frontier.Add(leaf)
	p.prev = record.LinkTo(leaf)
}

// checkpoint adds a record with a signed checkpoint of those before it. Since is
// from when counts are not written yet.
func (p *pen) checkpoint(now time.Time, kind record.Kind, since time.Time) {
	signed, err := record.Checkpoint{Log: p.log.cfg.Log, Size: p.frontier.Size(), Root: p.frontier.Root()}.Sign(p.log.signer)
	if err != nil {
		panic("audit: internal error: " + err.Error()) // Ed25519 signs everything
	}
	e := &record.Event{Kind: kind, Note: signed, From: since}
	if kind == record.Segment {
		e.Key = p.log.key
		if c := p.log.certificate.Load(); c != nil {
			e.Certificate = *c
		}
		for _, node := range p.frontier.Nodes() {
			e.Frontier = append(e.Frontier, base64.StdEncoding.EncodeToString(node[:]))
		}
	}
	p.covered = p.frontier.Size()
	p.add(now, record.Keys, e)
}
