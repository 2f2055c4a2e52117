package audit_test

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/audit"
)

// pipe takes n bytes of each Write, and then fails.
type pipe struct {
	bytes.Buffer
	n   int
	err error
}

func (p *pipe) Write(b []byte) (int, error) {
	if len(b) <= p.n {
		return p.Buffer.Write(b)
	}
	n, _ := p.Buffer.Write(b[:p.n])
	return n, p.err
}

// TestStream shows that a line which is begun is ended, and that a write that
// did nothing is an error.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipe{n: 3, err: syscall.EAGAIN}
		s := audit.NewStream(p)
		start := time.Now()
		if err := s.Write(0, []byte("0123456789\n"), true); err != nil || p.String() != "0123456789\n" {
			t.Errorf("%v: %q", err, p.String())
		}
		if time.Since(start) != 300*time.Millisecond {
			t.Errorf("four writes took %v", time.Since(start))
		}
		p.n, p.err = 0, syscall.EPIPE
		if err := s.Write(1, []byte("next\n"), false); !errors.Is(err, syscall.EPIPE) || s.Full() {
			t.Errorf("a write that did nothing returned %v", err)
		}
	})
}

func TestStreamClosedWithinALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipe{n: 3, err: syscall.EAGAIN}
		s := audit.NewStream(p)
		time.AfterFunc(150*time.Millisecond, func() { _ = s.Close() })
		if err := s.Write(0, []byte("0123456789\n"), true); err == nil {
			t.Error("half a line is no error")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
