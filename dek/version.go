package dek

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keysidecar/keysidecar/kek"
)

// pollShare is the part of PollInterval after which a KEK is asked for its
// newest version again. The rest is for replacing the active DEKs, spread
// evenly, so that within PollInterval no bundle names an older version.
const pollShare = 0.8

// polls is how many KEKs are polled at once.
const polls = 4

// newest is what a KEK's vault said its newest usable version is.
type newest struct {
	version kek.Version
	since   time.Time // when this version was first seen
}

// view is what is known of one KEK's versions. Active DEKs point to it, so
// that noticing a newer version costs one atomic load.
type view struct {
	kek    kek.Key
	newest atomic.Pointer[newest]

	mu      sync.Mutex // held over the poll: one at a time
	asked   time.Time  // when the last answer was asked for
	nextAsk time.Time
}

// views holds the view of every KEK that minted lately.
type views struct {
	mu    sync.Mutex
	byKEK map[kek.Key]*view
}

func (vs *views) of(k kek.Key) *view {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.byKEK == nil {
		vs.byKEK = make(map[kek.Key]*view)
	}
	v := vs.byKEK[k]
	if v == nil {
		v = &view{kek: k}
		vs.byKEK[k] = v
	}
	return v
}

// keep makes the views in use the only ones. A view whose DEK became active
// just now is in use even if an earlier call dropped it.
func (vs *views) keep(used map[*view]bool) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for k, v := range vs.byKEK {
		if !used[v] {
			delete(vs.byKEK, k)
		}
	}
	for v := range used {
		if vs.byKEK[v.kek] == nil {
			vs.byKEK[v.kek] = v
		}
	}
}

// version returns the newest version of k for a mint. It asks the vault when
// the last answer is older than PollInterval, or when again is set; an answer
// up to MaxVersionAge old serves when the vault does not answer.
func (s *Source) version(ctx context.Context, v *view, again bool) (kek.Version, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.newest.Load(); n != nil && !again && time.Since(v.asked) < s.cfg.PollInterval {
		return n.version, nil
	}
	err := s.askNewest(ctx, v)
	n := v.newest.Load()
	if err == nil || n != nil && !again && !kek.ReasonOf(err).Refusal() && time.Since(v.asked) < s.cfg.MaxVersionAge {
		return n.version, nil
	}
	return kek.Version{}, err
}

// askNewest asks the vault for the newest version. The caller holds v.mu.
func (s *Source) askNewest(ctx context.Context, v *view) error {
	start := time.Now()
	v.nextAsk = start.Add(time.Duration(pollShare * (0.9 + 0.1*rand.Float64()) * float64(s.cfg.PollInterval)))
	version, err := s.cfg.KEKs.Newest(ctx, v.kek)
	if err != nil {
		s.refused(ctx, v.kek, kek.Version{}, err)
		return err
	}
	v.asked = start
	if old := v.newest.Load(); old == nil || old.version != version {
		v.newest.Store(&newest{version: version, since: time.Now()})
		s.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "KEK version", slog.String("kek", v.kek.Ref), slog.String("version", version.String()))
	}
	return nil
}

// poll asks for new versions until ctx ends.
func (s *Source) poll(ctx context.Context) {
	tick := time.NewTicker(max(s.cfg.PollInterval/20, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.pollDue(ctx)
		}
	}
}

func (s *Source) pollDue(ctx context.Context) {
	used := make(map[*view]bool)
	s.actives.DropIf(func(_ tenantKey, a *active) bool { used[a.view] = true; return false })
	s.views.keep(used)
	var group errgroup.Group
	group.SetLimit(polls)
	for v := range used {
		group.Go(func() error { s.pollOne(ctx, v); return nil })
	}
	_ = group.Wait() // pollOne logs
}

func (s *Source) pollOne(ctx context.Context, v *view) {
	if !v.mu.TryLock() {
		return // a mint is asking
	}
	defer v.mu.Unlock()
	if time.Now().Before(v.nextAsk) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LoadTimeout)
	defer cancel()
	if err := s.askNewest(ctx, v); err != nil && ctx.Err() != context.Canceled {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "asking for the KEK's newest version, will ask again",
			slog.String("kek", v.kek.Ref), slog.String("vault", v.kek.Vault), slog.Any("cause", err))
	}
}
