package server_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/internal/limit"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/server"
)

// feed writes without end to the other side of a connection.
func feed(t *testing.T) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() { // until Close
		_, err := io.Copy(theirs, zeros{})
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Error("feeding:", err)
		}
	}()
	t.Cleanup(func() { theirs.Close() })
	return ours
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A caller that is refused now and then is read at once, one that floods is
// read as slowly as its refusals are many, some calls at a time, and never for
// longer than brakeMost not at all.
func TestBrake(t *testing.T) {
	for refusals, wait := range map[int]time.Duration{
		0: 0, 1: 0, 10: 0, 11: server.RefusalPause, 20: 20*server.RefusalPause - server.BrakeSlack,
		100_000: server.BrakeMost,
	} {
		synctest.Test(t, func(t *testing.T) {
			conn, press := server.Braked(feed(t))
			defer conn.Close()
			for range refusals {
				press()
			}
			began, buffer := time.Now(), make([]byte, 32<<10)
			if n, err := io.ReadFull(conn, buffer[:server.BrakeFree]); err != nil || time.Since(began) != 0 {
				t.Errorf("%d refusals: the first %d bytes came after %v, %v", refusals, n, time.Since(began), err)
			}
			n, err := conn.Read(buffer)
			if got := time.Since(began); err != nil || got != wait {
				t.Errorf("%d refusals: read after %v, %v, want %v", refusals, got, err, wait)
			}
			if braked := wait > 0; (n > server.BrakeRead) == braked {
				t.Errorf("%d refusals: %d bytes were read at once", refusals, n)
			}
			<-time.After(server.BrakeMost + server.BrakeAfter)
			if n, err = conn.Read(buffer); n <= server.BrakeRead || err != nil {
				t.Errorf("%d refusals, and then none: %d bytes were read at once, %v", refusals, n, err)
			}
		})
	}
}

// Nobody waits for a connection that is closed.
func TestBrakeEndsWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, press := server.Braked(feed(t))
		for range 10_000 {
			press()
		}
		began := time.Now()
		time.AfterFunc(10*time.Millisecond, func() { conn.Close() })
		if n, err := io.Copy(new(bytes.Buffer), conn); n != server.BrakeFree || err == nil || time.Since(began) != 10*time.Millisecond {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(began))
		}
	})
}

// A flood of calls over a caller's rate is refused a thousand times a second, and
// waits for the rest of it.
func TestFloodIsReadSlowly(t *testing.T) {
	const flood, workers = 160, 16
	s := start(t, answer(echo), func(c *server.Config) { c.Limits.Caller = limit.Limit{Rate: 1, Burst: 1} })
	var left atomic.Int64
	left.Store(flood)
	began := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				_, _ = s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}) // refused, but for a few
			}
		})
	}
	wg.Wait()
	// Those that were under way together may have been read before the brake, and
	// some are refused for free because the pause has its bound.
	if got, least := time.Since(began), (flood-2*workers)*server.RefusalPause/2-server.BrakeSlack; got < least {
		t.Errorf("%d calls were refused within %v, want no less than %v", flood, got, least)
	}
}
