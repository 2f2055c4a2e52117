package rows

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/keysidecar/keysidecar/bench/floor"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/cobblestone"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/tenant"
)

const (
	sealBar    = 1.3
	sealAllocs = 2 // crypto/aes and crypto/cipher

	bodyLabel = "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"
	sealLabel = "keysidecar/v1/seal\x00"

	benchTenant = "tenant-0001"
	pairKey     = "row"
	pairValue   = "billing.invoices.40211"
)

type size struct {
	name  string
	bytes int
}

func sizes() []size {
	return []size{{"64 B", 64}, {"1 KiB", 1 << 10}, {"64 KiB", 1 << 16}, {"1 MiB", 1 << 20}}
}

// info returns what HMAC is computed over for a body with this prefix and context.
func info(prefix, context []byte) []byte {
	return slices.Concat([]byte(bodyLabel), prefix[:cobblestone.SaltSize], context)
}

// boundContext returns the context of an envelope's body (SPEC.md): label || header ||
// lp16(tenant) || u16(1) || lp16(key) || lp16(value).
func boundContext(header []byte) []byte {
	b := append([]byte(sealLabel), header...)
	b = appendLP16(b, benchTenant)
	b = binary.BigEndian.AppendUint16(b, 1)
	b = appendLP16(b, pairKey)
	return appendLP16(b, pairValue)
}

func appendLP16(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) //nolint:gosec // constants above
}

// envelopeRows measures envelope.Seal and Open with a key in its slab, a tenant and one
// pair of context.
func envelopeRows(key *secret.Key) ([]Row, error) {
	t, err := tenant.Parse(benchTenant)
	if err != nil {
		return nil, err
	}
	c, err := envelope.ParseContext(map[string]string{pairKey: pairValue})
	if err != nil {
		return nil, err
	}
	id := envelope.DEKID(key, envelope.PurposeSeal, t)
	var rows []Row
	for _, n := range sizes() {
		plaintext := make([]byte, n.bytes)
		env := envelope.Seal(nil, key, id, t, c, plaintext)
		body := env[envelope.HeaderSize:]
		dst := make([]byte, 0, len(env))
		rows = append(rows, beside(n, "envelope", body, boundContext(env[:envelope.HeaderSize]),
			func() { must(len(envelope.Seal(dst, key, id, t, c, plaintext)) == len(env)) },
			func() {
				got, err := envelope.Open(dst, key, t, c, env)
				must(err == nil && len(got) == n.bytes)
			})...)
	}
	return rows, nil
}

// cobblestoneRows measures the body alone, with a context as long as an envelope's.
func cobblestoneRows() []Row {
	key := testKey()
	context := boundContext(make([]byte, envelope.HeaderSize))
	var rows []Row
	for _, n := range sizes() {
		plaintext := make([]byte, n.bytes)
		body := cobblestone.Seal(nil, key, context, plaintext)
		dst := make([]byte, 0, len(body))
		rows = append(rows, beside(n, "cobblestone", body, context,
			func() { must(len(cobblestone.Seal(dst, key, context, plaintext)) == len(body)) },
			func() {
				got, err := cobblestone.Open(dst, key, context, body)
				must(err == nil && len(got) == n.bytes)
			})...)
	}
	return rows
}

// beside returns the rows of seal and open, each beside the floor: with the same key, the
// body's salt and the context in HMAC, and a payload of the same length in AES-GCM.
func beside(n size, name string, body, context []byte, seal, open func()) []Row {
	key := testKey()
	parts := floor.New(info(body, context))
	plaintext, dst := make([]byte, n.bytes), make([]byte, 0, n.bytes+cobblestone.TagSize)
	ciphertext := parts.Seal(nil, key, plaintext)
	return []Row{
		{
			Claim:     fmt.Sprintf("%s.Seal of %s / floor", name, n.name),
			Subject:   seal,
			Base:      func() { must(len(parts.Seal(dst, key, plaintext)) == len(ciphertext)) },
			Bar:       sealBar,
			MaxAllocs: sealAllocs,
		},
		{
			Claim:     fmt.Sprintf("%s.Open of %s / floor", name, n.name),
			Subject:   open,
			Base:      func() { must(len(parts.Open(dst, key, ciphertext)) == n.bytes) },
			Bar:       sealBar,
			MaxAllocs: sealAllocs,
		},
	}
}
