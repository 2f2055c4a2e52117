package envelope_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

// genBlock draws a well-formed block.
func genBlock(kind envelope.Kind, alg envelope.Alg) *rapid.Generator[*envelope.Block] {
	return rapid.Custom(func(t *rapid.T) *envelope.Block {
		b := &envelope.Block{Kind: kind, Alg: alg, Created: rapid.Uint64().Draw(t, "created"), Proof: []byte{}, KEKRef: []byte{}}
		copy(b.KeyID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key_id"))
		copy(b.Parent[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "parent"))
		b.Tenant = []byte(genTenant().Draw(t, "tenant"))
		sizes := map[envelope.Alg][]int{envelope.AlgRSAOAEP256: {256, 384, 512}, envelope.AlgA256KW: {40}, envelope.AlgBranch: {60}}
		n := rapid.SampledFrom(sizes[alg]).Draw(t, "wrapped")
		b.Wrapped = bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, n)
		if kind == envelope.KindDEK {
			b.Purpose = envelope.PurposeSeal
		} else if rapid.Bool().Draw(t, "of nobody") {
			b.Tenant = []byte{}
		}
		if alg != envelope.AlgBranch {
			b.KEKRef = []byte(rapid.StringMatching(`[a-z0-9-]{0,62}[a-z0-9]`).Draw(t, "kek_ref"))
			if kind == envelope.KindBranch || rapid.Bool().Draw(t, "proven") {
				b.Proof = append([]byte{1}, rapid.SliceOfN(rapid.Byte(), 80, 80).Draw(t, "proof")...)
			}
		}
		return b
	})
}

func TestBlockRoundTrip(t *testing.T) {
	for _, form := range []struct {
		kind envelope.Kind
		alg  envelope.Alg
	}{
		{envelope.KindDEK, envelope.AlgRSAOAEP256}, {envelope.KindDEK, envelope.AlgA256KW}, {envelope.KindDEK, envelope.AlgBranch},
		{envelope.KindBranch, envelope.AlgRSAOAEP256}, {envelope.KindBranch, envelope.AlgA256KW},
	} {
		t.Run(form.kind.String()+" "+form.alg.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b := genBlock(form.kind, form.alg).Draw(t, "block")
				encoded, err := b.Append([]byte("dst"))
				if err != nil {
					t.Fatal(err)
				}
				ref := refBlock{1, byte(b.Kind), byte(b.Purpose), byte(b.Alg), b.KeyID[:], b.Created, string(b.Tenant),
					string(b.KEKRef), b.Parent[:], b.Wrapped, b.Proof, nil}
				if want := cat([]byte("dst"), ref.encode()); !bytes.Equal(encoded, want) {
					t.Fatalf("encoded %x, want %x", encoded, want)
				}
				got, err := envelope.ParseBlock(encoded[3:])
				if diff := cmp.Diff(b, got); err != nil || diff != "" {
					t.Fatal(err, diff)
				}
			})
		})
	}
}

// TestBlockAppendRefuses: what does not parse is not written either, with the
// same error. The vectors give the blocks.
func TestBlockAppendRefuses(t *testing.T) {
	good := must(envelope.ParseBlock(mustLoad(t).open("one-proof").Steps.Blocks[0].Block))
	long := bytes.Repeat([]byte("a"), 70_000)
	for name, test := range map[string]struct {
		want error
		f    func(b *envelope.Block)
	}{
		"kind":            {envelope.ErrUnsupported, func(b *envelope.Block) { b.Kind = 3 }},
		"purpose":         {envelope.ErrUnsupported, func(b *envelope.Block) { b.Purpose = 2 }},
		"no purpose":      {envelope.ErrMalformed, func(b *envelope.Block) { b.Purpose = 0 }},
		"alg":             {envelope.ErrUnsupported, func(b *envelope.Block) { b.Alg = 0 }},
		"branch alg":      {envelope.ErrMalformed, func(b *envelope.Block) { b.Kind, b.Purpose, b.Alg = 2, 0, 3 }},
		"no tenant":       {envelope.ErrMalformed, func(b *envelope.Block) { b.Tenant = nil }},
		"long tenant":     {envelope.ErrMalformed, func(b *envelope.Block) { b.Tenant = long[:256+8] }},
		"no kek_ref":      {envelope.ErrMalformed, func(b *envelope.Block) { b.KEKRef = nil }},
		"long kek_ref":    {envelope.ErrMalformed, func(b *envelope.Block) { b.KEKRef = long[:256+8] }},
		"wrapped":         {envelope.ErrMalformed, func(b *envelope.Block) { b.Wrapped = b.Wrapped[1:] }},
		"long wrapped":    {envelope.ErrMalformed, func(b *envelope.Block) { b.Wrapped = long[:65536+256] }},
		"proof version":   {envelope.ErrUnsupported, func(b *envelope.Block) { b.Proof = []byte{2} }},
		"proof length":    {envelope.ErrMalformed, func(b *envelope.Block) { b.Proof = b.Proof[:80] }},
		"no branch proof": {envelope.ErrMalformed, func(b *envelope.Block) { b.Kind, b.Purpose, b.Proof = 2, 0, nil }},
	} {
		b := *good
		test.f(&b)
		if got, err := b.Append(nil); got != nil || !errors.Is(err, test.want) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func TestParseBlockAliases(t *testing.T) {
	raw := slices.Clone(mustLoad(t).open("one-proof").Steps.Blocks[0].Block)
	b := must(envelope.ParseBlock(raw))
	clear(raw)
	for _, s := range [][]byte{b.Tenant, b.KEKRef, b.Wrapped, b.Proof} {
		if len(s) == 0 || slices.ContainsFunc(s, func(c byte) bool { return c != 0 }) {
			t.Errorf("%x is a copy", s)
		}
		if cap(s) != len(s) {
			t.Errorf("appending to a field of %d bytes would write into the input", len(s))
		}
	}
}

func TestStrings(t *testing.T) {
	got := []string{
		envelope.KindDEK.String(), envelope.KindBranch.String(), envelope.Kind(7).String(),
		envelope.AlgRSAOAEP256.String(), envelope.AlgA256KW.String(), envelope.AlgBranch.String(), envelope.Alg(9).String(),
		envelope.ID{0xab, 15: 1}.String(),
	}
	want := []string{
		"DEK", "branch", "kind(7)", "RSA-OAEP-256", "A256KW", "branch-A256GCM", "alg(9)", "ab000000000000000000000000000001",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVerifyProof(t *testing.T) {
	v := mustLoad(t)
	raw := v.open("one-proof").Steps.Blocks[0].Block
	second, stranger := v.keys.signer("second"), v.keys.signer("stranger")
	public := func(s *signerVector) *ecdsa.PublicKey { return &s.private().PublicKey }
	b := must(envelope.ParseBlock(raw))
	if id, signed := b.Signer(); !signed || !bytes.Equal(id[:], second.ID) || must(envelope.SignerID(public(second))) != id {
		t.Errorf("signer %s, %v", id, signed)
	}
	if err := b.VerifyProof(public(second)); err != nil {
		t.Errorf("proof: %v", err)
	}
	if err := b.VerifyProof(public(stranger)); !errors.Is(err, envelope.ErrOpen) {
		t.Errorf("proof by another: %v", err)
	}
	bare := *b
	bare.Proof = nil
	if err := bare.VerifyProof(public(second)); !errors.Is(err, envelope.ErrOpen) {
		t.Errorf("no proof: %v", err)
	}
	for name, f := range map[string]func(b *envelope.Block){
		"kind":    func(b *envelope.Block) { b.Kind, b.Purpose = envelope.KindBranch, 0 },
		"key_id":  func(b *envelope.Block) { b.KeyID[15] ^= 1 },
		"created": func(b *envelope.Block) { b.Created++ },
		"tenant":  func(b *envelope.Block) { b.Tenant = []byte("tenant-b") },
	} {
		c := *b
		f(&c)
		if err := c.VerifyProof(public(second)); !errors.Is(err, envelope.ErrOpen) {
			t.Errorf("other %s: %v", name, err)
		}
	}
	renamed := *b
	renamed.Proof = edit(b.Proof, 1, string(stranger.ID))
	if err := renamed.VerifyProof(public(second)); !errors.Is(err, envelope.ErrOpen) {
		t.Errorf("another signer named: %v", err)
	}
	rewrapped := *b
	rewrapped.Alg, rewrapped.KEKRef, rewrapped.Parent, rewrapped.Wrapped = envelope.AlgA256KW, []byte("oct"), envelope.ID{}, make([]byte, 40)
	if err := rewrapped.VerifyProof(public(second)); err != nil {
		t.Errorf("after a rewrap: %v", err)
	}
}

func TestVerifyProofScalars(t *testing.T) {
	v := mustLoad(t)
	b := must(envelope.ParseBlock(v.open("one-proof").Steps.Blocks[0].Block))
	pub := &v.keys.signer("second").private().PublicKey
	order := elliptic.P256().Params().N
	r := new(big.Int).SetBytes(b.Proof[17:49])
	for name, scalars := range map[string][2]*big.Int{
		"zero r":     {new(big.Int), new(big.Int).SetBytes(b.Proof[49:])},
		"order as s": {r, order},
	} {
		c := *b
		c.Proof = slices.Clone(b.Proof)
		scalars[0].FillBytes(c.Proof[17:49])
		scalars[1].FillBytes(c.Proof[49:])
		if err := c.VerifyProof(pub); !errors.Is(err, envelope.ErrOpen) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignerIDRefusesOtherCurves(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := envelope.SignerID(&key.PublicKey); err == nil || id != (envelope.ID{}) {
		t.Errorf("P-384: %s, %v", id, err)
	}
	b := must(envelope.ParseBlock(mustLoad(t).open("one-proof").Steps.Blocks[0].Block))
	id := refSignerID(must(x509.MarshalPKIXPublicKey(&key.PublicKey)))
	b.Proof = cat(b.Proof[:1], id, b.Proof[17:])
	if err := b.VerifyProof(&key.PublicKey); !errors.Is(err, envelope.ErrOpen) {
		t.Errorf("P-384: %v", err)
	}
}

// TestBlockTenant: a block takes exactly the tenants that tenant.Parse takes.
func TestBlockTenant(t *testing.T) {
	good := must(envelope.ParseBlock(mustLoad(t).open("one-oct").Steps.Blocks[0].Block))
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(genTenant(), rapid.StringN(0, 5, 10), rapid.StringMatching(`[a.:-]{0,6}`)).Draw(t, "tenant")
		b := *good
		b.Tenant = []byte(s)
		_, err := b.Append(nil)
		if _, want := tenant.Parse(s); (err == nil) != (want == nil) {
			t.Fatalf("%q: %v, %v", s, err, want)
		}
	})
}
