package azurekv_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

func ec() devvault.KeySpec { return devvault.KeySpec{Type: "EC"} }

// openSigner is open with a key that is to sign.
func openSigner(t testing.TB, s *devvault.Server, cfg azurekv.Config, spec devvault.KeySpec) *harness {
	t.Helper()
	return openWith(t, s, cfg, 0, spec)
}

// sign expects an error, and no signature with it.
func (h *harness) sign(t *testing.T, ctx context.Context) *kek.Error {
	t.Helper()
	return signError(t, ctx, h.Vaults, h.key)
}

func signError(t *testing.T, ctx context.Context, v *azurekv.Vaults, k kek.Key) *kek.Error {
	t.Helper()
	s, err := v.Sign(ctx, k, [32]byte{1})
	e, ok := errors.AsType[*kek.Error](err)
	if !ok || s.RS != nil || s.Public != nil || s.Name != "" || !s.Version.IsZero() {
		t.Fatalf("got %+v, %v", s, err)
	}
	if e.Op != "sign" || e.Ref != k.Ref || e.Vault != k.Vault {
		t.Errorf("error names %q, %q, %q", e.Op, e.Ref, e.Vault)
	}
	return e
}

// TestSignNamesItsKey compares what Sign says of its key with what anybody who
// may read the key sees.
func TestSignNamesItsKey(t *testing.T) {
	h := openSigner(t, openServer(t), azurekv.Config{}, ec())
	got, err := h.Sign(t.Context(), h.key, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if want := h.key.Vault + "/keys/" + h.key.Name + "/" + h.version.String(); got.Name != want || got.Version != h.version {
		t.Errorf("signed by %s, version %s, not %s", got.Name, got.Version, want)
	}
	var answer struct {
		Key struct{ X, Y base64url }
	}
	h.get(t, h.version, &answer)
	public, err := got.Public.Bytes()
	if err != nil || !bytes.Equal(public[1:33], answer.Key.X) || !bytes.Equal(public[33:], answer.Key.Y) {
		t.Errorf("public key %x is not the vault's: %v", public, err)
	}
}

// TestSignNeedsAnotherKey names keys that cannot sign: the error says which
// and what is needed, and nothing was signed.
func TestSignNeedsAnotherKey(t *testing.T) {
	s := openServer(t)
	for _, test := range []struct {
		name string
		spec devvault.KeySpec
		want string
	}{
		{"RSA", devvault.KeySpec{Type: "RSA"}, "is of type RSA: signing with ES256 needs a key of type EC or EC-HSM on curve P-256"},
		{"AES", devvault.KeySpec{Type: "oct-HSM"}, "is of type oct-HSM: signing with ES256 needs a key of type EC or EC-HSM on curve P-256"},
		{"not allowed to", devvault.KeySpec{Type: "EC", Ops: []string{"verify"}}, "key's operations do not include sign"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openSigner(t, s, azurekv.Config{}, test.spec)
			e := h.sign(t, t.Context())
			if e.Reason != kek.Unusable || !strings.Contains(e.Error(), test.want) || !strings.Contains(e.Error(), "key main in https://tenants.") {
				t.Errorf("got %v", e)
			}
			if strings.Contains(test.want, "of type") && !strings.Contains(e.Error(), `"`+h.key.Name+`"`) {
				t.Errorf("key is not named: %v", e)
			}
			if n := s.Counters().Kinds[devvault.OpSign]; n != 0 {
				t.Errorf("%d signatures", n)
			}
		})
	}
}

// TestKeysWrapOrSign: a key is used for what its Alg says, and the vault is not
// asked for anything else.
func TestKeysWrapOrSign(t *testing.T) {
	h := openSigner(t, openServer(t), azurekv.Config{}, ec())
	_, newestErr := h.Newest(t.Context(), h.key)
	_, wrapErr := h.Wrap(t.Context(), h.key, h.version, new([kek.Size]byte))
	unwrapErr := h.Unwrap(t.Context(), h.key, h.version, make([]byte, 40), new([kek.Size]byte))
	h.key.Alg = kek.RSAOAEP256
	for _, err := range []error{newestErr, wrapErr, unwrapErr, h.sign(t, t.Context())} {
		if !failed(err, kek.Unusable) {
			t.Errorf("got %v", err)
		}
	}
	if kinds := h.server.Counters().Kinds; len(kinds) != 0 {
		t.Errorf("vault was asked: %v", kinds)
	}
}

func TestCheckSigner(t *testing.T) {
	h := openSigner(t, openServer(t), azurekv.Config{}, ec())
	if err := h.CheckSigner(h.key); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*kek.Key){
		"wrapping with A256KW": func(k *kek.Key) { k.Alg = kek.A256KW },
		"key name":             func(k *kek.Key) { k.Name = "a/b" },
		"not listed":           func(k *kek.Key) { k.Vault = "https://vault.attacker.example" },
		`credential "d"`:       func(k *kek.Key) { k.Credential = "d" },
		"GUID":                 func(k *kek.Key) { k.EntraTenant = "example.com" },
	} {
		k := h.key
		change(&k)
		checkText(t, h.CheckSigner(k), want)
		if e := signError(t, t.Context(), h.Vaults, k); e.Reason != kek.Unusable {
			t.Errorf("%s: %v", want, e)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if e := h.sign(t, t.Context()); e.Reason != kek.Unreachable || !strings.Contains(e.Error(), "closed") {
		t.Errorf("closed: %v", e)
	}
}

// TestSignFaults has a vault that fails in each of the two requests.
func TestSignFaults(t *testing.T) {
	s := openServer(t)
	for _, test := range []struct {
		fault devvault.Fault
		want  kek.Error
	}{
		{
			devvault.Fault{Kind: devvault.FaultStatus, RetryAfter: 7 * time.Second},
			kek.Error{Reason: kek.Throttled, Status: 429, Code: "Throttled", RetryAfter: 7 * time.Second},
		},
		{devvault.Fault{Kind: devvault.FaultForbiddenRBAC}, kek.Error{Reason: kek.Forbidden, Status: 403, Code: "ForbiddenByRbac"}},
		{devvault.Fault{Kind: devvault.FaultForbiddenFirewall}, kek.Error{Status: 403, Code: "ForbiddenByFirewall"}},
		{devvault.Fault{Kind: devvault.FaultStatus, Status: 503}, kek.Error{Status: 503, Code: "ServiceUnavailable"}},
		{devvault.Fault{Kind: devvault.FaultUnauthorized}, kek.Error{Reason: kek.Forbidden, Status: 401, Code: "Unauthorized"}},
		{devvault.Fault{Kind: devvault.FaultGarbage}, kek.Error{}},
		{devvault.Fault{Kind: devvault.FaultTruncated}, kek.Error{}},
	} {
		for _, op := range []string{devvault.OpGet, devvault.OpSign} {
			t.Run(string(test.fault.Kind)+" in "+op, func(t *testing.T) {
				h := openSigner(t, s, azurekv.Config{}, ec())
				test.fault.Op = op
				h.inject(t, test.fault)
				e := h.sign(t, t.Context())
				if op == devvault.OpSign && e.Version != h.version || op == devvault.OpGet && !e.Version.IsZero() {
					t.Errorf("error names version %s", e.Version)
				}
				got := kek.Error{Reason: e.Reason, Status: e.Status, Code: e.Code, RetryAfter: e.RetryAfter}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// TestSignHang: neither request keeps a caller whose context ends.
func TestSignHang(t *testing.T) {
	s := openServer(t)
	for _, op := range []string{devvault.OpGet, devvault.OpSign} {
		h := openSigner(t, s, azurekv.Config{}, ec())
		if _, err := h.Sign(t.Context(), h.key, [32]byte{}); err != nil {
			t.Fatal(err)
		}
		h.inject(t, devvault.Fault{Kind: devvault.FaultHang, Op: op})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		start := time.Now()
		e := h.sign(t, ctx)
		cancel()
		if e.Reason != kek.Unreachable || !errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("%s: %v", op, e)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: returned after %s", op, d)
		}
		h.server.ClearFaults()
	}
}

// TestSignLies has a vault whose answer is not what it says: refused, logged.
func TestSignLies(t *testing.T) {
	s := openServer(t)
	for kind, want := range map[devvault.FaultKind]string{
		devvault.FaultWrongResult: "signature does not verify",
		devvault.FaultShort:       "63 bytes of signature",
		devvault.FaultLong:        "65 bytes of signature",
		devvault.FaultWrongKID:    "another key",
	} {
		var log strings.Builder
		h := openSigner(t, s, azurekv.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}, ec())
		h.inject(t, devvault.Fault{Kind: kind, Op: devvault.OpSign})
		if e := h.sign(t, t.Context()); e.Reason != kek.Unreachable || !strings.Contains(e.Error(), want) {
			t.Errorf("%s: %v", kind, e)
		}
		if !strings.Contains(log.String(), "answer of a vault refused") {
			t.Errorf("%s: log is %q", kind, &log)
		}
		h.server.ClearFaults()
	}
}

// TestSignValidity: outside its validity a version does not sign, and the
// error says that it is not disabled.
func TestSignValidity(t *testing.T) {
	h := openSigner(t, openServer(t), azurekv.Config{}, ec())
	past, future, none := time.Now().Add(-time.Hour), time.Now().Add(time.Hour), time.Time{}
	for name, a := range map[string]devvault.Attributes{
		"expired":       {NotBefore: &none, Expires: &past},
		"not yet valid": {NotBefore: &future, Expires: &none},
	} {
		if err := h.server.SetAttributes(vaultName, h.key.Name, "", a); err != nil {
			t.Fatal(err)
		}
		if e := h.sign(t, t.Context()); e.Reason != kek.Disabled || !e.Expired {
			t.Errorf("%s: %v, expired is %t", name, e, e.Expired)
		}
	}
	h.owner().Disable(t, h.version)
	if e := h.sign(t, t.Context()); e.Reason != kek.Disabled || e.Expired {
		t.Errorf("disabled: %v, expired is %t", e, e.Expired)
	}
}

func TestObserveSign(t *testing.T) {
	var mu sync.Mutex
	var got []string
	h := openSigner(t, openServer(t), azurekv.Config{Observe: func(c azurekv.Call) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, c.Op+" "+http.StatusText(c.Status)+" "+c.Code)
	}}, ec())
	if _, err := h.Sign(t.Context(), h.key, [32]byte{}); err != nil {
		t.Fatal(err)
	}
	h.owner().Disable(t, h.version)
	h.sign(t, t.Context())
	mu.Lock()
	defer mu.Unlock()
	want := []string{"get Unauthorized Unauthorized", "get OK ", "sign OK ", "get OK ", "get OK "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// liar is a vault that signs properly, with a key of its own choice.
type liar struct {
	kid     string // of the signature
	private *ecdsa.PrivateKey
	crv     string
	x, y    []byte                    // that it names
	refuse  func(http.ResponseWriter) // answers instead of the signature, if not nil
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return &liar{kid: kid, private: private, crv: "P-256", x: public[1:33], y: public[33:]}
}

func (l *liar) answer(w http.ResponseWriter, r *http.Request) {
	encode := base64.RawURLEncoding.EncodeToString
	if r.Method == http.MethodGet {
		key := `,"kty":"EC","crv":"` + l.crv + `","x":"` + encode(l.x) + `","y":"` + encode(l.y) + `","key_ops":["sign"]`
		io.WriteString(w, keyJSON(kid, key, `{"enabled":true}`))
		return
	}
	if l.refuse != nil {
		l.refuse(w)
		return
	}
	var request struct {
		Alg   string
		Value base64url
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Alg != "ES256" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	a, b, err := ecdsa.Sign(rand.Reader, l.private, request.Value)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	rs := make([]byte, 64)
	a.FillBytes(rs[:32])
	b.FillBytes(rs[32:])
	io.WriteString(w, `{"kid":"`+l.kid+`","value":"`+encode(rs)+`"}`)
}

func badParameter(w http.ResponseWriter) {
	w.WriteHeader(http.StatusBadRequest)
	io.WriteString(w, errorBody("BadParameter", ""))
}

// TestSignByAnother is a vault that signs with another key than the one that it
// names, or names one that is none.
func TestSignByAnother(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(l, other *liar)
		reason kek.Reason
		want   string // empty: good
	}{
		{"honest", func(_, _ *liar) {}, 0, ""},
		{"another key", func(l, other *liar) { l.private = other.private }, kek.Unreachable, "signature does not verify"},
		{"another version's", func(l, _ *liar) { l.kid = strings.ReplaceAll(kid, "eeff", "eefe") }, kek.Unreachable, "another key"},
		{"another name's", func(l, _ *liar) { l.kid = strings.ReplaceAll(kid, "/kek/", "/kek2/") }, kek.Unreachable, "another key"},
		{"no point", func(l, other *liar) { l.y = other.y }, kek.Unusable, "not a point on P-256"},
		{"no coordinates", func(l, _ *liar) { l.x, l.y = nil, nil }, kek.Unusable, "not a point on P-256"},
		{"another curve", func(l, _ *liar) { l.crv = "P-384" }, kek.Unusable, `"kek" is of type EC on curve P-384: signing`},
		{"a curve unfit for a log", func(l, _ *liar) { l.crv = strings.Repeat("P", 43) }, kek.Unusable, "on curve unknown: signing"},
		{"disabled meanwhile", func(l, _ *liar) { l.refuse = disabledKey }, kek.Disabled, "KeyDisabled"},
		{"algorithm not known", func(l, _ *liar) { l.refuse = badParameter }, kek.Unusable, "BadParameter"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLiar(t)
			test.change(l, newLiar(t))
			h := openHostile(t, good, l.answer)
			h.key.Alg = 0
			if test.want == "" {
				got, err := h.Sign(t.Context(), h.key, [32]byte{1})
				if err != nil || !got.Verify([32]byte{1}) || got.Name != kid {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			e := signError(t, t.Context(), h.Vaults, h.key)
			if e.Reason != test.reason || !strings.Contains(e.Error(), test.want) {
				t.Errorf("got %v, want %s with %q", e, test.reason, test.want)
			}
		})
	}
}
