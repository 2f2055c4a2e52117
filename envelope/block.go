package envelope

import (
	"encoding/binary"
	"fmt"

	"github.com/keysidecar/keysidecar/tenant"
)

// Kind says what key a block carries.
type Kind byte

// The kinds of key block.
const (
	// KindDEK is a tenant's data key.
	KindDEK Kind = 1
	// KindBranch is a branch key, which wraps DEKs.
	KindBranch Kind = 2
)

// String returns "DEK", "branch" or "kind(N)".
func (k Kind) String() string {
	switch k {
	case KindDEK:
		return "DEK"
	case KindBranch:
		return "branch"
	}
	return fmt.Sprintf("kind(%d)", byte(k))
}

// Alg says how a block's key is wrapped. 1 and 2 have the numbers of kek.Alg.
type Alg byte

// The wrapping algorithms of key blocks.
const (
	// AlgRSAOAEP256 is RSAES-OAEP with SHA-256, under a KEK.
	AlgRSAOAEP256 Alg = 1
	// AlgA256KW is AES-256 Key Wrap (RFC 3394), under a KEK.
	AlgA256KW Alg = 2
	// AlgBranch is AES-256-GCM under a key derived from a branch key.
	AlgBranch Alg = 3
)

// String returns the name that RFC 7518 uses, "branch-A256GCM" or "alg(N)".
func (a Alg) String() string {
	switch a {
	case AlgRSAOAEP256:
		return "RSA-OAEP-256"
	case AlgA256KW:
		return "A256KW"
	case AlgBranch:
		return "branch-A256GCM"
	}
	return fmt.Sprintf("alg(%d)", byte(a))
}

// MaxKEKRef is the longest kek_ref in bytes.
const MaxKEKRef = 63

const (
	blockVersion  = 0x01
	wrappedA256KW = 40           // 32 bytes and the 8 of the integrity check
	wrappedBranch = 12 + 32 + 16 // nonce, ciphertext, tag
)

// Block is a key block: one wrapped key and what is needed to unwrap it. The
// slices of a parsed Block alias the input.
type Block struct {
	Kind Kind
	// Purpose is PurposeSeal for a DEK and zero for a branch key.
	Purpose Purpose
	Alg     Alg
	// KeyID is the wrapped key's dek_id or branch_id.
	KeyID ID
	// Created is in seconds since 1970. Without a Proof or AlgBranch nobody
	// vouches for it.
	Created uint64
	// Tenant is the DEK's tenant. For a branch key it is empty, or the tenant
	// for whom KEKRef was filled in.
	Tenant []byte
	// KEKRef is the configured name of the KEK; empty for AlgBranch.
	KEKRef []byte
	// Parent is the version of the KEK, or the branch_id for AlgBranch.
	Parent ID
	// Wrapped is the wrapped key, of a length that Alg gives.
	Wrapped []byte
	// Proof is empty or 0x01 || signer[16] || r[32] || s[32]. See VerifyProof.
	Proof []byte
}

// ParseBlock parses one key block, without length prefix:
//
//	0x01 || kind || purpose || alg || key_id[16] || u64(created) || lp8(tenant)
//	     || lp8(kek_ref) || parent[16] || lp16(wrapped) || lp16(proof)
//
// It returns nil and ErrMalformed or ErrUnsupported for anything else.
func ParseBlock(b []byte) (*Block, error) {
	out := new(Block)
	if err := out.parse(b); err != nil {
		return nil, err
	}
	return out, nil
}

func (b *Block) parse(raw []byte) error {
	r := reader{rest: raw}
	version := r.byte()
	if !r.short && version != blockVersion {
		return unsupported("block version")
	}
	*b = Block{
		Kind: Kind(r.byte()), Purpose: Purpose(r.byte()), Alg: Alg(r.byte()), KeyID: r.id(), Created: r.uint64(),
		Tenant: r.lp8(), KEKRef: r.lp8(), Parent: r.id(), Wrapped: r.lp16(), Proof: r.lp16(),
	}
	if r.short || len(r.rest) != 0 {
		return malformed("block length")
	}
	return b.check()
}

// Append appends the block's only encoding to dst. It returns nil and
// ParseBlock's error if ParseBlock would refuse it.
func (b *Block) Append(dst []byte) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	dst = append(dst, blockVersion, byte(b.Kind), byte(b.Purpose), byte(b.Alg))
	dst = append(dst, b.KeyID[:]...)
	dst = binary.BigEndian.AppendUint64(dst, b.Created)
	dst = appendLP8(dst, b.Tenant)
	dst = appendLP8(dst, b.KEKRef)
	dst = append(dst, b.Parent[:]...)
	dst = appendLP16(dst, b.Wrapped)
	return appendLP16(dst, b.Proof), nil
}

// check applies every rule of SPEC.md, section 6, to the fields, in the order
// of section 9: what is unknown comes before what does not fit together.
func (b *Block) check() error {
	switch {
	case b.Kind != KindDEK && b.Kind != KindBranch:
		return unsupported("block kind")
	case b.Purpose > PurposeSeal:
		return unsupported("block purpose")
	case b.Alg < AlgRSAOAEP256 || b.Alg > AlgBranch:
		return unsupported("block alg")
	case (b.Kind == KindDEK) != (b.Purpose == PurposeSeal):
		return malformed("block purpose")
	case b.Kind == KindBranch && b.Alg == AlgBranch:
		return malformed("block alg")
	case !b.validTenant():
		return malformed("block tenant")
	case !b.validKEKRef():
		return malformed("block kek_ref")
	case !b.validWrapped():
		return malformed("block wrapped")
	}
	return b.checkProof()
}

func (b *Block) validTenant() bool {
	if b.Kind == KindBranch && len(b.Tenant) == 0 {
		return true
	}
	_, err := tenant.Parse(string(b.Tenant))
	return err == nil
}

func (b *Block) validKEKRef() bool {
	if b.Alg == AlgBranch {
		return len(b.KEKRef) == 0
	}
	n := len(b.KEKRef)
	if n == 0 || n > MaxKEKRef || b.KEKRef[n-1] == '-' {
		return false
	}
	for _, c := range b.KEKRef {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (b *Block) validWrapped() bool {
	n := len(b.Wrapped)
	switch b.Alg {
	case AlgRSAOAEP256:
		return n == 256 || n == 384 || n == 512
	case AlgA256KW:
		return n == wrappedA256KW
	default:
		return n == wrappedBranch
	}
}
