//go:build !race

package cobblestone_test

import (
	"testing"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
)

// Two allocations are those of crypto/aes and crypto/cipher, a third the result. Under the
// race detector sync.Pool drops entries on purpose, hence the build constraint.
func TestAllocations(t *testing.T) {
	for _, n := range []int{0, 64, 1024, 65536, 1 << 20} {
		// On the stack, as in a caller that takes care: neither may escape.
		var key [cobblestone.KeySize]byte
		var context [300]byte
		plaintext := pattern(n)
		room := make([]byte, 0, cobblestone.SealedSize(n))
		body := cobblestone.Seal(nil, &key, context[:], plaintext)
		for _, tt := range []struct {
			name string
			want float64
			f    func()
		}{
			{"Seal with room", 2, func() { cobblestone.Seal(room, &key, context[:], plaintext) }},
			{"Seal", 3, func() { cobblestone.Seal(nil, &key, context[:], plaintext) }},
			{"Open with room", 2, func() { mustOpen(t, room, &key, context[:], body) }},
			{"Open", 3, func() { mustOpen(t, nil, &key, context[:], body) }},
		} {
			if got := testing.AllocsPerRun(100, tt.f); got > tt.want {
				t.Errorf("%s of %d bytes: %v allocations, want at most %v", tt.name, n, got, tt.want)
			}
		}
	}
}

func mustOpen(t *testing.T, dst []byte, key *[cobblestone.KeySize]byte, context, body []byte) {
	if _, err := cobblestone.Open(dst, key, context, body); err != nil {
		t.Fatal(err)
	}
}
