package trust_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify/trust"
)

const origin = "keysidecar/t/a"

func newSigner(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newKey(t *testing.T) (note.Signer, string) {
	t.Helper()
	signer, key, err := record.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	return signer, key
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkpoint returns a signed checkpoint, and a line of a log that has it.
func checkpoint(t *testing.T, by note.Signer, size int64) (signed, line string) {
	t.Helper()
	signed, err := record.Checkpoint{Log: origin, Size: size, Root: tlog.RecordHash([]byte{byte(size)})}.Sign(by)
	if err != nil {
		t.Fatal(err)
	}
	return signed, recordLine(size, &record.Event{Kind: record.CheckpointMade, Note: signed})
}

func recordLine(seq int64, e *record.Event) string {
	h := record.Header{Log: origin, Seq: seq, Time: time.Unix(1_795_000_000, 0).UTC(), Class: record.Keys}
	line, _ := record.Append(nil, &h, e.Append(nil))
	return string(line)
}

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
		path := write(t, t.TempDir(), "key", test.text)
		keys, err := trust.ReadSigners(path)
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
	_, a := newKey(t)
	_, b := newKey(t)
	dir := t.TempDir()
	path := write(t, dir, "keys", "# ours\n\n"+a+"\r\n  "+b+"\n")
	if got, err := trust.ReadKeys(path); err != nil || !slices.Equal(got, []string{a, b}) {
		t.Errorf("%q, %v", got, err)
	}
	write(t, dir, "keys", a[:len(a)-1])
	if got, err := trust.ReadKeys(path); err == nil {
		t.Errorf("%q", got)
	}
}

// wrapped returns a line as a collector wraps it.
func wrapped(t *testing.T, field, line string) string {
	t.Helper()
	text, err := json.Marshal(map[string]string{"stream": "stdout", field: line})
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

func TestReadCheckpoints(t *testing.T) {
	t.Parallel()
	by, _ := newKey(t)
	one, lineOne := checkpoint(t, by, 1)
	two, lineTwo := checkpoint(t, by, 2)
	three, lineThree := checkpoint(t, by, 3)
	other := recordLine(7, &record.Event{Kind: record.Alive})
	dir := t.TempDir()
	check := func(path string, torn int, want ...string) {
		t.Helper()
		got, left, err := trust.ReadCheckpoints(path)
		if err != nil || !slices.Equal(got, want) || len(left) != torn {
			t.Errorf("%s: %q, torn %q, %v", filepath.Base(path), got, left, err)
		}
	}
	check(write(t, dir, "1", one), 0, one)
	check(write(t, dir, "2", one+two+"\n\n"+three), 0, one, two, three)
	check(write(t, dir, "3", other+"2026-11-22T09:30:00.1Z stdout F "+lineOne+lineTwo+three), 0, one, two, three)
	check(write(t, dir, "4", wrapped(t, "log", lineOne)+wrapped(t, "message", strings.TrimSpace(lineTwo))+
		wrapped(t, "log", "2026-11-22T09:30:00.1Z stdout F "+lineThree)+wrapped(t, "log", "{\"level\":\"INFO\"}")), 0, one, two, three)
	for i := range len(lineTwo) - 1 {
		check(write(t, dir, "5", lineOne+lineTwo[:i]), min(i, 1), one)
	}
	check(write(t, dir, "5", lineOne+lineTwo[:len(lineTwo)-1]), 0, one, two)
	for i := range len(two) - 1 {
		check(write(t, dir, "5", one+two[:i]), min(i, 1), one)
	}
	check(write(t, dir, "5", one+two[:len(two)-1]), 0, one, two)

	under := filepath.Join(dir, "2026", "11")
	if err := os.MkdirAll(under, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := os.Remove(filepath.Join(dir, fmt.Sprint(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	write(t, under, "22", one)
	link := write(t, dir, "z", two)
	if err := os.Symlink(link, filepath.Join(under, "23")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(under, "24")); err != nil {
		t.Fatal(err)
	}
	check(dir, 0, one, two, two)
}

func TestReadCheckpointsRefuses(t *testing.T) {
	t.Parallel()
	by, _ := newKey(t)
	_, line := checkpoint(t, by, 1)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"changed line": strings.Replace(line, `"kind"`, `"kinD"`, 1),
		"no signature": "keysidecar/t/a\n1\n" + line,
		"not a note":   "hello\n\n— a b\n",
		"half a line":  line[:100] + "\n" + line,
		"long":         string(make([]byte, 100_000)),
		"long note":    strings.Repeat("x\n", 10_000),
		"other JSON":   "{\"time\":\"now\",\"body\":\"x\"}\n",
		"no JSON":      "{hello}\n",
	} {
		if got, torn, err := trust.ReadCheckpoints(write(t, dir, "bad", text)); err == nil {
			t.Errorf("%s: %q, %q", name, got, torn)
		}
	}
	if _, _, err := trust.ReadCheckpoints(filepath.Join(dir, "none")); err == nil {
		t.Error("no such file")
	}
}
