package sealer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testKEK is the KEK of that ref: acme's is RSA, the others are AES, which is
// quick to make.
func testKEK(ref string) kek.Key {
	alg := kek.A256KW
	if ref == "acme" {
		alg = kek.RSAOAEP256
	}
	return kek.Key{Ref: ref, Vault: "https://" + ref + ".vault.localhost", Name: "kek", Alg: alg,
		Region: "westeurope", Credential: "test", EntraTenant: "11111111-2222-3333-4444-555555555555"}
}

// rig is a Sealer over an in-memory vault. Tenants: acme and globex have KEKs
// of their own, hooli and initech share one, sleepy is suspended, abroad may
// be processed in eastus only.
type rig struct {
	*sealer.Sealer
	vault   *kektest.Memory
	deks    *dek.Source
	entries map[string]*tenant.Entry
	events  []sealer.Event
	policy  *policy.Policy
	limits  sealer.Limits
}

// me is who calls.
func me() policy.Caller { return policy.PeerCaller(10001, 10001, 4711) }

// admitMe lets me seal and unseal for every tenant.
func admitMe(t *testing.T) *policy.Policy {
	t.Helper()
	uid := uint32(10001)
	p, err := policy.New(policy.Config{
		Callers: []policy.CallerRule{{Name: "me", UID: &uid}},
		Rules:   []policy.Rule{{Callers: []string{"me"}, Tenants: []string{"*"}, Verbs: []string{"seal", "unseal"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// noLimits counts and limits nothing.
func noLimits(t *testing.T) sealer.Limits {
	t.Helper()
	tenants, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	misses, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return sealer.Limits{Tenants: tenants, Misses: misses}
}

func newRig(t *testing.T, change func(*sealer.Config)) *rig {
	t.Helper()
	vault := kektest.NewMemory()
	for _, ref := range []string{"acme", "globex", "shared"} {
		vault.Create(testKEK(ref))
	}
	return rigOver(t, vault, change)
}

func rigOver(t *testing.T, vault *kektest.Memory, change func(*sealer.Config)) *rig {
	t.Helper()
	r := &rig{vault: vault, policy: admitMe(t), entries: make(map[string]*tenant.Entry)}
	for name, ref := range map[string]string{"acme": "acme", "globex": "globex", "hooli": "shared", "initech": "shared", "sleepy": "shared", "abroad": "shared"} {
		id, err := tenant.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		r.entries[name] = &tenant.Entry{ID: id, KEKs: []kek.Key{testKEK(ref)}}
	}
	r.entries["sleepy"].Suspended = true
	r.entries["abroad"].Regions = []string{"eastus"}
	lookup := func(id tenant.ID) (*tenant.Entry, error) {
		if id.String() == "Not-A-Vault-Name" {
			return nil, tenant.ErrTemplate
		}
		if e := r.entries[id.String()]; e != nil {
			return e, nil
		}
		return nil, tenant.ErrUnknown
	}
	cfg := sealer.Config{
		DEKs: r.source(t, r.vault), Region: "westeurope", MaxPlaintext: 4096, Limits: noLimits(t),
		Rules:   func() *sealer.Rules { return &sealer.Rules{Policy: r.policy, Tenants: lookup} },
		Observe: func(_ context.Context, e sealer.Event) { r.events = append(r.events, e) },
	}
	if change != nil {
		change(&cfg)
	}
	r.deks, r.limits = cfg.DEKs, cfg.Limits
	var err error
	if r.Sealer, err = sealer.New(cfg); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) source(t *testing.T, vault kek.Wrapper) *dek.Source {
	t.Helper()
	slab, err := secret.New(secret.Config{Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	s, err := dek.New(dek.Config{KEKs: vault, Slab: slab, Logger: slog.New(slog.DiscardHandler), CacheEntries: 32})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if n := slab.InUse(); n != 0 {
			t.Errorf("%d DEKs are left in the slab", n)
		}
		if err := slab.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// cold returns a Sealer with the same vault and nothing in its cache.
func (r *rig) cold(t *testing.T) *rig {
	t.Helper()
	return rigOver(t, r.vault, nil)
}

func request(tenant string, data []byte, pairs ...string) sealer.Request {
	r := sealer.Request{Caller: me(), CallerName: "me", Tenant: tenant, Data: data, Context: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		r.Context[pairs[i]] = pairs[i+1]
	}
	return r
}

func (r *rig) mustSeal(t *testing.T, req sealer.Request) sealer.Result {
	t.Helper()
	res, err := r.Seal(t.Context(), req)
	if err != nil {
		t.Fatalf("Seal for %s: %v", req.Tenant, err)
	}
	return res
}

func reasonOf(err error) sealer.Reason {
	if e, ok := errors.AsType[*sealer.Error](err); ok {
		return e.Reason
	}
	return sealer.OK
}

func TestRoundTrip(t *testing.T) {
	r := newRig(t, nil)
	plaintext := bytes.Repeat([]byte("row"), 1000)
	sealed := r.mustSeal(t, request("acme", plaintext, "table", "invoices", "id", "4711"))
	for name, s := range map[string]*rig{"warm": r, "cold": r.cold(t)} {
		got, err := s.Unseal(t.Context(), request("acme", sealed.Data, "id", "4711", "table", "invoices"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(got.Data, plaintext) {
			t.Errorf("%s: plaintext differs", name)
		}
		if diff := cmp.Diff(sealed.Key, got.Key); diff != "" {
			t.Errorf("%s: key info (-seal +unseal):\n%s", name, diff)
		}
	}
	if sealed.Key.KEKRef != "acme" || sealed.Key.Region != "westeurope" || sealed.Key.KEKVersion.IsZero() {
		t.Errorf("key info = %+v", sealed.Key)
	}
}

func TestEmptyPlaintext(t *testing.T) {
	r := newRig(t, nil)
	sealed := r.mustSeal(t, request("acme", nil))
	got, err := r.Unseal(t.Context(), request("acme", sealed.Data))
	if err != nil || len(got.Data) != 0 {
		t.Errorf("Unseal = %d bytes, %v", len(got.Data), err)
	}
}

// Every refusal has its reason, in the order of checks, and costs no Key Vault
// call where the order says so.
func TestReasons(t *testing.T) {
	r := newRig(t, nil)
	sealed := r.mustSeal(t, request("acme", []byte("data"), "k", "v")).Data
	other := r.mustSeal(t, request("globex", []byte("data"), "k", "v")).Data
	foreign := envelopeOnly(t, sealed)
	foreign[6] ^= 1 // dek_id
	swapped := splice(t, sealed, envelopeOnly(t, other))
	big := make([]byte, 4097)
	long := strings.Repeat("x", 1025)
	for name, c := range map[string]struct {
		unseal bool
		req    sealer.Request
		want   sealer.Reason
	}{
		"size before tenant":    {false, request("..", big), sealer.TooLarge},
		"sealed size":           {true, request("acme", make([]byte, sealer.MaxSealed(4096)+1)), sealer.TooLarge},
		"empty tenant":          {false, request("", nil), sealer.InvalidTenant},
		"tenant before context": {false, request("a..b", nil, "k", long), sealer.InvalidTenant},
		"template":              {false, request("Not-A-Vault-Name", nil), sealer.InvalidTenant},
		"context":               {false, request("acme", nil, "k", long), sealer.InvalidContext},
		"reserved context":      {true, request("acme", sealed, "keysidecar.x", ""), sealer.InvalidContext},
		"context before tenant": {false, request("nobody", nil, "", ""), sealer.InvalidContext},
		"unknown tenant":        {false, request("nobody", nil), sealer.UnknownTenant},
		"suspended":             {false, request("sleepy", nil), sealer.TenantSuspended},
		"suspended before form": {true, request("sleepy", []byte("x")), sealer.TenantSuspended},
		"residency":             {false, request("abroad", nil), sealer.Residency},
		"nothing":               {true, request("acme", nil), sealer.MalformedEnvelope},
		"not ours":              {true, request("acme", []byte("hello, world")), sealer.MalformedEnvelope},
		"version":               {true, request("acme", append([]byte("KSB\x02"), sealed[4:]...)), sealer.UnsupportedFormat},
		"another tenant":        {true, request("globex", sealed, "k", "v"), sealer.AuthenticationFailed},
		"another context":       {true, request("acme", sealed, "k", "w"), sealer.AuthenticationFailed},
		"foreign DEK block":     {true, request("acme", swapped, "k", "v"), sealer.AuthenticationFailed},
		"bare, unknown DEK":     {true, request("acme", foreign, "k", "v"), sealer.NeedsRegistry},
	} {
		before := r.vault.Counts()
		var err error
		if c.unseal {
			_, err = r.Unseal(t.Context(), c.req)
		} else {
			_, err = r.Seal(t.Context(), c.req)
		}
		if got := reasonOf(err); got != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if after := r.vault.Counts(); after != before {
			t.Errorf("%s: cost Key Vault calls: %+v, then %+v", name, before, after)
		}
	}
}

// envelopeOnly returns a copy of the envelope of a bundle.
func envelopeOnly(t *testing.T, sealed []byte) []byte {
	t.Helper()
	parsed, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(parsed.Envelope)
}

// splice returns the bundle's blocks before another envelope.
func splice(t *testing.T, bundle, env []byte) []byte {
	t.Helper()
	return append(bytes.Clone(bundle[:len(bundle)-len(envelopeOnly(t, bundle))]), env...)
}

// reblock returns sealed with its only key block changed.
func reblock(t *testing.T, sealed []byte, change func(*envelope.Block)) []byte {
	t.Helper()
	parsed, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	block := parsed.Blocks()[0]
	change(&block)
	raw, err := block.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := envelope.AppendBundleHeader(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, parsed.Envelope...)
}

// What a block says is checked before a vault is asked.
func TestBlocks(t *testing.T) {
	r := newRig(t, nil)
	sealed := r.mustSeal(t, request("acme", []byte("data"))).Data
	for name, c := range map[string]struct {
		change func(*envelope.Block)
		want   sealer.Reason
		calls  int
	}{
		"another tenant":     {func(b *envelope.Block) { b.Tenant = []byte("globex") }, sealer.AuthenticationFailed, 0},
		"another DEK":        {func(b *envelope.Block) { b.KeyID[0] ^= 1 }, sealer.AuthenticationFailed, 0},
		"another's KEK":      {func(b *envelope.Block) { b.KEKRef = []byte("globex") }, sealer.KEKNotAllowed, 0},
		"unknown KEK":        {func(b *envelope.Block) { b.KEKRef = []byte("nowhere") }, sealer.KEKNotAllowed, 0},
		"another algorithm":  {func(b *envelope.Block) { b.Alg, b.Wrapped = envelope.AlgA256KW, make([]byte, 40) }, sealer.KEKNotAllowed, 0},
		"unpinned proof":     {func(b *envelope.Block) { b.Proof = append([]byte{1}, make([]byte, 80)...) }, sealer.AuthenticationFailed, 0},
		"wrapped bytes":      {func(b *envelope.Block) { b.Wrapped = bytes.Clone(b.Wrapped); b.Wrapped[9] ^= 1 }, sealer.AuthenticationFailed, 1},
		"version not there":  {func(b *envelope.Block) { b.Parent[3] ^= 1 }, sealer.KEKNotFound, 1},
		"advisory date only": {func(b *envelope.Block) { b.Created++ }, sealer.OK, 1},
	} {
		cold := r.cold(t)
		before := r.vault.Counts().Unwrap
		_, err := cold.Unseal(t.Context(), request("acme", reblock(t, sealed, c.change)))
		if got := reasonOf(err); got != c.want || (err == nil) != (c.want == sealer.OK) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if got := r.vault.Counts().Unwrap - before; got != c.calls {
			t.Errorf("%s: %d unwraps, want %d", name, got, c.calls)
		}
		if c.want != sealer.OK && cold.deks.Stats().Cached != 0 {
			t.Errorf("%s: a DEK is cached", name)
		}
	}
}

// A DEK that somebody else wrapped under the tenant's public key opens only
// what that somebody sealed: it has another DEK ID.
func TestPlantedDEK(t *testing.T) {
	r := newRig(t, nil)
	acme := r.mustSeal(t, request("hooli", []byte("data"))).Data
	planted := r.mustSeal(t, request("initech", []byte("evil"))).Data // the same KEK
	parsed, err := envelope.Parse(planted)
	if err != nil {
		t.Fatal(err)
	}
	wrapped := bytes.Clone(parsed.Blocks()[0].Wrapped)
	forged := reblock(t, acme, func(b *envelope.Block) { b.Wrapped = wrapped })
	if _, err := r.cold(t).Unseal(t.Context(), request("hooli", forged)); reasonOf(err) != sealer.AuthenticationFailed {
		t.Errorf("Unseal: %v, want %s", err, sealer.AuthenticationFailed)
	}
}

func TestVaultFailures(t *testing.T) {
	for reason, want := range map[kek.Reason]sealer.Reason{
		kek.Unreachable: sealer.KeyVaultUnreachable, kek.Throttled: sealer.KeyVaultThrottled, kek.Disabled: sealer.KEKDisabled,
		kek.NotFound: sealer.KEKNotFound, kek.Forbidden: sealer.KEKForbidden, kek.Unusable: sealer.KEKForbidden,
	} {
		r := newRig(t, nil)
		r.vault.SetHook(func(context.Context, kektest.Call) error { return &kek.Error{Reason: reason, RetryAfter: 7e9} })
		_, err := r.Seal(t.Context(), request("acme", nil))
		var e *sealer.Error
		if !errors.As(err, &e) || e.Reason != want {
			t.Errorf("%s: %v, want %s", reason, err, want)
			continue
		}
		transient := reason == kek.Unreachable || reason == kek.Throttled
		if transient && e.RetryAfter != 7e9 {
			t.Errorf("%s: RetryAfter = %s, want the vault's 7s", reason, e.RetryAfter)
		}
		if !transient && reason != kek.Forbidden && e.RetryAfter != 0 {
			t.Errorf("%s: RetryAfter = %s, want none", reason, e.RetryAfter)
		}
	}
}

func TestDenied(t *testing.T) {
	r := newRig(t, nil)
	r.policy = &policy.Policy{}
	for _, name := range []string{"acme", "sleepy", "abroad", "nobody"} {
		_, err := r.Seal(t.Context(), request(name, nil))
		if reasonOf(err) != sealer.PermissionDenied {
			t.Errorf("%s: %v, want the same denial for every tenant", name, err)
		}
	}
}

// A caller's own deadline is its own matter, not the vault's failure.
func TestCallerGivesUp(t *testing.T) {
	r := newRig(t, nil)
	r.vault.SetHook(func(ctx context.Context, _ kektest.Call) error { <-ctx.Done(); return ctx.Err() })
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	for ctx, want := range map[context.Context]error{canceled: context.Canceled, late: context.DeadlineExceeded} {
		_, err := r.Seal(ctx, request("acme", nil))
		if !errors.Is(err, want) || reasonOf(err) != sealer.OK {
			t.Errorf("Seal: %v, want %v", err, want)
		}
	}
}

func TestEvents(t *testing.T) {
	r := newRig(t, nil)
	res := r.mustSeal(t, request("acme", []byte("data")))
	if _, err := r.Unseal(t.Context(), request("not a tenant", []byte("data"))); err == nil {
		t.Fatal("unsealed")
	}
	sum := sha256.Sum256([]byte("not a tenant"))
	want := []sealer.Event{
		{Verb: policy.Seal, Caller: me(), CallerName: "me", Tenant: "acme", Allowed: true, Bytes: 4, Key: res.Key},
		{Verb: policy.Unseal, Caller: me(), CallerName: "me", InputBytes: 12, InputSum: [8]byte(sum[:8]), Reason: sealer.InvalidTenant, Bytes: 4},
	}
	got := r.events
	for i := range got {
		got[i].Duration, got[i].Err = 0, nil
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(sealer.Event{})); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// Nothing sealed for one tenant opens as another, however its parts are put
// together: with KEKs of their own, and with a shared one.
func TestNothingCrossesTenants(t *testing.T) {
	r := newRig(t, nil)
	for _, pair := range [][2]string{{"acme", "globex"}, {"hooli", "initech"}} {
		a := r.mustSeal(t, request(pair[0], []byte("secret of a"))).Data
		b := r.mustSeal(t, request(pair[1], []byte("secret of b"))).Data
		for name, data := range map[string][]byte{
			"as it is":        a,
			"bare envelope":   envelopeOnly(t, a),
			"under b's block": splice(t, b, envelopeOnly(t, a)),
			"block renamed":   reblock(t, a, func(blk *envelope.Block) { blk.Tenant = []byte(pair[1]) }),
			"b's header, a's body": append(bytes.Clone(b[:len(b)-len(envelopeOnly(t, b))+envelope.HeaderSize]),
				envelopeOnly(t, a)[envelope.HeaderSize:]...),
		} {
			for where, s := range map[string]*rig{"warm": r, "cold": r.cold(t)} {
				if res, err := s.Unseal(t.Context(), request(pair[1], data)); err == nil {
					t.Errorf("%s, %s, %s: opened as %s: %q", pair[0], name, where, pair[1], res.Data)
				}
			}
		}
	}
}

// The reasons are those of docs/design.md, section 7.
func TestTextsAreConstantAndComplete(t *testing.T) {
	seen := make(map[string]bool)
	for _, reason := range sealer.Reasons() {
		if reason.Text() == "" || seen[reason.String()] || reason.String() != strings.ToUpper(reason.String()) {
			t.Errorf("reason %d: name %q, text %q", reason, reason, reason.Text())
		}
		seen[reason.String()] = true
	}
	if diff := cmp.Diff(designReasons(t), slices.Sorted(maps.Keys(seen))); diff != "" {
		t.Errorf("reasons (-docs/design.md +Reasons):\n%s", diff)
	}
}

// designReasons returns the reasons that docs/design.md lists, sorted.
func designReasons(t *testing.T) []string {
	t.Helper()
	doc, err := os.ReadFile("../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "\n## 7. Errors\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, list, _ := strings.Cut(section, "Reasons: ")
	list, _, found := strings.Cut(list, ".")
	if !found {
		t.Fatal("docs/design.md, section 7, has no list of reasons")
	}
	return slices.Sorted(slices.Values(strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(", \n", r) })))
}
