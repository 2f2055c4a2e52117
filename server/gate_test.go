package server_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/tenant"
)

const (
	sealMethod  = keysidecarv1.SealService_Seal_FullMethodName
	checkMethod = grpc_health_v1.Health_Check_FullMethodName
	pushbackKey = "grpc-retry-pushback-ms"
)

// once lets one call in, and no other for years.
func once() limit.Limit { return limit.Limit{Rate: 1e-9, Burst: 1} }

// stopper is a Sealer whose calls wait inside.
type stopper struct {
	entered chan struct{} // gets one for every call that comes in
	leave   chan struct{} // closed to let all out
}

func newStopper() *stopper {
	return &stopper{entered: make(chan struct{}, 1000), leave: make(chan struct{})}
}

func (s *stopper) answer(ctx context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
	s.entered <- struct{}{}
	select {
	case <-s.leave:
		return sealer.Result{Data: r.Data}, nil
	case <-ctx.Done():
		return sealer.Result{}, ctx.Err()
	}
}

// begin makes a call and returns when it is inside, or has ended. The channel
// gets how it ends.
func (s *stopper) begin(t *testing.T, rpc keysidecarv1.SealServiceClient, data []byte) (result chan error, inside bool) {
	t.Helper()
	result = make(chan error, 1)
	go func() {
		_, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: data})
		result <- err
	}()
	select {
	case <-s.entered:
		return result, true
	case err := <-result:
		result <- err
		return result, false
	case <-time.After(patience):
		t.Fatal("call neither ends nor comes in")
		return nil, false
	}
}

// TestRefusedBeforeTheMessage shows that whoever is refused need not send a
// message, and that meshes are told not to repeat the call where it would not
// help.
func TestRefusedBeforeTheMessage(t *testing.T) {
	stop := newStopper()
	for name, c := range map[string]struct {
		change   func(*server.Config)
		before   func(*testing.T, *running)
		want     wire
		pushback string
	}{
		"rate": {
			func(c *server.Config) { c.Limits.Caller = limit.Limit{Rate: 0.5, Burst: 1} },
			func(t *testing.T, s *running) { // takes the one token
				close(stop.leave)
				if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
					t.Fatal(err)
				}
			},
			wire{codes.ResourceExhausted, sealer.RateLimited.Text(), "RATE_LIMITED", 2 * time.Second, ""}, "-1",
		},
		"calls": {
			func(c *server.Config) { c.Limits.Caller = limit.Limit{Calls: 1} },
			func(t *testing.T, s *running) { stop.begin(t, s.rpc, nil) },
			wire{codes.ResourceExhausted, sealer.Overloaded.Text(), "OVERLOADED", 100 * time.Millisecond, ""}, "-1",
		},
		"bytes": {
			func(c *server.Config) { c.Limits.Bytes.TryAcquire("me", 1<<30) },
			nil,
			wire{codes.ResourceExhausted, sealer.Overloaded.Text(), "OVERLOADED", 100 * time.Millisecond, ""}, "-1",
		},
		"draining": {
			nil, func(_ *testing.T, s *running) { s.StartDraining() },
			wire{codes.Unavailable, sealer.Draining.Text(), "DRAINING", time.Second, ""}, "",
		},
		"nobody": {
			func(c *server.Config) { c.Source = noCaller{c.Source, errors.New("no")} }, nil,
			wire{codes.Unauthenticated, sealer.Unauthenticated.Text(), "UNAUTHENTICATED", 0, ""}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			*stop = *newStopper()
			refused := make(chan sealer.Reason, 2)
			s := start(t, answer(stop.answer), func(cfg *server.Config) {
				cfg.Refused = func(_ context.Context, r sealer.Reason) error { refused <- r; return nil }
				if c.change != nil {
					c.change(cfg)
				}
			})
			if c.before != nil {
				c.before(t, s)
			}
			p := s.speak(t, "")
			stream := p.wait(p.open(sealMethod))
			got := wireOf(stream.status(t))
			if !isRequestID(got.RequestID) || stream.fields["request_id"] != got.RequestID {
				t.Errorf("request id is %q in ErrorInfo, %q in the trailer", got.RequestID, stream.fields["request_id"])
			}
			got.RequestID = ""
			if d := got.Retry; name == "rate" && d > time.Second && d < 2*time.Second { // part of the token is there
				got.Retry = 2 * time.Second
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("answer to headers alone (-want +got):\n%s", diff)
			}
			if got := stream.fields[pushbackKey]; got != c.pushback {
				t.Errorf("pushback is %q, want %q", got, c.pushback)
			}
			eventually(t, "Refused told", func() bool { return len(refused) > 0 })
			if r := <-refused; r.String() != c.want.Reason || len(refused) != 0 {
				t.Errorf("Refused was told %v and %d more, want %s alone", r, len(refused), c.want.Reason)
			}
		})
	}
}

// attempts makes one call with a client that repeats it up to four times.
func attempts(t *testing.T, dial func(context.Context, string) (net.Conn, error)) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"methodConfig": [{"name": [{}], "retryPolicy": {
			"maxAttempts": 4, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
			"retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = keysidecarv1.NewSealServiceClient(conn).Seal(t.Context(), &keysidecarv1.SealRequest{})
	return err
}

// TestNoRetries shows that clients do not repeat what was refused for lack of
// room, and that they would if it were not for the trailer.
func TestNoRetries(t *testing.T) {
	var refused atomic.Int64
	s := start(t, answer(echo), func(c *server.Config) {
		c.Limits.Caller = once()
		c.Refused = func(context.Context, sealer.Reason) error { refused.Add(1); return nil }
	})
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Fatal(err)
	}
	err := attempts(t, func(ctx context.Context, _ string) (net.Conn, error) { return s.netDial(ctx, "") })
	if n := refused.Load(); n != 1 || reasonOf(err) != "RATE_LIMITED" {
		t.Errorf("a client that repeats calls made %d attempts, want 1; it got %v", n, err)
	}
}

func TestNoRetriesControl(t *testing.T) {
	for pushback, want := range map[string]int64{"": 4, "-1": 1} {
		var n atomic.Int64
		bare := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
			n.Add(1)
			if pushback != "" {
				ss.SetTrailer(metadata.Pairs(pushbackKey, pushback))
			}
			return status.Error(codes.ResourceExhausted, "no")
		}))
		ln, err := net.Listen("unix", socketPath(t))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error)
		go func() { served <- bare.Serve(ln) }()
		err = attempts(t, func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", ln.Addr().String())
		})
		// The last error may be that the message found no reader any more.
		if err == nil || n.Load() != want {
			t.Errorf("pushback %q: %d attempts, want %d; error %v", pushback, n.Load(), want, err)
		}
		bare.Stop()
		<-served
	}
}

// TestLimitsOfPolicy shows that policy.yaml changes the default, field by
// field, for the caller it names and nobody else.
func TestLimitsOfPolicy(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c,
			policy.CallerRule{Name: "big", DNS: "big.test", Limits: tenant.Limits{Burst: 5}},
			policy.CallerRule{Name: "fast", DNS: "fast.test", Limits: tenant.Limits{Rate: 1e6}})
		c.Limits.Caller = limit.Limit{Rate: 1e-9, Burst: 2}
	})
	for caller, want := range map[string]int{"dns:big.test": 5, "dns:fast.test": 20, "dns:other.test": 2} {
		rpc := keysidecarv1.NewSealServiceClient(s.dialAs(t, caller))
		n := 0
		for range 20 {
			if _, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err == nil {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: %d of 20 calls came in, want %d", caller, n, want)
		}
	}
}

// TestCallsOfPolicy is about calls at a time, and shows that those that have
// ended make room.
func TestCallsOfPolicy(t *testing.T) {
	stop := newStopper()
	p := rules(t, tenant.Limits{Calls: 3})
	s := start(t, answer(stop.answer), func(c *server.Config) {
		c.Policy, c.Limits.Caller = func() *policy.Policy { return p }, limit.Limit{Calls: 1}
	})
	for round := range 3 {
		var inside []chan error
		for range 3 {
			result, ok := stop.begin(t, s.rpc, nil)
			if !ok {
				t.Fatalf("round %d: a call within the limit got %v", round, <-result)
			}
			inside = append(inside, result)
		}
		if result, ok := stop.begin(t, s.rpc, nil); ok {
			t.Errorf("round %d: a fourth call came in", round)
		} else if err := <-result; reasonOf(err) != "OVERLOADED" {
			t.Errorf("round %d: a fourth call got %v", round, err)
		}
		close(stop.leave)
		for _, result := range inside {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		stop.leave = make(chan struct{})
	}
}

// TestHealthWithinItsOwnLimit shows that a probe is answered while the calls of
// its user are refused, and that probes have a limit that calls do not share.
func TestHealthWithinItsOwnLimit(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) { c.Limits.Caller = once() })
	health := grpc_health_v1.NewHealthClient(s.conn)
	for range 2 {
		_, _ = s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}) // the first may come in
	}
	began, n := time.Now(), 0
	var err error
	for ; err == nil && n < 100_000; n++ {
		_, err = health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	}
	if most := 100 + 1 + int(100*time.Since(began).Seconds()); n-1 < 100 || n-1 > most {
		t.Errorf("%d probes were answered, want 100 to %d", n-1, most)
	}
	w := wireOf(status.Convert(err))
	if w.Code != codes.ResourceExhausted || w.Reason != "RATE_LIMITED" || w.Retry <= 0 || w.Retry > 10*time.Millisecond {
		t.Errorf("a probe too many got %+v", w)
	}
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); reasonOf(err) != "RATE_LIMITED" {
		t.Errorf("call got %v", err)
	}
}

func TestProbesTakeNothingFromCalls(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) { c.Limits.Caller = once() })
	for range 200 {
		_, _ = grpc_health_v1.NewHealthClient(s.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	}
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Errorf("call after many probes got %v", err)
	}
}

// TestWatchesAreBounded is about streams that last.
func TestWatchesAreBounded(t *testing.T) {
	s := start(t, answer(echo), nil)
	health := grpc_health_v1.NewHealthClient(s.conn)
	watch := func(ctx context.Context) error {
		w, err := health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return err
		}
		_, err = w.Recv()
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 32 {
		if err := watch(ctx); err != nil {
			t.Fatalf("stream %d got %v", i, err)
		}
	}
	if err := watch(t.Context()); reasonOf(err) != "OVERLOADED" {
		t.Errorf("one stream too many got %v", err)
	}
	cancel()
	eventually(t, "room for a stream", func() bool { return watch(t.Context()) == nil })
}

// TestDrainingLetsHealthGoOn shows both on a connection that was there before.
func TestDrainingLetsHealthGoOn(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) { c.Reflection = true })
	s.StartDraining()
	p := s.speak(t, "")
	if got := wireOf(p.wait(p.open(sealMethod)).status(t)); got.Reason != "DRAINING" {
		t.Errorf("headers of Seal alone got %+v", got)
	}
	if got := p.wait(p.call(checkMethod, &grpc_health_v1.HealthCheckRequest{})).status(t); got.Code() != codes.OK {
		t.Errorf("probe got %v", got)
	}
}

// TestGroupsAreOneCaller shows that a user gets no more by changing groups.
func TestGroupsAreOneCaller(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.Limits.Caller = once()
	})
	for i, caller := range []string{"uid:7/gid:7", "uid:7/gid:8", "uid:7/gid:7", "uid:7/gid:9"} {
		rpc := keysidecarv1.NewSealServiceClient(s.dialAs(t, caller))
		if _, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); (err == nil) != (i == 0) {
			t.Errorf("call %d, of %s, got %v", i, caller, err)
		}
	}
}

// TestRefusalNotRecorded shows that a refusal which cannot be recorded is not
// told: whoever asked learns that it cannot be recorded.
func TestRefusalNotRecorded(t *testing.T) {
	s := start(t, answer(newStopper().answer), func(c *server.Config) {
		c.Source = noCaller{c.Source, errors.New("no")}
		c.Refused = func(context.Context, sealer.Reason) error { return errors.New("disk full") }
	})
	p := s.speak(t, "")
	got := wireOf(p.wait(p.open(sealMethod)).status(t))
	got.RequestID = ""
	want := wire{codes.Unavailable, sealer.AuditUnavailable.Text(), "AUDIT_UNAVAILABLE", time.Second, ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// TestRefusedWhileOthersCall shows that one caller's limits are its own.
func TestRefusedWhileOthersCall(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.Limits.Caller = once()
	})
	var wg sync.WaitGroup
	for _, caller := range []string{"dns:a.test", "dns:b.test", "uid:7/gid:7"} {
		wg.Go(func() {
			rpc := keysidecarv1.NewSealServiceClient(s.dialAs(t, caller))
			for i := range 50 {
				if _, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); (err == nil) != (i == 0) {
					t.Errorf("call %d of %s got %v", i, caller, err)
				}
			}
		})
	}
	wg.Wait()
}
