package answer_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"math/big"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/kek/azurekv/answer"
)

// point returns the coordinates of a fresh public key, 32 bytes each.
func point(t testing.TB) (public *ecdsa.PublicKey, x, y []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey, b[1:33], b[33:]
}

func TestP256(t *testing.T) {
	public, x, y := point(t)
	for x[0] != 0 { // one key in 256 has such an x
		public, x, y = point(t)
	}
	for name, c := range map[string]struct{ x, y []byte }{
		"32 bytes":             {x, y},
		"no leading zero":      {x[1:], y},
		"two more leading":     {append([]byte{0, 0}, x...), y},
		"leading zeros of y":   {x, append([]byte{0, 0}, y...)},
		"many zeros, no bound": {append(make([]byte, 1000), x...), y},
	} {
		got, err := answer.P256(c.x, c.y)
		if err != nil || !public.Equal(got) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, c := range map[string]struct {
		x, y []byte
		want string
	}{
		"nothing":               {nil, nil, "not a point"},
		"no y":                  {x, nil, "not a point"},
		"swapped":               {y, x, "not a point"},
		"one bit of y":          {x, flipped(y), "not a point"},
		"too long":              {x, append([]byte{1}, y...), "257 bits"},
		"the field's prime":     {elliptic.P256().Params().P.Bytes(), y, "not a point"},
		"zero, not at infinity": {make([]byte, 32), make([]byte, 32), "not a point"},
	} {
		if got, err := answer.P256(c.x, c.y); err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %q", name, got, err, c.want)
		}
	}
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

func TestRSA(t *testing.T) {
	modulus := bytes.Repeat([]byte{0xff}, 256)
	for name, c := range map[string]struct {
		n, e []byte
		want string // empty: good
	}{
		"good":              {modulus, []byte{1, 0, 1}, ""},
		"exponent 3":        {modulus, []byte{3}, ""},
		"leading zero":      {append([]byte{0}, modulus...), []byte{1, 0, 1}, ""},
		"2040 bits":         {modulus[1:], []byte{1, 0, 1}, "2040 bits"},
		"nothing":           {nil, nil, "0 bits"},
		"even":              {append(bytes.Clone(modulus[1:]), 0xfe), []byte{1, 0, 1}, "even"},
		"exponent 1":        {modulus, []byte{1}, "exponent"},
		"even exponent":     {modulus, []byte{1, 0, 0}, "exponent"},
		"exponent too long": {modulus, []byte{1, 0, 0, 0, 1}, "exponent"},
	} {
		got, err := answer.RSA(c.n, c.e)
		if c.want == "" && (err != nil || got.N.Cmp(new(big.Int).SetBytes(c.n)) != 0) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
		if c.want != "" && (err == nil || got != nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, %v, want %q", name, got, err, c.want)
		}
	}
}

// FuzzP256: what is taken is a point on the curve with those coordinates.
func FuzzP256(f *testing.F) {
	_, x, y := point(f)
	f.Add(x, y)
	f.Add(append([]byte{0}, x...), y)
	f.Add(x, flipped(y))
	f.Add([]byte{}, make([]byte, 33))
	f.Fuzz(func(t *testing.T, x, y []byte) {
		public, err := answer.P256(x, y)
		if err != nil {
			if public != nil {
				t.Error("a key with an error")
			}
			return
		}
		b, err := public.Bytes()
		if err != nil {
			t.Fatalf("not on the curve: %v", err)
		}
		if !bytes.Equal(trimmed(b[1:33]), trimmed(x)) || !bytes.Equal(trimmed(b[33:]), trimmed(y)) {
			t.Errorf("%x, %x became %x", x, y, b)
		}
	})
}

func trimmed(b []byte) []byte { return bytes.TrimLeft(b, "\x00") }
