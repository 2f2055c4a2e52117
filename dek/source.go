package dek

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keysidecar/keysidecar/cache"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	keklease "github.com/keysidecar/keysidecar/kek/lease"
	"github.com/keysidecar/keysidecar/tenant"
)

// cacheKey is where a proven DEK is kept.
type cacheKey struct {
	purpose envelope.Purpose
	tenant  tenant.ID
	id      envelope.ID
}

// flightKey is SHA-256 of a whole key block: a forged block with somebody's
// DEK ID is a load of its own, and fails nobody else.
type flightKey [32]byte

// held is an unwrapped DEK in the cache. The cache owns it.
type held struct {
	key   *secret.Key
	info  Info
	lease *lease
}

// Source hands out DEKs. It is safe for concurrent use.
type Source struct {
	cfg     Config
	seed    maphash.Seed
	keys    *cache.Cache[cacheKey, flightKey, *held]
	actives *cache.Cache[tenant.ID, kek.Key, *active]
	mints   *cache.Cache[tenant.ID, kek.Key, *active] // keeps flights and failures only
	leases  leases
	views   views
	clock   *clock
	life    context.Context // ends with Close
	wake    chan struct{}   // holds one when keepLeases has to look
	waiters waiters
	minted  atomic.Uint64
	failed  atomic.Uint64

	stop       context.CancelFunc
	background sync.WaitGroup
}

// New returns a Source, and starts goroutines that ask for new KEK versions, and
// about leases, until Close. It asks no vault before the first use.
func New(cfg Config) (*Source, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg, seed: maphash.MakeSeed(), clock: newClock(cfg.Slept), wake: make(chan struct{}, 1)}
	s.leases.cfg.Lease = cfg.Lease
	if err := s.makeCaches(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.life = stop, ctx
	s.background.Go(func() { s.poll(ctx) })
	s.background.Go(func() { s.keepLeases(ctx) })
	return s, nil
}

func (s *Source) makeCaches() (err error) {
	s.keys, err = cache.New(cache.Config[cacheKey, flightKey, *held]{
		Entries:         s.cfg.CacheEntries,
		Hash:            func(k cacheKey) uint64 { return maphash.Bytes(s.seed, k.id[:]) },
		Group:           func(k cacheKey) string { return k.tenant.String() },
		GroupShare:      s.cfg.TenantShare,
		LoadTimeout:     s.cfg.LoadTimeout,
		Release:         func(h *held) { h.key.Wipe(); s.leases.leave(h.lease) },
		Stale:           func(h *held) bool { return h.lease.fenced.Load() },
		NegativeTTL:     s.negativeTTL,
		NegativeEntries: s.cfg.Negative.Entries,
	})
	if err != nil {
		return err
	}
	byTenant := cache.Config[tenant.ID, kek.Key, *active]{
		Entries: s.cfg.CacheEntries,
		Hash:    func(t tenant.ID) uint64 { return maphash.String(s.seed, t.String()) },
		Stale:   func(a *active) bool { return a.lease.fenced.Load() },
		Release: func(a *active) { s.leases.leave(a.lease) },
	}
	if s.actives, err = cache.New(byTenant); err != nil {
		return err
	}
	byTenant.LoadTimeout = s.cfg.LoadTimeout
	byTenant.NegativeTTL = s.negativeTTL
	byTenant.NegativeEntries = s.cfg.Negative.Entries
	byTenant.Stale = func(*active) bool { return true }
	byTenant.Release = nil // the active DEKs are those of s.actives
	s.mints, err = cache.New(byTenant)
	return err
}

// Close stops polling, waits for loads under way, and wipes every DEK that is
// not in use; those are wiped when their last Ref is released.
func (s *Source) Close() {
	s.stop()
	s.mints.Close()
	s.background.Wait()
	s.actives.Close()
	s.keys.Close()
}

// Evict drops the unwrapped DEKs of every tenant for which drop returns true,
// and returns how many; those in use are wiped when their last Ref is released.
// The next use asks the vault, even if somebody waits for its answer already.
// Other tenants notice nothing. A mint that is under way puts its DEK into the
// cache afterwards.
func (s *Source) Evict(drop func(tenant.ID) bool) int {
	s.actives.DropKeys(drop)
	return s.keys.DropKeys(func(k cacheKey) bool { return drop(k.tenant) })
}

// Ref is a counted reference to an unwrapped DEK. The key stays until Release.
type Ref struct {
	ref    cache.Ref[*held]
	prefix []byte
	source *Source
	grace  time.Duration
}

// Permitted returns nil if what was done with the DEK may still be answered: its
// KEK has not refused meanwhile. It asks nobody.
func (r Ref) Permitted() error {
	l, now := r.ref.Value().lease, r.source.clock.now()
	verdict, cause := l.state.Check(now, r.grace)
	if verdict == keklease.Ask && now.Since(l.state.Standing().Proved) >= r.source.cfg.Lease+r.grace+inFlight {
		cause = &keklease.GraceOverError{Grace: r.grace, Cause: orUnreachable(cause, l)}
		verdict = keklease.Refuse
	}
	if verdict == keklease.Refuse {
		return fmt.Errorf("using a DEK: %w", cause)
	}
	return nil
}

// Key returns the DEK. It may not be used after Release.
func (r Ref) Key() *secret.Key { return r.ref.Value().key }

// Info names the DEK, and the KEK version that unwrapped it here.
func (r Ref) Info() Info { return r.ref.Value().info }

// BundlePrefix returns the bundle up to the envelope, for a Ref from ForSeal.
// It is shared: the caller does not change it.
func (r Ref) BundlePrefix() []byte { return r.prefix }

// Release gives the reference back. It is called exactly once.
func (r Ref) Release() { r.ref.Release() }

// ForSeal returns a Ref on the tenant's active DEK, and counts one message of
// n bytes against its usage limit. It mints a DEK if there is none that seals.
// admit, which may be nil, is called before this caller costs a Key Vault
// call; its error is returned as it is. ErrBusy says that the vault did not
// answer soon, and that enough of the tenant's operations wait for it.
func (s *Source) ForSeal(ctx context.Context, t *tenant.Entry, n int, admit func() error) (Ref, error) {
	for {
		a, err := s.active(ctx, t, admit)
		if err != nil {
			return Ref{}, err
		}
		if !a.charge(&s.cfg, n) {
			if uint64(n) > s.cfg.MaxBytes {
				return Ref{}, errOverLimit
			}
			continue // used up since: active mints the next
		}
		ref, err := s.refActive(ctx, a, admit)
		if err != nil {
			return Ref{}, err
		}
		return s.permitted(ctx, ref, t)
	}
}

// permitted returns ref if its DEK may be used now. Otherwise it releases it.
func (s *Source) permitted(ctx context.Context, ref Ref, t *tenant.Entry) (Ref, error) {
	ref.source, ref.grace = s, t.OutageGrace
	if err := s.permit(ctx, ref.ref.Value().lease, ref.grace); err != nil {
		ref.Release()
		return Ref{}, err
	}
	return ref, nil
}

// active returns an active DEK that may seal now.
func (s *Source) active(ctx context.Context, t *tenant.Entry, admit func() error) (*active, error) {
	a := s.current(t)
	if a == nil {
		return s.mintNow(ctx, t, nil, admit)
	}
	now := time.Now()
	switch a.phase(&s.cfg, s.seed, now) {
	case due:
		if a.claimRetry(&s.cfg, now) {
			s.background.Go(func() { s.mintAhead(t, a) })
		}
	case wait:
		return s.replace(ctx, t, a, admit), nil
	case over:
		return s.mintNow(ctx, t, a, admit)
	}
	return a, nil
}

// replace mints the DEK after a, and returns a if that does not work at once.
// The mint goes on all the same.
func (s *Source) replace(ctx context.Context, t *tenant.Entry, a *active, admit func() error) *active {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	next, err := s.mintNow(ctx, t, a, admit)
	if err == nil {
		return next
	}
	if a.claimRetry(&s.cfg, time.Now()) {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "minting under the new KEK version, sealing on under the old", a.logAttrs(err)...)
	}
	return a
}

// current returns the tenant's active DEK, or nil if there is none under the
// KEK that the tenant has now.
func (s *Source) current(t *tenant.Entry) *active {
	ref, ok := s.actives.Get(t.ID)
	if !ok {
		return nil
	}
	defer ref.Release()
	if a := ref.Value(); a.kek == t.KEKs[0] {
		return a
	}
	return nil
}

func (s *Source) refActive(ctx context.Context, a *active, admit func() error) (Ref, error) {
	key := cacheKey{envelope.PurposeSeal, a.tenant, a.info.ID}
	if ref, ok := s.keys.Get(key); ok {
		return Ref{ref: ref, prefix: a.prefix}, nil
	}
	ref, err := await(ctx, s, a.tenant, a.kek, func(ctx context.Context) (cache.Ref[*held], error) {
		return s.load(ctx, key, Candidate{Block: a.block, KEK: a.kek}, admit)
	})
	return Ref{ref: ref, prefix: a.prefix}, err
}

// negativeTTL says how long a failed load is remembered. What failed on this
// side of the vault is not.
func (s *Source) negativeTTL(err error) time.Duration { return s.cfg.Negative.ttl(err) }
