package dek

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/keysidecar/keysidecar/cache"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// Candidate is one way to unwrap a DEK, which the caller has found acceptable:
// tenant, DEK ID, algorithm and KEK are those that the configuration allows,
// and proofs verify. Its bytes are not retained.
type Candidate struct {
	// Block is the encoded DEK block.
	Block []byte
	// Branch is the encoded branch block that Block names, or nil if a KEK
	// wraps the DEK itself.
	Branch []byte
	// KEK is the configured KEK that Branch, or else Block, names.
	KEK kek.Key
}

// ForOpen returns a Ref on the DEK of that ID: from the cache, or by the first
// candidate whose vault answers. A refusal is an answer: the next candidate is
// not tried. If no vault answers, the error is that of the first candidate.
// For admit and ErrBusy see ForSeal.
func (s *Source) ForOpen(
	ctx context.Context, t *tenant.Entry, id envelope.ID, candidates []Candidate, admit func() error,
) (Ref, error) {
	key := cacheKey{envelope.PurposeSeal, t.ID, id}
	if ref, ok := s.keys.Get(key); ok {
		return s.permitted(ctx, Ref{ref: ref}, t)
	}
	if len(candidates) == 0 {
		return Ref{}, ErrNoBlock
	}
	ref, err := await(ctx, s, t.ID, candidates[0].KEK, func(ctx context.Context) (cache.Ref[*held], error) {
		return s.loadFirst(ctx, key, candidates, admit)
	})
	if err != nil {
		return Ref{}, err
	}
	return s.permitted(ctx, Ref{ref: ref}, t)
}

// loadFirst loads by the first of the candidates, at least one, whose vault
// answers.
func (s *Source) loadFirst(
	ctx context.Context, key cacheKey, candidates []Candidate, admit func() error,
) (ref cache.Ref[*held], silent error) {
	for i, c := range candidates {
		ref, err := s.load(ctx, key, c, admit)
		if err == nil || !noAnswer(err) {
			return ref, err
		}
		if i == 0 {
			silent = err
		}
	}
	return ref, silent
}

// noAnswer reports whether err is a vault's silence rather than its answer.
func noAnswer(err error) bool {
	var e *kek.Error
	return errors.As(err, &e) && (e.Reason == kek.Unreachable || e.Reason == kek.Throttled)
}

func (s *Source) load(ctx context.Context, key cacheKey, c Candidate, admit func() error) (cache.Ref[*held], error) {
	raw := bytes.Join([][]byte{c.Block, c.Branch}, nil) // a copy: the load outlives the request
	c.Block, c.Branch = raw[:len(c.Block)], raw[len(c.Block):]
	return s.keys.Load(ctx, key, sha256.Sum256(raw), admit, func(ctx context.Context) (*held, error) {
		return s.unwrap(ctx, key, c)
	})
}

// unwrap asks the vault for a DEK, and proves that it is the DEK that key
// names.
func (s *Source) unwrap(ctx context.Context, key cacheKey, c Candidate) (*held, error) {
	version, err := versionOf(&c)
	if err != nil {
		return nil, err
	}
	lease, start := s.leases.use(c.KEK, version), s.clock.now()
	dek, info, err := s.unwrapOnce(ctx, key, c)
	if err != nil {
		s.versionRefused(ctx, c.KEK, version, err)
	} else {
		err = s.accept(ctx, dek, key, info)
	}
	if err != nil {
		s.leases.leave(lease)
		return nil, err
	}
	s.leases.prove(lease, 0, start, &probe{key, c})
	return &held{key: dek, info: info, lease: lease}, nil
}

// versionOf returns the KEK version that a candidate names.
func versionOf(c *Candidate) (kek.Version, error) {
	block, err := envelope.ParseBlock(wrappedOf(c))
	if err != nil {
		return kek.Version{}, err
	}
	return kek.Version(block.Parent), nil
}

// wrappedOf returns the block that the KEK unwraps.
func wrappedOf(c *Candidate) []byte {
	if len(c.Branch) > 0 {
		return c.Branch
	}
	return c.Block
}

// unwrapOnce asks the vault to unwrap a DEK, and draws no conclusions.
func (s *Source) unwrapOnce(ctx context.Context, key cacheKey, c Candidate) (*secret.Key, Info, error) {
	block, err := envelope.ParseBlock(wrappedOf(&c))
	if err != nil {
		return nil, Info{}, err
	}
	version := kek.Version(block.Parent)
	dek, err := s.ask(ctx, c.KEK, version, block.Wrapped)
	if err == nil && len(c.Branch) > 0 {
		dek, err = s.throughBranch(dek, c.Block)
	}
	return dek, Info{ID: key.id, KEKRef: c.KEK.Ref, KEKVersion: version, Region: c.KEK.Region}, err
}

// matches reports whether dek is the DEK that key names.
func matches(dek *secret.Key, key cacheKey) bool {
	return envelope.DEKID(dek, key.purpose, key.tenant) == key.id
}

// accept checks whether dek is the DEK that key names, and records that. If not, it
// wipes dek.
func (s *Source) accept(ctx context.Context, dek *secret.Key, key cacheKey, info Info) (err error) {
	kind := Unwrapped
	if !matches(dek, key) {
		kind, err = Rejected, ErrMismatch
	}
	if failed := s.record(ctx, Event{Kind: kind, Tenant: key.tenant, Info: info}); failed != nil && err == nil {
		err = failed
	}
	if err != nil {
		dek.Wipe()
	}
	return err
}

// ask has the vault unwrap a key into the slab. No vault has a version zero.
func (s *Source) ask(ctx context.Context, k kek.Key, v kek.Version, wrapped []byte) (*secret.Key, error) {
	if v.IsZero() {
		return nil, &kek.Error{
			Reason: kek.NotFound, Op: "unwrap", Ref: k.Ref, Vault: k.Vault, Err: errors.New("block names KEK version zero"),
		}
	}
	key, err := s.cfg.Slab.Put(new([secret.Size]byte))
	if err != nil {
		return nil, err
	}
	secret.Do(func() { err = s.cfg.KEKs.Unwrap(ctx, k, v, wrapped, key.Expose()) })
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return key, nil
}

// throughBranch unwraps a DEK block with its branch key, and wipes that.
func (s *Source) throughBranch(branch *secret.Key, raw []byte) (*secret.Key, error) {
	defer branch.Wipe()
	block, err := envelope.ParseBlock(raw)
	if err != nil {
		return nil, err
	}
	dek, err := s.cfg.Slab.Put(new([secret.Size]byte))
	if err != nil {
		return nil, err
	}
	secret.Do(func() { err = block.UnwrapUnder(branch, dek) })
	if err != nil {
		dek.Wipe()
		return nil, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	return dek, nil
}
