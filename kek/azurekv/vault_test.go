package azurekv_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// asked returns how many requests with a token the vault got.
func (h *harness) asked() int64 {
	var n int64
	counters := h.server.Counters()
	for _, op := range []string{devvault.OpGet, devvault.OpListVersions, devvault.OpWrap, devvault.OpUnwrap} {
		n += counters.Kinds[op]
	}
	return n
}

func (h *harness) inject(t *testing.T, f devvault.Fault) {
	t.Helper()
	if _, err := h.server.Inject(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.server.ClearFaults)
}

// wrapped wraps a DEK, which also makes the client warm.
func (h *harness) wrapped(t *testing.T) []byte {
	t.Helper()
	wrapped, err := h.Wrap(t.Context(), h.key, h.version, new([kek.Size]byte))
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func (h *harness) tryUnwrap(ctx context.Context, wrapped []byte) error {
	return h.Unwrap(ctx, h.key, h.version, wrapped, new([kek.Size]byte))
}

// clock is a time that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestLocalWrapAsksNobody(t *testing.T) {
	c := &clock{now: time.Now()}
	h := open(t, openServer(t), azurekv.Config{Now: c.Now}, kek.RSAOAEP256)
	for _, step := range []struct {
		name string
		do   func()
		want int64
	}{
		{"cold", func() {}, 1},
		{"again", func() {}, 1},
		{"nearly too old", func() { c.add(azurekv.VersionTTL) }, 1},
		{"too old", func() { c.add(time.Nanosecond) }, 2},
		{"clock stepped back", func() { c.add(-time.Hour) }, 3},
	} {
		step.do()
		h.wrapped(t)
		if got := h.asked(); got != step.want {
			t.Errorf("%s: %d requests, want %d", step.name, got, step.want)
		}
	}
	if _, err := h.Newest(t.Context(), h.key); err != nil {
		t.Fatal(err)
	}
	c.add(azurekv.VersionTTL)
	h.wrapped(t)
	if got := h.asked(); got != 4 {
		t.Errorf("%d requests after Newest, want 4", got)
	}
}

// TestRefusalIsRemembered disables a version whose public key is remembered:
// local wraps go on until the vault refuses something.
func TestRefusalIsRemembered(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.RSAOAEP256)
	wrapped := h.wrapped(t)
	h.owner().Disable(t, h.version)
	h.wrapped(t)
	if err := h.tryUnwrap(t.Context(), wrapped); !failed(err, kek.Disabled) {
		t.Fatalf("unwrap: %v", err)
	}
	if _, err := h.Wrap(t.Context(), h.key, h.version, new([kek.Size]byte)); !failed(err, kek.Disabled) {
		t.Errorf("wrap: %v", err)
	}
}

func TestValidity(t *testing.T) {
	for _, alg := range []kek.Alg{kek.RSAOAEP256, kek.A256KW} {
		t.Run(alg.String(), func(t *testing.T) { testValidity(t, alg) })
	}
}

func testValidity(t *testing.T, alg kek.Alg) {
	h := open(t, openServer(t), azurekv.Config{}, alg)
	wrapped := h.wrapped(t)
	newer := h.rotate(t)
	past, future, none := time.Now().Add(-time.Hour), time.Now().Add(time.Hour), time.Time{}
	for _, step := range []struct {
		name               string
		notBefore, expires time.Time
		want               kek.Version
	}{
		{"valid", past, future, newer},
		{"not yet valid", future, none, h.version},
		{"expired", none, past, h.version},
	} {
		a := devvault.Attributes{NotBefore: &step.notBefore, Expires: &step.expires}
		if err := h.server.SetAttributes(vaultName, h.key.Name, newer.String(), a); err != nil {
			t.Fatal(err)
		}
		if got, err := h.Newest(t.Context(), h.key); got != step.want || err != nil {
			t.Errorf("%s: newest is %s, %v, want %s", step.name, got, err, step.want)
		}
		_, err := h.Wrap(t.Context(), h.key, newer, new([kek.Size]byte))
		if ok := step.want == newer; (err == nil) != ok || !ok && !failed(err, kek.Disabled) {
			t.Errorf("%s: wrap: %v", step.name, err)
		}
	}
	a := devvault.Attributes{Expires: &past}
	if err := h.server.SetAttributes(vaultName, h.key.Name, h.version.String(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Newest(t.Context(), h.key); !failed(err, kek.Disabled) || !expired(err) {
		t.Errorf("newest when all are expired: %v", err)
	}
	if err := h.tryUnwrap(t.Context(), wrapped); err != nil {
		t.Errorf("expired version does not unwrap: %v", err)
	}
	h.owner().Disable(t, h.version)
	h.owner().Disable(t, newer)
	if _, err := h.Newest(t.Context(), h.key); !failed(err, kek.Disabled) || expired(err) {
		t.Errorf("newest when all are disabled: %v", err)
	}
}

// expired reports whether err says that an enabled version is out of date.
func expired(err error) bool {
	e, ok := errors.AsType[*kek.Error](err)
	return ok && e.Expired
}

// TestManyVersions needs several pages of versions.
func TestManyVersions(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.A256KW)
	want := h.version
	for range 60 {
		want = h.rotate(t)
	}
	h.owner().Disable(t, h.rotate(t))
	got, err := h.Newest(t.Context(), h.key)
	if err != nil {
		t.Fatal(err)
	}
	// devvault's versions of one second are all equally new.
	a, b := h.created(t, got), h.created(t, want)
	if a != b {
		t.Errorf("newest is of %d, not of %d", a, b)
	}
	if n := h.server.Counters().Kinds[devvault.OpListVersions]; n < 2 {
		t.Errorf("%d pages", n)
	}
}

func TestFaults(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.A256KW)
	wrapped := h.wrapped(t)
	for _, test := range []struct {
		fault  devvault.Fault
		reason kek.Reason
		status int
		code   string
	}{
		{devvault.Fault{Kind: devvault.FaultStatus, Status: 429, RetryAfter: 7 * time.Second}, kek.Throttled, 429, "Throttled"},
		{devvault.Fault{Kind: devvault.FaultForbiddenRBAC}, kek.Forbidden, 403, "ForbiddenByRbac"},
		{devvault.Fault{Kind: devvault.FaultForbiddenFirewall}, kek.Unreachable, 403, "ForbiddenByFirewall"},
		{devvault.Fault{Kind: devvault.FaultUnauthorized}, kek.Forbidden, 401, "Unauthorized"},
		{devvault.Fault{Kind: devvault.FaultGarbage}, kek.Unreachable, 0, ""},
		{devvault.Fault{Kind: devvault.FaultTruncated}, kek.Unreachable, 0, ""},
		{devvault.Fault{Kind: devvault.FaultWrongKID}, kek.Unreachable, 0, ""},
		{devvault.Fault{Kind: devvault.FaultShort}, kek.Rejected, 0, ""},
		{devvault.Fault{Kind: devvault.FaultLong}, kek.Rejected, 0, ""},
		{devvault.Fault{Kind: devvault.FaultReset}, kek.Unreachable, 0, ""},
		{devvault.Fault{Kind: devvault.FaultNoAnswer}, kek.Unreachable, 0, ""},
	} {
		t.Run(string(test.fault.Kind), func(t *testing.T) {
			h.inject(t, test.fault)
			e, ok := errors.AsType[*kek.Error](h.tryUnwrap(t.Context(), wrapped))
			if !ok || e.Reason != test.reason || e.Status != test.status || e.Code != test.code || e.RetryAfter != test.fault.RetryAfter {
				t.Errorf("got %v, retry after %s", e, e.RetryAfter)
			}
			h.server.ClearFaults()
			if err := h.tryUnwrap(t.Context(), wrapped); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// TestChallengeFaults damages the challenge to a cold client.
func TestChallengeFaults(t *testing.T) {
	s := openServer(t)
	b := open(t, s, azurekv.Config{}, kek.A256KW)
	wrapped := b.wrapped(t)
	for kind, ok := range map[devvault.FaultKind]bool{
		devvault.FaultChallengeMissing:   false,
		devvault.FaultChallengeNoPath:    false,
		devvault.FaultChallengeNoTenant:  false,
		devvault.FaultChallengeAuthority: false,
		devvault.FaultChallengeTenant:    false,
		devvault.FaultChallengeResource:  false,
		// azkeys cannot read this one; what it gets is ours.
		devvault.FaultChallengeNoSpace: true,
	} {
		t.Run(string(kind), func(t *testing.T) {
			h := open(t, s, azurekv.Config{}, kek.A256KW)
			h.key, h.version = b.key, b.version
			h.inject(t, devvault.Fault{Kind: kind})
			before := h.asked()
			err := h.tryUnwrap(t.Context(), wrapped)
			if (err == nil) != ok || err != nil && !failed(err, kek.Unreachable) {
				t.Errorf("got %v", err)
			}
			if !ok && h.asked() != before {
				t.Error("request with a token got out")
			}
		})
	}
}

// TestRetry has a vault fail once: the SDK's one retry hides it.
func TestRetry(t *testing.T) {
	for _, f := range []devvault.Fault{
		{Kind: devvault.FaultReset, Count: 1},
		{Kind: devvault.FaultStatus, Status: 503, Count: 1},
		{Kind: devvault.FaultHang, Count: 1},
	} {
		h := open(t, openServer(t), azurekv.Config{}, kek.A256KW)
		wrapped := h.wrapped(t)
		h.inject(t, f)
		if err := h.tryUnwrap(t.Context(), wrapped); err != nil {
			t.Errorf("%s: %v", f.Kind, err)
		}
	}
}

// TestRetryAfterIsNotWaitedFor gets a 429 back at once, after one request.
func TestRetryAfterIsNotWaitedFor(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.A256KW)
	wrapped := h.wrapped(t)
	h.server.ResetCounters()
	h.inject(t, devvault.Fault{Kind: devvault.FaultStatus, RetryAfter: time.Second})
	err := h.tryUnwrap(t.Context(), wrapped)
	if d := kek.RetryAfterOf(err); !failed(err, kek.Throttled) || d != time.Second {
		t.Errorf("got %v, retry after %s", err, d)
	}
	if n := h.server.Counters().Kinds[devvault.CountThrottled]; n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestDeadlineDoesNotHideThrottling ends the context while the SDK waits to
// try again.
func TestDeadlineDoesNotHideThrottling(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h := open(t, openServer(t), azurekv.Config{Observe: func(c azurekv.Call) {
		if c.Status == 429 {
			cancel()
		}
	}}, kek.A256KW)
	wrapped := h.wrapped(t)
	h.inject(t, devvault.Fault{Kind: devvault.FaultStatus})
	e, ok := errors.AsType[*kek.Error](h.tryUnwrap(ctx, wrapped))
	if !ok || e.Reason != kek.Throttled || e.Status != 429 || !errors.Is(e, context.Canceled) {
		t.Errorf("got %v", e)
	}
}

func TestHang(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.A256KW)
	wrapped := h.wrapped(t)
	h.inject(t, devvault.Fault{Kind: devvault.FaultHang})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := h.tryUnwrap(ctx, wrapped)
	if !failed(err, kek.Unreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("returned after %s", d)
	}
}

// TestTryTimeout has no deadline of its own: two tries of 1.5 s.
func TestTryTimeout(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.A256KW)
	wrapped := h.wrapped(t)
	h.inject(t, devvault.Fault{Kind: devvault.FaultHang})
	e, ok := errors.AsType[*kek.Error](h.tryUnwrap(t.Context(), wrapped))
	if !ok || e.Reason != kek.Unreachable || e.Err.Error() != "vault did not answer in time" {
		t.Errorf("got %v", e)
	}
}

func TestColdCalls(t *testing.T) {
	s := openServer(t)
	wrapped := open(t, s, azurekv.Config{}, kek.A256KW)
	b := wrapped.wrapped(t)
	h := open(t, s, azurekv.Config{}, kek.A256KW)
	h.key, h.version = wrapped.key, wrapped.version
	s.ResetCounters()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := h.tryUnwrap(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := s.Counters().Kinds[devvault.OpUnwrap]; got != 50 {
		t.Errorf("%d unwraps", got)
	}
	if n := h.Clients(); n != 1 {
		t.Errorf("%d clients", n)
	}
}

func TestImpossibleLengthAsksNobody(t *testing.T) {
	for alg, length := range map[kek.Alg]int{kek.RSAOAEP256: 256, kek.A256KW: 40} {
		h := open(t, openServer(t), azurekv.Config{}, alg)
		for _, n := range []int{0, length - 1, length + 1, 296} {
			if err := h.tryUnwrap(t.Context(), make([]byte, n)); !failed(err, kek.Rejected) {
				t.Errorf("%s, %d bytes: %v", alg, n, err)
			}
		}
		if n := h.asked(); n != 0 {
			t.Errorf("%s: %d requests", alg, n)
		}
	}
}

func TestOtherPaddingIsRejected(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.RSAOAEP256)
	pub := h.public(t, h.version)
	//nolint:staticcheck // The point is that the old padding is refused.
	wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, pub, make([]byte, kek.Size))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.tryUnwrap(t.Context(), wrapped); !failed(err, kek.Rejected) {
		t.Errorf("got %v", err)
	}
}

func TestKeyOps(t *testing.T) {
	s := openServer(t)
	for _, op := range []string{"wrapKey", "unwrapKey"} {
		h := open(t, s, azurekv.Config{}, kek.A256KW, op)
		if _, err := h.Newest(t.Context(), h.key); !failed(err, kek.Unusable) {
			t.Errorf("key that can only %s: %v", op, err)
		}
	}
	h := open(t, s, azurekv.Config{}, kek.A256KW, "wrapKey")
	if err := h.tryUnwrap(t.Context(), h.wrapped(t)); !failed(err, kek.Unusable) {
		t.Errorf("unwrap: %v", err)
	}
}

func TestDeleted(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.RSAOAEP256)
	wrapped := h.wrapped(t)
	if err := h.server.Delete(vaultName, h.key.Name); err != nil {
		t.Fatal(err)
	}
	if err := h.tryUnwrap(t.Context(), wrapped); !failed(err, kek.NotFound) {
		t.Errorf("unwrap: %v", err)
	}
	if _, err := h.Wrap(t.Context(), h.key, h.version, new([kek.Size]byte)); !failed(err, kek.NotFound) {
		t.Errorf("wrap: %v", err)
	}
}

func TestObserve(t *testing.T) {
	var mu sync.Mutex
	var calls []azurekv.Call
	h := open(t, openServer(t), azurekv.Config{Observe: func(c azurekv.Call) {
		mu.Lock()
		defer mu.Unlock()
		if c.Duration <= 0 {
			t.Error("no duration")
		}
		c.Duration = 0
		calls = append(calls, c)
	}}, kek.A256KW)
	wrapped := h.wrapped(t)
	h.inject(t, devvault.Fault{Kind: devvault.FaultStatus, Status: 503})
	if err := h.tryUnwrap(t.Context(), wrapped); !failed(err, kek.Unreachable) {
		t.Errorf("got %v", err)
	}
	call := func(op string, attempt, status int, code string) azurekv.Call {
		return azurekv.Call{Vault: h.key.Vault, Ref: "main", Op: op, Attempt: attempt, Status: status, Code: code}
	}
	mu.Lock()
	defer mu.Unlock()
	code := calls[len(calls)-1].Code
	want := []azurekv.Call{
		call("wrap", 1, 401, "Unauthorized"), call("wrap", 2, 200, ""), call("unwrap", 1, 503, code), call("unwrap", 2, 503, code),
	}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Error(diff)
	}
}

// TestImpatientCaller waits for a slow token: it leaves when its own context
// ends, and the token is there for the next.
func TestImpatientCaller(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{}, 1)
	cred := &credential{before: func(ctx context.Context) error {
		asked <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	h := openHostile(t, good, writes(result(kid, 32)))
	h.cred.before = cred.before
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() { errs <- h.Unwrap(ctx, h.key, parse(t, hostileVersion), make([]byte, 256), new([kek.Size]byte)) }()
	<-asked
	cancel()
	if err := <-errs; !failed(err, kek.Unreachable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	if err := h.Unwrap(t.Context(), h.key, parse(t, hostileVersion), make([]byte, 256), new([kek.Size]byte)); err != nil {
		t.Error(err)
	}
	if n := h.cred.count(); n != 1 {
		t.Errorf("%d tokens", n)
	}
}

func TestCredentialPanics(t *testing.T) {
	h := openHostile(t, good, writes(result(kid, 32)))
	h.cred.before = func(context.Context) error { panic("secret") }
	for range 2 {
		if e := h.unwrap(t, t.Context()); e.Reason != kek.Unreachable {
			t.Errorf("got %v", e)
		}
	}
}

// TestPanic panics inside the SDK.
func TestPanic(t *testing.T) {
	var log strings.Builder
	h := open(t, openServer(t), azurekv.Config{
		Observe: func(azurekv.Call) { panic("secret") },
		Logger:  slog.New(slog.NewTextHandler(&log, nil)),
	}, kek.A256KW)
	err := h.tryUnwrap(t.Context(), make([]byte, 40))
	if !failed(err, kek.Unreachable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	if got := log.String(); !strings.Contains(got, "panic in the Azure SDK") || strings.Contains(got, "secret") {
		t.Errorf("log is %q", got)
	}
}

func TestCredentialFails(t *testing.T) {
	h := openHostile(t, good, writes(result(kid, 32)))
	h.cred.before = func(context.Context) error { return errors.New("secret of https://login.example/") }
	if e := h.unwrap(t, t.Context()); e.Reason != kek.Unreachable || e.Err.Error() != "no token" {
		t.Errorf("got %v", e)
	}
}

func TestClientsAreBounded(t *testing.T) {
	s := openServer(t)
	h := open(t, s, azurekv.Config{MaxClients: 2}, kek.A256KW)
	for _, vault := range []string{"alpha", "beta", "gamma"} {
		k := h.key
		k.Vault = s.URL(vault)
		if _, err := h.Newest(t.Context(), k); err == nil {
			t.Errorf("vault %s has a key", vault)
		}
	}
	if n := h.Clients(); n != 2 {
		t.Errorf("%d clients", n)
	}
}

func TestClose(t *testing.T) {
	h := open(t, openServer(t), azurekv.Config{}, kek.RSAOAEP256)
	wrapped := h.wrapped(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	_, wrapErr := h.Wrap(t.Context(), h.key, h.version, new([kek.Size]byte))
	_, newestErr := h.Newest(t.Context(), h.key)
	for _, err := range []error{wrapErr, newestErr, h.tryUnwrap(t.Context(), wrapped)} {
		if !failed(err, kek.Unreachable) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestEmbeddedTokenStays names the embedded vault's credential for a key in
// Azure: it is refused before anything is asked.
func TestEmbeddedTokenStays(t *testing.T) {
	cred, err := azurekv.NewCredential(azurekv.CredentialConfig{Type: azurekv.DevVaultToken, TokenFile: writeFile(t, "token\n")})
	if err != nil {
		t.Fatal(err)
	}
	v := newVaults(t, azurekv.Config{Credentials: map[string]azcore.TokenCredential{"dev": cred}})
	k := kek.Key{Ref: "main", Vault: "https://" + hostileHost, Name: "kek", Alg: kek.A256KW, Credential: "dev", EntraTenant: entraTenant}
	if _, err := v.Newest(t.Context(), k); !failed(err, kek.Unusable) {
		t.Errorf("got %v", err)
	}
}
