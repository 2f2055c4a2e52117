package state_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// TestKeyWrapRFC3394 runs the vectors of RFC 3394, 4.3, 4.5 and 4.6.
func TestKeyWrapRFC3394(t *testing.T) {
	kek := (*[32]byte)(unhex(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"))
	for _, tc := range []struct{ name, key, wrapped string }{
		{
			"4.3", "00112233445566778899aabbccddeeff",
			"64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7",
		},
		{
			"4.5", "00112233445566778899aabbccddeeff0001020304050607",
			"a8f9bc1612c68b3ff6e6f4fbe30e71e4769c8b80a32cb8958cd5d17d6b254da1",
		},
		{
			"4.6", "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f",
			"28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := state.KeyWrap(kek, unhex(t, tc.key))
			if err != nil || hex.EncodeToString(got) != tc.wrapped {
				t.Errorf("wrapped: %x, %v; want %s", got, err, tc.wrapped)
			}
			back, err := state.KeyUnwrap(kek, unhex(t, tc.wrapped))
			if err != nil || hex.EncodeToString(back) != tc.key {
				t.Errorf("unwrapped: %x, %v; want %s", back, err, tc.key)
			}
		})
	}
}

func TestKeyWrapWycheproof(t *testing.T) {
	var file struct {
		Tests []struct {
			TcID                          int
			Comment, Key, Msg, Ct, Result string
		}
	}
	raw, err := os.ReadFile("testdata/aes_wrap_256.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, tc := range file.Tests {
		seen[tc.Result]++
		kek := (*[32]byte)(unhex(t, tc.Key))
		msg, ct := unhex(t, tc.Msg), unhex(t, tc.Ct)
		got, err := state.KeyUnwrap(kek, ct)
		if tc.Result != "valid" { // we refuse the "acceptable" key of 8 bytes, as RFC 3394 does
			if err == nil || got != nil {
				t.Errorf("%d (%s): unwrapped %x, %v; want nothing and an error", tc.TcID, tc.Comment, got, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(got, msg) {
			t.Errorf("%d (%s): unwrapped %x, %v", tc.TcID, tc.Comment, got, err)
		}
		if got, err := state.KeyWrap(kek, msg); err != nil || !bytes.Equal(got, ct) {
			t.Errorf("%d (%s): wrapped %x, %v", tc.TcID, tc.Comment, got, err)
		}
	}
	if seen["valid"] != 13 || seen["invalid"] != 54 || seen["acceptable"] != 1 {
		t.Errorf("vectors by result: %v", seen)
	}
}

func TestKeyWrapRoundTripAndBitFlip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kek := (*[32]byte)(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "kek"))
		n := 8 * rapid.IntRange(2, 20).Draw(t, "blocks")
		key := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "key")
		wrapped, err := state.KeyWrap(kek, key)
		if err != nil {
			t.Fatal(err)
		}
		back, err := state.KeyUnwrap(kek, wrapped)
		if err != nil || !bytes.Equal(back, key) {
			t.Fatalf("round trip: %x, %v", back, err)
		}
		bit := rapid.IntRange(0, 8*len(wrapped)-1).Draw(t, "bit")
		wrapped[bit/8] ^= 1 << (bit % 8)
		if back, err := state.KeyUnwrap(kek, wrapped); err == nil || back != nil {
			t.Fatalf("bit %d flipped: %x, %v", bit, back, err)
		}
	})
}

func TestKeyWrapLengths(t *testing.T) {
	var kek [32]byte
	for n := range 34 {
		_, err := state.KeyWrap(&kek, make([]byte, n))
		if ok := n >= 16 && n%8 == 0; (err == nil) != ok {
			t.Errorf("wrapping %d bytes: %v", n, err)
		}
		if got, err := state.KeyUnwrap(&kek, make([]byte, n)); err == nil || got != nil {
			t.Errorf("unwrapping %d zero bytes: %x, %v", n, got, err)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
