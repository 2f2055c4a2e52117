// Package kek is the contract for wrapping data keys with a key-encryption
// key that never leaves a remote vault, and for signing with keys kept there.
//
// An implementation is tested by kek/kektest. The values here are plain data:
// nothing in this package does I/O.
package kek

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
)

// Size is the length in bytes of every key that is wrapped.
const Size = 32

// Alg is a key wrapping algorithm. Its number is the alg byte of a key block
// (SPEC.md).
type Alg uint8

// The wrapping algorithms.
const (
	// RSAOAEP256 is RSAES-OAEP with SHA-256 and MGF1-SHA-256, an empty label
	// (RFC 8017, 7.1). It authenticates nobody: whoever has the public key
	// can wrap.
	RSAOAEP256 Alg = 1
	// A256KW is AES-256 Key Wrap (RFC 3394).
	A256KW Alg = 2
)

// String returns the name that Azure Key Vault and RFC 7518 use, or "alg(N)".
func (a Alg) String() string {
	switch a {
	case RSAOAEP256:
		return "RSA-OAEP-256"
	case A256KW:
		return "A256KW"
	}
	return fmt.Sprintf("alg(%d)", uint8(a))
}

// ParseAlg returns the algorithm of that name, in exactly String's spelling.
func ParseAlg(s string) (Alg, error) {
	for _, a := range []Alg{RSAOAEP256, A256KW} {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("wrapping algorithm %q is not RSA-OAEP-256 or A256KW", s)
}

// Version is a version of a KEK: the 32 lower-case hex digits of a Key Vault
// or Managed HSM key version, decoded.
type Version [16]byte

// String returns the 32 lower-case hex digits.
func (v Version) String() string { return hex.EncodeToString(v[:]) }

// IsZero reports whether v is the zero Version, which no vault hands out.
func (v Version) IsZero() bool { return v == Version{} }

// ParseVersion decodes exactly 32 lower-case hex digits, not all zero.
func ParseVersion(s string) (Version, error) {
	var v Version
	if len(s) != 2*len(v) {
		return Version{}, fmt.Errorf("KEK version has %d characters, not %d", len(s), 2*len(v))
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Version{}, fmt.Errorf("KEK version %q is not lower-case hex", s)
		}
	}
	if _, err := hex.Decode(v[:], []byte(s)); err != nil {
		return Version{}, fmt.Errorf("KEK version %q: %w", s, err)
	}
	if v.IsZero() {
		return Version{}, errors.New("KEK version is zero")
	}
	return v, nil
}

// Key names one KEK and how to reach it. It comes from configuration, never
// from sealed data. Keys are compared with ==.
type Key struct {
	// Ref is the logical name that key blocks carry: 1 to 63 bytes
	// [a-z0-9-], the last alphanumeric.
	Ref string
	// Vault is "https://host" or "https://host:port", lower-case, no path.
	Vault string
	// Name is the key's name in the vault: 1 to 127 bytes [A-Za-z0-9-].
	Name string
	// Alg is the only algorithm used with this KEK; zero for a key that signs.
	Alg Alg
	// Region is where the vault keeps the key, in the operator's words.
	Region string
	// Credential is the configured name of the credential to use.
	Credential string
	// EntraTenant is the Entra tenant ID (a GUID) whose tokens the vault
	// accepts; a challenge that names another is refused.
	EntraTenant string
}

// Wrapper wraps and unwraps 32-byte keys with remote KEKs.
//
// Methods are safe for concurrent use, return when ctx ends, and retain none
// of their arguments. Every error is or wraps an *Error. None of them caches
// an unwrapped key. A call that failed may still have reached the vault.
type Wrapper interface {
	// Newest returns the newest version of k that is enabled and valid for
	// wrapping now. It asks the vault each time. It returns Disabled when
	// versions exist but none is usable.
	Newest(ctx context.Context, k Key) (Version, error)
	// Wrap wraps dek under exactly version v of k. It does not prove that v
	// unwraps: Key Vault wraps under a disabled version.
	Wrap(ctx context.Context, k Key, v Version, dek *[Size]byte) ([]byte, error)
	// Unwrap unwraps wrapped, which was wrapped under exactly version v of k,
	// into dek. On error dek is zero. Bytes that the KEK does not accept, and
	// a result of another length than 32, are Rejected.
	Unwrap(ctx context.Context, k Key, v Version, wrapped []byte, dek *[Size]byte) error
}
