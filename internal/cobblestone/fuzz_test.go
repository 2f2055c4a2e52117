package cobblestone_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

var fuzzContext = []byte("fuzz")

// addBodies seeds f with bodies that open. The fuzzer's changes mostly leave salt and
// commitment alone, so that it reaches the chunks.
func addBodies(f *testing.F, add func(body []byte)) {
	for _, n := range []int{0, 1, 100, cobblestone.ChunkSize - 1, cobblestone.ChunkSize, cobblestone.ChunkSize + 50} {
		body := reference(f, testKey(), pattern(cobblestone.SaltSize), fuzzContext, pattern(n))
		add(body)
		add(body[:len(body)-1])
	}
	add(nil)
}

// Whatever opens is what the reference makes of the plaintext, byte for byte: no second
// encoding of a message is accepted.
func FuzzOpen(f *testing.F) {
	addBodies(f, func(body []byte) { f.Add(body) })
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := cobblestone.Open(nil, testKey(), fuzzContext, body)
		if err != nil {
			if got != nil || !errors.Is(err, cobblestone.ErrOpen) {
				t.Fatalf("Open = %d bytes, %v", len(got), err)
			}
			return
		}
		if want := reference(t, testKey(), body[:cobblestone.SaltSize], fuzzContext, got); !bytes.Equal(body, want) {
			t.Fatal("a body opens that Seal does not make")
		}
	})
}

// Reader and Open agree on every body.
func FuzzReader(f *testing.F) {
	addBodies(f, func(body []byte) {
		f.Add(body, uint16(1))
		f.Add(body, uint16(40000))
	})
	f.Fuzz(func(t *testing.T, body []byte, size uint16) {
		want, wantErr := cobblestone.Open(nil, testKey(), fuzzContext, body)
		got, err := openStream(t, bytes.NewReader(body), testKey(), fuzzContext, int(size)+1)
		if !errors.Is(err, wantErr) {
			t.Fatalf("Reader: %v, Open: %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("Reader and Open return different plaintexts")
		}
		if err != nil && len(got)%cobblestone.ChunkSize != 0 {
			t.Fatalf("Reader released %d bytes, no whole chunks", len(got))
		}
	})
}
