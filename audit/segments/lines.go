package segments

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/keysidecar/keysidecar/audit/record"
)

// damage says where a log is not what was written.
type damage struct {
	file  string
	line  int // from 1
	cause error
}

// Error names the place.
func (e *damage) Error() string { return fmt.Sprintf("%s, line %d: %v", e.file, e.line, e.cause) }

// Unwrap returns what is wrong there.
func (e *damage) Unwrap() error { return e.cause }

// errCutOff says that a line has no line feed.
var errCutOff = errors.New("the line is cut off")

// walk calls each with every line of a file, without its line feed, until one is
// no good: then the error is *damage, unless it is of another file that each
// uses. The line is valid during the call. It returns how many bytes the good
// lines have. A last line without line feed is errCutOff. When ctx ends, the
// error is ctx's.
func (d *Dir) walk(ctx context.Context, name string, each func(line []byte) error) (good int64, err error) {
	f, err := d.root.Open(name)
	if err != nil {
		return 0, fmt.Errorf("reading audit log: %w", err)
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 8*record.MaxLine)
	for number := 1; ; number++ {
		if err := ctx.Err(); err != nil {
			return good, err
		}
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return good, nil
		case errors.Is(err, io.EOF) && len(line) <= record.MaxLine:
			err = errCutOff
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			err = fmt.Errorf("%w: longer than %d bytes", record.ErrMalformed, record.MaxLine)
		case err != nil:
			return good, fmt.Errorf("reading audit log: %w", err)
		default:
			err = each(line[:len(line)-1])
		}
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			return good, err
		}
		if err != nil {
			return good, &damage{d.path(name), number, err}
		}
		good += int64(len(line))
	}
}

// chain checks that each record of a log follows the one before.
type chain struct {
	log    string
	next   int64
	prev   record.Link
	linked bool // prev is known
}

// chainFrom returns a chain whose first record is that one.
func chainFrom(log string, first int64) chain {
	return chain{log: log, next: first, linked: first == 0}
}

// add reads the next record.
func (c *chain) add(line []byte) (*record.Record, error) {
	r, err := record.Parse(line)
	switch {
	case err != nil:
		return nil, err
	case r.Log != c.log:
		return nil, fmt.Errorf("it is a record of log %s", r.Log)
	case r.Seq != c.next:
		return nil, fmt.Errorf("it is record %d, not %d", r.Seq, c.next)
	case c.linked && r.Prev != c.prev:
		return nil, errors.New("it does not link to the record before it")
	case !r.Intact():
		return nil, errors.New("its event is not the one that was written")
	}
	c.next, c.prev, c.linked = c.next+1, record.LinkTo(r.Leaf), true
	return r, nil
}
