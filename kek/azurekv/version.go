package azurekv

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv/answer"
)

// versionTTL is how long a version's public key and attributes are used
// without asking again: how late a local wrap learns that it is disabled.
const versionTTL = 10 * time.Minute

var errOtherKey = refuse("answer names another key")

type versionKey struct {
	key     kek.Key
	version kek.Version
}

// versionSnapshot is what the vault last said about a version. It is not
// changed once made.
type versionSnapshot struct {
	version            kek.Version
	enabled            bool
	notBefore, expires time.Time        // zero: no limit
	public             *rsa.PublicKey   // nil unless k.Alg is RSAOAEP256
	signer             *ecdsa.PublicKey // nil unless the key signs
	fetched            time.Time        // when the request was made
}

// wrapsAt reports whether the version may wrap or sign at t, as the server
// would decide, and that it is enabled, which it would not ask of a wrap.
func (s *versionSnapshot) wrapsAt(t time.Time) bool {
	return s.enabled && (s.notBefore.IsZero() || !t.Before(s.notBefore)) && (s.expires.IsZero() || t.Before(s.expires))
}

// newSnapshot reads the answer to a GET of k. It refuses a key of another
// name, and one that can never do what k is for.
func newSnapshot(k kek.Key, b azkeys.KeyBundle, fetched time.Time) (*versionSnapshot, error) {
	if b.Key == nil || b.Key.Kty == nil {
		return nil, refuse("answer holds no key")
	}
	s, err := newAttributes(k, b.Key.KID, b.Attributes)
	if err != nil {
		return nil, err
	}
	s.fetched = fetched
	if err := s.readPublic(k, b.Key); err != nil {
		return nil, &kek.Error{Reason: kek.Unusable, Err: err}
	}
	if err := checkOps(k, b.Key.KeyOps); err != nil {
		return nil, &kek.Error{Reason: kek.Unusable, Err: err}
	}
	return s, nil
}

// newAttributes reads what a GET and a list of versions have in common.
func newAttributes(k kek.Key, kid *azkeys.ID, a *azkeys.KeyAttributes) (*versionSnapshot, error) {
	version, err := versionOf(k, kid)
	if err != nil {
		return nil, err
	}
	if a == nil || a.Enabled == nil {
		return nil, refuse("answer lacks the key's attributes")
	}
	s := &versionSnapshot{version: version, enabled: *a.Enabled}
	if a.NotBefore != nil {
		s.notBefore = *a.NotBefore
	}
	if a.Expires != nil {
		s.expires = *a.Expires
	}
	return s, nil
}

// versionOf takes apart a key identifier, which must be k's in this vault. Key
// Vault does not tell apart the case of key names, and answers with the case
// in which the key was made. Equal lengths keep non-ASCII case out.
func versionOf(k kek.Key, kid *azkeys.ID) (kek.Version, error) {
	if kid == nil {
		return kek.Version{}, errOtherKey
	}
	s, ok := strings.CutPrefix(string(*kid), k.Vault+"/keys/")
	name, version, _ := strings.Cut(s, "/")
	if !ok || len(name) != len(k.Name) || !strings.EqualFold(name, k.Name) {
		return kek.Version{}, errOtherKey
	}
	v, err := kek.ParseVersion(version)
	if err != nil {
		return kek.Version{}, errOtherKey
	}
	return v, nil
}

// checkOps wants what k is for among what it may do, where the vault lists it.
func checkOps(k kek.Key, ops []*azkeys.KeyOperation) error {
	if ops == nil {
		return nil
	}
	wanted := []azkeys.KeyOperation{azkeys.KeyOperationWrapKey, azkeys.KeyOperationUnwrapKey}
	if k.Alg == 0 {
		wanted = []azkeys.KeyOperation{azkeys.KeyOperationSign}
	}
	for _, want := range wanted {
		if !slices.ContainsFunc(ops, func(op *azkeys.KeyOperation) bool { return op != nil && *op == want }) {
			return fmt.Errorf("key's operations do not include %s", want)
		}
	}
	return nil
}

// readPublic reads the public key that k's use needs. An AES key has none.
func (s *versionSnapshot) readPublic(k kek.Key, key *azkeys.JSONWebKey) (err error) {
	switch *key.Kty {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		if k.Alg == kek.RSAOAEP256 {
			s.public, err = answer.RSA(key.N, key.E)
			return err
		}
	case azkeys.KeyTypeOct, azkeys.KeyTypeOctHSM:
		if k.Alg == kek.A256KW {
			return nil
		}
	case azkeys.KeyTypeEC, azkeys.KeyTypeECHSM:
		if k.Alg == 0 && key.Crv != nil && *key.Crv == azkeys.CurveNameP256 {
			s.signer, err = answer.P256(key.X, key.Y)
			return err
		}
	}
	if k.Alg == 0 {
		return fmt.Errorf("key %q is %s: signing with ES256 needs a key of type EC or EC-HSM on curve P-256", k.Name, kindOf(key))
	}
	return fmt.Errorf("key's type does not fit %s", k.Alg)
}

// kindOf names a key's type and curve.
func kindOf(key *azkeys.JSONWebKey) string {
	word := func(s string) string { return cmp.Or(answer.Word(s, answer.MaxWord), "unknown") }
	kind := "of type " + word(string(*key.Kty))
	if key.Crv != nil {
		kind += " on curve " + word(string(*key.Crv))
	}
	return kind
}

// remember keeps what the vault said about a version of k.
func (v *Vaults) remember(k kek.Key, s *versionSnapshot) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed.Load() {
		v.versions.Add(versionKey{key: k, version: s.version}, s)
	}
}

// recall returns what is known about a version, or nil if that is nothing or
// too old. A clock that stepped back makes it too old.
func (v *Vaults) recall(k kek.Key, version kek.Version) *versionSnapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.versions.Get(versionKey{key: k, version: version})
	if !ok {
		return nil
	}
	if age := v.cfg.Now().Sub(s.fetched); age < 0 || age > versionTTL {
		return nil
	}
	return s
}

// forget drops what is known about a version, after the vault refused it.
func (v *Vaults) forget(k kek.Key, version kek.Version) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.versions.Remove(versionKey{key: k, version: version})
}
