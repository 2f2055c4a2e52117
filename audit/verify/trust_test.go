package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/audit/verify"
)

func TestReadSigners(t *testing.T) {
	t.Parallel()
	key := &newSigner(t).PublicKey
	point, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	block := func(public any) string {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	text := base64.RawURLEncoding.EncodeToString
	jwk := fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":"https://v/keys/a/1","x":%q,"y":%q}`, text(point[1:33]), text(point[33:]))
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text string
		want int
	}{
		"PEM":          {block(key), 1},
		"two PEM":      {"# keys\n" + block(&newSigner(t).PublicKey) + block(key), 2},
		"JWK":          {jwk, 1},
		"az show":      {`{"attributes":{"enabled":true},"key":` + jwk + `}`, 1},
		"nothing":      {"", 0},
		"another text": {"hello", 0},
		"P-384":        {block(&p384.PublicKey), 0},
		"private":      {string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}})), 0},
		"no DER":       {string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}})), 0},
		"RSA JWK":      {`{"kty":"RSA","n":"AQAB","e":"AQAB"}`, 0},
		"off curve":    {fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, text(point[1:33]), text(point[1:33])), 0},
		"short":        {`{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`, 0},
		"half JSON":    {`{"kty":`, 0},
	} {
		path := filepath.Join(t.TempDir(), "key")
		writeFile(t, path, []byte(test.text))
		keys, err := verify.ReadSigners(path)
		if (err == nil) != (test.want > 0) || len(keys) != test.want {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
			continue
		}
		if test.want > 0 && !keys[test.want-1].Equal(key) {
			t.Errorf("%s: another key", name)
		}
	}
}

func TestReadKeys(t *testing.T) {
	t.Parallel()
	a, b := newWriter(t, "a", nil).key, newWriter(t, "b", nil).key
	path := filepath.Join(t.TempDir(), "keys")
	writeFile(t, path, []byte("# ours\n\n"+a+"\r\n  "+b+"\n"))
	if got, err := verify.ReadKeys(path); err != nil || !slices.Equal(got, []string{a, b}) {
		t.Errorf("%q, %v", got, err)
	}
	writeFile(t, path, []byte(a[:len(a)-1]))
	if got, err := verify.ReadKeys(path); err == nil {
		t.Errorf("%q", got)
	}
	if _, err := verify.New(verify.Config{Trust: verify.Trust{Keys: []string{"x"}}}); err == nil {
		t.Error("a key that is none")
	}
	if _, err := verify.New(verify.Config{Trust: verify.Trust{Signers: []*ecdsa.PublicKey{nil}}}); err == nil {
		t.Error("a signer that is none")
	}
}

func TestReadCheckpoints(t *testing.T) {
	t.Parallel()
	w, other := smallLog(t), newWriter(t, "b", nil)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, []byte(text))
		return path
	}
	check := func(path string, want ...string) {
		t.Helper()
		if got, err := verify.ReadCheckpoints(path); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v", got, err)
		}
	}
	one := write("1", w.notes[5])
	check(one, w.notes[5])
	o := other.sign()
	check(write("2", w.notes[9]+o+"\n\n"+w.notes[14]), w.notes[9], o, w.notes[14])
	cri := "2026-11-22T09:30:00.1Z stdout F "
	check(write("3", string(w.lines[3])+cri+string(w.lines[17])+string(w.lines[25])+o), w.notes[17], w.notes[25], o)
	check(dir, w.notes[5], w.notes[9], o, w.notes[14], w.notes[17], w.notes[25], o)

	changed := bytes.Clone(w.lines[25])
	changed[len(changed)-9]++
	for name, text := range map[string]string{
		"changed line": string(changed),
		"no signature": "keysidecar/t/a\n1\n",
		"not a note":   "hello\n\n— a b\n",
		"half a line":  string(w.lines[25][:100]),
		"long":         string(make([]byte, 10_000)),
	} {
		if got, err := verify.ReadCheckpoints(write("bad", text)); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	if err := os.Remove(filepath.Join(dir, "bad")); err != nil {
		t.Fatal(err)
	}
	if _, err := verify.ReadCheckpoints(filepath.Join(dir, "none")); err == nil {
		t.Error("no such file")
	}
}
