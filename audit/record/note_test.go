package record_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/record"
)

const origin = "keysidecar/t/a"

func signed(t testing.TB, c record.Checkpoint, name string) (text, key string) {
	t.Helper()
	signer, key, err := record.NewKey(name)
	if err != nil {
		t.Fatal(err)
	}
	if text, err = c.Sign(signer); err != nil {
		t.Fatal(err)
	}
	return text, key
}

func TestCheckpoints(t *testing.T) {
	t.Parallel()
	want := record.Checkpoint{Log: origin, Size: 12, Root: tlog.Hash{1}}
	text, key := signed(t, want, origin)
	v, err := record.NewVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := record.OpenCheckpoint(text, v); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range len(text) {
		got, err := record.OpenCheckpoint(text[:i]+string(text[i]^1)+text[i+1:], v)
		if err == nil && got == want && i > strings.Index(text, "\n\n") {
			continue // bits of the base64 that mean nothing
		}
		if !errors.Is(err, record.ErrCheckpoint) {
			t.Fatalf("byte %d changed: %+v, %v", i, got, err)
		}
	}
	other, _ := signed(t, want, origin)
	if _, err := record.OpenCheckpoint(other, v); !errors.Is(err, record.ErrCheckpoint) {
		t.Errorf("by another key: %v", err)
	}
	of := want
	of.Log = "keysidecar/t/b"
	text, key = signed(t, of, origin)
	if v, err = record.NewVerifier(key); err != nil {
		t.Fatal(err)
	}
	if _, err := record.OpenCheckpoint(text, v); !errors.Is(err, record.ErrCheckpoint) {
		t.Errorf("of another log: %v", err)
	}
	if _, err := record.NewVerifier("x"); err == nil {
		t.Error("a key that is none")
	}
}

func newP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const keyName = "https://v.example/keys/a/0123"

func certified(t testing.TB, c record.Certificate, by *ecdsa.PrivateKey) (string, error) {
	t.Helper()
	digest := c.Digest()
	r, s, err := ecdsa.Sign(rand.Reader, by, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return c.Sign(keyName, &by.PublicKey, append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// sign returns a signed note (C2SP signed-note, type 0x02).
func sign(t testing.TB, text string, by *ecdsa.PrivateKey) string {
	t.Helper()
	sum := sha256.Sum256([]byte(text))
	sig, err := ecdsa.SignASN1(rand.Reader, by, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&by.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(der)
	return text + "\n— " + keyName + " " + base64.StdEncoding.EncodeToString(append(id[:4], sig...)) + "\n"
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	key, other := newP256(t), newP256(t)
	want := record.Certificate{Key: origin + "+01234567+AAAA", Time: at().Truncate(1e9)}
	for range 20 { // r and s have leading zeros now and then
		text, err := certified(t, want, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := record.OpenCertificate(text, keyName, &key.PublicKey); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
		if name, ok := record.SignerOf(text); !ok || name != keyName {
			t.Errorf("signer %q", name)
		}
	}
	if got, err := record.OpenCertificate(sign(t, want.Text(), key), keyName, &key.PublicKey); err != nil || got != want {
		t.Errorf("signed elsewhere: %+v, %v", got, err)
	}
	text, err := certified(t, want, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := record.OpenCertificate(text, keyName, &other.PublicKey); !errors.Is(err, record.ErrCertificate) {
		t.Errorf("by another key: %v", err)
	}
	if _, err := record.OpenCertificate(text, "other", &key.PublicKey); !errors.Is(err, record.ErrCertificate) {
		t.Errorf("by another name: %v", err)
	}
	for i := range strings.Index(text, "\n\n") {
		if _, err := record.OpenCertificate(text[:i]+string(text[i]^1)+text[i+1:], keyName, &key.PublicKey); !errors.Is(err, record.ErrCertificate) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := want.Sign(keyName, &key.PublicKey, make([]byte, 64)); !errors.Is(err, record.ErrCertificate) {
		t.Errorf("a signature of zeros: %v", err)
	}
	if _, err := want.Sign(keyName, &key.PublicKey, make([]byte, 63)); !errors.Is(err, record.ErrCertificate) {
		t.Errorf("a short signature: %v", err)
	}
	another := "another title\n" + want.Key + "\n2026-11-22T09:30:00Z\n"
	if _, err := record.OpenCertificate(sign(t, another, key), keyName, &key.PublicKey); !errors.Is(err, record.ErrCertificate) {
		t.Errorf("with another title: %v", err)
	}
	// A key with a line feed is more lines.
	if _, err := certified(t, record.Certificate{Key: "a\nb", Time: at()}, key); !errors.Is(err, record.ErrCertificate) {
		t.Errorf("another text: %v", err)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	text, key := signed(f, record.Checkpoint{Log: origin, Size: 12, Root: tlog.Hash{1}}, origin)
	v, err := record.NewVerifier(key)
	if err != nil {
		f.Fatal(err)
	}
	want, err := record.ParseCheckpoint(text)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(strings.Replace(text, "12", "0", 1))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := record.ParseCheckpoint(text)
		if err != nil {
			if c != (record.Checkpoint{}) || !errors.Is(err, record.ErrCheckpoint) {
				t.Fatalf("%+v, %v", c, err)
			}
		} else if !strings.HasPrefix(text, c.Text()) {
			t.Fatalf("%q is %q", text, c.Text())
		}
		if c, err := record.OpenCheckpoint(text, v); err == nil && c != want {
			t.Fatalf("signed: %q", text)
		}
	})
}

func FuzzOpenCertificate(f *testing.F) {
	key := newP256(f)
	want := record.Certificate{Key: origin + "+01234567+AAAA", Time: at().Truncate(1e9)}
	text, err := certified(f, want, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add("a\n\n— b AAAA\n")
	f.Fuzz(func(t *testing.T, text string) {
		record.SignerOf(text)
		c, err := record.OpenCertificate(text, keyName, &key.PublicKey)
		if err != nil && (c != record.Certificate{} || !errors.Is(err, record.ErrCertificate)) || err == nil && c != want {
			t.Fatalf("%q: %+v, %v", text, c, err)
		}
	})
}
