package load_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/bench/load"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// fake answers the n-th call, from 1 on.
type fake struct {
	keysidecarv1.UnimplementedSealServiceServer
	n   atomic.Int64
	err func(n int64) error
}

func (f *fake) Seal(_ context.Context, req *keysidecarv1.SealRequest) (*keysidecarv1.SealResponse, error) {
	if err := f.err(f.n.Add(1)); err != nil {
		return nil, err
	}
	return &keysidecarv1.SealResponse{Sealed: append([]byte(req.GetTenant()), req.GetPlaintext()...)}, nil
}

// serve serves a fake and returns how to reach it.
func serve(t *testing.T, err func(n int64) error) load.Target {
	t.Helper()
	dir, mkErr := os.MkdirTemp("", "ks")
	if mkErr != nil {
		t.Fatal(mkErr)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ln, lnErr := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "s"))
	if lnErr != nil {
		t.Fatal(lnErr)
	}
	s := grpc.NewServer()
	keysidecarv1.RegisterSealServiceServer(s, &fake{err: err})
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	return load.Target{Socket: ln.Addr().String(), Connections: 2, Tenant: "t", Bytes: 100}
}

func dial(t *testing.T, target load.Target) *load.Caller {
	t.Helper()
	c, err := load.Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func do(t *testing.T, c *load.Caller, o load.Order) load.Report {
	t.Helper()
	o.Start = time.Now().Add(time.Millisecond)
	r, err := c.Do(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fine(int64) error { return nil }

func refused(t *testing.T, reason string) error {
	t.Helper()
	s, err := status.New(codes.ResourceExhausted, "too much").WithDetails(&errdetails.ErrorInfo{Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

func TestOpenLoop(t *testing.T) {
	limited, full := refused(t, "RATE_LIMITED"), refused(t, "OVERLOADED")
	c := dial(t, serve(t, func(n int64) error {
		switch n % 4 {
		case 1:
			return limited
		case 3:
			return full
		}
		return nil
	}))
	for seed := range uint64(2) {
		r := do(t, c, load.Order{For: 100 * time.Millisecond, Rate: 2000, Seed: seed, Outstanding: 1000})
		if r.Due < 150 || r.Due > 250 || r.OK+r.Refused+r.Failed != r.Due || r.LeftOut != 0 {
			t.Errorf("seed %d: %+v", seed, r)
		}
		if r.Refused < r.Due/4-1 || r.Refused > r.Due/4+1 || r.Failed < r.Due/4-1 || r.Failed > r.Due/4+1 || r.Failure == "" {
			t.Errorf("seed %d: %+v", seed, r)
		}
		if r.P50 <= 0 || r.P99 < r.P50 || r.Late <= 0 || r.Took < 90*time.Millisecond {
			t.Errorf("seed %d: %+v", seed, r)
		}
	}
}

// A sidecar that stops for a while delays the calls that are due meanwhile: they count
// from when they were due, though none of them could be made.
func TestOmissionIsNotCoordinated(t *testing.T) {
	const stop = 100 * time.Millisecond
	var until atomic.Int64
	start := time.Now()
	c := dial(t, serve(t, func(n int64) error {
		if n == 3 { // the first after those of Dial
			until.Store(int64(time.Since(start) + stop))
		}
		<-time.After(time.Duration(until.Load()) - time.Since(start))
		return nil
	}))
	r := do(t, c, load.Order{For: 2 * stop, Rate: 1000, Outstanding: 1000})
	if r.OK != 200 || r.P99 < stop*8/10 {
		t.Errorf("%+v: half of 200 calls were due while nothing was answered", r)
	}
}

// So does what delays the caller itself.
func TestLateCaller(t *testing.T) {
	const late = 100 * time.Millisecond
	c := dial(t, serve(t, fine))
	r, err := c.Do(t.Context(), load.Order{Start: time.Now().Add(-late), For: 2 * late, Rate: 1000, Outstanding: 1000})
	if err != nil || r.OK != 200 || r.P99 < late*8/10 || r.Late < late*8/10 || r.P99 < r.Late {
		t.Errorf("%+v, %v: half of 200 calls were due before they could be made", r, err)
	}
}

func TestOutstanding(t *testing.T) {
	var hang atomic.Bool
	leave := make(chan struct{})
	c := dial(t, serve(t, func(int64) error {
		if hang.Load() {
			<-leave
		}
		return nil
	}))
	hang.Store(true)
	time.AfterFunc(100*time.Millisecond, func() { close(leave) })
	r := do(t, c, load.Order{For: 50 * time.Millisecond, Rate: 2000, Outstanding: 7})
	if r.OK != 7 || r.LeftOut != r.Due-7 || r.Due != 100 || r.Took < 90*time.Millisecond {
		t.Errorf("%+v: want 100 calls due, 7 made", r)
	}
}

func TestClosedLoop(t *testing.T) {
	var now, most atomic.Int64
	c := dial(t, serve(t, func(int64) error {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		<-time.After(time.Millisecond)
		return nil
	}))
	r := do(t, c, load.Order{For: 100 * time.Millisecond, Outstanding: 5})
	if r.OK != r.Due || r.OK < 5 || r.OK > 500 || r.LeftOut+r.Refused+r.Failed != 0 || most.Load() > 5 {
		t.Errorf("%+v, at most %d at a time", r, most.Load())
	}
}

func TestRefusesOrders(t *testing.T) {
	c := dial(t, serve(t, fine))
	for _, o := range []load.Order{{For: 1}, {Outstanding: 1}, {For: -1, Outstanding: 1}, {For: 1, Outstanding: 1, Rate: -1}} {
		if _, err := c.Do(t.Context(), o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// A first call may be refused for its rate, and for nothing else.
func TestDial(t *testing.T) {
	limited := refused(t, "RATE_LIMITED")
	dial(t, serve(t, func(int64) error { return limited }))
	for name, err := range map[string]error{"denied": status.Error(codes.PermissionDenied, "no"), "full": refused(t, "OVERLOADED")} {
		if _, got := load.Dial(t.Context(), serve(t, func(int64) error { return err })); got == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := load.Dial(t.Context(), load.Target{Address: "127.0.0.1:1", CertFile: "none", Connections: 1}); err == nil {
		t.Error("without a certificate: no error")
	}
}

func TestQuantile(t *testing.T) {
	var all []time.Duration
	for n := range 201 {
		var want time.Duration
		if n > 0 {
			all = append(all, time.Duration(n))
			want = time.Duration(max(1, (99*n+99)/100))
		}
		if got := load.Quantile(all, 99); got != want {
			t.Errorf("99 %% of 1 .. %d: %d, want %d", n, got, want)
		}
	}
	if got := load.Quantile(all[:100], 50); got != 50 {
		t.Errorf("50 %% of 1 .. 100: %d", got)
	}
}

func TestRemote(t *testing.T) {
	target := serve(t, fine)
	in, ordersTo := io.Pipe()
	answersFrom, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- load.Serve(t.Context(), in, out) }()
	r, err := load.NewRemote(target, ordersTo, answersFrom)
	if err != nil {
		t.Fatal(err)
	}
	order := load.Order{Start: time.Now(), For: 20 * time.Millisecond, Rate: 1000, Outstanding: 100}
	for range 2 {
		got, err := r.Do(order)
		if err != nil || got.OK != 20 || got.P99 <= 0 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := r.Do(load.Order{}); err == nil {
		t.Error("an order to do nothing: no error")
	}
	if err := ordersTo.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRemoteCannotDial(t *testing.T) {
	target := serve(t, func(int64) error { return status.Error(codes.PermissionDenied, "no") })
	in, ordersTo := io.Pipe()
	answersFrom, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- load.Serve(t.Context(), in, out) }()
	if _, err := load.NewRemote(target, ordersTo, answersFrom); err == nil {
		t.Error("no error")
	}
	if err := <-done; err == nil {
		t.Error("Serve returned no error")
	}
}

func TestSchedule(t *testing.T) {
	o := load.Order{For: 10 * time.Second, Rate: 1000}
	even := load.Schedule(o)
	if len(even) != 10_000 || even[0] != time.Millisecond || even[9999] != o.For {
		t.Errorf("%d calls, from %s to %s", len(even), even[0], even[len(even)-1])
	}
	o.Seed = 1
	random := load.Schedule(o)
	short := 0 // gaps of less than the median of the exponential distribution, half of all
	for i := range random[1:] {
		if random[i+1] < random[i] {
			t.Fatal("not in order")
		}
		if gap := random[i+1] - random[i]; gap < 693*time.Microsecond {
			short++
		}
	}
	if n := len(random); n < 9_500 || n > 10_500 || short < n*48/100 || short > n*52/100 || random[n-1] > o.For {
		t.Errorf("%d calls, %d of them soon after the one before", n, short)
	}
	again := load.Schedule(o)
	o.Seed = 2
	if other := load.Schedule(o); again[0] != random[0] || again[99] != random[99] || other[0] == random[0] {
		t.Error("the calls are not those of the seed")
	}
}
