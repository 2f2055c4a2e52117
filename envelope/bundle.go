package envelope

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/keysidecar/keysidecar/tenant"
)

// Limits of a bundle.
const (
	// MaxBlocks is the largest number of key blocks; the smallest is 1.
	MaxBlocks = 4

	maxPerKind    = 2
	bundleMagic   = "KSB"
	bundleVersion = 0x01
)

// Sealed is parsed sealed data: a bundle, or an envelope alone. All slices in
// it alias the parsed bytes, which must not change while it is in use.
type Sealed struct {
	// N is the number of key blocks; zero for an envelope alone.
	N int
	// Envelope is the header and body, for Open.
	Envelope []byte
	// DEKID is the dek_id in the envelope's header.
	DEKID ID

	blocks [MaxBlocks]Block
	raw    [MaxBlocks][]byte
}

// Blocks returns the key blocks: first one or two DEK blocks in the order in
// which they are tried, then at most two branch blocks.
func (s *Sealed) Blocks() []Block { return s.blocks[:s.N] }

// RawBlock returns the exact bytes of block i, without length prefix.
func (s *Sealed) RawBlock(i int) []byte { return s.raw[:s.N][i] }

// Parse parses a bundle or an envelope alone:
//
//	"KSB" || 0x01 || u8(n) || n x lp16(block) || envelope
//
// It returns nil and ErrMalformed or ErrUnsupported for anything else.
// SPEC.md, section 9, says which where both would be true. A nil error says
// nothing about who made the bytes, or that blocks and envelope belong
// together: see CheckTenant and Open.
func Parse(sealed []byte) (*Sealed, error) {
	s := &Sealed{Envelope: sealed}
	if bytes.HasPrefix(sealed, []byte(bundleMagic)) {
		if err := s.parseBundle(sealed[len(bundleMagic):]); err != nil {
			return nil, err
		}
	}
	id, err := parseEnvelope(s.Envelope)
	if err != nil {
		return nil, err
	}
	s.DEKID = id
	return s, nil
}

// parseBundle parses what follows the magic, up to the envelope.
func (s *Sealed) parseBundle(b []byte) error {
	r := reader{rest: b}
	version := r.byte()
	if !r.short && version != bundleVersion {
		return unsupported("bundle version")
	}
	n := int(r.byte())
	if n < 1 || n > MaxBlocks {
		return malformed("number of blocks")
	}
	for i := range n {
		s.raw[i] = r.lp16()
	}
	if r.short {
		return malformed("bundle length")
	}
	for i := range n {
		if err := s.blocks[i].parse(s.raw[i]); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
	}
	s.N, s.Envelope = n, r.rest
	return checkBlocks(s.Blocks())
}

// AppendBundleHeader appends to dst what stands before the envelope in a
// bundle of these encoded blocks. The result depends on the blocks alone, so
// it can be kept and put before many envelopes. Blocks that Parse would
// refuse give nil and Parse's error.
func AppendBundleHeader(dst []byte, blocks ...[]byte) ([]byte, error) {
	if len(blocks) < 1 || len(blocks) > MaxBlocks {
		return nil, malformed("number of blocks")
	}
	var parsed [MaxBlocks]Block
	dst = append(dst, bundleMagic...)
	dst = append(dst, bundleVersion, byte(len(blocks))) //nolint:gosec // at most MaxBlocks
	for i, b := range blocks {
		if err := parsed[i].parse(b); err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		dst = appendLP16(dst, b)
	}
	if err := checkBlocks(parsed[:len(blocks)]); err != nil {
		return nil, err
	}
	return dst, nil
}

// checkBlocks applies the rules between the blocks of a bundle: 1 or 2 DEK
// blocks, then at most 2 branch blocks, each named by a DEK block, in the
// order of the first DEK block that names them; no block twice.
func checkBlocks(blocks []Block) error {
	deks := slices.IndexFunc(blocks, func(b Block) bool { return b.Kind != KindDEK })
	if deks < 0 {
		deks = len(blocks)
	}
	branches := blocks[deks:]
	if deks == 0 || deks > maxPerKind || len(branches) > maxPerKind {
		return malformed("kinds of blocks")
	}
	last := 0
	for i := range branches {
		first := slices.IndexFunc(blocks[:deks], branches[i].wraps)
		if branches[i].Kind != KindBranch || first < last {
			return malformed("order of blocks")
		}
		last = first
	}
	for i := range blocks {
		if slices.ContainsFunc(blocks[:i], blocks[i].duplicates) {
			return malformed("duplicate block")
		}
	}
	return nil
}

// wraps reports whether the DEK block is wrapped under branch b.
func (b *Block) wraps(dek Block) bool { return dek.Alg == AlgBranch && dek.Parent == b.KeyID }

// duplicates reports whether two blocks wrap one key under one parent.
func (b *Block) duplicates(other Block) bool {
	return b.KeyID == other.KeyID && b.Parent == other.Parent && bytes.Equal(b.KEKRef, other.KEKRef)
}

// CheckTenant returns ErrOpen unless every DEK block is of t and for the key
// that the envelope's header names, and every branch block is of no tenant or
// of t. It checks what the blocks say; only opening proves it. An envelope
// alone passes.
func (s *Sealed) CheckTenant(t tenant.ID) error {
	for i := range s.Blocks() {
		b := &s.blocks[i]
		switch {
		case b.Kind == KindBranch && len(b.Tenant) == 0:
		case string(b.Tenant) != t.String():
			return fmt.Errorf("block %d is of another tenant: %w", i, ErrOpen)
		case b.Kind == KindDEK && b.KeyID != s.DEKID:
			return fmt.Errorf("block %d is of another key: %w", i, ErrOpen)
		}
	}
	return nil
}
