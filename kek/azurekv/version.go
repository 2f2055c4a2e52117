package azurekv

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/keysidecar/keysidecar/kek"
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
	notBefore, expires time.Time      // zero: no limit
	public             *rsa.PublicKey // nil for an AES key
	fetched            time.Time      // when the request was made
}

// wrapsAt reports whether the version may wrap at t, as the server would
// decide, and that it is enabled, which the server would not ask.
func (s *versionSnapshot) wrapsAt(t time.Time) bool {
	return s.enabled && (s.notBefore.IsZero() || !t.Before(s.notBefore)) && (s.expires.IsZero() || t.Before(s.expires))
}

// newSnapshot reads the answer to a GET of k. It refuses a key of another
// name, and one that can never do what k.Alg needs.
func newSnapshot(k kek.Key, b azkeys.KeyBundle, fetched time.Time) (*versionSnapshot, error) {
	if b.Key == nil || b.Key.Kty == nil {
		return nil, refuse("answer holds no key")
	}
	s, err := newAttributes(k, b.Key.KID, b.Attributes)
	if err != nil {
		return nil, err
	}
	s.fetched = fetched
	if err := checkOps(b.Key.KeyOps); err != nil {
		return nil, &kek.Error{Reason: kek.Unusable, Err: err}
	}
	if s.public, err = publicKey(k.Alg, b.Key); err != nil {
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

// checkOps wants both operations, where the vault lists what a key may do.
func checkOps(ops []*azkeys.KeyOperation) error {
	if ops == nil {
		return nil
	}
	for _, want := range []azkeys.KeyOperation{azkeys.KeyOperationWrapKey, azkeys.KeyOperationUnwrapKey} {
		if !slices.ContainsFunc(ops, func(op *azkeys.KeyOperation) bool { return op != nil && *op == want }) {
			return fmt.Errorf("key's operations do not include %s", want)
		}
	}
	return nil
}

// publicKey returns the RSA public key, or nil for an AES key, which stays in
// the vault.
func publicKey(alg kek.Alg, key *azkeys.JSONWebKey) (*rsa.PublicKey, error) {
	switch *key.Kty {
	case azkeys.KeyTypeRSA, azkeys.KeyTypeRSAHSM:
		if alg == kek.RSAOAEP256 {
			return rsaPublicKey(key.N, key.E)
		}
	case azkeys.KeyTypeOct, azkeys.KeyTypeOctHSM:
		if alg == kek.A256KW {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("key's type does not fit %s", alg)
}

func rsaPublicKey(n, e []byte) (*rsa.PublicKey, error) {
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	switch modulus.BitLen() {
	case 2048, 3072, 4096:
	default:
		return nil, fmt.Errorf("RSA modulus has %d bits, not 2048, 3072 or 4096", modulus.BitLen())
	}
	if modulus.Bit(0) == 0 {
		return nil, errors.New("RSA modulus is even")
	}
	if exponent.BitLen() > 31 || exponent.Bit(0) == 0 || exponent.Int64() < 3 {
		return nil, errors.New("RSA exponent is not an odd number from 3 to 2^31-1")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
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
