package dek

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/keysidecar/keysidecar/kek"
	keklease "github.com/keysidecar/keysidecar/kek/lease"
)

// lease is the standing of one KEK version: every cached DEK points to the
// lease it was unwrapped under, so that fencing all of them is one store.
type lease struct {
	fenced atomic.Bool
	state  *keklease.Lease
	probe  atomic.Pointer[probe] // nil until a DEK was unwrapped under it
	mu     sync.Mutex
	trying chan struct{} // not nil while the vault is being asked; guarded by mu
	key    leaseKey
	users  int  // calls to the vault, cached DEKs and active DEKs; guarded by leases.mu
	proven bool // a DEK was unwrapped under it; guarded by leases.mu
}

type leaseKey struct {
	kek     kek.Key
	version kek.Version
}

// leases holds the lease of every KEK version under which a DEK is held, or
// is being unwrapped. Blocks can name any version: what nobody uses any more
// is forgotten.
type leases struct {
	cfg   keklease.Config
	mu    sync.Mutex
	byKEK map[kek.Key]map[kek.Version]*lease
}

// use returns the lease of v, and counts a user. It is called before a call
// to the vault: a fence while the call is under way fences the lease, so that
// the caller has its answer and nothing stays in the cache.
func (l *leases) use(k kek.Key, v kek.Version) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byKEK == nil {
		l.byKEK = make(map[kek.Key]map[kek.Version]*lease)
	}
	if l.byKEK[k] == nil {
		l.byKEK[k] = make(map[kek.Version]*lease)
	}
	if l.byKEK[k][v] == nil {
		l.byKEK[k][v] = &lease{key: leaseKey{k, v}, state: keklease.New(&l.cfg)}
	}
	l.byKEK[k][v].users++
	return l.byKEK[k][v]
}

// prove notes that a DEK was unwrapped under a lease that the caller uses, in a
// request that was sent at start, and counts more users of it.
func (l *leases) prove(lease *lease, more int, start keklease.Instant, p *probe) {
	lease.probe.Store(p)
	lease.state.Yes(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	lease.users += more
	lease.proven = true
}

// leave takes a user off.
func (l *leases) leave(lease *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lease.users--; lease.users == 0 {
		l.forget(lease)
	}
}

// forget takes a lease off the table, if it is still there.
func (l *leases) forget(lease *lease) {
	versions := l.byKEK[lease.key.kek]
	if versions[lease.key.version] != lease {
		return
	}
	delete(versions, lease.key.version)
	if len(versions) == 0 {
		delete(l.byKEK, lease.key.kek)
	}
}

// all returns the leases.
func (l *leases) all() []*lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*lease
	for _, versions := range l.byKEK {
		for _, lease := range versions {
			out = append(out, lease)
		}
	}
	return out
}

// fenceOne fences a lease, and reports whether a DEK had been unwrapped under it.
func (l *leases) fenceOne(lease *lease) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fence(lease)
}

// doubt tells the leases of k that pick chooses that a request was refused in a
// way that may be a mistake.
func (l *leases) doubt(k kek.Key, pick func(kek.Version) bool, now keklease.Instant, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for v, lease := range l.byKEK[k] {
		if pick(v) {
			lease.state.Doubt(now, cause)
		}
	}
}

// fenceVersion fences version v of k, and fenceKEK every version. They report
// whether a DEK had been unwrapped under one of them.
func (l *leases) fenceVersion(k kek.Key, v kek.Version) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lease := l.byKEK[k][v]
	return lease != nil && l.fence(lease)
}

func (l *leases) fenceKEK(k kek.Key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := false
	for _, lease := range l.byKEK[k] {
		found = l.fence(lease) || found
	}
	return found
}

func (l *leases) fence(lease *lease) bool {
	lease.fenced.Store(true)
	l.forget(lease)
	return lease.proven
}

// versionRefused drops what was unwrapped under a version that the KEK's owner
// now refuses. If only the credential is refused, that may be a mistake, or a role
// that is not there yet: then the version is asked some more times first.
func (s *Source) versionRefused(ctx context.Context, k kek.Key, v kek.Version, err error) {
	if kek.ReasonOf(err) == kek.Forbidden {
		s.leases.doubt(k, func(of kek.Version) bool { return of == v }, s.clock.now(), err)
		s.wakeLeases()
		return
	}
	if kek.ReasonOf(err).Refusal() && s.leases.fenceVersion(k, v) {
		s.dropFenced(ctx, Info{KEKRef: k.Ref, KEKVersion: v, Region: k.Region}, k.Vault, err)
	}
}

// kekRefused drops what was unwrapped under any version of a KEK. DEKs that
// the refusal does not concern are unwrapped again when they are next used. A
// KEK that has only expired refuses to wrap: what it wrapped stays.
func (s *Source) kekRefused(ctx context.Context, k kek.Key, err error) {
	if e, ok := errors.AsType[*kek.Error](err); ok && e.Expired {
		return
	}
	if kek.ReasonOf(err) == kek.Forbidden {
		s.leases.doubt(k, func(kek.Version) bool { return true }, s.clock.now(), err)
		s.wakeLeases()
		return
	}
	if kek.ReasonOf(err).Refusal() && s.leases.fenceKEK(k) {
		s.dropFenced(ctx, Info{KEKRef: k.Ref, Region: k.Region}, k.Vault, err)
	}
}

func (s *Source) dropFenced(ctx context.Context, info Info, vault string, cause error) {
	s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "KEK refused, its DEKs dropped: see its vault's access and state",
		slog.String("kek", info.KEKRef), slog.String("vault", vault),
		slog.String("version", info.KEKVersion.String()), slog.Any("cause", cause))
	if err := s.cfg.Record(ctx, Event{Kind: Fenced, Info: info, Reason: kek.ReasonOf(cause)}); err != nil {
		// Fencing takes effect whether or not it can be recorded.
		s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "fence not recorded", slog.String("kek", info.KEKRef), slog.Any("cause", err))
	}
	s.keys.DropStale()
	s.actives.DropStale()
}
