package verify_test

import (
	"crypto/ecdsa"
	"testing"

	"github.com/keysidecar/keysidecar/audit/verify"
)

func TestTrustThatIsNone(t *testing.T) {
	t.Parallel()
	if _, err := verify.New(verify.Config{Trust: verify.Trust{Keys: []string{"x"}}}); err == nil {
		t.Error("a key that is none")
	}
	if _, err := verify.New(verify.Config{Trust: verify.Trust{Signers: []*ecdsa.PublicKey{nil}}}); err == nil {
		t.Error("a signer that is none")
	}
}
