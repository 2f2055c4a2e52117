package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"github.com/keysidecar/keysidecar/internal/secret"
)

const (
	branchIDLabel = "keysidecar/v1/branch-id\x00"
	dekWrapLabel  = "keysidecar/v1/dek-wrap\x00"
	wrapNonceSize = 12
)

// BranchID returns the branch_id of a branch key: SPEC.md, 5.2.
func BranchID(branch *secret.Key) ID {
	out, err := hkdf.Expand(sha512.New, branch.Expose()[:], branchIDLabel, len(ID{}))
	if err != nil {
		panic("envelope: internal error: branch ID: " + err.Error())
	}
	return ID(out)
}

// UnwrapUnder unwraps a parsed DEK block of AlgBranch with its branch key into
// dek, which the caller alone holds: SPEC.md, 5.3 and 6.2. It returns ErrOpen,
// and leaves dek as it was, if the branch key is not the block's parent or the
// block is not authentic.
func (b *Block) UnwrapUnder(branch, dek *secret.Key) error {
	if b.Alg != AlgBranch || BranchID(branch) != b.Parent {
		return fmt.Errorf("branch key is not the block's: %w", ErrOpen)
	}
	info := append([]byte(dekWrapLabel), byte(b.Purpose))
	info = appendLP16(info, b.Tenant)
	info = binary.BigEndian.AppendUint64(info, b.Created)
	info = append(info, b.KeyID[:]...)
	key, err := hkdf.Expand(sha512.New, branch.Expose()[:], string(info), secret.Size)
	if err != nil {
		panic("envelope: internal error: wrapping key: " + err.Error())
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("envelope: internal error: wrapping key: " + err.Error())
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("envelope: internal error: wrapping key: " + err.Error())
	}
	var out [secret.Size]byte
	defer clear(out[:])
	if _, err := gcm.Open(out[:0], b.Wrapped[:wrapNonceSize], b.Wrapped[wrapNonceSize:], nil); err != nil {
		return fmt.Errorf("wrapped under a branch key: %w", ErrOpen)
	}
	*dek.Expose() = out
	return nil
}
