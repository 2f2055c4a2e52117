package sidecar_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/sidecar"
)

// pipes is a listener whose connections are in memory, so that time is a
// bubble's.
type pipes struct {
	incoming chan net.Conn
	closed   chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.incoming:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// connect returns the client's end of a connection, which may wait to be let in.
func (p *pipes) connect(t *testing.T) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		select {
		case p.incoming <- theirs:
		case <-p.closed:
			_ = theirs.Close()
		}
	}()
	t.Cleanup(func() { _ = ours.Close() })
	return ours
}

// Whoever holds as many connections to the metrics as there may be, and whatever
// it does with them, does not keep others from them for long.
func TestMetricsConnections(t *testing.T) {
	const page = "the metrics"
	request := "GET /metrics HTTP/1.1\r\nHost: sidecar\r\n"
	for name, c := range map[string]struct {
		sends string
		reads bool
		wait  time.Duration // at most
	}{
		"nothing":           {"", true, 5 * time.Second},
		"half a request":    {request, true, 5 * time.Second},
		"half a body":       {request + "Content-Length: 9\r\n\r\nhalf", true, 5 * time.Second},
		"a request":         {request + "\r\n", true, time.Second},
		"a deaf request":    {request + "\r\n", false, 30 * time.Second},
		"too long a header": {request + "X: " + strings.Repeat("x", 30_000) + "\r\n\r\n", true, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ln := &pipes{incoming: make(chan net.Conn), closed: make(chan struct{})}
				var served atomic.Int64
				srv, limited := sidecar.NewWeb(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					served.Add(1)
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, page)
				}))
				done := make(chan error)
				go func() { done <- srv.Serve(limited) }()
				for range 32 {
					conn := ln.connect(t)
					go func() { _, _ = io.WriteString(conn, c.sends) }()
					if c.reads {
						go func() { _, _ = io.Copy(io.Discard, conn) }()
					}
				}
				synctest.Wait()
				if name == "too long a header" && served.Load() > 0 {
					t.Errorf("%d requests with too long a header were served", served.Load())
				}
				start, conn := time.Now(), ln.connect(t)
				go func() { _, _ = io.WriteString(conn, request+"\r\n") }()
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				waited := time.Since(start)
				if string(got) != page || err != nil || waited > c.wait {
					t.Errorf("the 33rd connection got %q, %v after %v", got, err, waited)
				}
				if waited == 0 {
					t.Error("the 33rd connection did not wait")
				}
				if err := srv.Close(); err != nil {
					t.Error(err)
				}
				if err := <-done; err != http.ErrServerClosed {
					t.Error(err)
				}
			})
		})
	}
}
