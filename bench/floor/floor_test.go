package floor_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha512"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/bench/floor"
	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

const label = "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"

// The floor does the work that it is there to measure, for every length of the info: of a
// message of one chunk it makes the chunk.
func TestFloorIsCobblestone(t *testing.T) {
	key := [32]byte(bytes.Repeat([]byte{0xa7}, 32))
	plaintext := []byte("floors are for standing on")
	for n := range 300 {
		context := bytes.Repeat([]byte{1}, n)
		body := cobblestone.Seal(nil, &key, context, plaintext)
		parts := floor.New(slices.Concat([]byte(label), body[:cobblestone.SaltSize], context))
		for range 2 {
			chunk := parts.Seal([]byte("dst"), &key, plaintext)
			if want := append([]byte("dst"), body[cobblestone.PrefixSize:]...); !bytes.Equal(chunk, want) {
				t.Fatalf("context of %d bytes: Seal = %x, want %x", n, chunk, want)
			}
			if got := parts.Open(nil, &key, body[cobblestone.PrefixSize:]); !bytes.Equal(got, plaintext) {
				t.Fatalf("context of %d bytes: Open = %q", n, got)
			}
		}
	}
}

// It does the second HMAC pass as well.
func TestFloorCommits(t *testing.T) {
	key := [32]byte(bytes.Repeat([]byte{0xa7}, 32))
	info := []byte("info")
	parts := floor.New(info)
	parts.Seal(nil, &key, nil)

	first := hmac.New(sha512.New, key[:])
	first.Write(append(info, 1))
	second := hmac.New(sha512.New, key[:])
	second.Write(slices.Concat(first.Sum(nil), info, []byte{2}))
	if got, want := parts.Second(), second.Sum(nil); !bytes.Equal(got, want) {
		t.Errorf("T(2) = %x, want %x", got, want)
	}
}

func TestFloorAllocations(t *testing.T) {
	var key [32]byte
	parts := floor.New(make([]byte, 170))
	dst, plaintext := make([]byte, 0, 2000), make([]byte, 1024)
	if got := testing.AllocsPerRun(100, func() { parts.Seal(dst, &key, plaintext) }); got != 2 {
		t.Errorf("%v allocations, want 2", got)
	}
}
