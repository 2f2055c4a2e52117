package reconcile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	// maxEntry is the longest object in bytes. Those of Key Vault have 1 to 4 KiB.
	maxEntry = 256 << 10
	// maxDepth is how deep an object may be nested.
	maxDepth = 32
)

// unreadable says why something in a vault log is not an entry. What comes after
// it can be read.
type unreadable struct {
	line int // where it begins, from 1
	why  string
}

// Error says where and why.
func (e *unreadable) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.why) }

// splitter finds the objects in a vault log, and does not look into them. What
// is torn or is no JSON costs what stands on its line, and no more if it can be
// helped: half a line is what a copy of a growing file ends with.
type splitter struct {
	in     *bufio.Reader
	line   int    // of the next byte
	outer  []byte // the brackets around objects that are open
	single bool   // an object had a line of its own, so all have
	// Of the object that is read:
	text  []byte
	stack []byte // its brackets that are open
	last  byte   // its last byte outside strings that is no space
	start int    // its line
}

func newSplitter(in io.Reader) *splitter {
	s := &splitter{in: bufio.NewReaderSize(in, 64<<10), line: 1}
	if bom, err := s.in.Peek(3); err == nil && string(bom) == "\xef\xbb\xbf" {
		_, _ = s.in.Discard(3) // they are in the buffer
	}
	return s
}

// next returns the next object and its line. The error is io.EOF, unreadable,
// or that of the reader. The text is valid until the next call.
func (s *splitter) next() ([]byte, int, error) {
	for {
		c, err := s.read()
		switch {
		case errors.Is(err, io.EOF) && len(s.outer) > 0:
			s.outer = nil
			return nil, 0, &unreadable{s.line, "the file ends inside a list: it is not whole"}
		case err != nil:
			return nil, 0, err
		case isSpace(c), c == ',':
		case c == '[':
			if s.outer = append(s.outer, c); len(s.outer) > maxDepth {
				s.outer = nil
				return nil, 0, s.skip(s.line, "nested too deep")
			}
		case c == '{':
			if whole, err := s.object(); err != nil || whole {
				return s.text, s.start, err
			}
		case len(s.outer) > 0 && closes(s.outer[len(s.outer)-1], c):
			s.outer = s.outer[:len(s.outer)-1]
		default:
			return nil, 0, s.skip(s.line, "not JSON")
		}
	}
}

// object reads an object, whose first brace has been read. It is not whole if it
// turns out to be one around a list of entries.
func (s *splitter) object() (whole bool, err error) {
	s.text, s.stack, s.last, s.start = append(s.text[:0], '{'), append(s.stack[:0], '{'), '{', s.line
	for len(s.stack) > 0 {
		c, err := s.read()
		if errors.Is(err, io.EOF) {
			return false, &unreadable{s.start, "the file ends inside an entry"}
		}
		if err != nil {
			return false, err
		}
		if c == '{' && !s.mayOpen() {
			_ = s.in.UnreadByte() // it was just read
			return false, &unreadable{s.start, "an entry that is cut off"}
		}
		if c == '\n' && s.single {
			return false, &unreadable{s.start, "an entry that is cut off"}
		}
		s.text = append(s.text, c)
		if c == '[' && s.isWrapper() {
			s.outer = append(s.outer, '{', '[')
			return false, nil
		}
		if why := s.take(c); why != "" || len(s.text) > maxEntry {
			return false, s.skipFrom(c, why)
		}
		if c == '"' {
			if err := s.quoted(); err != nil {
				return false, err
			}
		}
	}
	s.single = s.single || s.line == s.start && len(s.outer) == 0
	return true, nil
}

// mayOpen reports whether JSON allows an object here. If not, a line was cut off
// and the next one begins.
func (s *splitter) mayOpen() bool {
	return s.last == ':' || s.last == '[' || s.last == ',' && s.stack[len(s.stack)-1] == '['
}

// isWrapper reports whether the object so far is {"records":[.
func (s *splitter) isWrapper() bool {
	return len(s.stack) == 1 && len(s.text) < 64 && string(bytes.Join(bytes.Fields(s.text), nil)) == `{"records":[`
}

// take follows brackets, and says what is wrong with c.
func (s *splitter) take(c byte) (why string) {
	switch {
	case isSpace(c):
		return ""
	case c == '{' || c == '[':
		if s.stack = append(s.stack, c); len(s.stack) > maxDepth {
			why = "nested too deep"
		}
	case c == '}' || c == ']':
		if !closes(s.stack[len(s.stack)-1], c) {
			return "brackets that do not match"
		}
		s.stack = s.stack[:len(s.stack)-1]
	}
	s.last = c
	return why
}

// quoted reads the rest of a string.
func (s *splitter) quoted() error {
	for escaped := false; ; {
		c, err := s.read()
		switch {
		case errors.Is(err, io.EOF):
			return &unreadable{s.start, "the file ends inside an entry"}
		case err != nil:
			return err
		case c == '\n':
			return &unreadable{s.start, "an entry that is cut off"}
		case len(s.text) >= maxEntry:
			return s.skipFrom(c, "")
		}
		s.text = append(s.text, c)
		if c == '"' && !escaped {
			return nil
		}
		escaped = c == '\\' && !escaped
	}
}

// skipFrom skips the rest of the line that c, the last byte read, stands on.
func (s *splitter) skipFrom(c byte, why string) error {
	if why == "" {
		why = fmt.Sprintf("an entry of over %d bytes", maxEntry)
	}
	if c == '\n' {
		return &unreadable{s.start, why}
	}
	return s.skip(s.start, why)
}

// skip skips the rest of the line, and returns what was wrong, and where it
// began.
func (s *splitter) skip(start int, why string) error {
	for {
		c, err := s.read()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err != nil || c == '\n' {
			return &unreadable{start, why}
		}
	}
}

// read returns the next byte, and counts lines.
func (s *splitter) read() (byte, error) {
	c, err := s.in.ReadByte()
	if c == '\n' && err == nil {
		s.line++
	}
	return c, err
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func closes(open, c byte) bool { return open == '{' && c == '}' || open == '[' && c == ']' }
