package audited

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// logStats are sums over all halves of events.
type logStats struct{ events, writes, bytes int64 }

// note says how the log was written.
func (s *site) note() string {
	l := &s.log
	if l.writes == 0 {
		return ""
	}
	return fmt.Sprintf("audit log: %d goroutines, %d bytes a line, %.0f events a write, an fsync every 50 ms",
		callers, l.bytes/l.events, float64(l.events)/float64(l.writes))
}

// events is a half: the time in which a log in files of its own takes an event of those that
// the sidecar writes in full, from as many goroutines as there are callers, each of which waits
// until it is written; what is written is synced every 50 ms.
func (s *site) events(ctx context.Context, length time.Duration) (took float64, err error) {
	event, err := s.full.lastCall()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(s.dir, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	origin := audit.NewOrigin("bench", time.Now())
	files, err := segments.Open(segments.Config{Path: dir, Log: origin, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, err
	}
	sink := &counting{Dir: files}
	log, err := audit.New(audit.Config{
		Log: origin, Sink: sink, WriteSoon: sink.WriteSoon, Sync: files.Sync, Logger: slog.New(slog.DiscardHandler),
	}, &record.Event{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, log.Close(ctx)) }()
	var group sync.WaitGroup
	var written atomic.Int64
	errs := make([]error, callers)
	writes, lines := sink.writes.Load(), sink.bytes.Load()
	start := time.Now()
	for i := range callers {
		group.Go(func() {
			for errs[i] == nil && time.Since(start) < length {
				e := *event
				errs[i] = log.Append(ctx, record.Data, &e)
				written.Add(1)
			}
		})
	}
	group.Wait()
	elapsed := time.Since(start)
	s.log.events += written.Load()
	s.log.writes += sink.writes.Load() - writes
	s.log.bytes += sink.bytes.Load() - lines
	return elapsed.Seconds() / float64(written.Load()), errors.Join(errs...)
}

// WriteSoon counts a write that is synced later.
func (c *counting) WriteSoon(seq int64, lines []byte) error {
	c.writes.Add(1)
	c.bytes.Add(int64(len(lines)))
	return c.Dir.WriteSoon(seq, lines)
}

// counting counts what is written.
type counting struct {
	*segments.Dir
	writes, bytes atomic.Int64
}

func (c *counting) Write(seq int64, lines []byte, begin bool) error {
	c.writes.Add(1)
	c.bytes.Add(int64(len(lines)))
	return c.Dir.Write(seq, lines, begin)
}

var errFound = errors.New("found")

// lastCall returns the event of a call in the sidecar's log.
func (k *sidecar) lastCall() (*record.Event, error) {
	var event *record.Event
	err := reader.Read([]string{filepath.Join(k.dir, "audit")}, nil, func(l reader.Line) (err error) {
		if l.Err != nil {
			return l.Err
		}
		if event, err = record.ParseEvent(l.Record.Event); err == nil && event.Kind == record.Call {
			err = errFound
		}
		return err
	})
	if err == nil {
		err = errors.New("there is no call in the sidecar's log")
	}
	if !errors.Is(err, errFound) {
		return nil, fmt.Errorf("looking for a call in the sidecar's log: %w", err)
	}
	return event, nil
}
