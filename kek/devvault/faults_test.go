package devvault_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

func inject(t testing.TB, s *devvault.Server, f devvault.Fault) int {
	t.Helper()
	id, err := s.Inject(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// faulty is a vault with one oct key, a warm client, and a wrapped key.
type faulty struct {
	*devvault.Server
	c       *azkeys.Client
	version string
	dek     []byte
	wrapped []byte
}

func startFaulty(t testing.TB, h2 bool) *faulty {
	t.Helper()
	s := start(t, devvault.Config{})
	f := &faulty{Server: s, version: create(t, s, "kek", oct()), dek: newDEK()}
	h := httpClient(t, s)
	h.Transport.(*http.Transport).ForceAttemptHTTP2 = h2
	f.c = azureWith(t, s, &credential{token: token(t, s)}, h, policy.RetryOptions{MaxRetries: -1})
	w, err := f.c.WrapKey(t.Context(), "kek", "", params(a256kw, f.dek), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.wrapped = w.Result
	s.ResetCounters()
	return f
}

func (f *faulty) unwrap(ctx context.Context) (azkeys.UnwrapKeyResponse, error) {
	return f.c.UnwrapKey(ctx, "kek", f.version, params(a256kw, f.wrapped), nil)
}

func TestFaultStatuses(t *testing.T) {
	f := startFaulty(t, true)
	for _, tc := range []struct {
		fault       devvault.Fault
		status      int
		code, inner string
		retryAfter  string
	}{
		{devvault.Fault{Kind: devvault.FaultStatus}, 429, "Throttled", "", ""},
		{devvault.Fault{Kind: devvault.FaultStatus, RetryAfter: 1500 * time.Millisecond}, 429, "Throttled", "", "2"},
		{devvault.Fault{Kind: devvault.FaultStatus, Status: 500}, 500, "InternalServerError", "", ""},
		{devvault.Fault{Kind: devvault.FaultStatus, Status: 503, RetryAfter: time.Second}, 503, "ServiceUnavailable", "", "1"},
		{devvault.Fault{Kind: devvault.FaultForbiddenRBAC}, 403, "Forbidden", "ForbiddenByRbac", ""},
		{devvault.Fault{Kind: devvault.FaultForbiddenFirewall}, 403, "Forbidden", "ForbiddenByFirewall", ""},
	} {
		tc.fault.Count = 1
		inject(t, f.Server, tc.fault)
		_, err := f.unwrap(t.Context())
		wantCode(t, err, tc.status, tc.code, tc.inner)
		var re *azcore.ResponseError
		if errors.As(err, &re); re.RawResponse.Header.Get("Retry-After") != tc.retryAfter {
			t.Errorf("Retry-After %q, want %q", re.RawResponse.Header.Get("Retry-After"), tc.retryAfter)
		}
		if _, err := f.unwrap(t.Context()); err != nil {
			t.Errorf("after the fault: %v", err)
		}
	}
	got := f.Counters()
	want := map[string]int64{devvault.OpUnwrap: 12, devvault.CountThrottled: 2, devvault.CountFaulted: 4}
	if diff := cmp.Diff(want, got.Kinds); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if k := got.Key(vault, "kek"); k.Unwraps != 6 {
		t.Errorf("key counters %+v", k)
	}
}

// TestThrottledThenServed: azkeys honours Retry-After and gets through.
func TestThrottledThenServed(t *testing.T) {
	f := startFaulty(t, true)
	c := azureWith(t, f.Server, &credential{token: token(t, f.Server)}, httpClient(t, f.Server), policy.RetryOptions{})
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultStatus, RetryAfter: time.Second, Count: 1})
	start := time.Now()
	if _, err := c.GetKey(t.Context(), "kek", "", nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("took %v", took)
	}
	if got := f.Counters().Kinds; got[devvault.OpGet] != 2 || got[devvault.CountThrottled] != 1 {
		t.Errorf("counters %v", got)
	}
}

func TestFaultUnauthorized(t *testing.T) {
	f := startFaulty(t, true)
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultUnauthorized, Count: 1})
	if _, err := f.unwrap(t.Context()); err != nil {
		t.Errorf("azkeys answers one 401 by authorising again: %v", err)
	}
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultUnauthorized, Count: 2})
	_, err := f.unwrap(t.Context())
	wantCode(t, err, 401, "Unauthorized", "")
	if got := f.Counters().Kinds[devvault.OpUnwrap]; got != 4 {
		t.Errorf("%d unwraps, want 4", got)
	}
}

// TestSpoiltResults: the vault works and answers something else.
func TestSpoiltResults(t *testing.T) {
	for _, h2 := range []bool{true, false} {
		f := startFaulty(t, h2)
		for kind, check := range map[devvault.FaultKind]func(azkeys.UnwrapKeyResponse, error) bool{
			devvault.FaultShort: func(r azkeys.UnwrapKeyResponse, err error) bool {
				return err == nil && bytes.Equal(r.Result, f.dek[:31])
			},
			devvault.FaultLong: func(r azkeys.UnwrapKeyResponse, err error) bool {
				return err == nil && bytes.Equal(r.Result, append(bytes.Clone(f.dek), 0))
			},
			devvault.FaultWrongResult: func(r azkeys.UnwrapKeyResponse, err error) bool {
				return err == nil && len(r.Result) == 32 && !bytes.Equal(r.Result, f.dek)
			},
			devvault.FaultWrongKID: func(r azkeys.UnwrapKeyResponse, err error) bool {
				return err == nil && bytes.Equal(r.Result, f.dek) && r.KID.Name() != "kek" && r.KID.Version() != f.version
			},
			devvault.FaultGarbage: func(_ azkeys.UnwrapKeyResponse, err error) bool {
				var re *azcore.ResponseError
				return err != nil && !errors.As(err, &re)
			},
			devvault.FaultTruncated: func(_ azkeys.UnwrapKeyResponse, err error) bool {
				return errors.Is(err, io.ErrUnexpectedEOF)
			},
			devvault.FaultNoAnswer: func(_ azkeys.UnwrapKeyResponse, err error) bool { return err != nil },
			devvault.FaultReset:    func(_ azkeys.UnwrapKeyResponse, err error) bool { return err != nil },
		} {
			f.ResetCounters()
			inject(t, f.Server, devvault.Fault{Kind: kind, Op: devvault.OpUnwrap, Count: 1})
			if r, err := f.unwrap(t.Context()); !check(r, err) {
				t.Errorf("h2 %v, %s: %x, %v, %v", h2, kind, r.Result, r.KID, err)
			}
			works := int64(1)
			if kind == devvault.FaultGarbage || kind == devvault.FaultReset {
				works = 0
			}
			if got := f.Counters().Key(vault, "kek").Unwrapped; got != works {
				t.Errorf("%s: unwrapped %d, want %d", kind, got, works)
			}
			if r, err := f.unwrap(t.Context()); err != nil || !bytes.Equal(r.Result, f.dek) {
				t.Errorf("h2 %v, after %s: %x, %v", h2, kind, r.Result, err)
			}
		}
	}
}

// TestEffectWithoutAnswer: a rotation happens although the client hears
// nothing.
func TestEffectWithoutAnswer(t *testing.T) {
	f := startFaulty(t, true)
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultNoAnswer, Op: devvault.OpRotate, Count: 1})
	if _, err := f.c.RotateKey(t.Context(), "kek", nil); err == nil {
		t.Error("an answer came")
	}
	k, err := f.c.GetKey(t.Context(), "kek", "", nil)
	if err != nil || k.Key.KID.Version() == f.version {
		t.Errorf("newest version %v, %v; want another", k.Key, err)
	}
}

// TestSpoilingLeavesRefusals: a fault of the result does not turn a refusal
// into something else.
func TestSpoilingLeavesRefusals(t *testing.T) {
	f := startFaulty(t, true)
	if err := f.SetEnabled(vault, "kek", "", false); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []devvault.FaultKind{devvault.FaultShort, devvault.FaultTruncated, devvault.FaultWrongKID} {
		inject(t, f.Server, devvault.Fault{Kind: kind, Count: 1})
		_, err := f.unwrap(t.Context())
		wantCode(t, err, 403, "Forbidden", "KeyDisabled")
	}
}

func TestFaultScope(t *testing.T) {
	f := startFaulty(t, true)
	if _, err := f.CreateKey("globex", "kek", oct()); err != nil {
		t.Fatal(err)
	}
	create(t, f.Server, "other", oct())
	for _, elsewhere := range []devvault.Fault{{Vault: "globex"}, {Key: "other"}, {Op: devvault.OpGet}} {
		elsewhere.Kind = devvault.FaultStatus
		inject(t, f.Server, elsewhere)
	}
	if _, err := f.unwrap(t.Context()); err != nil {
		t.Errorf("a fault elsewhere: %v", err)
	}
	f.ClearFaults()
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultShort, Count: 1})
	if _, err := f.c.GetKey(t.Context(), "kek", "", nil); err != nil { // shows in no get, so waits
		t.Error(err)
	}
	if r, err := f.unwrap(t.Context()); err != nil || len(r.Result) != 31 {
		t.Errorf("short result has %d bytes, %v", len(r.Result), err)
	}
	id := inject(t, f.Server, devvault.Fault{Kind: devvault.FaultStatus, Vault: "ACME", Key: "KEK", Op: devvault.OpUnwrap, Skip: 1})
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultStatus, Status: 503, Count: 1})
	var got []int
	for range 4 {
		_, err := f.unwrap(t.Context())
		got = append(got, status(err))
	}
	if diff := cmp.Diff([]int{503, 429, 429, 429}, got); diff != "" { // the second fault serves the skipped one
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	f.ClearFault(0)
	if _, err := f.unwrap(t.Context()); status(err) != 429 {
		t.Errorf("clearing fault 0 cleared something: %v", err)
	}
	f.ClearFault(id)
	if _, err := f.unwrap(t.Context()); err != nil {
		t.Errorf("cleared: %v", err)
	}
}

func status(err error) int {
	if re, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return re.StatusCode
	}
	return 0
}

func TestFaultsAreChecked(t *testing.T) {
	s := start(t, devvault.Config{})
	for _, f := range []devvault.Fault{
		{}, {Kind: "flood"}, {Kind: devvault.FaultReset, Op: "unwrapKey"}, {Kind: devvault.FaultReset, Count: -1},
		{Kind: devvault.FaultReset, Skip: -1}, {Kind: devvault.FaultStatus, Status: 200}, {Kind: devvault.FaultStatus, Status: 600},
		{Kind: devvault.FaultReset, Status: 500}, {Kind: devvault.FaultDelay}, {Kind: devvault.FaultDelay, Delay: -1},
	} {
		if id, err := s.Inject(f); err == nil {
			t.Errorf("%+v was accepted as %d", f, id)
		}
	}
	for range 1024 {
		inject(t, s, devvault.Fault{Kind: devvault.FaultReset})
	}
	if _, err := s.Inject(devvault.Fault{Kind: devvault.FaultReset}); err == nil {
		t.Error("faults are unbounded")
	}
}

func TestDelay(t *testing.T) {
	f := startFaulty(t, true)
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultDelay, Delay: 50 * time.Millisecond, Count: 1})
	begin := time.Now()
	r, err := f.unwrap(t.Context())
	if took := time.Since(begin); err != nil || !bytes.Equal(r.Result, f.dek) || took < 50*time.Millisecond {
		t.Errorf("after %v: %x, %v", took, r.Result, err)
	}
	inject(t, f.Server, devvault.Fault{Kind: devvault.FaultStatus, Delay: 50 * time.Millisecond, Count: 1})
	begin = time.Now()
	_, err = f.unwrap(t.Context())
	if took := time.Since(begin); status(err) != 429 || took < 50*time.Millisecond {
		t.Errorf("after %v: %v", took, err)
	}
}

// TestHangEndsWithTheClient, on both protocols.
func TestHangEndsWithTheClient(t *testing.T) {
	for _, h2 := range []bool{true, false} {
		f := startFaulty(t, h2)
		inject(t, f.Server, devvault.Fault{Kind: devvault.FaultHang, Count: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := f.unwrap(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hang: %v", err)
		}
		cancel()
		await(t, func() bool { // the server notices that the client is gone
			stacks := make([]byte, 1<<20)
			return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("devvault.(*Server).wait("))
		})
		if _, err := f.unwrap(t.Context()); err != nil {
			t.Errorf("after a hang: %v", err)
		}
	}
}

// TestCloseReleasesHangsAndDelays: nobody waits for a fault.
func TestCloseReleasesHangsAndDelays(t *testing.T) {
	for _, kind := range []devvault.FaultKind{devvault.FaultHang, devvault.FaultDelay} {
		f := startFaulty(t, true)
		inject(t, f.Server, devvault.Fault{Kind: kind, Delay: delayOf(kind)})
		done := make(chan error, 1)
		go func() {
			_, err := f.unwrap(t.Context())
			done <- err
		}()
		await(t, func() bool { return f.Counters().Kinds[devvault.CountFaulted] > 0 })
		begin := time.Now()
		if err := f.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
		if took := time.Since(begin); took > 1500*time.Millisecond {
			t.Errorf("%s: Close took %v", kind, took)
		}
		if err := <-done; err == nil {
			t.Errorf("%s: an answer came", kind)
		}
	}
}

func delayOf(k devvault.FaultKind) time.Duration {
	if k == devvault.FaultDelay {
		return time.Hour
	}
	return 0
}

// TestChallengeFaults: what azkeys makes of each spoilt challenge.
func TestChallengeFaults(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	call := func(t *testing.T, kind devvault.FaultKind) (cred *credential, panicked any, err error) {
		t.Helper()
		s.ClearFaults()
		inject(t, s, devvault.Fault{Kind: kind})
		cred = &credential{token: token(t, s)}
		c := azureWith(t, s, cred, httpClient(t, s), policy.RetryOptions{MaxRetries: -1})
		defer func() { panicked = recover() }()
		_, err = c.GetKey(t.Context(), "kek", "", nil)
		return cred, nil, err
	}
	for kind, want := range map[devvault.FaultKind]string{
		devvault.FaultChallengeMissing:  "401 Unauthorized",
		devvault.FaultChallengeNoSpace:  "could not find a valid resource",
		devvault.FaultChallengeResource: "doesn't match the requested domain",
	} {
		if _, _, err := call(t, kind); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", kind, err, want)
		}
	}
	if _, panicked, _ := call(t, devvault.FaultChallengeNoPath); panicked == nil {
		t.Error("azkeys no longer panics at an authority without a path")
	}
	for kind, want := range map[devvault.FaultKind]string{
		devvault.FaultChallengeNoTenant:  "",
		devvault.FaultChallengeTenant:    "00000000-0000-4000-8000-000000000bad",
		devvault.FaultChallengeAuthority: s.EntraTenant(),
	} {
		cred, _, err := call(t, kind)
		if err != nil || *cred.tenant.Load() != want {
			t.Errorf("%s: tenant %q, %v", kind, *cred.tenant.Load(), err)
		}
	}
	s.ClearFaults()
	inject(t, s, devvault.Fault{Kind: devvault.FaultChallengeAuthority})
	r := raw(t, s, "GET", s.URL(vault)+"/keys/kek", "", "")
	if h := r.header.Get("WWW-Authenticate"); !strings.Contains(h, `"https://login.attacker.example/`) {
		t.Errorf("challenge %q", h)
	}
}

func TestControlAPI(t *testing.T) {
	f := startFaulty(t, true)
	tok := token(t, f.Server)
	c := httpClient(t, f.Server)
	base := "https://" + f.Addr() + "/devvault"
	ask := func(method, path, body string, want int) map[string]any {
		t.Helper()
		r := rawWith(t, c, method, base+path, tok, body)
		if r.status != want {
			t.Fatalf("%s %s: %d %s, want %d", method, path, r.status, r.body, want)
		}
		var v map[string]any
		if r.body != "" {
			if err := json.Unmarshal([]byte(r.body), &v); err != nil {
				t.Fatal(err)
			}
		}
		return v
	}
	id := ask("POST", "/faults", `{"kind":"status","op":"unwrap","status":503,"retry_after":"2s","skip":1,"count":2}`, 200)["id"]
	if _, err := f.unwrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := f.unwrap(t.Context())
	wantCode(t, err, 503, "ServiceUnavailable", "")
	list := ask("GET", "/faults", "", 200)["faults"].([]any)
	want := []any{map[string]any{
		"id": id, "kind": "status", "op": "unwrap", "status": 503.0, "retry_after": "2s", "count": 1.0,
	}}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	ask("DELETE", "/faults/1", "", 204)
	if _, err := f.unwrap(t.Context()); err != nil {
		t.Errorf("cleared: %v", err)
	}
	ask("POST", "/faults", `{"kind":"hang"}`, 200)
	ask("DELETE", "/faults", "", 204)
	if left := ask("GET", "/faults", "", 200)["faults"].([]any); len(left) != 0 {
		t.Errorf("faults left: %v", left)
	}

	var counters devvault.Counters
	r := rawWith(t, c, "GET", base+"/counters", tok, "")
	if err := json.Unmarshal([]byte(r.body), &counters); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f.Counters().Kinds, counters.Kinds); diff != "" || counters.Kinds[devvault.OpUnwrap] != 3 {
		t.Errorf("counters (-in process +over HTTP):\n%s", diff)
	}
	if k := counters.Key(vault, "kek"); k.Unwrapped != 2 {
		t.Errorf("key counters %+v", k)
	}
	ask("DELETE", "/counters", "", 204)
	if got := f.Counters(); len(got.Kinds)+len(got.Keys) != 0 {
		t.Errorf("counters after a reset: %v", got)
	}

	issued := ask("POST", "/tokens", `{"expires_in":60}`, 200)["access_token"].(string)
	url := f.URL(vault) + "/keys/kek" + apiVersion
	if r := rawWith(t, c, "GET", url, issued, ""); r.status != 200 {
		t.Errorf("issued token: %d", r.status)
	}
	if r := rawWith(t, c, "GET", base+"/counters", issued, ""); r.status != 401 {
		t.Errorf("an issued token opens the control API: %d", r.status)
	}
	ask("DELETE", "/tokens", "", 204)
	if r := rawWith(t, c, "GET", url, issued, ""); r.status != 401 {
		t.Errorf("revoked token: %d", r.status)
	}

	ask("PUT", "/vaults/globex", "", 204)
	if diff := cmp.Diff([]any{"acme", "globex"}, ask("GET", "/vaults", "", 200)["vaults"]); diff != "" {
		t.Errorf("vaults (-want +got):\n%s", diff)
	}
}

func TestControlAPIRefuses(t *testing.T) {
	s := start(t, devvault.Config{})
	c := httpClient(t, s)
	base := s.URL("nosuchvault") + "/devvault" // served on any host
	for _, bearer := range []string{"", "wrong"} {
		r := rawWith(t, c, "POST", base+"/faults", bearer, `{"kind":"hang"}`)
		if r.status != 401 || strings.Contains(r.header.Get("WWW-Authenticate"), "authorization=") {
			t.Errorf("bearer %q: %d %v", bearer, r.status, r.header)
		}
	}
	for _, tc := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/faults", `{"kind":"hang","cuont":1}`, 400},
		{"POST", "/faults", `{"kind":"hang"}{}`, 400},
		{"POST", "/faults", `{"kind":"hang","delay":5}`, 400},
		{"POST", "/faults", `{"kind":"hang","delay":"5"}`, 400},
		{"POST", "/faults", `{"kind":"nothing"}`, 400},
		{"POST", "/faults", `{"kind":"hang","vault":"` + strings.Repeat("x", 64<<10) + `"}`, 400},
		{"DELETE", "/faults/x", "", 400},
		{"DELETE", "/faults/0", "", 400},
		{"POST", "/tokens", `{"expires_in":0}`, 400},
		{"POST", "/tokens", `{"expires_in":86401}`, 400},
		{"PUT", "/vaults/A", "", 400},
		{"GET", "/nothing", "", 404},
		{"PUT", "/counters", "", 404},
	} {
		if r := rawWith(t, c, tc.method, base+tc.path, token(t, s), tc.body); r.status != tc.want {
			t.Errorf("%s %s %.60s: %d, want %d", tc.method, tc.path, tc.body, r.status, tc.want)
		}
	}
	if len(s.Counters().Kinds) != 0 {
		t.Errorf("the control API counts: %v", s.Counters().Kinds)
	}
}

// FuzzControlFault: no body panics, and what is accepted can be listed.
func FuzzControlFault(f *testing.F) {
	s := start(f, devvault.Config{})
	tok := token(f, s)
	f.Add(`{"kind":"status","vault":"acme","key":"kek","op":"unwrap","status":503,"retry_after":"2s","skip":1,"count":2}`)
	f.Add(`{"kind":"delay","delay":"250ms"}`)
	f.Add(`{"kind":"challenge-no-path"}`)
	c := s.Client()
	f.Cleanup(c.CloseIdleConnections)
	f.Fuzz(func(t *testing.T, body string) {
		r := rawWith(t, c, "POST", "https://"+s.Addr()+"/devvault/faults", tok, body)
		if r.status != 200 && r.status != 400 {
			t.Errorf("%q: %d %s", body, r.status, r.body)
		}
		if r := rawWith(t, c, "DELETE", "https://"+s.Addr()+"/devvault/faults", tok, ""); r.status != 204 {
			t.Errorf("clearing: %d", r.status)
		}
	})
}
