package audit

import (
	"errors"
	"io"
	"sync"
	"time"
)

// Stream is a Sink that writes lines to a stream, such as standard output. What
// of it is kept, and for how long, is the business of whoever reads it.
type Stream struct {
	to     io.Writer
	closed chan struct{}
	once   sync.Once
}

// NewStream returns a Stream. It does not close to.
func NewStream(to io.Writer) *Stream { return &Stream{to: to, closed: make(chan struct{})} }

// streamRetry is how often a Stream tries again to write the rest of a line.
const streamRetry = 100 * time.Millisecond

var errStreamClosed = errors.New("the stream was closed within a line")

// Write writes lines. Once a part of them is written the rest has to follow,
// however long that takes: else a reader would find half a line.
func (s *Stream) Write(_ int64, lines []byte, _ bool) error {
	n, err := s.to.Write(lines)
	if n == 0 {
		return err
	}
	for err != nil {
		select {
		case <-s.closed:
			return errStreamClosed
		case <-time.After(streamRetry):
		}
		lines = lines[n:]
		n, err = s.to.Write(lines)
	}
	return nil
}

// Full reports false: a stream has no segments.
func (s *Stream) Full() bool { return false }

// Close ends a Write that waits to try again.
func (s *Stream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}
