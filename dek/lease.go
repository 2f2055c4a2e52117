package dek

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/keysidecar/keysidecar/kek"
)

// lease is the standing of one KEK version: every cached DEK points to the
// lease it was unwrapped under, so that fencing all of them is one store.
type lease struct {
	fenced atomic.Bool
	calls  int  // to the vault, under way; guarded by leases.mu
	proven bool // a call has succeeded; guarded by leases.mu
}

type leaseKey struct {
	kek     kek.Key
	version kek.Version
}

// leases holds the lease of every KEK version that has unwrapped something or
// is being asked to.
type leases struct {
	mu    sync.Mutex
	byKey map[leaseKey]*lease
}

// begin is called before a call to the vault, and returns the lease that its
// success would be under. A fence while the call is under way fences that
// lease: the caller has its answer, and nothing stays in the cache.
func (l *leases) begin(k kek.Key, v kek.Version) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byKey == nil {
		l.byKey = make(map[leaseKey]*lease)
	}
	key := leaseKey{k, v}
	if l.byKey[key] == nil {
		l.byKey[key] = &lease{}
	}
	l.byKey[key].calls++
	return l.byKey[key]
}

// end is called after the call that begin announced. A version that never
// unwrapped anything is forgotten: blocks can name any.
func (l *leases) end(k kek.Key, v kek.Version, lease *lease, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lease.calls--
	lease.proven = lease.proven || ok
	if key := (leaseKey{k, v}); !lease.proven && lease.calls == 0 && l.byKey[key] == lease {
		delete(l.byKey, key)
	}
}

// fence fences version v of k, or all its versions if v is zero. It reports
// whether anything had been unwrapped under one of them.
func (l *leases) fence(k kek.Key, v kek.Version) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := false
	for key, lease := range l.byKey {
		if key.kek == k && (v.IsZero() || key.version == v) {
			lease.fenced.Store(true)
			delete(l.byKey, key)
			found = found || lease.proven
		}
	}
	return found
}

// refused drops what was unwrapped under a KEK version that its owner now
// refuses; with a zero version, under any version of the KEK. DEKs that the
// refusal does not concern are unwrapped again when they are next used.
func (s *Source) refused(ctx context.Context, k kek.Key, v kek.Version, err error) {
	reason := kek.ReasonOf(err)
	if !reason.Refusal() || !s.leases.fence(k, v) {
		return
	}
	s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "KEK refused, its DEKs dropped: see its vault's access and state",
		slog.String("kek", k.Ref), slog.String("vault", k.Vault), slog.String("version", v.String()), slog.Any("cause", err))
	event := Event{Kind: Fenced, Info: Info{KEKRef: k.Ref, KEKVersion: v, Region: k.Region}, Reason: reason}
	if err := s.cfg.Record(ctx, event); err != nil {
		// Fencing takes effect whether or not it can be recorded.
		s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "fence not recorded", slog.String("kek", k.Ref), slog.Any("cause", err))
	}
	s.keys.DropIf(func(_ cacheKey, h *held) bool { return h.lease.fenced.Load() })
	s.actives.DropIf(func(_ tenantKey, a *active) bool { return a.lease.fenced.Load() })
}
