package kek_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/kek"
)

func TestSignatureVerify(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	rs := slices.Concat(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32)))
	if !(kek.Signature{RS: rs, Public: &private.PublicKey}).Verify(digest) {
		t.Fatal("signature does not verify")
	}
	if (kek.Signature{RS: rs, Public: &private.PublicKey}).Verify(sha256.Sum256(nil)) {
		t.Error("signature verifies for another digest")
	}
	for name, bad := range map[string]kek.Signature{
		"zero":        {},
		"no key":      {RS: rs},
		"another key": {RS: rs, Public: &other.PublicKey},
		"short":       {RS: rs[:63], Public: &private.PublicKey},
		"long":        {RS: append(bytes.Clone(rs), 0), Public: &private.PublicKey},
		"padded":      {RS: append([]byte{0}, rs...), Public: &private.PublicKey},
		"both padded": {RS: slices.Concat([]byte{0}, rs[:32], []byte{0}, rs[32:]), Public: &private.PublicKey},
		"zeros":       {RS: make([]byte, 64), Public: &private.PublicKey},
		"swapped":     {RS: slices.Concat(rs[32:], rs[:32]), Public: &private.PublicKey},
	} {
		if bad.Verify(digest) {
			t.Errorf("%s verifies", name)
		}
	}
}
