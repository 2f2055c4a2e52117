package state

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"slices"
)

// Type returns the key's type, such as "RSA".
func (v *Version) Type() string { return v.material.kty }

// Public returns the modulus and exponent of an RSA key, big-endian; nil for
// keys of other types.
func (v *Version) Public() (n, e []byte) {
	if r := v.material.rsa; r != nil {
		return r.N.Bytes(), big.NewInt(int64(r.E)).Bytes()
	}
	return nil, nil
}

// Wrap wraps or encrypts, as keyOp says, if the version permits it at now.
func (v *Version) Wrap(keyOp, alg string, in []byte, now int64) ([]byte, error) {
	if err := v.permits(keyOp, now); err != nil {
		return nil, err
	}
	return v.material.wrap(alg, in)
}

// Unwrap unwraps or decrypts, as keyOp says, if the version permits it. The
// result has whatever length was wrapped.
func (v *Version) Unwrap(keyOp, alg string, in []byte, now int64) ([]byte, error) {
	if err := v.permits(keyOp, now); err != nil {
		return nil, err
	}
	return v.material.unwrap(alg, in)
}

// permits holds Azure's asymmetry: a disabled version still wraps and encrypts
// but does not unwrap or decrypt; outside its validity it is the reverse. It
// signs in neither case.
func (v *Version) permits(keyOp string, now int64) error {
	protects, opens := keyOp == KeyOpWrap || keyOp == KeyOpEncrypt, keyOp == KeyOpUnwrap || keyOp == KeyOpDecrypt
	switch {
	case !slices.Contains(v.Ops, keyOp):
		return Forbidden("KeyOperationForbidden", "Operation %s is not permitted on this key.", keyOp)
	case !protects && !v.Enabled:
		return Forbidden("KeyDisabled", "Operation %s is not allowed on a disabled key.", keyOp)
	case !opens && v.Expires != 0 && now >= v.Expires:
		return Forbidden("KeyExpired", "Operation %s is not allowed on an expired key.", keyOp)
	case !opens && v.NotBefore != 0 && now < v.NotBefore:
		return Forbidden("KeyNotYetValid", "Operation %s is not allowed on a key that is not yet valid.", keyOp)
	}
	return nil
}

// Spec describes a version to create.
type Spec struct {
	Type               string // a Type constant
	Bits               int    // 0: the type's default
	Curve              string // of an EC key; empty: P-256
	Disabled           bool
	NotBefore, Expires int64
	Ops                []string // nil: all that fit the type
	Tags               map[string]string
}

// build generates the version; append dates it. It takes long, so no lock may
// be held.
func (n Spec) build() (*Version, error) {
	m, err := generate(n.Type, n.Bits, n.Curve)
	if err != nil {
		return nil, err
	}
	if n.Ops == nil {
		n.Ops = defaultOps(n.Type)
	}
	v := &Version{
		ID: NewVersionID(), material: m, Enabled: !n.Disabled, NotBefore: n.NotBefore, Expires: n.Expires,
		Ops: slices.Clone(n.Ops), Tags: n.Tags,
	}
	return v, v.check()
}

// NewVersionID returns 16 random bytes in hex, as Azure's look.
func NewVersionID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// check refuses attributes that Azure refuses.
func (v *Version) check() error {
	if v.NotBefore != 0 && v.Expires != 0 && v.Expires <= v.NotBefore {
		return BadParameter("Property \"exp\" must be later than property \"nbf\".")
	}
	allowed := defaultOps(v.Type())
	for _, op := range v.Ops {
		if !slices.Contains(allowed, op) {
			return BadParameter("Property \"key_ops\" has invalid value %q for key type %q.", op, v.Type())
		}
	}
	return nil
}

// Unix returns the vaults' time in whole seconds.
func (st *Store) Unix() int64 { return st.now().Unix() }

// Create adds a version to a key, or creates the key. RSA keys take up to seconds.
func (st *Store) Create(vault, name string, n Spec) (*Key, *Version, error) {
	if !ValidKeyName(name) {
		return nil, nil, InvalidName(name)
	}
	if k := st.raw(vault, name); k != nil && k.Deleted != 0 {
		return nil, nil, deletedButRecoverable(name) // before the work
	}
	v, err := n.build()
	if err != nil {
		return nil, nil, err
	}
	k, err := st.update(vault, name, func(k *Key) (*Key, error) {
		if k == nil {
			k = &Key{Name: name}
		}
		if k.Deleted != 0 {
			return nil, deletedButRecoverable(name)
		}
		return k.append(v, st.Unix()), nil
	})
	return k, v, err
}

// Rotate adds a version like the newest.
func (st *Store) Rotate(vault, name string) (*Key, *Version, error) {
	k, err := st.Live(vault, name)
	if err != nil {
		return nil, nil, err
	}
	last := k.Newest()
	v, err := Spec{
		Type: last.Type(), Bits: last.material.bits(), Ops: last.Ops, Tags: last.Tags,
	}.build()
	if err != nil {
		return nil, nil, err
	}
	k, err = st.updateLive(vault, name, func(k *Key) (*Key, error) { return k.append(v, st.Unix()), nil })
	return k, v, err
}

// updateLive is update for a key that must exist and not be deleted.
func (st *Store) updateLive(vault, name string, f func(*Key) (*Key, error)) (*Key, error) {
	return st.update(vault, name, func(k *Key) (*Key, error) {
		if k == nil || k.Deleted != 0 {
			return nil, keyNotFound(name)
		}
		return f(k)
	})
}

// Change is a change to a version; nil fields change nothing.
type Change struct {
	Enabled            *bool
	NotBefore, Expires *int64 // 0 removes the bound
	Ops                []string
	Tags               map[string]string
}

func (c Change) apply(v Version, now int64) (*Version, error) {
	if c.Enabled != nil {
		v.Enabled = *c.Enabled
	}
	if c.NotBefore != nil {
		v.NotBefore = *c.NotBefore
	}
	if c.Expires != nil {
		v.Expires = *c.Expires
	}
	if c.Ops != nil {
		v.Ops = slices.Clone(c.Ops)
	}
	if c.Tags != nil {
		v.Tags = c.Tags
	}
	v.Updated = now
	return &v, v.check()
}

// Update changes a version; "" names the newest.
func (st *Store) Update(vault, name, id string, c Change) (*Key, *Version, error) {
	var changed *Version
	k, err := st.updateLive(vault, name, func(k *Key) (*Key, error) {
		old, err := k.Find(id)
		if err != nil {
			return nil, err
		}
		if changed, err = c.apply(*old, st.Unix()); err != nil {
			return nil, err
		}
		return k.replace(old, changed), nil
	})
	return k, changed, err
}

// SetPolicy keeps a rotation policy. Nothing acts on it.
func (st *Store) SetPolicy(vault, name string, policy json.RawMessage) (*Key, error) {
	return st.updateLive(vault, name, func(k *Key) (*Key, error) {
		c := *k
		c.Policy = policy
		return &c, nil
	})
}

// Delete deletes a key softly.
func (st *Store) Delete(vault, name string) (*Key, error) {
	return st.updateLive(vault, name, func(k *Key) (*Key, error) {
		c := *k
		c.Deleted = st.Unix()
		return &c, nil
	})
}

// Recover undoes Delete.
func (st *Store) Recover(vault, name string) (*Key, error) {
	return st.update(vault, name, func(k *Key) (*Key, error) {
		if k == nil || k.Deleted == 0 {
			return nil, deletedKeyNotFound(name)
		}
		c := *k
		c.Deleted = 0
		return &c, nil
	})
}

// Purge removes a softly deleted key for good.
func (st *Store) Purge(vault, name string) error {
	_, err := st.update(vault, name, func(k *Key) (*Key, error) {
		if k == nil || k.Deleted == 0 {
			return nil, deletedKeyNotFound(name)
		}
		return nil, nil
	})
	return err
}
