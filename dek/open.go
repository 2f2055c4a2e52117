package dek

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"

	"github.com/keysidecar/keysidecar/cache"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// Candidate is a key block that the caller has found acceptable: its tenant,
// DEK ID, algorithm and KEK are those that the configuration allows.
type Candidate struct {
	// Raw is the encoded block. It is not retained.
	Raw []byte
	// KEK is the configured KEK that the block names.
	KEK kek.Key
}

// ForOpen returns a Ref on the DEK of that ID: from the cache, or unwrapped
// with the first candidate whose vault answers. A refusal is an answer: the
// next candidate is not tried. For admit see ForSeal.
func (s *Source) ForOpen(ctx context.Context, t tenant.ID, id envelope.ID, candidates []Candidate, admit func() error) (Ref, error) {
	key := cacheKey{envelope.PurposeSeal, t, id}
	if ref, ok := s.keys.Get(key); ok {
		return Ref{ref: ref}, nil
	}
	err := error(ErrNoBlock)
	for _, c := range candidates {
		var ref cache.Ref[*held]
		ref, err = s.load(ctx, key, c.KEK, c.Raw, admit)
		if err == nil {
			return Ref{ref: ref}, nil
		}
		if ctx.Err() != nil || !noAnswer(err) {
			break
		}
	}
	return Ref{}, err
}

// noAnswer reports whether err is a vault's silence rather than its answer.
func noAnswer(err error) bool {
	var e *kek.Error
	return errors.As(err, &e) && (e.Reason == kek.Unreachable || e.Reason == kek.Throttled)
}

func (s *Source) load(ctx context.Context, key cacheKey, k kek.Key, raw []byte, admit func() error) (cache.Ref[*held], error) {
	flight := flightKey(sha256.Sum256(raw))
	raw = bytes.Clone(raw) // the load outlives the request
	return s.keys.Load(ctx, key, flight, admit, func(ctx context.Context) (*held, error) {
		return s.unwrap(ctx, key, k, raw)
	})
}

// unwrap asks the vault for the DEK of a block, and proves that it is the DEK
// that key names.
func (s *Source) unwrap(ctx context.Context, key cacheKey, k kek.Key, raw []byte) (*held, error) {
	block, err := envelope.ParseBlock(raw)
	if err != nil {
		return nil, err
	}
	version := kek.Version(block.Parent)
	dek, err := s.cfg.Slab.Put(new([secret.Size]byte))
	if err != nil {
		return nil, err
	}
	lease := s.leases.begin(k, version)
	secret.Do(func() { err = s.cfg.KEKs.Unwrap(ctx, k, version, block.Wrapped, dek.Expose()) })
	s.leases.end(k, version, lease, err == nil)
	if err == nil && envelope.DEKID(dek, key.purpose, key.tenant) != key.id {
		err = ErrMismatch
	}
	info := Info{ID: key.id, KEKRef: k.Ref, KEKVersion: version, Region: k.Region}
	if err == nil {
		err = s.record(ctx, Event{Kind: Unwrapped, Tenant: key.tenant, Info: info})
	}
	if err != nil {
		dek.Wipe()
		s.refused(ctx, k, version, err)
		return nil, err
	}
	return &held{key: dek, info: info, lease: lease}, nil
}
