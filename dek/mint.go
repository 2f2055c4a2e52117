package dek

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/keysidecar/keysidecar/cache"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

var errOverLimit = errors.New("message is over the usage limit of a DEK")

// mintNow mints the tenant's next DEK after pred, which may be nil, and makes
// it active. It waits as await says.
func (s *Source) mintNow(ctx context.Context, t *tenant.Entry, pred *active, admit func() error) (*active, error) {
	return await(ctx, s, t.ID, t.KEKs[0], func(ctx context.Context) (*active, error) {
		return s.shareMint(ctx, t, pred, admit)
	})
}

// shareMint is mintNow for as long as it takes. Callers who ask at the same
// time share one mint; who asks when it is done gets its DEK.
func (s *Source) shareMint(ctx context.Context, t *tenant.Entry, pred *active, admit func() error) (*active, error) {
	ref, err := s.mints.Load(ctx, t.ID, t.KEKs[0], admit, func(ctx context.Context) (*active, error) {
		if a := s.current(t); a != nil && a != pred {
			return a, nil
		}
		a, err := s.mint(ctx, t)
		if err != nil {
			s.failed.Add(1)
			return nil, err
		}
		s.minted.Add(1)
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	defer ref.Release()
	return ref.Value(), nil
}

// mintAhead replaces a, which still seals, without anybody waiting.
func (s *Source) mintAhead(t *tenant.Entry, a *active) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.LoadTimeout)
	defer cancel()
	if _, err := s.shareMint(ctx, t, a, nil); err != nil && !errors.Is(err, cache.ErrClosed) {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "minting the next DEK ahead, will try again", a.logAttrs(err)...)
	}
}

// mint wraps, proves and swaps. A version that was disabled since it was last
// looked up fails the proof; then the vault is asked again, once.
func (s *Source) mint(ctx context.Context, t *tenant.Entry) (*active, error) {
	k := t.KEKs[0]
	view := s.views.of(k)
	for again := false; ; again = true {
		version, err := s.version(ctx, view, again)
		if err != nil {
			return nil, fmt.Errorf("choosing a KEK version: %w", err)
		}
		a, err := s.mintUnder(ctx, t.ID, k, version, view)
		if err == nil {
			return a, nil
		}
		s.versionRefused(ctx, k, version, err)
		if again || !kek.ReasonOf(err).Refusal() {
			return nil, err
		}
	}
}

func (s *Source) mintUnder(ctx context.Context, t tenant.ID, k kek.Key, v kek.Version, view *view) (*active, error) {
	dek, err := s.random()
	if err != nil {
		return nil, err
	}
	info := Info{ID: envelope.DEKID(dek, envelope.PurposeSeal, t), KEKRef: k.Ref, KEKVersion: v, Region: k.Region}
	event := func(kind EventKind) error { return s.record(ctx, Event{Kind: kind, Tenant: t, Info: info}) }
	lease, start := s.leases.use(k, v), s.clock.now()
	wrapped, err := s.wrapAndProve(ctx, k, v, dek, event)
	if err == nil {
		err = event(Activated)
	}
	var a *active
	if err == nil {
		a, err = s.newActive(t, k, info, wrapped, view)
	}
	if err != nil {
		s.leases.leave(lease)
		dek.Wipe()
		return nil, err
	}
	key := cacheKey{envelope.PurposeSeal, t, info.ID}
	// One user more: for the active DEK, and for the key.
	s.leases.prove(lease, 1, start, &probe{key, Candidate{Block: a.block, KEK: k}})
	a.lease = lease
	s.keys.Put(key, &held{dek, info, lease}).Release()
	s.actives.Put(t, a).Release()
	return a, nil
}

// random returns a new DEK in the slab.
func (s *Source) random() (dek *secret.Key, err error) {
	secret.Do(func() {
		var key [secret.Size]byte
		rand.Read(key[:]) // never fails: crypto/rand
		dek, err = s.cfg.Slab.Put(&key)
	})
	return dek, err
}

// wrapAndProve wraps dek under v, unwraps the result naming v, and compares.
// What the KEK does not give back unchanged is no answer to be trusted.
func (s *Source) wrapAndProve(ctx context.Context, k kek.Key, v kek.Version, dek *secret.Key, event func(EventKind) error) ([]byte, error) {
	var wrapped []byte
	var err error
	secret.Do(func() { wrapped, err = s.cfg.KEKs.Wrap(ctx, k, v, dek.Expose()) })
	if err != nil {
		return nil, err
	}
	if err := event(Wrapped); err != nil {
		return nil, err
	}
	proof, err := s.cfg.Slab.Put(new([secret.Size]byte))
	if err != nil {
		return nil, err
	}
	defer proof.Wipe()
	secret.Do(func() { err = s.cfg.KEKs.Unwrap(ctx, k, v, wrapped, proof.Expose()) })
	switch {
	case err == nil && subtle.ConstantTimeCompare(proof.Expose()[:], dek.Expose()[:]) != 1:
		return nil, &kek.Error{
			Reason: kek.Unreachable, Op: "prove", Ref: k.Ref, Vault: k.Vault, Version: v,
			Err: errors.New("unwrap gave another key than was wrapped"),
		}
	case err != nil && kek.ReasonOf(err) == kek.Rejected:
		return nil, &kek.Error{Reason: kek.Unreachable, Op: "prove", Ref: k.Ref, Vault: k.Vault, Version: v, Err: err}
	case err != nil:
		return nil, err
	}
	return wrapped, event(Proved)
}

// newActive encodes the key block and sets the dates.
func (s *Source) newActive(t tenant.ID, k kek.Key, info Info, wrapped []byte, view *view) (*active, error) {
	now := time.Now()
	block := envelope.Block{
		Kind: envelope.KindDEK, Purpose: envelope.PurposeSeal, Alg: envelope.Alg(k.Alg), KeyID: info.ID,
		Created: uint64(now.Unix()), Tenant: []byte(t.String()), KEKRef: []byte(k.Ref),
		Parent: envelope.ID(info.KEKVersion), Wrapped: wrapped,
	}
	raw, err := block.Append(nil)
	if err != nil {
		return nil, fmt.Errorf("encoding the key block for KEK %s: %w", k.Ref, err)
	}
	prefix, err := envelope.AppendBundleHeader(nil, raw)
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle for KEK %s: %w", k.Ref, err)
	}
	soft := time.Duration((0.9 + 0.1*mathrand.Float64()) * float64(s.cfg.SoftAge))
	return &active{
		tenant: t, info: info, kek: k, block: raw, prefix: prefix, view: view,
		made: now, soft: now.Add(soft), hard: now.Add(s.cfg.HardAge),
	}, nil
}

// record runs Config.Record.
func (s *Source) record(ctx context.Context, e Event) error {
	if err := s.cfg.Record(ctx, e); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	return nil
}

// ttl says how long err is remembered. What failed on this side of the vault
// is not.
func (n Negative) ttl(err error) time.Duration {
	var e *kek.Error
	switch {
	case errors.Is(err, ErrMismatch):
		return n.Unknown
	case !errors.As(err, &e):
		return 0
	case e.Reason == kek.Rejected || e.Reason == kek.Unusable:
		return n.Unknown
	case e.Reason.Refusal():
		return n.Refused
	}
	return max(n.Unreachable, min(e.RetryAfter, maxThrottle))
}

// maxThrottle bounds how long one tenant's load believes a Retry-After.
const maxThrottle = 10 * time.Second
