//go:build !race

package envelope_test

import (
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

// TestAllocations: a message costs what crypto/aes and crypto/cipher allocate,
// and nothing else. The race detector makes sync.Pool drop entries on purpose,
// hence the build constraint.
func TestAllocations(t *testing.T) {
	v := mustLoad(t)
	o := v.open("two-deks")
	key := putKey(t, newSlab(t), o.DEK)
	id, c := must(tenant.Parse(o.Tenant)), must(parsePairs(o.Context))
	dekID := envelope.DEKID(key, envelope.PurposeSeal, id)
	plaintext := make([]byte, 1024)
	buf := make([]byte, 0, envelope.SealedSize(len(plaintext)))
	env := envelope.Seal(nil, key, dekID, id, c, plaintext)
	for name, test := range map[string]struct {
		limit float64
		f     func()
	}{
		"Seal":        {2, func() { envelope.Seal(buf, key, dekID, id, c, plaintext) }},
		"Seal to nil": {3, func() { envelope.Seal(nil, key, dekID, id, c, plaintext) }},
		"Open":        {2, func() { _, _ = envelope.Open(buf, key, id, c, env) }},
		"Parse":       {1, func() { _, _ = envelope.Parse(o.Sealed) }},
		"CheckTenant": {1, func() { _ = must(envelope.Parse(o.Sealed)).CheckTenant(id) }},
	} {
		if got := testing.AllocsPerRun(100, test.f); got > test.limit {
			t.Errorf("%s: %v allocations, at most %v", name, got, test.limit)
		}
	}
}
