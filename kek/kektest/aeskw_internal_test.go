package kektest

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// TestVector is RFC 3394, 4.6: 256 bits of key data with a 256-bit KEK.
func TestVector(t *testing.T) {
	var kek [32]byte
	copy(kek[:], unhex(t, "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"))
	key := unhex(t, "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
	want := unhex(t, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
	wrapped, err := aesWrap(&kek, key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(wrapped, want) {
		t.Errorf("wrapped to %x, not %x", wrapped, want)
	}
	got, err := aesUnwrap(&kek, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, key) {
		t.Errorf("unwrapped to %x, not %x", got, key)
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
