package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha512"
	"fmt"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

var benchSizes = []int{64, 1 << 10, 64 << 10, 1 << 20}

func bench(b *testing.B, f func(b *testing.B, n int)) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			f(b, n)
		})
	}
}

func BenchmarkSeal(b *testing.B) {
	key := putKey(b, newSlab(b), derive("bench", 32))
	id, c := must(tenant.Parse("tenant-a")), must(envelope.ParseContext(map[string]string{"table": "users", "id": "17"}))
	dekID := envelope.DEKID(key, envelope.PurposeSeal, id)
	bench(b, func(b *testing.B, n int) {
		plaintext, dst := make([]byte, n), make([]byte, 0, envelope.SealedSize(n))
		for b.Loop() {
			envelope.Seal(dst, key, dekID, id, c, plaintext)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	key := putKey(b, newSlab(b), derive("bench", 32))
	id, c := must(tenant.Parse("tenant-a")), must(envelope.ParseContext(map[string]string{"table": "users", "id": "17"}))
	dekID := envelope.DEKID(key, envelope.PurposeSeal, id)
	bench(b, func(b *testing.B, n int) {
		env, dst := envelope.Seal(nil, key, dekID, id, c, make([]byte, n)), make([]byte, 0, n)
		for b.Loop() {
			if _, err := envelope.Open(dst, key, id, c, env); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFloor is what no implementation can leave out: two HMAC-SHA-512 of
// a new key over a reused digest, an AES-256 key schedule, and GCM over the
// payload.
func BenchmarkFloor(b *testing.B) {
	digest, pad, sum := sha512.New(), make([]byte, sha512.BlockSize), make([]byte, 0, sha512.Size)
	hash := func(message []byte) {
		digest.Reset()
		digest.Write(pad)
		digest.Write(message)
		sum = digest.Sum(sum[:0])
	}
	info := make([]byte, 48+24+19+22+10+24) // what BenchmarkSeal's message has
	bench(b, func(b *testing.B, n int) {
		plaintext, dst, nonce := make([]byte, n), make([]byte, 0, n+16), make([]byte, 12)
		for b.Loop() {
			for range 2 {
				hash(info)
				hash(sum)
			}
			aead := must(cipher.NewGCM(must(aes.NewCipher(sum[:32]))))
			aead.Seal(dst, nonce, plaintext, nil)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"one-oct", "one-rsa-3072", "two-deks", "four-two-branches"} {
		sealed := mustLoad(b).open(name).Sealed
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := envelope.Parse(sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
