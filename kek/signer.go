package kek

import (
	"context"
	"crypto/ecdsa"
	"math/big"
)

// SignatureSize is the length in bytes of an ES256 signature: r and s, each a
// 32-byte big-endian integer (RFC 7518, 3.4).
const SignatureSize = 64

// OpSign is the Op of errors from a Signer.
const OpSign = "sign"

// Signer signs with EC P-256 keys that never leave a remote vault.
//
// Sign is safe for concurrent use, returns when ctx ends, and retains nothing
// of its arguments. Every error is or wraps an *Error, whose Version is zero
// until a version was chosen. A call that failed may still have signed.
type Signer interface {
	// Sign signs digest, the SHA-256 of a message, with ES256 by the newest
	// version of k that is enabled and valid now. It asks the vault each time,
	// and verifies the signature against the public key that the vault names
	// before it returns it. k.Alg is zero. It returns Disabled when versions
	// exist but none is usable, and Unusable for a key that can never sign
	// with ES256.
	Sign(ctx context.Context, k Key, digest [32]byte) (Signature, error)
}

// Signature is one ES256 signature, and the key that made it.
type Signature struct {
	// Version is the version of the key that signed.
	Version Version
	// Name is the version's identifier, "https://host/keys/name/version".
	Name string
	// RS is the signature, r || s: SignatureSize bytes.
	RS []byte
	// Public is the version's public key, on P-256.
	Public *ecdsa.PublicKey
}

// Verify reports whether RS is a signature of digest by Public. It does not
// ask whose key Public is.
func (s Signature) Verify(digest [32]byte) bool {
	if s.Public == nil || len(s.RS) != SignatureSize {
		return false
	}
	half := len(s.RS) / 2
	return ecdsa.Verify(s.Public, digest[:], new(big.Int).SetBytes(s.RS[:half]), new(big.Int).SetBytes(s.RS[half:]))
}
