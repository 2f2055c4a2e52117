package export

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/audit/reader"
)

// TailConfig says what Tail writes.
type TailConfig struct {
	// Path is a directory, a file, or "-" for Stdin.
	Path  string
	Stdin io.Reader
	// Last is how many of the records that are there are written.
	Last int
	// Format is how: Text or JSONL. Required.
	Format Format
	// Poll is when to look for new records. Nil means never: Tail returns when
	// it has read what is there.
	Poll <-chan time.Time
}

// Tail writes the last records, and then, until ctx ends, new ones as they come,
// also those of new files in a directory. Of Stdin with Poll it writes all. Lines
// that are no records, or whose events are not those recorded, Text has as such,
// and JSONL has not. It holds Last lines.
func Tail(ctx context.Context, out io.Writer, cfg TailConfig) error {
	t := &tail{out: bufio.NewWriter(out), format: cfg.Format, most: cfg.Last}
	t.printer = newPrinter(cfg.Format, &t.text)
	in := cfg.Stdin
	if cfg.Path == "-" {
		t.live = cfg.Poll != nil
	} else {
		s, err := newStream(ctx, &cfg, t.flush)
		if err != nil {
			return err
		}
		defer s.Close()
		in = s
	}
	err := reader.Read([]string{"-"}, in, t.take)
	return errors.Join(err, t.flush())
}

// tail keeps the last lines until it has read all that is there.
type tail struct {
	out     *bufio.Writer
	printer *printer
	text    strings.Builder // what printer has written
	format  Format
	most    int // in ring
	ring    []shownLine
	oldest  int    // in ring, when it is full
	live    bool   // what comes is written at once
	log     string // whose lines are written
}

// shownLine is what is shown of a line, and the log that it is of, if it is of
// any.
type shownLine struct{ log, text string }

func (t *tail) take(l reader.Line) error {
	line, err := t.line(&l)
	switch {
	case err != nil || line.text == "":
		return err
	case t.live:
		t.write(line)
		return t.out.Flush()
	case len(t.ring) < t.most:
		t.ring = append(t.ring, line)
	case t.most > 0:
		t.ring[t.oldest] = line
		t.oldest = (t.oldest + 1) % t.most
	}
	return nil
}

// line returns what is shown of a line.
func (t *tail) line(l *reader.Line) (shownLine, error) {
	e, err := open(l)
	switch {
	case err == nil:
		t.text.Reset()
		err = t.printer.record(l.Record, e)
		return shownLine{l.Record.Log, t.text.String()}, err
	case t.format == JSONL:
		return shownLine{}, nil
	case l.Record == nil:
		return shownLine{"", fmt.Sprintf("!! %v\n", err)}, nil
	}
	return shownLine{l.Record.Log, fmt.Sprintf("!! record %d: %v\n", l.Record.Seq, err)}, nil
}

// write writes a line, and before it whose it is when the one before was
// another log's. Flush has the error.
func (t *tail) write(line shownLine) {
	if line.log != "" && line.log != t.log && t.format == Text {
		t.log = line.log
		_, _ = t.out.WriteString("== " + line.log + "\n")
	}
	_, _ = t.out.WriteString(line.text)
}

// flush writes the last lines. What comes from now on is written at once.
func (t *tail) flush() error {
	t.live = true
	for i := range t.ring {
		t.write(t.ring[(t.oldest+i)%len(t.ring)])
	}
	t.ring = nil
	return t.out.Flush()
}
