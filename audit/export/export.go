// Package export writes the records of audit logs for people and for other
// programs: as JSON lines, as CSV, and as short lines that follow a log. It
// leaves out what was edited in its place, and verifies nothing else:
// audit/verify does.
package export

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// Format says how records are written.
type Format string

// The formats.
const (
	// JSONL writes lines as the log has them, byte for byte.
	JSONL Format = "jsonl"
	// CSV writes RFC 4180, with a header: log, seq, time, class, and the fields
	// of an event. No cell is a formula, and none has a control character or a
	// semicolon.
	CSV Format = "csv"
	// Text writes short lines for people: printable ASCII only.
	Text Format = "text"
)

// ParseFormat reads a format of Export.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); f == JSONL || f == CSV {
		return f, nil
	}
	return "", fmt.Errorf("format %q is not jsonl or csv", s)
}

// Config says what Export writes.
type Config struct {
	// Format is how. Required.
	Format Format
	// Filter is what; the zero Filter takes everything.
	Filter Filter
}

// Stats says what became of the lines that were read.
type Stats struct {
	// Records is how many were whole records, Written how many of them were
	// written.
	Records, Written int64
	// Unknown is how many were not written because their events are removed,
	// so that nobody knows whether the filter takes them.
	Unknown int64
	// Damaged is how many lines were left out because they are not records, or
	// their events are not those that were recorded. First says which was the
	// first, and what it is.
	Damaged int64
	First   string
	// Torn is how many sources end within a line: it is being written, or was
	// when a sidecar or a machine stopped.
	Torn int64
}

// Export writes the records of paths, as reader.Read takes them, in the order in
// which they come: a stream that has a record twice gives it twice. It holds one
// line at a time. What is damaged it leaves out and counts; the error is of
// reading or writing.
func Export(paths []string, stdin io.Reader, out io.Writer, cfg Config) (Stats, error) {
	w := bufio.NewWriter(out)
	p := newPrinter(cfg.Format, w)
	var s Stats
	err := reader.Read(paths, stdin, func(l reader.Line) error {
		r, e := s.take(&l)
		if r == nil {
			return nil
		}
		switch cfg.Filter.takes(r, e) {
		case yes:
			s.Written++
			return p.record(r, e)
		case unknown:
			s.Unknown++
		}
		return nil
	})
	return s, errors.Join(err, p.flush(), w.Flush())
}

// take counts a line, and returns its record and event if it is whole.
func (s *Stats) take(l *reader.Line) (*record.Record, *record.Event) {
	if l.Record == nil && l.Torn {
		s.Torn++
		return nil, nil
	}
	e, err := open(l)
	if err != nil {
		if s.Damaged++; s.Damaged == 1 {
			s.First = fmt.Sprintf("%s:%d: %v", shown(l.Source), l.Number, err)
		}
		return nil, nil
	}
	s.Records++
	return l.Record, e
}

// open returns the event of a line: the zero Event if it was removed.
func open(l *reader.Line) (*record.Event, error) {
	r := l.Record
	switch {
	case r == nil:
		return nil, l.Err
	case r.Pruned():
		return &record.Event{}, nil
	case !r.Intact():
		return nil, errors.New("its event is not the one that was recorded")
	case !printable(string(r.Event)):
		return nil, errors.New("its event has other characters than a sidecar writes")
	}
	return record.ParseEvent(r.Event)
}

// printable reports whether s is printable ASCII.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// shown is s, quoted if a terminal would not just show it.
func shown(s string) string {
	if printable(s) {
		return s
	}
	return strconv.QuoteToASCII(s)
}
