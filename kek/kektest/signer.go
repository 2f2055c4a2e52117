package kektest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// RunSigner tests the contract of kek.Signer. It calls open several times;
// each time open makes a key that nobody else uses, with one enabled version.
// The Signer may be the same each time. It makes about 40 calls.
func RunSigner(t *testing.T, open func(t *testing.T) (kek.Signer, kek.Key, Owner)) {
	for name, test := range map[string]func(*signerSuite, *testing.T){
		"signature":         (*signerSuite).signature,
		"absent key":        (*signerSuite).absentKey,
		"key that wraps":    (*signerSuite).wrapping,
		"ended context":     (*signerSuite).endedContext,
		"concurrent use":    (*signerSuite).concurrent,
		"results are apart": (*signerSuite).apart,
		"rotation":          (*signerSuite).rotation,
		"disabled":          (*signerSuite).disabled,
	} {
		t.Run(name, func(t *testing.T) {
			w, k, o := open(t)
			test(&signerSuite{s: w, k: k, o: o}, t)
		})
	}
}

type signerSuite struct {
	s kek.Signer
	k kek.Key
	o Owner
}

// signature verifies signatures with crypto/ecdsa alone. In one of 128, r or s
// begins with a zero byte.
func (s *signerSuite) signature(t *testing.T) {
	for range 8 {
		digest := randomDigest()
		got := s.sign(t, digest)
		der, err := asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(got.RS[:32]), new(big.Int).SetBytes(got.RS[32:]),
		})
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(got.Public, digest[:], der) {
			t.Error("signature does not verify")
		}
		other := digest
		other[0] ^= 1
		if ecdsa.VerifyASN1(got.Public, other[:], der) {
			t.Error("signature verifies for another digest")
		}
	}
	s.sign(t, [32]byte{}) // a digest like any other
}

func (s *signerSuite) absentKey(t *testing.T) {
	absent := s.k
	absent.Name += "-absent"
	got, err := s.s.Sign(t.Context(), absent, randomDigest())
	checkError(t, err, kek.NotFound, kek.OpSign, absent, kek.Version{})
	checkNoSignature(t, got)
}

// wrapping: a key whose Alg says that it wraps is not asked for a signature.
func (s *signerSuite) wrapping(t *testing.T) {
	for _, alg := range []kek.Alg{kek.RSAOAEP256, kek.A256KW} {
		other := s.k
		other.Alg = alg
		got, err := s.s.Sign(t.Context(), other, randomDigest())
		checkError(t, err, kek.Unusable, kek.OpSign, other, kek.Version{})
		checkNoSignature(t, got)
	}
}

func (s *signerSuite) endedContext(t *testing.T) {
	s.sign(t, randomDigest())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	start := time.Now()
	for cause, ctx := range map[error]context.Context{context.Canceled: cancelled, context.DeadlineExceeded: late} {
		got, err := s.s.Sign(ctx, s.k, randomDigest())
		checkError(t, err, kek.Unreachable, kek.OpSign, s.k, kek.Version{})
		checkCause(t, err, cause)
		checkNoSignature(t, got)
	}
	if d := time.Since(start); d > Prompt {
		t.Errorf("calls with an ended context took %s", d)
	}
}

func (s *signerSuite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			digest := randomDigest()
			got, err := s.s.Sign(t.Context(), s.k, digest)
			if err != nil {
				t.Error(err)
				return
			}
			if !got.Verify(digest) {
				t.Error("signature does not verify")
			}
		})
	}
	wg.Wait()
}

// apart changes what was returned, and signs again.
func (s *signerSuite) apart(t *testing.T) {
	digest := randomDigest()
	first := s.sign(t, digest)
	clear(first.RS)
	if again := s.sign(t, digest); !again.Verify(digest) || first.Verify(digest) {
		t.Error("one signature changed with another")
	}
}

func (s *signerSuite) rotation(t *testing.T) {
	digest := randomDigest()
	old := s.sign(t, digest)
	v := s.o.Rotate(t)
	got := s.sign(t, digest)
	if got.Version != v || old.Version == v {
		t.Errorf("signed by %s after %s, not %s", got.Version, old.Version, v)
	}
	if got.Public.Equal(old.Public) {
		t.Error("two versions have one public key")
	}
	if got.Public = old.Public; got.Verify(digest) {
		t.Error("signature verifies with the old version's public key")
	}
}

func (s *signerSuite) disabled(t *testing.T) {
	old := s.sign(t, randomDigest()).Version
	newer := s.o.Rotate(t)
	s.o.Disable(t, newer)
	if got := s.sign(t, randomDigest()).Version; got != old {
		t.Errorf("signed by %s, not %s, with the newer one disabled", got, old)
	}
	s.o.Disable(t, old)
	got, err := s.s.Sign(t.Context(), s.k, randomDigest())
	checkError(t, err, kek.Disabled, kek.OpSign, s.k, kek.Version{})
	checkNoSignature(t, got)
	s.o.Enable(t, newer)
	if got := s.sign(t, randomDigest()).Version; got != newer {
		t.Errorf("signed by %s, not %s, enabled again", got, newer)
	}
}

// sign signs, and checks all of the answer but its randomness.
func (s *signerSuite) sign(t *testing.T, digest [sha256.Size]byte) kek.Signature {
	t.Helper()
	got, err := s.s.Sign(t.Context(), s.k, digest)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.k.Vault + "/keys/" + s.k.Name + "/" + got.Version.String(); !strings.EqualFold(got.Name, want) || got.Version.IsZero() {
		t.Errorf("signed by %q, version %s, not %q", got.Name, got.Version, want)
	}
	if len(got.RS) != kek.SignatureSize || !got.Verify(digest) {
		t.Fatalf("signature of %d bytes does not verify", len(got.RS))
	}
	return got
}

func randomDigest() [sha256.Size]byte {
	var digest [sha256.Size]byte
	rand.Read(digest[:])
	return digest
}

func checkNoSignature(t *testing.T, s kek.Signature) {
	t.Helper()
	if !s.Version.IsZero() || s.Name != "" || s.RS != nil || s.Public != nil {
		t.Errorf("signature with an error: %+v", s)
	}
}
