package envelope_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/tenant"
)

// refReader makes SPEC.md's checks of section 10 in their order, with the
// package's parsers and the KEKs of the key file in place of a vault. It has
// no registry. With a DEK it is warm for that DEK, without it is cold.
type refReader struct {
	slab    *secret.Slab
	keys    *keyFile
	keks    []string
	signers map[envelope.ID]*ecdsa.PublicKey
	dek     []byte
	proven  map[string]bool // results so far, because flips repeat
}

func newSlab(t testing.TB) *secret.Slab {
	t.Helper()
	slab, err := secret.New(secret.Config{Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slab.Close(); err != nil {
			t.Error(err)
		}
	})
	return slab
}

func putKey(t testing.TB, slab *secret.Slab, key []byte) *secret.Key {
	t.Helper()
	k, err := slab.Put((*[32]byte)(slices.Clone(key)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// reader returns the reader that a vector describes.
func (v *openVector) reader(slab *secret.Slab, keys *keyFile, warm bool) *refReader {
	r := &refReader{
		slab: slab, keys: keys, keks: v.KEKs,
		signers: map[envelope.ID]*ecdsa.PublicKey{}, proven: map[string]bool{},
	}
	for _, name := range v.Signers {
		s := keys.signer(name)
		r.signers[envelope.ID(s.ID)] = must(x509.ParsePKIXPublicKey(s.SPKI)).(*ecdsa.PublicKey)
	}
	if warm {
		r.dek = v.DEK
	}
	return r
}

// open returns the plaintext, or the class of the refusal.
func (r *refReader) open(tenantID string, pairs []pair, sealed []byte) ([]byte, class) {
	id, err := tenant.Parse(tenantID)
	if err != nil {
		return nil, invalidTenant
	}
	context, err := parsePairs(pairs)
	if err != nil {
		return nil, invalidContext
	}
	s, err := envelope.Parse(sealed)
	if err != nil {
		return nil, classOf(err)
	}
	if c := r.checkBlocks(s, id); c != ok {
		return nil, c
	}
	dek := r.dek
	if dek == nil {
		var c class
		if dek, c = r.unwrapAny(s); c != ok {
			return nil, c
		}
	}
	return r.openWith(dek, s, id, context)
}

// parsePairs is ParseContext for pairs that may repeat a key.
func parsePairs(pairs []pair) (envelope.Context, error) {
	m := map[string]string{}
	for _, p := range pairs {
		m[p.Key] = p.Value
	}
	if len(m) != len(pairs) {
		return envelope.Context{}, envelope.ErrContext
	}
	return envelope.ParseContext(m)
}

func classOf(err error) class {
	switch {
	case err == nil:
		return ok
	case errors.Is(err, envelope.ErrMalformed) && !errors.Is(err, envelope.ErrUnsupported):
		return malformed
	case errors.Is(err, envelope.ErrUnsupported) && !errors.Is(err, envelope.ErrMalformed):
		return unsupported
	case errors.Is(err, envelope.ErrOpen):
		return unauthentic
	}
	return class("error " + err.Error())
}

func (r *refReader) checkBlocks(s *envelope.Sealed, id tenant.ID) class {
	if s.N == 0 && r.dek == nil {
		return needsRegistry
	}
	if err := s.CheckTenant(id); err != nil {
		return classOf(err)
	}
	for _, b := range s.Blocks() {
		if b.Alg == envelope.AlgBranch {
			continue
		}
		k := r.keys.kek(string(b.KEKRef))
		if k == nil || !slices.Contains(r.keks, k.Ref) || k.Alg != b.Alg.String() {
			return kekNotAllowed
		}
	}
	for _, b := range s.Blocks() {
		if len(b.Proof) > 0 && !r.proves(&b) {
			return unauthentic
		}
	}
	return ok
}

func (r *refReader) proves(b *envelope.Block) bool {
	about := string(b.SignedBytes(nil)) + string(b.Proof)
	proves, done := r.proven[about]
	if !done {
		signer, _ := b.Signer()
		pub := r.signers[signer]
		proves = pub != nil && b.VerifyProof(pub) == nil
		r.proven[about] = proves
	}
	return proves
}

// unwrapAny tries DEK blocks in order. The test KEKs always answer, so the
// first block that can be tried decides.
func (r *refReader) unwrapAny(s *envelope.Sealed) ([]byte, class) {
	for _, b := range s.Blocks() {
		switch {
		case b.Kind == envelope.KindBranch:
		case b.Alg != envelope.AlgBranch:
			return r.unwrap(&b)
		default:
			i := slices.IndexFunc(s.Blocks(), func(o envelope.Block) bool {
				return o.Kind == envelope.KindBranch && o.KeyID == b.Parent
			})
			if i >= 0 {
				return r.unwrapBranch(&s.Blocks()[i], &b)
			}
		}
	}
	return nil, needsRegistry
}

func (r *refReader) unwrapBranch(branch, b *envelope.Block) ([]byte, class) {
	key, c := r.unwrap(branch)
	if c != ok {
		return nil, c
	}
	if envelope.ID(refBranchID(key)) != branch.KeyID {
		return nil, unauthentic
	}
	dek, err := refBranchUnwrap(refWrappingKey(key, string(b.Tenant), b.Created, b.KeyID[:]), b.Wrapped)
	if err != nil {
		return nil, unauthentic
	}
	return dek, ok
}

func (r *refReader) unwrap(b *envelope.Block) ([]byte, class) {
	k := r.keys.kek(string(b.KEKRef))
	if envelope.ID(k.Version) != b.Parent {
		return nil, kekNotFound
	}
	key, done := k.unwrapped[string(b.Wrapped)]
	if !done {
		if b.Alg == envelope.AlgA256KW {
			key, _ = refKeyUnwrap(k.Key, b.Wrapped)
		} else {
			key, _ = k.rsa().Decrypt(nil, b.Wrapped, oaepSHA256)
		}
		if k.unwrapped == nil {
			k.unwrapped = map[string][]byte{}
		}
		k.unwrapped[string(b.Wrapped)] = key
	}
	if len(key) != secret.Size {
		return nil, unauthentic
	}
	return key, ok
}

func (r *refReader) openWith(dek []byte, s *envelope.Sealed, id tenant.ID, context envelope.Context) ([]byte, class) {
	key := must(r.slab.Put((*[32]byte)(slices.Clone(dek))))
	defer key.Wipe()
	if envelope.DEKID(key, envelope.PurposeSeal, id) != s.DEKID {
		return nil, unauthentic
	}
	out, err := envelope.Open(nil, key, id, context, s.Envelope)
	return out, classOf(err)
}

var oaepSHA256 = &rsa.OAEPOptions{Hash: crypto.SHA256}
