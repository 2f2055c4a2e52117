package kektest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// Counts is how often a Memory was called, by kind, whether or not the call
// succeeded.
type Counts struct {
	Newest, Wrap, Unwrap, Sign int
}

// Call describes one call to a Memory: what its hook is told.
type Call struct {
	// Op is "newest", "wrap", "unwrap" or "sign".
	Op string
	// Key and Version are the call's arguments; Version is zero for "newest"
	// and "sign".
	Key     kek.Key
	Version kek.Version
}

// Memory is a kek.Wrapper and a kek.Signer with real keys and versions in
// memory, for fast tests. It behaves like Key Vault: a disabled version wraps
// and does not unwrap; a version outside its validity unwraps and does not
// wrap; neither signs.
//
// Keys are told apart by Vault and Name. All methods are safe for concurrent
// use.
type Memory struct {
	mu     sync.Mutex
	keys   map[keyName]*memoryKey
	counts Counts
	hook   func(context.Context, Call) error
}

var (
	_ kek.Wrapper = (*Memory)(nil)
	_ kek.Signer  = (*Memory)(nil)
)

type keyName struct{ vault, name string }

type memoryKey struct {
	alg      kek.Alg
	versions []*memoryVersion // oldest first
}

type memoryVersion struct {
	id                 kek.Version
	enabled            bool
	notBefore, expires time.Time // zero: no limit
	rsa                *rsa.PrivateKey
	ec                 *ecdsa.PrivateKey
	aes                [32]byte
}

// NewMemory returns a Memory without keys.
func NewMemory() *Memory {
	return &Memory{keys: make(map[keyName]*memoryKey)}
}

// Create makes k with one enabled version: an RSA-2048 or an AES-256 key, as
// k.Alg says, or with a zero Alg an EC P-256 key. If k exists, it is replaced.
func (m *Memory) Create(k kek.Key) kek.Version {
	v := newMemoryVersion(k.Alg)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[nameOf(k)] = &memoryKey{alg: k.Alg, versions: []*memoryVersion{v}}
	return v.id
}

// Rotate adds a new enabled version to k, which must exist, and returns it.
func (m *Memory) Rotate(k kek.Key) kek.Version {
	v := newMemoryVersion(k.Alg)
	m.mu.Lock()
	defer m.mu.Unlock()
	mk := m.mustKey(k)
	mk.versions = append(mk.versions, v)
	return v.id
}

// Delete removes k and all its versions, as its owner would.
func (m *Memory) Delete(k kek.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, nameOf(k))
}

// SetEnabled enables or disables version v of k; both must exist.
func (m *Memory) SetEnabled(k kek.Key, v kek.Version, enabled bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mustVersion(k, v).enabled = enabled
}

// SetValidity limits the time in which version v of k wraps. A zero time is
// no limit.
func (m *Memory) SetValidity(k kek.Key, v kek.Version, notBefore, expires time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mv := m.mustVersion(k, v)
	mv.notBefore, mv.expires = notBefore, expires
}

// SetHook makes every later call run f before it does anything else; nil
// removes it. f may block until its context ends. The call fails with f's
// error: a *kek.Error as it is but for Op, Ref and Version, any other error as
// the cause of Unreachable. f runs outside locks, on the caller's goroutine,
// and counts whether or not it fails.
func (m *Memory) SetHook(f func(context.Context, Call) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = f
}

// Counts returns the calls made so far.
func (m *Memory) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

// Plant wraps arbitrary bytes under version v of k, which must exist, as
// somebody else with access to the KEK could. An AES key takes only a multiple
// of 8 bytes, at least 16.
func (m *Memory) Plant(k kek.Key, v kek.Version, b []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mustVersion(k, v).wrap(b)
}

// Newest implements kek.Wrapper.
func (m *Memory) Newest(ctx context.Context, k kek.Key) (kek.Version, error) {
	var newest kek.Version
	err := m.do(ctx, Call{Op: "newest", Key: k}, func(mk *memoryKey) error {
		v, err := mk.newest(time.Now())
		if err == nil {
			newest = v.id
		}
		return err
	})
	return newest, err
}

// newest returns the newest version that is enabled and valid.
func (mk *memoryKey) newest(now time.Time) (*memoryVersion, error) {
	enabled := false
	for _, v := range slices.Backward(mk.versions) {
		if v.enabled && v.wrapsAt(now) {
			return v, nil
		}
		enabled = enabled || v.enabled
	}
	return nil, &kek.Error{Reason: kek.Disabled, Expired: enabled}
}

// Wrap implements kek.Wrapper.
func (m *Memory) Wrap(ctx context.Context, k kek.Key, v kek.Version, dek *[kek.Size]byte) ([]byte, error) {
	var wrapped []byte
	err := m.do(ctx, Call{Op: "wrap", Key: k, Version: v}, func(mk *memoryKey) error {
		mv := mk.find(v)
		switch {
		case mv == nil:
			return &kek.Error{Reason: kek.NotFound}
		case !mv.wrapsAt(time.Now()):
			return &kek.Error{Reason: kek.Disabled}
		}
		var err error
		wrapped, err = mv.wrap(dek[:])
		return err
	})
	return wrapped, err
}

// Unwrap implements kek.Wrapper.
func (m *Memory) Unwrap(ctx context.Context, k kek.Key, v kek.Version, wrapped []byte, dek *[kek.Size]byte) error {
	clear(dek[:])
	return m.do(ctx, Call{Op: "unwrap", Key: k, Version: v}, func(mk *memoryKey) error {
		mv := mk.find(v)
		switch {
		case mv == nil:
			return &kek.Error{Reason: kek.NotFound}
		case !mv.enabled:
			return &kek.Error{Reason: kek.Disabled}
		}
		b, err := mv.unwrap(wrapped)
		defer clear(b)
		if err != nil || len(b) != len(dek) {
			return &kek.Error{Reason: kek.Rejected}
		}
		copy(dek[:], b)
		return nil
	})
}

// do counts the call, runs the hook and then f under the lock, and completes
// the error.
func (m *Memory) do(ctx context.Context, c Call, f func(*memoryKey) error) error {
	err := m.before(ctx, c)
	if err == nil {
		err = m.locked(c, f)
	}
	if err == nil {
		return nil
	}
	out := &kek.Error{Reason: kek.Unreachable, Err: err}
	if e, ok := errors.AsType[*kek.Error](err); ok {
		copied := *e
		out = &copied
	}
	out.Op, out.Ref, out.Version = c.Op, c.Key.Ref, c.Version
	return out
}

func (m *Memory) before(ctx context.Context, c Call) error {
	hook := m.count(c.Op)
	if hook != nil {
		if err := hook(ctx, c); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (m *Memory) count(op string) func(context.Context, Call) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch op {
	case "newest":
		m.counts.Newest++
	case "wrap":
		m.counts.Wrap++
	case "unwrap":
		m.counts.Unwrap++
	case kek.OpSign:
		m.counts.Sign++
	}
	return m.hook
}

func (m *Memory) locked(c Call, f func(*memoryKey) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mk, ok := m.keys[nameOf(c.Key)]
	switch {
	case (c.Op == kek.OpSign) != (c.Key.Alg == 0):
		return &kek.Error{Reason: kek.Unusable, Err: errors.New("a key wraps or signs, as its Alg says")}
	case !ok:
		return &kek.Error{Reason: kek.NotFound}
	case mk.alg != c.Key.Alg:
		return &kek.Error{Reason: kek.Unusable, Err: errors.New("key is of another type")}
	}
	return f(mk)
}

func (m *Memory) mustKey(k kek.Key) *memoryKey {
	mk, ok := m.keys[nameOf(k)]
	if !ok {
		panic(fmt.Sprintf("kektest: internal error: key %q does not exist", k.Name))
	}
	return mk
}

func (m *Memory) mustVersion(k kek.Key, v kek.Version) *memoryVersion {
	mv := m.mustKey(k).find(v)
	if mv == nil {
		panic(fmt.Sprintf("kektest: internal error: key %q has no version %s", k.Name, v))
	}
	return mv
}

func nameOf(k kek.Key) keyName { return keyName{vault: k.Vault, name: k.Name} }

func (mk *memoryKey) find(v kek.Version) *memoryVersion {
	for _, mv := range mk.versions {
		if mv.id == v {
			return mv
		}
	}
	return nil
}

func newMemoryVersion(alg kek.Alg) *memoryVersion {
	v := &memoryVersion{enabled: true}
	rand.Read(v.id[:])
	switch alg {
	case 0:
		v.ec = newECKey()
	case kek.A256KW:
		rand.Read(v.aes[:])
	case kek.RSAOAEP256:
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic("kektest: internal error: " + err.Error())
		}
		v.rsa = key
	default:
		panic("kektest: internal error: unknown algorithm " + alg.String())
	}
	return v
}

func (v *memoryVersion) wrapsAt(now time.Time) bool {
	return (v.notBefore.IsZero() || !now.Before(v.notBefore)) && (v.expires.IsZero() || now.Before(v.expires))
}

func (v *memoryVersion) wrap(b []byte) ([]byte, error) {
	if v.rsa != nil {
		return rsa.EncryptOAEP(sha256.New(), rand.Reader, &v.rsa.PublicKey, b, nil)
	}
	return aesWrap(&v.aes, b)
}

func (v *memoryVersion) unwrap(wrapped []byte) ([]byte, error) {
	if v.rsa != nil {
		return rsa.DecryptOAEP(sha256.New(), nil, v.rsa, wrapped, nil)
	}
	return aesUnwrap(&v.aes, wrapped)
}
