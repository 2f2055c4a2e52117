package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// stream is the newest files of a log, one after another, as one stream. Its
// Read waits for more where they end.
type stream struct {
	ctx    context.Context
	path   string           // a directory or a file
	idle   func() error     // called when all that is there was read
	poll   <-chan time.Time // nil: then Read returns io.EOF
	known  map[string]bool  // the files that were met
	queue  []string         // those of them that are still to read
	file   *os.File         // the one being read
	offset int64
	open   bool // a line of it is not finished
}

// newStream returns a stream that begins early enough for the last records.
func newStream(ctx context.Context, cfg *TailConfig, idle func() error) (*stream, error) {
	s := &stream{ctx: ctx, path: cfg.Path, idle: idle, poll: cfg.Poll, known: make(map[string]bool)}
	if err := s.look(); err != nil {
		return nil, err
	}
	lines, first := 0, len(s.queue)
	for first > 0 && (lines < cfg.Last || first == len(s.queue)) {
		first--
		n, err := countLines(s.queue[first])
		if err != nil {
			return nil, err
		}
		lines += n
	}
	s.queue = s.queue[first:]
	return s, nil
}

// look puts new files into the queue.
func (s *stream) look() error {
	names, err := segments(s.path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !s.known[name] {
			s.known[name] = true
			s.queue = append(s.queue, name)
		}
	}
	return nil
}

// segments returns the files of a directory in the order in which they were
// written, or the file itself.
func segments(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading an audit log: %w", err)
	}
	if info.Mode().IsRegular() {
		return []string{path}, nil
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("reading an audit log: %s is neither a directory nor a regular file: pipe it in, and name -", path)
	}
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return nil, fmt.Errorf("reading an audit log: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), ".jsonl") {
			names = append(names, filepath.Join(path, e.Name()))
		}
	}
	return names, nil
}

// countLines returns the number of lines of a file, 0 if it has been removed.
func countLines(name string) (int, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading an audit log: %w", err)
	}
	defer f.Close()
	lines, buf := 0, make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		lines += bytes.Count(buf[:n], []byte{'\n'})
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return 0, fmt.Errorf("reading an audit log: %w", err)
		}
	}
}

// Read reads what is there, and waits where there is nothing. It returns io.EOF
// when ctx ends, or when there is nothing to wait for.
func (s *stream) Read(p []byte) (int, error) {
	for {
		n, err := s.readFile(p)
		if n > 0 || err != nil {
			return n, err
		}
		// A file that has a successor gets nothing more. After wait has found one,
		// what was written before that is still to read.
		if len(s.queue) == 0 {
			if err := s.wait(); err != nil {
				return 0, err
			}
			continue
		}
		if s.open {
			s.open = false
			p[0] = '\n' // for the reader to begin anew
			return 1, nil
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
}

// readFile reads the file, and returns 0 at its end.
func (s *stream) readFile(p []byte) (int, error) {
	if s.file == nil {
		return 0, nil
	}
	if info, err := s.file.Stat(); err == nil && info.Size() < s.offset {
		s.offset = info.Size() // what could not be made durable was taken back
	}
	n, err := s.file.ReadAt(p, s.offset)
	if n > 0 {
		s.offset += int64(n)
		s.open = p[n-1] != '\n'
		return n, nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("reading an audit log: %w", err)
	}
	return 0, nil
}

// next opens the next file. One that was removed in the meantime is passed over.
func (s *stream) next() error {
	_ = s.Close()
	name := s.queue[0]
	s.queue = s.queue[1:]
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading an audit log: %w", err)
	}
	s.file, s.offset = f, 0
	return nil
}

// wait looks for new files, and if there are none, waits.
func (s *stream) wait() error {
	if err := s.look(); err != nil || len(s.queue) > 0 {
		return err
	}
	if err := s.idle(); err != nil {
		return err
	}
	if s.poll == nil {
		return io.EOF
	}
	select {
	case <-s.poll:
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

// Close closes the file.
func (s *stream) Close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}
