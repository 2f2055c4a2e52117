package devvault_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

func ec() devvault.KeySpec { return devvault.KeySpec{Type: "EC"} }

func es256(digest []byte) azkeys.SignParameters {
	return azkeys.SignParameters{Algorithm: new(azkeys.SignatureAlgorithmES256), Value: digest}
}

// verifies verifies r || s with the public key of an answer.
func verifies(t *testing.T, key *azkeys.JSONWebKey, digest, rs []byte) bool {
	t.Helper()
	if *key.Crv != azkeys.CurveNameP256 || len(key.X) != 32 || len(key.Y) != 32 || key.D != nil || key.N != nil || len(rs) != 64 {
		t.Fatalf("key %+v, signature of %d bytes", key, len(rs))
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, key.X, key.Y))
	if err != nil {
		t.Fatal(err)
	}
	return ecdsa.Verify(public, digest, new(big.Int).SetBytes(rs[:32]), new(big.Int).SetBytes(rs[32:]))
}

// TestSign creates an EC key through the API, as an operator would, and signs.
func TestSign(t *testing.T) {
	s := start(t, devvault.Config{})
	c := azure(t, s)
	digest := sha256.Sum256([]byte("message"))
	made, err := c.CreateKey(t.Context(), "audit", azkeys.CreateKeyParameters{
		Kty: new(azkeys.KeyTypeEC), Curve: new(azkeys.CurveNameP256),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	version := made.Key.KID.Version()
	if *made.Key.Kty != azkeys.KeyTypeEC || len(made.Key.KeyOps) != 2 {
		t.Errorf("made %+v", made.Key)
	}
	for _, v := range []string{"", version} {
		got, err := c.Sign(t.Context(), "audit", v, es256(digest[:]), nil)
		if err != nil || !verifies(t, made.Key, digest[:], got.Result) {
			t.Fatalf("version %q: signature does not verify: %v", v, err)
		}
		if want := s.URL(vault) + "/keys/audit/" + version; string(*got.KID) != want {
			t.Errorf("kid %s, want %s", *got.KID, want)
		}
	}
	other, err := s.Rotate(vault, "audit")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Sign(t.Context(), "audit", "", es256(digest[:]), nil)
	if err != nil || got.KID.Version() != other || verifies(t, made.Key, digest[:], got.Result) {
		t.Errorf("the newest version does not sign: %v", err)
	}
	if got := s.Counters().Key(vault, "audit"); got != (devvault.KeyCounters{Signs: 3}) {
		t.Errorf("counters %+v", got)
	}
	if got := s.Counters().Kinds[devvault.OpSign]; got != 3 {
		t.Errorf("%d signs counted, want 3", got)
	}
	r := raw(t, s, http.MethodGet, s.URL(vault)+"/keys/audit"+apiVersion, token(t, s), "")
	var body struct{ Key map[string]any }
	if err := json.Unmarshal([]byte(r.body), &body); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"d", "k", "n", "e"} {
		if _, ok := body.Key[secret]; ok {
			t.Errorf("answer has %q: %s", secret, r.body)
		}
	}
	for _, coordinate := range []string{"x", "y"} {
		if text, _ := body.Key[coordinate].(string); len(text) != 43 || strings.ContainsAny(text, "+/=") {
			t.Errorf("%s is %q", coordinate, text)
		}
	}
}

func TestSignRefused(t *testing.T) {
	now := time.Unix(1_900_000_000, 0)
	s := start(t, devvault.Config{Now: func() time.Time { return now }})
	c := azure(t, s)
	digest := bytes.Repeat([]byte{1}, 32)
	create(t, s, "rsa", devvault.KeySpec{})
	create(t, s, "oct", oct())
	create(t, s, "verify", devvault.KeySpec{Type: "EC", Ops: []string{"verify"}})
	create(t, s, "expired", devvault.KeySpec{Type: "EC-HSM", Expires: now})
	create(t, s, "early", devvault.KeySpec{Type: "EC", NotBefore: now.Add(time.Second)})
	create(t, s, "disabled", ec())
	create(t, s, "good", ec())
	if err := s.SetEnabled(vault, "disabled", "", false); err != nil {
		t.Fatal(err)
	}
	with := func(alg azkeys.SignatureAlgorithm, digest []byte) azkeys.SignParameters {
		return azkeys.SignParameters{Algorithm: &alg, Value: digest}
	}
	for _, tc := range []struct {
		key, name, inner string
		params           azkeys.SignParameters
		status           int
		code             string
	}{
		{"disabled", "", "KeyDisabled", es256(digest), 403, "Forbidden"},
		{"expired", "", "KeyExpired", es256(digest), 403, "Forbidden"},
		{"early", "", "KeyNotYetValid", es256(digest), 403, "Forbidden"},
		{"verify", "", "KeyOperationForbidden", es256(digest), 403, "Forbidden"},
		{"oct", "", "KeyOperationForbidden", es256(digest), 403, "Forbidden"},
		{"absent", "", "", es256(digest), 404, "KeyNotFound"},
		{"rsa", "", "", es256(digest), 400, "BadParameter"},
		{"rsa", "what Azure can and this vault cannot", "", with("RS256", digest), 400, "BadParameter"},
		{"good", "algorithm", "", with("ES384", digest), 400, "BadParameter"},
		{"good", "no algorithm", "", with("", digest), 400, "BadParameter"},
		{"good", "31 bytes", "", es256(digest[1:]), 400, "BadParameter"},
		{"good", "33 bytes", "", es256(append(digest, 0)), 400, "BadParameter"},
		{"good", "no bytes", "", es256(nil), 400, "BadParameter"},
	} {
		t.Run(tc.key+" "+tc.name, func(t *testing.T) {
			_, err := c.Sign(t.Context(), tc.key, "", tc.params, nil)
			wantCode(t, err, tc.status, tc.code, tc.inner)
		})
	}
	if _, err := c.Sign(t.Context(), "good", "", es256(digest), nil); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, p := range map[string]azkeys.CreateKeyParameters{
		"curve":   {Kty: new(azkeys.KeyTypeEC), Curve: new(azkeys.CurveNameP384)},
		"key_ops": {Kty: new(azkeys.KeyTypeEC), KeyOps: []*azkeys.KeyOperation{new(azkeys.KeyOperationWrapKey)}},
	} {
		_, err := c.CreateKey(t.Context(), "new-"+strings.ReplaceAll(name, "_", "-"), p, nil)
		wantCode(t, err, 400, "BadParameter", "")
	}
	_, err := c.WrapKey(t.Context(), "good", "", params(oaep256, digest), nil)
	wantCode(t, err, 403, "Forbidden", "KeyOperationForbidden")
}

// TestSignFaults: a fault that shows in the result of a wrap shows in a
// signature too.
func TestSignFaults(t *testing.T) {
	s := start(t, devvault.Config{})
	version := create(t, s, "audit", ec())
	c := azure(t, s)
	digest := bytes.Repeat([]byte{1}, 32)
	key, err := c.GetKey(t.Context(), "audit", version, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind devvault.FaultKind
		bad  func(azkeys.SignResponse) bool
	}{
		{devvault.FaultWrongResult, func(r azkeys.SignResponse) bool { return !verifies(t, key.Key, digest, r.Result) }},
		{devvault.FaultShort, func(r azkeys.SignResponse) bool { return len(r.Result) == 63 }},
		{devvault.FaultLong, func(r azkeys.SignResponse) bool { return len(r.Result) == 65 }},
		{devvault.FaultWrongKID, func(r azkeys.SignResponse) bool { return r.KID.Version() != version }},
	} {
		if _, err := s.Inject(devvault.Fault{Kind: tc.kind, Op: devvault.OpSign, Count: 1}); err != nil {
			t.Fatal(err)
		}
		got, err := c.Sign(t.Context(), "audit", version, es256(digest), nil)
		if err != nil || !tc.bad(got) {
			t.Errorf("%s: %v, %v", tc.kind, got, err)
		}
	}
}
