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
	for {
		select {
		case <-l.wake:
			l.write(job{})
		case <-checkpoint.C:
			alive := l.cfg.Now().Sub(l.pen.at) >= l.cfg.AliveInterval
			l.write(job{alive: alive, checkpoint: true})
		case <-interval.C:
			l.write(job{rows: true})
		case <-l.stop:
			l.write(job{rows: true, checkpoint: true, stop: true})
			return
		}
	}
}

// job says what is written besides what waits.
type job struct{ rows, alive, checkpoint, stop bool }

// write writes what waits. What cannot be written stays where it is, but for
// the batch: nobody waits for it any more.
func (l *Log) write(j job) {
	b := l.take()
	notes, lost := l.waiting()
	var counted []counted
	var since time.Time
	if j.rows {
		counted, since = l.rows.take(l.cfg.Now())
	}
	err := l.pen.write(j, b, notes, lost, counted, since)
	if err != nil {
		l.rows.putBack(counted, since)
	} else {
		l.written(len(notes), lost)
	}
	l.tell(err)
	if b != nil {
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		b.finish(err)
	}
}

func (l *Log) waiting() ([]entry, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.notes), l.lost
}

// written forgets what was written of what waiting returned.
func (l *Log) written(notes int, lost int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notes, l.lost = l.notes[notes:], l.lost-lost
	if len(l.notes) == 0 {
		l.notes = nil
	}
}

// tell keeps the time since when writing fails, and logs when it begins and ends.
func (l *Log) tell(err error) {
	since := l.failing.Load()
	switch {
	case err != nil && since == 0:
		l.failing.Store(time.Now().UnixNano())
		l.cfg.Logger.LogAttrs(context.Background(), slog.LevelError,
			"audit log cannot be written: denials, key events and tenants with audit full are refused; see its directory or collector",
			slog.String("log", l.cfg.Log), slog.Any("cause", err))
	case err == nil && since != 0:
		l.failing.Store(0)
		l.cfg.Logger.LogAttrs(context.Background(), slog.LevelInfo, "audit log is written again",
			slog.String("log", l.cfg.Log), slog.Duration("after", time.Since(time.Unix(0, since))))
	}
}

// pen gives records their places. It is the writer's own.
type pen struct {
	log  *Log
	last error // of the last write

	frontier record.Frontier
	prev     record.Link
	at       time.Time // of the last record
	covered  int64     // by the last checkpoint, which is a record itself

	buf, event []byte
}

// mark is a place to go back to.
type mark struct {
	frontier record.Frontier
	prev     record.Link
	covered  int64
	at       time.Time
}

// write writes all of it as lines, or nothing.
func (p *pen) write(j job, b *batch, notes []entry, lost int64, counted []counted, since time.Time) error {
	before := mark{p.frontier.Clone(), p.prev, p.covered, p.at}
	first := p.frontier.Size()
	now := p.log.cfg.Now().Round(0).UTC() // without the monotonic clock, which is not set back
	p.buf = p.buf[:0]
	begin := first == 0 || p.log.cfg.Sink.Full()
	if err := p.lines(j, b, notes, lost, counted, since, now, begin && first > 0); err != nil {
		p.back(before)
		return err
	}
	if len(p.buf) == 0 {
		return p.last // nothing to write says nothing about whether it can be
	}
	p.at = now
	p.last = p.log.cfg.Sink.Write(first, p.buf, begin)
	if p.last != nil {
		p.back(before)
		return p.last
	}
	p.log.records.Store(p.frontier.Size())
	return nil
}

func (p *pen) back(to mark) {
	p.frontier, p.prev, p.covered, p.at = to.frontier, to.prev, to.covered, to.at
}

// lines fills p.buf.
func (p *pen) lines(
	j job, b *batch, notes []entry, lost int64, counted []counted, since, now time.Time, segment bool,
) error {
	if segment {
		if err := p.checkpoint(now, record.Segment); err != nil {
			return err
		}
	}
	if back := p.at.Sub(now); back > time.Second {
		p.add(now, record.Keys, &record.Event{Kind: record.Clock, From: p.at, To: now})
	}
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
	for i := range counted {
		p.add(now, counted[i].row.Class, counted[i].event(since, now))
	}
	if j.alive {
		p.add(now, record.Keys, &record.Event{Kind: record.Alive})
	}
	if j.stop {
		p.add(now, record.Keys, &record.Event{Kind: record.Stop})
	}
	if j.checkpoint && p.frontier.Size() > p.covered+1 {
		return p.checkpoint(now, record.CheckpointMade)
	}
	return nil
}

func (p *pen) add(now time.Time, class record.Class, e *record.Event) {
	p.event = e.Append(p.event[:0])
	p.line(now, class, p.event)
}

// line adds a record.
func (p *pen) line(now time.Time, class record.Class, event []byte) {
	h := record.Header{Log: p.log.cfg.Log, Seq: p.frontier.Size(), Time: now, Class: class, Prev: p.prev}
	var leaf [32]byte
	p.buf, leaf = record.Append(p.buf, &h, event)
	p.frontier.Add(leaf)
	p.prev = record.LinkTo(leaf)
}

// checkpoint adds a record with a signed checkpoint of those before it.
func (p *pen) checkpoint(now time.Time, kind record.Kind) error {
	signed, err := record.Checkpoint{Log: p.log.cfg.Log, Size: p.frontier.Size(), Root: p.frontier.Root()}.Sign(p.log.signer)
	if err != nil {
		return err
	}
	e := &record.Event{Kind: kind, Note: signed, From: p.log.rows.start()}
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
	return nil
}
