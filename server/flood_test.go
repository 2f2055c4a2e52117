package server_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

func timeout(value string) hpack.HeaderField {
	return hpack.HeaderField{Name: "grpc-timeout", Value: value}
}

// TestDeadlinesAreCapped shows the deadlines that calls run under.
func TestDeadlinesAreCapped(t *testing.T) {
	const most = time.Minute
	deadlines := make(chan time.Duration, 1)
	s := start(t, answer(func(ctx context.Context, _ policy.Verb, _ sealer.Request) (sealer.Result, error) {
		d, _ := ctx.Deadline()
		deadlines <- time.Until(d)
		return sealer.Result{}, nil
	}), func(c *server.Config) { c.CallTimeout = most })
	for value, want := range map[string]time.Duration{
		"": most, "99999999H": most, "99999999S": most, "61S": most, "59S": 59 * time.Second, "5S": 5 * time.Second,
	} {
		p := s.speak(t, "")
		var extra []hpack.HeaderField
		if value != "" {
			extra = []hpack.HeaderField{timeout(value)}
		}
		if st := p.wait(p.call(sealMethod, &keysidecarv1.SealRequest{}, extra...)).status(t); st.Code() != codes.OK {
			t.Fatalf("call with a timeout of %q got %v", value, st)
		}
		if got := <-deadlines; got > want || got < want-4*time.Second {
			t.Errorf("call with a timeout of %q has %v, want %v", value, got, want)
		}
	}
}

// TestCallsEnd shows that calls which hang inside end, whatever their peers
// want.
func TestCallsEnd(t *testing.T) {
	const most = 200 * time.Millisecond
	stop := newStopper()
	s := start(t, answer(stop.answer), func(c *server.Config) { c.CallTimeout = most })
	p := s.speak(t, "")
	for value, want := range map[string]time.Duration{"": most, "1H": most, "100m": 100 * time.Millisecond} {
		var extra []hpack.HeaderField
		if value != "" {
			extra = []hpack.HeaderField{timeout(value)}
		}
		began := time.Now()
		stream := p.wait(p.call(sealMethod, &keysidecarv1.SealRequest{}, extra...))
		if value == "100m" { // gRPC resets the stream itself, or our answer was there before
			if stream.reset == nil && stream.fields["grpc-status"] != "4" {
				t.Errorf("call with a timeout of its own ended with %v", stream.fields)
			}
		} else if got := wireOf(stream.status(t)); got.Code != codes.DeadlineExceeded || got.Reason != "DEADLINE_EXCEEDED" {
			t.Errorf("call with a timeout of %q ended with %+v", value, got)
		}
		if d := stream.end.Sub(began); d < want-20*time.Millisecond || d > want+5*time.Second {
			t.Errorf("call with a timeout of %q took %v, want %v", value, d, want)
		}
	}
}

// TestSlowLoris opens 200 calls that send a little of a message and stop.
func TestSlowLoris(t *testing.T) {
	const conns, each, most = 4, 50, 500 * time.Millisecond
	var room *limit.Bytes
	withRoom := withBytes(t, 1<<30, 0.5, &room)
	s := start(t, answer(echo), func(c *server.Config) {
		withRoom(c)
		asNamed(t, c)
		c.CallTimeout = most
	})
	victim := keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:victim.test"))
	call := func() time.Duration {
		began := time.Now()
		if _, err := victim.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: make([]byte, 1000)}); err != nil {
			t.Errorf("victim got %v", err)
		}
		return time.Since(began)
	}
	call()
	var peers []*wirePeer
	for range conns {
		p := s.speak(t, "dns:loris.test")
		p.wait(p.call(sealMethod, &keysidecarv1.SealRequest{}))
		peers = append(peers, p)
	}
	eventually(t, "quiet", func() bool { return room.InUse() == 0 })
	before := runtime.NumGoroutine()

	began := time.Now()
	var streams []*wireStream
	for i := range conns * each {
		p := peers[i%conns]
		if i%2 == 0 {
			streams = append(streams, p.open(sealMethod))
		} else {
			streams = append(streams, p.open(sealMethod, timeout("99999999H")))
		}
		p.send(append(prefix(1000), 'x'), false)
	}
	sent := time.Since(began)
	eventually(t, "all calls inside", func() bool { return room.InUse() >= conns*each*server.RoomForCall(roomUnary) })
	var latencies []time.Duration
	for {
		latencies = append(latencies, call())
		if !slices.ContainsFunc(streams, func(s *wireStream) bool { return !isEnded(s) }) {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("streams do not end")
		}
	}
	for _, stream := range streams {
		if st := stream.status(t); st.Code() != codes.DeadlineExceeded {
			t.Fatalf("half-sent call ended with %v", st)
		}
		if d := stream.end.Sub(began); d < most || d > most+sent+2*time.Second {
			t.Errorf("half-sent call took %v, want %v", d, most)
		}
	}
	slices.Sort(latencies)
	worst := latencies[len(latencies)*99/100]
	t.Logf("victim beside %d half-sent calls: %d calls, median %v, p99 %v", len(streams), len(latencies), latencies[len(latencies)/2], worst)
	if worst > 250*time.Millisecond {
		t.Errorf("victim's p99 is %v", worst)
	}
	eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
	eventually(t, "all goroutines ended", func() bool { return runtime.NumGoroutine() <= before })
}

func isEnded(s *wireStream) bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// TestFloodOfMetadata sends more headers than are read: that ends the call, and
// the connection with it if there is no end of them.
func TestFloodOfMetadata(t *testing.T) {
	s := start(t, answer(echo), nil)
	many := func(n, size int) []hpack.HeaderField {
		fields := make([]hpack.HeaderField, n)
		for i := range fields {
			fields[i] = hpack.HeaderField{Name: fmt.Sprintf("x-%d", i), Value: strings.Repeat("y", size)}
		}
		return fields
	}
	for name, c := range map[string]struct {
		fields []hpack.HeaderField
		cutOff bool
	}{
		"one":    {many(1, server.MaxHeaderBytes+100), true},
		"a few":  {many(server.MaxHeaderBytes>>10, 1<<10), false},
		"many":   {many(server.MaxHeaderBytes/35, 1), false}, // 32 bytes are added to each
		"10,000": {many(10_000, 1), true},
	} {
		p := s.speak(t, "")
		stream := p.open(sealMethod, c.fields...)
		select {
		case <-stream.ended:
			if c.cutOff || stream.reset == nil || *stream.reset != http2.ErrCodeFrameSize {
				t.Errorf("%s: stream ended with %v, reset with %v", name, stream.fields, stream.reset)
			}
			if st := p.wait(p.call(sealMethod, &keysidecarv1.SealRequest{})).status(t); st.Code() != codes.OK {
				t.Errorf("%s: the next call got %v", name, st)
			}
		case <-p.gone:
			if !c.cutOff {
				t.Errorf("%s: connection was closed", name)
			}
		case <-time.After(patience):
			t.Fatalf("%s: stream does not end", name)
		}
		if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
			t.Errorf("%s: call on another connection got %v", name, err)
		}
	}
	// gRPC's own client knows the limit, and does not even send.
	big := strings.Repeat("y", server.MaxHeaderBytes)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", big)
	if _, err := s.rpc.Seal(ctx, &keysidecarv1.SealRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("big metadata got %v", err)
	}
	ctx = metadata.AppendToOutgoingContext(t.Context(), "x", big[:server.MaxHeaderBytes-1000])
	if _, err := s.rpc.Seal(ctx, &keysidecarv1.SealRequest{}); err != nil {
		t.Errorf("metadata that just fits got %v", err)
	}
}

// TestTimeoutsOfAllKinds shows what gRPC makes of a grpc-timeout, and that none
// of them does harm.
func TestTimeoutsOfAllKinds(t *testing.T) {
	var room *limit.Bytes
	s := start(t, answer(echo), withBytes(t, 1<<30, 1, &room))
	p := s.speak(t, "")
	for value, want := range map[string]codes.Code{
		"99999999H": codes.OK, "99999999M": codes.OK, "99999999S": codes.OK, "99999999m": codes.OK,
		"0S": codes.DeadlineExceeded, "0n": codes.DeadlineExceeded, "1n": codes.DeadlineExceeded,
		"999999999S": codes.Internal, "-1S": codes.Internal, "S": codes.Internal, "": codes.Internal, "1": codes.Internal,
		"1x": codes.Internal, "1.5S": codes.Internal, "18446744073709551616n": codes.Internal, "\u00b9S": codes.Internal,
	} {
		// Headers alone: what is refused early is not followed by a message.
		stream := p.open(sealMethod, timeout(value))
		if want == codes.OK {
			p.send(message(t, &keysidecarv1.SealRequest{}), true)
		}
		if stream = p.wait(stream); stream.reset != nil {
			t.Errorf("timeout %q: stream was reset with %v", value, *stream.reset)
		} else if got := stream.status(t).Code(); got != want {
			t.Errorf("timeout %q got %v, want %v", value, got, want)
		}
	}
	eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
}

// TestAnyAuthority is about clients that send the socket's path, or nothing
// useful, as the name of the server.
func TestAnyAuthority(t *testing.T) {
	s := start(t, answer(echo), nil)
	for _, authority := range []string{
		"localhost", "sockets%2Fproxy.sock", "unix:/x", "unix:%2Frun%2Fkeysidecar.sock", "/run/keysidecar.sock", "*", "127.0.0.1:443",
		" ", "\"><script>", strings.Repeat("a", 4000),
	} {
		p := s.speak(t, "")
		stream := p.openWith(false, []hpack.HeaderField{
			{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: sealMethod},
			{Name: ":authority", Value: authority}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
		})
		p.send(message(t, &keysidecarv1.SealRequest{}), true)
		if st := p.wait(stream).status(t); st.Code() != codes.OK {
			t.Errorf("authority %q got %v", authority, st)
		}
	}
}
