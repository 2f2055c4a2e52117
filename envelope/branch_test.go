package envelope_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
)

// A DEK that is wrapped under the right branch key, in a block that names
// another, is refused: SPEC.md, section 10, step 11.
func TestUnwrapUnderChecksTheName(t *testing.T) {
	slab, err := secret.New(secret.Config{Slots: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer slab.Close()
	put := func(fill byte) *secret.Key {
		k, err := slab.Put((*[secret.Size]byte)(bytes.Repeat([]byte{fill}, secret.Size)))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for name, tampered := range map[string]bool{"right name": false, "wrong name": true} {
		branch, out := put(7), put(0)
		block := envelope.Block{
			Kind: envelope.KindDEK, Purpose: envelope.PurposeSeal, Alg: envelope.AlgBranch, Created: 5,
			Tenant: []byte("acme"), KeyID: envelope.ID{9}, Parent: envelope.BranchID(branch),
		}
		nonce, dek := bytes.Repeat([]byte{1}, 12), bytes.Repeat([]byte{8}, secret.Size)
		block.Wrapped = refBranchWrap(refWrappingKey(branch.Expose()[:], "acme", 5, block.KeyID[:]), nonce, dek)
		if tampered {
			block.Parent[0] ^= 1 // not an input of the wrapping key
		}
		err := block.UnwrapUnder(branch, out)
		if tampered != errors.Is(err, envelope.ErrOpen) || !tampered && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if opened := bytes.Equal(out.Expose()[:], dek); opened == tampered {
			t.Errorf("%s: opened = %t", name, opened)
		}
		branch.Wipe()
		out.Wipe()
	}
}
