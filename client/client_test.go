package client_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/server/identity"
	"github.com/keysidecar/keysidecar/server/socket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is a Sealer that gives one answer to both operations.
type answer func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error)

func (a answer) Seal(ctx context.Context, r sealer.Request) (sealer.Result, error) {
	return a(ctx, policy.Seal, r)
}

func (a answer) Unseal(ctx context.Context, r sealer.Request) (sealer.Result, error) {
	return a(ctx, policy.Unseal, r)
}

func echo(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
	return sealer.Result{Data: r.Data}, nil
}

// me is the caller of every call that this process makes.
func me() policy.Caller {
	return policy.PeerCaller(uint32(os.Geteuid()), uint32(os.Getegid()), int32(os.Getpid()))
}

// admitMe lets this process seal and unseal, under the name that me has.
func admitMe(t *testing.T) *policy.Policy {
	t.Helper()
	uid := me().UID
	p, err := policy.New(policy.Config{
		Callers: []policy.CallerRule{{Name: "me", UID: &uid}},
		Rules:   []policy.Rule{{Callers: []string{"me"}, Tenants: []string{"*"}, Verbs: []string{"seal", "unseal"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// noLimits leaves room for everything.
func noLimits(t *testing.T) *server.Limits {
	t.Helper()
	callers, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	room, err := limit.NewBytes(limit.BytesConfig{Total: 1 << 40, Share: 1})
	if err != nil {
		t.Fatal(err)
	}
	return &server.Limits{Callers: callers, Bytes: room}
}

// serve runs a server on path and returns how to stop it.
func serve(t *testing.T, path string, s server.Sealer) (stop func()) {
	t.Helper()
	rules := admitMe(t)
	srv, err := server.New(server.Config{
		Sealer: s, MaxUnary: sealer.MaxPlaintext, Logger: slog.New(slog.DiscardHandler), Limits: noLimits(t),
		Source: identity.NewPeers(), Policy: func() *policy.Policy { return rules },
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := socket.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	stop = func() {
		srv.Close()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

// socketPath returns a free path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "keysidecar.sock")
}

func dial(t *testing.T, path string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Dial(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSealAndUnseal(t *testing.T) {
	type asked struct {
		Verb policy.Verb
		sealer.Request
	}
	var got asked
	path := socketPath(t)
	serve(t, path, answer(func(_ context.Context, v policy.Verb, r sealer.Request) (sealer.Result, error) {
		got = asked{v, r}
		return sealer.Result{Data: []byte("answer"), Key: dek.Info{
			ID: envelope.ID{0xfe, 15: 1}, KEKRef: "eu", KEKVersion: kek.Version{0xab}, Region: "westeurope",
		}}, nil
	}))
	pairs := map[string]string{"table": "users"}
	info := client.KeyInfo{
		DEKID: "fe" + strings.Repeat("0", 29) + "1", KEKRef: "eu", KEKVersion: "ab" + strings.Repeat("0", 30),
		Region: "westeurope",
	}
	for _, socket := range []string{path, "unix:" + path, "unix://" + path} {
		c := dial(t, socket)
		sealed, err := c.Seal(t.Context(), "acme", []byte("data"), pairs)
		if err != nil {
			t.Fatal(err)
		}
		want := asked{policy.Seal, sealer.Request{
			Caller: me(), CallerName: "me", Tenant: "acme", Context: pairs, Data: []byte("data"),
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error("sealer was asked (-want +got):\n", diff)
		}
		if diff := cmp.Diff(client.Sealed{Bytes: []byte("answer"), KeyInfo: info}, sealed); diff != "" {
			t.Error("Seal returned (-want +got):\n", diff)
		}
		unsealed, err := c.Unseal(t.Context(), "acme", []byte("KSB"), pairs)
		if err != nil {
			t.Fatal(err)
		}
		want.Verb, want.Data = policy.Unseal, []byte("KSB")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error("sealer was asked (-want +got):\n", diff)
		}
		if diff := cmp.Diff(client.Unsealed{Plaintext: []byte("answer"), KeyInfo: info}, unsealed); diff != "" {
			t.Error("Unseal returned (-want +got):\n", diff)
		}
	}
}

func TestLargest(t *testing.T) {
	path := socketPath(t)
	serve(t, path, answer(func(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		return sealer.Result{Data: append(r.Data, make([]byte, sealer.MaxSealed(len(r.Data))-len(r.Data))...)}, nil
	}))
	sealed, err := dial(t, path).Seal(t.Context(), "acme", bytes.Repeat([]byte{1}, sealer.MaxPlaintext), nil)
	if err != nil || len(sealed.Bytes) != sealer.MaxSealed(sealer.MaxPlaintext) {
		t.Errorf("Seal of 64 MiB returned %d bytes, %v", len(sealed.Bytes), err)
	}
}

func TestError(t *testing.T) {
	path := socketPath(t)
	serve(t, path, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		return sealer.Result{}, &sealer.Error{Reason: sealer.KEKForbidden, RetryAfter: time.Minute}
	}))
	_, err := dial(t, path).Unseal(t.Context(), "acme", nil, nil)
	if got := client.ReasonOf(err); got != "KEK_FORBIDDEN" {
		t.Errorf("ReasonOf is %q", got)
	}
	var e *client.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %T", err)
	}
	text := e.Error()
	if e.RequestID == "" || !strings.Contains(text, e.RequestID) || !strings.HasPrefix(text, "KEK_FORBIDDEN: ") {
		t.Errorf("request id is %q in %q", e.RequestID, e)
	}
	want := &client.Error{
		Reason: "KEK_FORBIDDEN", Code: codes.FailedPrecondition, Message: sealer.KEKForbidden.Text(), RetryAfter: time.Minute,
	}
	ignore := cmp.Options{cmpopts.IgnoreUnexported(client.Error{}), cmpopts.IgnoreFields(client.Error{}, "RequestID")}
	if diff := cmp.Diff(want, e, ignore); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
	if got := client.ReasonOf(errors.New("other")); got != "" {
		t.Errorf("ReasonOf another error is %q", got)
	}
}

// TestAttempts counts how often a failing call is made.
func TestAttempts(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		limit time.Duration
		want  int32
	}{
		"no retry":             {&sealer.Error{Reason: sealer.AuthenticationFailed}, 0, 1},
		"unavailable, no info": {&sealer.Error{Reason: sealer.KeyVaultUnreachable}, 0, 1},
		"internal":             {errors.New("defect"), 0, 1},
		"retry":                {&sealer.Error{Reason: sealer.Overloaded, RetryAfter: time.Millisecond}, 0, 3},
		"too long":             {&sealer.Error{Reason: sealer.KeyVaultThrottled, RetryAfter: 5001 * time.Millisecond}, 0, 1},
		"over the deadline":    {&sealer.Error{Reason: sealer.Draining, RetryAfter: 4 * time.Second}, 3500 * time.Millisecond, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var made atomic.Int32
			path := socketPath(t)
			serve(t, path, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
				made.Add(1)
				return sealer.Result{}, c.err
			}))
			ctx := t.Context()
			if c.limit != 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.limit)
				defer cancel()
			}
			start := time.Now()
			_, err := dial(t, path).Seal(ctx, "acme", nil, nil)
			if _, ok := errors.AsType[*client.Error](err); !ok {
				t.Fatal(err)
			}
			if got := made.Load(); got != c.want {
				t.Errorf("call was made %d times, want %d", got, c.want)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("call took %v", took)
			}
		})
	}
}

func TestRetrySucceeds(t *testing.T) {
	var made atomic.Int32
	path := socketPath(t)
	serve(t, path, answer(func(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		if made.Add(1) < 3 {
			return sealer.Result{}, &sealer.Error{Reason: sealer.Overloaded, RetryAfter: time.Millisecond}
		}
		return sealer.Result{Data: r.Data}, nil
	}))
	sealed, err := dial(t, path).Seal(t.Context(), "acme", []byte("x"), nil)
	if err != nil || string(sealed.Bytes) != "x" {
		t.Errorf("third attempt returned %q, %v", sealed.Bytes, err)
	}
}

// TestContextEndsWait gives a call up while it waits for its next attempt.
func TestContextEndsWait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := socketPath(t)
	serve(t, path, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		time.AfterFunc(20*time.Millisecond, cancel)
		return sealer.Result{}, &sealer.Error{Reason: sealer.Overloaded, RetryAfter: 5 * time.Second}
	}))
	start := time.Now()
	_, err := dial(t, path).Seal(ctx, "acme", nil, nil)
	if took := time.Since(start); took > 3*time.Second || client.ReasonOf(err) != "OVERLOADED" {
		t.Errorf("Seal returned %v after %v", err, took)
	}
}

// TestRestart loses the server in the middle of a call and finds the next one.
func TestRestart(t *testing.T) {
	path := socketPath(t)
	entered := make(chan struct{})
	stop := serve(t, path, answer(func(ctx context.Context, _ policy.Verb, _ sealer.Request) (sealer.Result, error) {
		close(entered)
		<-ctx.Done()
		return sealer.Result{}, ctx.Err()
	}))
	c := dial(t, path)
	type result struct {
		sealed client.Sealed
		err    error
	}
	call := make(chan result)
	seal := func() {
		sealed, err := c.Seal(t.Context(), "acme", []byte("x"), nil)
		call <- result{sealed, err}
	}
	go seal()
	<-entered
	stop()
	<-time.After(400 * time.Millisecond)
	serve(t, path, answer(echo))
	if got := <-call; got.err != nil || string(got.sealed.Bytes) != "x" {
		t.Errorf("Seal over a restart returned %q, %v", got.sealed.Bytes, got.err)
	}
}

func TestNobodyListens(t *testing.T) {
	c := dial(t, socketPath(t))
	start := time.Now()
	_, err := c.Seal(t.Context(), "acme", nil, nil)
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Code != codes.Unavailable || e.Reason != "" || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Seal without a server returned %v", err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("Seal gave up after %v", took)
	}
}

func TestContextErrors(t *testing.T) {
	path := socketPath(t)
	serve(t, path, answer(func(ctx context.Context, _ policy.Verb, _ sealer.Request) (sealer.Result, error) {
		<-ctx.Done()
		return sealer.Result{}, ctx.Err()
	}))
	c := dial(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Seal(ctx, "acme", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Seal over its deadline returned %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := c.Seal(ctx, "acme", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Seal returned %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Seal(t.Context(), "acme", nil, nil); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("Seal after Close returned %v", err)
	}
}

func TestServing(t *testing.T) {
	path := socketPath(t)
	stop := serve(t, path, answer(echo))
	c := dial(t, path)
	if ok, err := c.Serving(t.Context(), ""); !ok || err != nil {
		t.Errorf("Serving is %v, %v", ok, err)
	}
	if ok, err := c.Serving(t.Context(), "other"); ok || err == nil {
		t.Errorf("Serving of an unknown service is %v, %v", ok, err)
	}
	stop()
	if ok, err := c.Serving(t.Context(), ""); ok || err == nil {
		t.Errorf("Serving without a server is %v, %v", ok, err)
	}
}

func TestDialEmpty(t *testing.T) {
	for _, socket := range []string{"", "unix:", "unix://"} {
		if c, err := client.Dial(socket); err == nil {
			c.Close()
			t.Errorf("Dial(%q) succeeded", socket)
		}
	}
}

// TestOddPath shows that a path is taken as it is, not as a URL.
func TestOddPath(t *testing.T) {
	dir := filepath.Join(filepath.Dir(socketPath(t)), "a b%2f?#")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	serve(t, path, answer(echo))
	if _, err := dial(t, "unix://"+path).Seal(t.Context(), "acme", nil, nil); err != nil {
		t.Error(err)
	}
}
