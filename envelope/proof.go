package envelope

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

const (
	proofLabel   = "keysidecar/v1/proof\x00"
	proofVersion = 0x01
	scalarSize   = 32
	proofSize    = 1 + len(ID{}) + 2*scalarSize
)

// checkProof applies the rules for the field itself; VerifyProof verifies it.
func (b *Block) checkProof() error {
	switch {
	case b.Kind == KindBranch && len(b.Proof) == 0:
		return malformed("block proof missing")
	case len(b.Proof) == 0:
		return nil
	case b.Alg == AlgBranch:
		return malformed("block proof")
	case b.Proof[0] != proofVersion:
		return unsupported("block proof")
	case len(b.Proof) != proofSize:
		return malformed("block proof length")
	}
	return nil
}

// SignerID returns the name of a signing key in proofs: the first 16 bytes of
// SHA-256 over its DER SubjectPublicKeyInfo (RFC 5480). Keys of another curve
// than P-256 are refused.
func SignerID(pub *ecdsa.PublicKey) (ID, error) {
	if pub.Curve != elliptic.P256() {
		return ID{}, errors.New("signing key is not on P-256")
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ID{}, fmt.Errorf("encoding signing key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return ID(sum[:len(ID{})]), nil
}

// Signer returns who signed the proof of a parsed block, and false if it has
// none. A reader that has not pinned the signer must refuse the block: a
// proof that is present is never ignored.
func (b *Block) Signer() (ID, bool) {
	if len(b.Proof) != proofSize {
		return ID{}, false
	}
	return ID(b.Proof[1 : 1+len(ID{})]), true
}

// SignedBytes appends to dst what a proof signs:
//
//	"keysidecar/v1/proof" || 0x00 || kind || purpose || key_id || u64(created) || lp8(tenant)
//
// The KEK is not part of it: a rewrap keeps the proof. The block must be one
// that Append accepts with a proof.
func (b *Block) SignedBytes(dst []byte) []byte {
	dst = append(dst, proofLabel...)
	dst = append(dst, byte(b.Kind), byte(b.Purpose))
	dst = append(dst, b.KeyID[:]...)
	dst = binary.BigEndian.AppendUint64(dst, b.Created)
	return appendLP8(dst, b.Tenant)
}

// VerifyProof returns nil if the block's proof is pub's ECDSA signature with
// P-256 and SHA-256 (ES256, RFC 7518, 3.4) over SignedBytes. It returns
// ErrOpen for every other proof, for none, and for a pub of another curve.
func (b *Block) VerifyProof(pub *ecdsa.PublicKey) error {
	named, ok := b.Signer()
	if !ok {
		return fmt.Errorf("proof missing: %w", ErrOpen)
	}
	if id, err := SignerID(pub); err != nil || id != named {
		return fmt.Errorf("proof by another signer: %w", ErrOpen)
	}
	sum := sha256.Sum256(b.SignedBytes(nil))
	signature := b.Proof[1+len(ID{}):]
	r := new(big.Int).SetBytes(signature[:scalarSize])
	s := new(big.Int).SetBytes(signature[scalarSize:])
	if !ecdsa.Verify(pub, sum[:], r, s) {
		return fmt.Errorf("proof signature: %w", ErrOpen)
	}
	return nil
}
