package devvault_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

func TestChallengeThenWrapThenUnwrap(t *testing.T) {
	s := start(t, devvault.Config{})
	version := create(t, s, "kek", devvault.KeySpec{Type: "RSA", Bits: 2048})
	cred := &credential{token: token(t, s)}
	c := azureWith(t, s, cred, httpClient(t, s), policy.RetryOptions{})
	dek := newDEK()

	w, err := c.WrapKey(t.Context(), "kek", "", params(oaep256, dek), nil) // POST /keys/kek/wrapkey
	if err != nil {
		t.Fatal(err)
	}
	if w.KID.Version() != version || len(w.Result) != 256 {
		t.Errorf("wrapped %d bytes with version %s", len(w.Result), w.KID.Version())
	}
	if want := s.URL(vault) + "/keys/kek/" + version; string(*w.KID) != want {
		t.Errorf("kid %s, want %s", *w.KID, want)
	}
	u, err := c.UnwrapKey(t.Context(), "kek", version, params(oaep256, w.Result), nil)
	if err != nil || !bytes.Equal(u.Result, dek) {
		t.Errorf("unwrapped %x, %v", u.Result, err)
	}
	if *cred.tenant.Load() != s.EntraTenant() {
		t.Errorf("challenge named tenant %s", *cred.tenant.Load())
	}
	if want := strings.Replace(s.URL(vault), vault+".", "", 1) + "/.default"; *cred.scope.Load() != want {
		t.Errorf("scope %s, want %s", *cred.scope.Load(), want)
	}
	got := s.Counters()
	want := map[string]int64{devvault.CountChallenge: 1, devvault.OpWrap: 1, devvault.OpUnwrap: 1}
	if diff := cmp.Diff(want, got.Kinds); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if k := got.Key(vault, "KEK"); k != (devvault.KeyCounters{Wraps: 1, Unwraps: 1, Unwrapped: 1}) {
		t.Errorf("key counters %+v", k)
	}
}

// TestLocalWrap: what is wrapped with the public key that GetKey returns
// unwraps in the vault.
func TestLocalWrap(t *testing.T) {
	s := start(t, devvault.Config{})
	for _, bits := range []int{2048, 3072} {
		name := fmt.Sprintf("kek-%d", bits)
		version := create(t, s, name, devvault.KeySpec{Bits: bits})
		c := azure(t, s)
		k, err := c.GetKey(t.Context(), name, "", nil) // GET /keys/kek/
		if err != nil {
			t.Fatal(err)
		}
		if k.Key.KID.Version() != version || *k.Key.Kty != azkeys.KeyTypeRSA || k.Key.D != nil {
			t.Errorf("key %+v", k.Key)
		}
		pub := &rsa.PublicKey{N: new(big.Int).SetBytes(k.Key.N), E: int(new(big.Int).SetBytes(k.Key.E).Int64())}
		if pub.N.BitLen() != bits {
			t.Errorf("modulus has %d bits", pub.N.BitLen())
		}
		dek := newDEK()
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, dek, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := c.UnwrapKey(t.Context(), name, version, params(oaep256, wrapped), nil)
		if err != nil || !bytes.Equal(u.Result, dek) {
			t.Errorf("unwrapped %x, %v", u.Result, err)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "rsa", devvault.KeySpec{Bits: 2048})
	create(t, s, "oct", oct())
	c := azure(t, s)
	ctx := t.Context()
	dek := newDEK()
	type algs = []azkeys.EncryptionAlgorithm
	all := algs{"RSA1_5", "RSA-OAEP", "RSA-OAEP-256", "A256KW", "A256GCM", ""}
	for name, good := range map[string]algs{"rsa": {"RSA1_5", "RSA-OAEP", "RSA-OAEP-256"}, "oct": {"A256KW"}} {
		proper, err := c.WrapKey(ctx, name, "", params(good[0], dek), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, alg := range all {
			w, err := c.WrapKey(ctx, name, "", params(alg, dek), nil)
			e, errE := c.Encrypt(ctx, name, "", params(alg, dek), nil)
			if !slices.Contains(good, alg) {
				wantCode(t, err, 400, "BadParameter", "")
				wantCode(t, errE, 400, "BadParameter", "")
				_, err = c.UnwrapKey(ctx, name, "", params(alg, proper.Result), nil)
				wantCode(t, err, 400, "BadParameter", "")
				continue
			}
			if err != nil || errE != nil {
				t.Fatal(name, alg, err, errE)
			}
			if u, err := c.UnwrapKey(ctx, name, "", params(alg, w.Result), nil); err != nil || !bytes.Equal(u.Result, dek) {
				t.Errorf("%s: unwrapped %x, %v", alg, u.Result, err)
			}
			if d, err := c.Decrypt(ctx, name, "", params(alg, e.Result), nil); err != nil || !bytes.Equal(d.Result, dek) {
				t.Errorf("%s: decrypted %x, %v", alg, d.Result, err)
			}
			w.Result[7] ^= 1
			_, err = c.UnwrapKey(ctx, name, "", params(alg, w.Result), nil)
			wantCode(t, err, 400, "BadParameter", "")
		}
	}
	// Hostile wrapped bytes: RSA1_5 read as RSA-OAEP-256, wrong lengths, another key's.
	w, err := c.WrapKey(ctx, "rsa", "", params("RSA1_5", dek), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{w.Result, w.Result[1:], nil, make([]byte, 256), make([]byte, 40)} {
		_, err = c.UnwrapKey(ctx, "rsa", "", params(oaep256, bad), nil)
		wantCode(t, err, 400, "BadParameter", "")
	}
	for _, n := range []int{0, 191} {
		_, err = c.WrapKey(ctx, "rsa", "", params(oaep256, make([]byte, n)), nil)
		wantCode(t, err, 400, "BadParameter", "")
	}
}

// TestVaultKnowsNoLength: a vault wraps and returns whatever fits.
func TestVaultKnowsNoLength(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", devvault.KeySpec{})
	create(t, s, "oct", oct())
	c := azure(t, s)
	for name, tc := range map[string]struct {
		alg  azkeys.EncryptionAlgorithm
		lens []int
	}{"kek": {oaep256, []int{1, 16, 31, 33, 190}}, "oct": {a256kw, []int{16, 24, 40}}} {
		for _, n := range tc.lens {
			w, err := c.WrapKey(t.Context(), name, "", params(tc.alg, bytes.Repeat([]byte{7}, n)), nil)
			if err != nil {
				t.Fatal(err)
			}
			u, err := c.UnwrapKey(t.Context(), name, "", params(tc.alg, w.Result), nil)
			if err != nil || len(u.Result) != n {
				t.Errorf("%d bytes came back as %d, %v", n, len(u.Result), err)
			}
		}
	}
}

func TestOctIsNeverReturned(t *testing.T) {
	s := start(t, devvault.Config{})
	c := azure(t, s)
	kty, size := azkeys.KeyTypeOctHSM, int32(256)
	made, err := c.CreateKey(t.Context(), "oct", azkeys.CreateKeyParameters{Kty: &kty, KeySize: &size}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.GetKey(t.Context(), "oct", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*azkeys.JSONWebKey{made.Key, got.Key} {
		if k.K != nil || k.N != nil || *k.Kty != kty {
			t.Errorf("key %+v", k)
		}
	}
	r := raw(t, s, "GET", s.URL(vault)+"/keys/oct?api-version=7.4", token(t, s), "")
	if strings.Contains(r.body, `"k":`) {
		t.Errorf("body %s", r.body)
	}
}

// TestDisabled: unwrap and decrypt are refused, wrap and encrypt are not.
func TestDisabled(t *testing.T) {
	s := start(t, devvault.Config{})
	version := create(t, s, "kek", devvault.KeySpec{})
	c := azure(t, s)
	ctx := t.Context()
	if err := s.SetEnabled(vault, "kek", version, false); err != nil {
		t.Fatal(err)
	}
	w, err := c.WrapKey(ctx, "kek", version, params(oaep256, newDEK()), nil)
	if err != nil {
		t.Fatalf("a disabled version wraps: %v", err)
	}
	if _, err := c.Encrypt(ctx, "kek", version, params(oaep256, newDEK()), nil); err != nil {
		t.Errorf("a disabled version encrypts: %v", err)
	}
	_, err = c.UnwrapKey(ctx, "kek", version, params(oaep256, w.Result), nil)
	wantCode(t, err, 403, "Forbidden", "KeyDisabled")
	_, err = c.Decrypt(ctx, "kek", version, params(oaep256, w.Result), nil)
	wantCode(t, err, 403, "Forbidden", "KeyDisabled")
	k, err := c.GetKey(ctx, "kek", version, nil)
	if err != nil || *k.Attributes.Enabled {
		t.Errorf("a disabled version can be read: %v", err)
	}
	if err := s.SetEnabled(vault, "kek", version, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UnwrapKey(ctx, "kek", version, params(oaep256, w.Result), nil); err != nil {
		t.Errorf("enabled again: %v", err)
	}
	if got := s.Counters().Key(vault, "kek"); got != (devvault.KeyCounters{Wraps: 2, Unwraps: 3, Unwrapped: 1}) {
		t.Errorf("counters %+v", got)
	}
	if got := s.Counters().Kinds[devvault.CountRejected]; got != 2 {
		t.Errorf("rejected %d, want 2", got)
	}
}

// TestValidity: outside of nbf and exp a version unwraps but does not wrap.
func TestValidity(t *testing.T) {
	now := time.Unix(1_900_000_000, 0)
	var mu sync.Mutex
	s := start(t, devvault.Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	create(t, s, "kek", devvault.KeySpec{Type: "oct-HSM", NotBefore: now, Expires: now.Add(time.Hour)})
	c := azure(t, s)
	ctx := t.Context()
	w, err := c.WrapKey(ctx, "kek", "", params(a256kw, newDEK()), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		at    time.Duration
		inner string
	}{
		{-time.Second, "KeyNotYetValid"}, {0, ""}, {time.Hour - time.Second, ""}, {time.Hour, "KeyExpired"},
	} {
		mu.Lock()
		now = time.Unix(1_900_000_000, 0).Add(tc.at)
		mu.Unlock()
		_, wrap := c.WrapKey(ctx, "kek", "", params(a256kw, newDEK()), nil)
		_, encrypt := c.Encrypt(ctx, "kek", "", params(a256kw, newDEK()), nil)
		for _, err := range []error{wrap, encrypt} {
			if tc.inner != "" {
				wantCode(t, err, 403, "Forbidden", tc.inner)
			} else if err != nil {
				t.Errorf("at %v: %v", tc.at, err)
			}
		}
		if _, err := c.UnwrapKey(ctx, "kek", "", params(a256kw, w.Result), nil); err != nil {
			t.Errorf("unwrap at %v: %v", tc.at, err)
		}
		if _, err := c.Decrypt(ctx, "kek", "", params(a256kw, w.Result), nil); err != nil {
			t.Errorf("decrypt at %v: %v", tc.at, err)
		}
	}
	k, err := c.GetKey(ctx, "kek", "", nil)
	if err != nil || k.Attributes.NotBefore.Unix() != 1_900_000_000 || k.Attributes.Expires.Unix() != 1_900_003_600 {
		t.Errorf("attributes %+v, %v", k.Attributes, err)
	}
}

func TestKeyOps(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", devvault.KeySpec{Type: "oct-HSM", Ops: []string{"wrapKey"}})
	c := azure(t, s)
	ctx := t.Context()
	w, err := c.WrapKey(ctx, "kek", "", params(a256kw, newDEK()), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.UnwrapKey(ctx, "kek", "", params(a256kw, w.Result), nil)
	wantCode(t, err, 403, "Forbidden", "KeyOperationForbidden")
	_, err = c.Encrypt(ctx, "kek", "", params(a256kw, newDEK()), nil)
	wantCode(t, err, 403, "Forbidden", "KeyOperationForbidden")
	unwrap := azkeys.KeyOperationUnwrapKey
	if _, err := c.UpdateKey(ctx, "kek", "", azkeys.UpdateKeyParameters{ // PATCH /keys/kek/
		KeyOps: []*azkeys.KeyOperation{&unwrap},
	}, nil); err != nil {
		t.Fatal(err)
	}
	_, err = c.WrapKey(ctx, "kek", "", params(a256kw, newDEK()), nil)
	wantCode(t, err, 403, "Forbidden", "KeyOperationForbidden")
	if _, err := c.UnwrapKey(ctx, "kek", "", params(a256kw, w.Result), nil); err != nil {
		t.Error(err)
	}
	create(t, s, "all", oct())
	k, err := c.GetKey(ctx, "all", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var ops []string
	for _, op := range k.Key.KeyOps {
		ops = append(ops, string(*op))
	}
	if diff := cmp.Diff([]string{"encrypt", "decrypt", "wrapKey", "unwrapKey"}, ops); diff != "" {
		t.Errorf("default key_ops (-want +got):\n%s", diff)
	}
}

// TestVersions: paging, order of creation within a second, and the newest
// version being the newest although it is disabled.
func TestVersions(t *testing.T) {
	now := time.Unix(1_900_000_000, 999)
	s := start(t, devvault.Config{Now: func() time.Time { return now }})
	want := []string{create(t, s, "kek", oct())}
	for range 7 {
		v, err := s.Rotate(vault, "kek")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, v)
	}
	newest := want[len(want)-1]
	if err := s.SetEnabled(vault, "kek", "", false); err != nil {
		t.Fatal(err)
	}
	c := azure(t, s)
	var got []string
	pages := 0
	for p := c.NewListKeyPropertiesVersionsPager("kek", nil); p.More(); pages++ {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range page.Value {
			got = append(got, k.KID.Version())
			if k.Attributes.Created.UnixNano() != 1_900_000_000e9 {
				t.Errorf("created %v, want whole seconds", k.Attributes.Created)
			}
			if *k.Attributes.Enabled == (k.KID.Version() == newest) {
				t.Errorf("version %s enabled: %v", k.KID.Version(), *k.Attributes.Enabled)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || pages != 3 {
		t.Errorf("%d pages, versions (-want +got):\n%s", pages, diff)
	}
	k, err := c.GetKey(t.Context(), "kek", "", nil)
	if err != nil || k.Key.KID.Version() != newest || *k.Attributes.Enabled {
		t.Errorf("latest: %v, %v", k.Key, err)
	}
	if _, err := c.GetKey(t.Context(), "kek", want[2], nil); err != nil {
		t.Error(err)
	}
	kinds := s.Counters().Kinds
	if kinds[devvault.OpListVersions] != 3 || kinds[devvault.OpGet] != 2 {
		t.Errorf("counters %v", kinds)
	}
}

// TestListsWhileTheyChange: a page continues behind the last item sent.
func TestListsWhileTheyChange(t *testing.T) {
	s := start(t, devvault.Config{})
	for _, name := range []string{"b", "D", "f", "h", "j"} {
		create(t, s, name, oct())
	}
	c := azure(t, s)
	p := c.NewListKeyPropertiesPager(nil)
	var got []string
	for page := 0; p.More(); page++ {
		l, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range l.Value {
			got = append(got, k.KID.Name())
			if k.KID.Version() != "" {
				t.Errorf("a list of keys names versions: %s", *k.KID)
			}
		}
		if page == 0 {
			create(t, s, "a", oct())
			create(t, s, "g", oct())
			if err := s.Delete(vault, "f"); err != nil { // the last item of the first page
				t.Fatal(err)
			}
		}
	}
	if diff := cmp.Diff([]string{"b", "D", "f", "g", "h", "j"}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestCreateRotateUpdate(t *testing.T) {
	s := start(t, devvault.Config{})
	c := azure(t, s)
	ctx := t.Context()
	kty, op := azkeys.KeyTypeRSA, azkeys.KeyOperationWrapKey
	size, off := int32(2048), false
	tag := "x"
	exp := time.Now().Add(time.Hour)
	first, err := c.CreateKey(ctx, "Kek", azkeys.CreateKeyParameters{
		Kty: &kty, KeySize: &size, KeyOps: []*azkeys.KeyOperation{&op}, Tags: map[string]*string{"t": &tag},
		KeyAttributes: &azkeys.KeyAttributes{Enabled: &off, Expires: &exp},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := first.Attributes
	if *a.Enabled || a.Expires.Unix() != exp.Unix() || a.Created == nil || *a.RecoveryLevel == "" || *first.Tags["t"] != "x" {
		t.Errorf("created %+v", a)
	}
	second, err := c.RotateKey(ctx, "kek", nil)
	if err != nil {
		t.Fatal(err)
	}
	if second.Key.KID.Name() != "Kek" || second.Key.KID.Version() == first.Key.KID.Version() {
		t.Errorf("rotated to %s", *second.Key.KID)
	}
	if !*second.Attributes.Enabled || second.Attributes.Expires != nil || *second.Key.KeyOps[0] != op ||
		len(second.Key.N) != len(first.Key.N) {
		t.Errorf("rotated version: %+v", second.Attributes)
	}
	on := true
	up, err := c.UpdateKey(ctx, "kek", first.Key.KID.Version(), azkeys.UpdateKeyParameters{
		KeyAttributes: &azkeys.KeyAttributes{Enabled: &on, Expires: azcore.NullValue[*time.Time]()},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !*up.Attributes.Enabled || up.Attributes.Expires != nil || *up.Tags["t"] != "x" || *up.Key.KeyOps[0] != op {
		t.Errorf("updated: %+v", up.Attributes)
	}
	_, err = c.RotateKey(ctx, "nokey", nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	_, err = c.UpdateKey(ctx, "nokey", "", azkeys.UpdateKeyParameters{}, nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	for _, bad := range []azkeys.CreateKeyParameters{
		{}, {Kty: new(azkeys.KeyTypeOct)}, {Kty: &kty, KeySize: new(int32(1024))},
		{Kty: new(azkeys.KeyTypeOctHSM), KeySize: new(int32(128))}, {Kty: &kty, PublicExponent: new(int32(3))},
		{Kty: new(azkeys.KeyTypeOctHSM), KeyOps: []*azkeys.KeyOperation{new(azkeys.KeyOperationSign)}},
		{Kty: new(azkeys.KeyTypeOctHSM), KeyAttributes: &azkeys.KeyAttributes{NotBefore: &exp, Expires: &exp}},
	} {
		_, err := c.CreateKey(ctx, "bad", bad, nil)
		wantCode(t, err, 400, "BadParameter", "")
	}
}

func TestRotationPolicy(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	c := azure(t, s)
	p, err := c.GetKeyRotationPolicy(t.Context(), "kek", nil)
	if err != nil || len(p.LifetimeActions) != 1 || *p.LifetimeActions[0].Action.Type != azkeys.KeyRotationPolicyActionNotify {
		t.Fatalf("default policy: %+v, %v", p, err)
	}
	rotate := azkeys.KeyRotationPolicyActionRotate
	after := "P90D"
	if _, err := c.UpdateKeyRotationPolicy(t.Context(), "kek", azkeys.KeyRotationPolicy{
		LifetimeActions: []*azkeys.LifetimeAction{{
			Action:  &azkeys.LifetimeActionType{Type: &rotate},
			Trigger: &azkeys.LifetimeActionTrigger{TimeAfterCreate: &after},
		}},
	}, nil); err != nil {
		t.Fatal(err)
	}
	p, err = c.GetKeyRotationPolicy(t.Context(), "kek", nil)
	if err != nil || *p.LifetimeActions[0].Trigger.TimeAfterCreate != after {
		t.Errorf("policy: %+v, %v", p, err)
	}
	_, err = c.GetKeyRotationPolicy(t.Context(), "nokey", nil)
	wantCode(t, err, 404, "KeyNotFound", "")
}

func TestSoftDelete(t *testing.T) {
	s := start(t, devvault.Config{})
	version := create(t, s, "kek", oct())
	create(t, s, "other", oct())
	c := azure(t, s)
	ctx := t.Context()
	w, err := c.WrapKey(ctx, "kek", "", params(a256kw, newDEK()), nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.DeleteKey(ctx, "kek", nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.Key.KID.Version() != version || *d.RecoveryID != s.URL(vault)+"/deletedkeys/kek" ||
		d.ScheduledPurgeDate.Sub(*d.DeletedDate) != 90*24*time.Hour {
		t.Errorf("deleted %+v", d)
	}
	gone := func() {
		t.Helper()
		_, err = c.GetKey(ctx, "kek", version, nil)
		wantCode(t, err, 404, "KeyNotFound", "")
		_, err = c.UnwrapKey(ctx, "kek", version, params(a256kw, w.Result), nil)
		wantCode(t, err, 404, "KeyNotFound", "")
		_, err = c.NewListKeyPropertiesVersionsPager("kek", nil).NextPage(ctx)
		wantCode(t, err, 404, "KeyNotFound", "")
		_, err = c.DeleteKey(ctx, "kek", nil)
		wantCode(t, err, 404, "KeyNotFound", "")
	}
	gone()
	_, err = c.CreateKey(ctx, "kek", azkeys.CreateKeyParameters{Kty: new(azkeys.KeyTypeOctHSM)}, nil)
	wantCode(t, err, 409, "Conflict", "ObjectIsDeletedButRecoverable")
	if l, err := c.NewListDeletedKeyPropertiesPager(nil).NextPage(ctx); err != nil || len(l.Value) != 1 ||
		l.Value[0].KID.Name() != "kek" || l.Value[0].DeletedDate == nil {
		t.Errorf("deleted keys: %+v, %v", l, err)
	}
	if _, err := c.GetDeletedKey(ctx, "kek", nil); err != nil {
		t.Error(err)
	}
	if r, err := c.RecoverDeletedKey(ctx, "kek", nil); err != nil || r.Key.KID.Version() != version {
		t.Errorf("recovered: %+v, %v", r, err)
	}
	if _, err := c.UnwrapKey(ctx, "kek", version, params(a256kw, w.Result), nil); err != nil {
		t.Errorf("recovered: %v", err)
	}
	_, err = c.PurgeDeletedKey(ctx, "kek", nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	if _, err := c.DeleteKey(ctx, "kek", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PurgeDeletedKey(ctx, "kek", nil); err != nil {
		t.Fatal(err)
	}
	gone()
	_, err = c.GetDeletedKey(ctx, "kek", nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	_, err = c.RecoverDeletedKey(ctx, "kek", nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	if create(t, s, "kek", oct()) == version {
		t.Error("a purged version came back")
	}
}

func TestNotFound(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	c := azure(t, s)
	_, err := c.GetKey(t.Context(), "nokey", "", nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	_, err = c.GetKey(t.Context(), "kek", strings.Repeat("0", 32), nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	_, err = c.UnwrapKey(t.Context(), "kek", strings.Repeat("0", 32), params(a256kw, make([]byte, 40)), nil)
	wantCode(t, err, 404, "KeyNotFound", "")
	_, err = c.GetKey(t.Context(), "kek", "latest", nil)
	wantCode(t, err, 400, "BadParameter", "")
	if len(s.Counters().Keys) != 0 {
		t.Errorf("key counters %v", s.Counters().Keys)
	}
}

// TestVaultsAreSeparate: the same name in two vaults is two keys.
func TestVaultsAreSeparate(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	if _, err := s.CreateKey("globex", "kek", oct()); err != nil {
		t.Fatal(err)
	}
	c := azure(t, s)
	w, err := c.WrapKey(t.Context(), "kek", "", params(a256kw, newDEK()), nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := azkeys.NewClient(s.URL("globex"), &credential{token: token(t, s)}, &azkeys.ClientOptions{
		ClientOptions: azcore.ClientOptions{Transport: httpClient(t, s)},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.UnwrapKey(t.Context(), "kek", "", params(a256kw, w.Result), nil)
	wantCode(t, err, 400, "BadParameter", "")
}

func TestRestartKeepsKeys(t *testing.T) {
	dir := t.TempDir()
	s := start(t, devvault.Config{Dir: dir})
	version := create(t, s, "kek", devvault.KeySpec{})
	first := azure(t, s)
	dek := newDEK()
	w, err := first.WrapKey(t.Context(), "kek", "", params(oaep256, dek), nil)
	if err != nil {
		t.Fatal(err)
	}
	tok, tenant := token(t, s), s.EntraTenant()
	ca, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, devvault.Config{Dir: dir})
	u, err := azure(t, s).UnwrapKey(t.Context(), "kek", version, params(oaep256, w.Result), nil)
	if err != nil || !bytes.Equal(u.Result, dek) {
		t.Errorf("unwrapped after a restart: %x, %v", u.Result, err)
	}
	again, err := os.ReadFile(s.CAFile())
	if err != nil || !bytes.Equal(ca, again) || token(t, s) != tok || s.EntraTenant() != tenant {
		t.Errorf("CA, token or tenant changed: %v", err)
	}
	if s.Counters().Kinds[devvault.OpWrap] != 0 {
		t.Error("counters survived")
	}
}

// TestConcurrentUse has readers, rotations and updates at once; under -race it
// also finds races.
func TestConcurrentUse(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	c := azure(t, s)
	ctx := t.Context()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				dek := newDEK()
				w, err := c.WrapKey(ctx, "kek", "", params(a256kw, dek), nil)
				if err != nil {
					t.Error(err)
					return
				}
				u, err := c.UnwrapKey(ctx, "kek", w.KID.Version(), params(a256kw, w.Result), nil)
				if err != nil || !bytes.Equal(u.Result, dek) {
					t.Errorf("unwrapped %x, %v", u.Result, err)
				}
			}
		})
	}
	for i := range 4 {
		wg.Go(func() {
			for range 5 {
				if _, err := s.Rotate(vault, "kek"); err != nil {
					t.Error(err)
				}
				create(t, s, fmt.Sprintf("kek-%d", i), oct())
				if err := s.SetAttributes(vault, "kek", "", devvault.Attributes{Ops: []string{"wrapKey", "unwrapKey"}}); err != nil {
					t.Error(err)
				}
				s.Counters()
			}
		})
	}
	wg.Wait()
	n := 0
	for p := c.NewListKeyPropertiesVersionsPager("kek", nil); p.More(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.Value)
	}
	if n != 21 {
		t.Errorf("%d versions, want 21", n)
	}
	if k := s.Counters().Key(vault, "kek"); k.Wraps != 80 || k.Unwrapped != 80 {
		t.Errorf("counters %+v", k)
	}
}

// TestColdStampede: many cold calls cost a challenge each, as with Azure.
func TestColdStampede(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	c := azure(t, s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.GetKey(t.Context(), "kek", "", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	kinds := s.Counters().Kinds
	if kinds[devvault.OpGet] != 20 || kinds[devvault.CountChallenge] == 0 {
		t.Errorf("counters %v", kinds)
	}
}

func TestIssuedTokens(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	cred := &credential{token: s.IssueToken(time.Hour)}
	c := azureWith(t, s, cred, httpClient(t, s), policy.RetryOptions{MaxRetries: -1})
	if _, err := c.GetKey(t.Context(), "kek", "", nil); err != nil {
		t.Fatal(err)
	}
	s.RevokeTokens()
	_, err := c.GetKey(t.Context(), "kek", "", nil)
	wantCode(t, err, http.StatusUnauthorized, "Unauthorized", "")
	if s.Counters().Kinds[devvault.CountBadToken] == 0 {
		t.Errorf("counters %v", s.Counters().Kinds)
	}
}

func BenchmarkUnwrapRSA2048(b *testing.B) {
	s := start(b, devvault.Config{})
	version := create(b, s, "kek", devvault.KeySpec{Bits: 2048})
	c := azure(b, s)
	w, err := c.WrapKey(b.Context(), "kek", "", params(oaep256, newDEK()), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.UnwrapKey(b.Context(), "kek", version, params(oaep256, w.Result), nil); err != nil {
			b.Fatal(err)
		}
	}
}
