package state_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

func createKey(t *testing.T, d *state.Dir, n state.Spec) *state.Version {
	t.Helper()
	if err := d.Keys.CreateVault("acme"); err != nil {
		t.Fatal(err)
	}
	_, v, err := d.Keys.Create("acme", "audit", n)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// verifies verifies r || s with crypto/ecdsa, under the point that v names.
func verifies(t *testing.T, v *state.Version, digest, signature []byte) bool {
	t.Helper()
	curve, x, y := v.Point()
	if curve != "P-256" || len(x) != 32 || len(y) != 32 || len(signature) != 64 {
		t.Fatalf("curve %q, %d and %d bytes, signature of %d", curve, len(x), len(y), len(signature))
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
	if err != nil {
		t.Fatal(err)
	}
	return ecdsa.Verify(public, digest, new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
}

func TestSign(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	digest := sha256.Sum256([]byte("message"))
	for _, kty := range []string{state.TypeEC, state.TypeECHSM} {
		v := createKey(t, d, state.Spec{Type: kty, Curve: "P-256"})
		if n, e := v.Public(); n != nil || e != nil || v.Type() != kty {
			t.Errorf("type %s with modulus %x", v.Type(), n)
		}
		if !slices.Equal(v.Ops, []string{state.KeyOpSign, state.KeyOpVerify}) {
			t.Errorf("%s may %v", kty, v.Ops)
		}
		for range 300 { // r or s begins with a zero byte in one of 128
			signature, err := v.Sign("ES256", digest[:], 0)
			if err != nil || !verifies(t, v, digest[:], signature) {
				t.Fatalf("%s: signature %x, %v", kty, signature, err)
			}
		}
	}
	_, rotated, err := d.Keys.Rotate("acme", "audit")
	if err != nil || rotated.Type() != state.TypeECHSM {
		t.Fatalf("rotated to %v, %v", rotated, err)
	}
	// The same keys after a kill.
	k, err := open(t, copyDir(t, path)).Keys.Live("acme", "audit")
	if err != nil || len(k.Versions) != 3 {
		t.Fatalf("%+v, %v", k, err)
	}
	signature, err := k.Newest().Sign("ES256", digest[:], 0)
	if err != nil || !verifies(t, rotated, digest[:], signature) || verifies(t, k.Versions[0], digest[:], signature) {
		t.Errorf("signature after reopening does not verify: %v", err)
	}
}

func TestSignRefuses(t *testing.T) {
	d := open(t, t.TempDir())
	digest := bytes.Repeat([]byte{1}, 32)
	refused := func(name string, err error, status int, inner string) {
		t.Helper()
		var e *state.Error
		if !errors.As(err, &e) || e.Status != status || e.InnerCode != inner {
			t.Errorf("%s: %v, want %d %s", name, err, status, inner)
		}
	}
	v := createKey(t, d, state.Spec{Type: state.TypeEC, NotBefore: 5, Expires: 9})
	for _, alg := range []string{"", "es256", "ES384", "ES256K", "RS256", "RSA-OAEP-256"} {
		_, err := v.Sign(alg, digest, 5)
		refused("algorithm "+alg, err, 400, "")
	}
	for _, n := range []int{0, 31, 33, 64} {
		_, err := v.Sign("ES256", make([]byte, n), 5)
		refused("length", err, 400, "")
	}
	for at, inner := range map[int64]string{4: "KeyNotYetValid", 9: "KeyExpired"} {
		_, err := v.Sign("ES256", digest, at)
		refused(inner, err, 403, inner)
	}
	if _, err := v.Sign("ES256", digest, 8); err != nil {
		t.Errorf("within its validity: %v", err)
	}
	_, disabled, err := d.Keys.Update("acme", "audit", v.ID, state.Change{Enabled: new(false)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = disabled.Sign("ES256", digest, 5)
	refused("disabled", err, 403, "KeyDisabled")
	_, err = createKey(t, d, state.Spec{Type: state.TypeEC, Ops: []string{"verify"}}).Sign("ES256", digest, 0)
	refused("key_ops", err, 403, "KeyOperationForbidden")
	_, err = createKey(t, d, state.Spec{Type: state.TypeRSA}).Sign("ES256", digest, 0)
	refused("RSA key", err, 400, "")
	_, err = createKey(t, d, state.Spec{Type: state.TypeOctHSM}).Sign("ES256", digest, 0)
	refused("oct key", err, 403, "KeyOperationForbidden")
	_, err = v.Wrap(state.KeyOpWrap, "RSA-OAEP-256", digest, 5)
	refused("EC key wraps", err, 403, "KeyOperationForbidden")
	for name, n := range map[string]state.Spec{
		"curve":   {Type: state.TypeEC, Curve: "P-384"},
		"bits":    {Type: state.TypeEC, Bits: 384},
		"key_ops": {Type: state.TypeEC, Ops: []string{"wrapKey"}},
	} {
		_, _, err := d.Keys.Create("acme", "other", n)
		refused(name, err, 400, "")
	}
}

// TestDecodeRefusesEC has key files whose material is not what their type says.
func TestDecodeRefusesEC(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kty, want string
		key       crypto.PrivateKey
	}{
		{state.TypeEC, "curve P-384", p384},
		{state.TypeECHSM, "not EC", large},
		{state.TypeRSA, "not RSA", p384},
		{state.TypeEC, "parsing EC key", nil},
	} {
		var material []byte
		if tc.key != nil {
			if material, err = x509.MarshalPKCS8PrivateKey(tc.key); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := json.Marshal(map[string]any{"format": 1, "name": "audit", "versions": []any{
			map[string]any{"id": strings.Repeat("0", 32), "type": tc.kty, "material": material},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if k, err := state.DecodeKey(raw); err == nil || k != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, %v, want %q", tc.kty, k, err, tc.want)
		}
	}
}
