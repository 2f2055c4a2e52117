package cobblestone_test

import (
	"fmt"
	"io"
	"testing"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

var benchLengths = []int{64, 1024, 65536, 1 << 20}

func BenchmarkSeal(b *testing.B) {
	key, context := testKey(), pattern(96)
	for _, n := range benchLengths {
		plaintext, dst := pattern(n), make([]byte, 0, cobblestone.SealedSize(n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				cobblestone.Seal(dst, key, context, plaintext)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	key, context := testKey(), pattern(96)
	for _, n := range benchLengths {
		body, dst := cobblestone.Seal(nil, key, context, pattern(n)), make([]byte, 0, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := cobblestone.Open(dst, key, context, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWriter(b *testing.B) {
	key, context, plaintext := testKey(), pattern(96), pattern(1<<20)
	b.SetBytes(int64(len(plaintext)))
	b.ReportAllocs()
	for b.Loop() {
		w, err := cobblestone.NewWriter(io.Discard, key, context)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(plaintext); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
