package dek

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// A KEK is asked for its newest version after pollShare of PollInterval, give
// or take a tick. Its tenants then move to a newer version one by one, spread
// over spreadShare, so that within PollInterval no bundle names an older one.
const (
	pollShare   = 0.7
	spreadShare = 0.2
	tickShare   = 0.05
)

// maxPolls is how many vaults are polled at once.
const maxPolls = 64

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

	mu      sync.Mutex // held over the question: one at a time
	asked   time.Time  // when the last answer was asked for
	nextAsk time.Time
	failure error     // of the last question, until silent
	silent  time.Time // before which a failure is not asked for again
}

// views holds the view of every KEK that has minted an active DEK.
type views struct {
	mu    sync.Mutex
	byKEK map[kek.Key]*view
	busy  map[string]bool // vaults being polled
}

func (vs *views) of(k kek.Key) *view {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.byKEK == nil {
		vs.byKEK, vs.busy = make(map[kek.Key]*view), make(map[string]bool)
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

// claim reports whether the caller may poll a vault: nobody else does, and not
// too many others are being polled.
func (vs *views) claim(vault string) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.busy[vault] || len(vs.busy) >= maxPolls {
		return false
	}
	vs.busy[vault] = true
	return true
}

func (vs *views) unclaim(vault string) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	delete(vs.busy, vault)
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
	err := v.failure
	if !time.Now().Before(v.silent) {
		err = s.askNewest(ctx, v)
	}
	n := v.newest.Load()
	if err == nil || n != nil && !again && !kek.ReasonOf(err).Refusal() && time.Since(v.asked) < s.cfg.MaxVersionAge {
		return n.version, nil
	}
	return kek.Version{}, err
}

// askNewest asks the vault for the newest version. The caller holds v.mu.
func (s *Source) askNewest(ctx context.Context, v *view) error {
	start := time.Now()
	v.nextAsk = start.Add(s.share(pollShare * (0.9 + 0.1*rand.Float64())))
	version, err := s.cfg.KEKs.Newest(ctx, v.kek)
	if err != nil {
		v.nextAsk = start.Add(s.share(2 * tickShare))
		v.failure, v.silent = err, time.Now().Add(s.cfg.Negative.ttl(err))
		s.kekRefused(ctx, v.kek, err)
		return err
	}
	v.asked, v.failure, v.silent = start, nil, time.Time{}
	if old := v.newest.Load(); old == nil || old.version != version {
		v.newest.Store(&newest{version: version, since: time.Now()})
		s.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "KEK version", slog.String("kek", v.kek.Ref), slog.String("version", version.String()))
	}
	return nil
}

// share returns a part of PollInterval.
func (s *Source) share(part float64) time.Duration {
	return time.Duration(part * float64(s.cfg.PollInterval))
}

// poll asks for new versions until ctx ends.
func (s *Source) poll(ctx context.Context) {
	tick := time.NewTicker(max(s.share(tickShare), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.clock.refresh()
			s.pollDue(ctx)
		}
	}
}

// pollDue starts asking what is due, each vault on a goroutine of its own: one
// that hangs delays nobody else.
func (s *Source) pollDue(ctx context.Context) {
	used := make(map[*view]bool)
	s.actives.Each(func(_ tenant.ID, a *active) { used[a.view] = true })
	s.views.keep(used)
	vaults := make(map[string][]*view)
	for v := range used {
		vaults[v.kek.Vault] = append(vaults[v.kek.Vault], v)
	}
	for vault, views := range vaults {
		if s.views.claim(vault) {
			s.background.Go(func() {
				defer s.views.unclaim(vault)
				s.pollVault(ctx, views)
			})
		}
	}
}

// pollVault asks a vault about its KEKs that are due, the longest due first,
// until one gets no answer: the others are for the next round.
func (s *Source) pollVault(ctx context.Context, views []*view) {
	due := make(map[*view]time.Time)
	for _, v := range views {
		if !v.mu.TryLock() {
			continue // a mint is asking
		}
		if !time.Now().Before(v.nextAsk) {
			due[v] = v.nextAsk
		}
		v.mu.Unlock()
	}
	views = slices.DeleteFunc(views, func(v *view) bool { _, ok := due[v]; return !ok })
	slices.SortFunc(views, func(a, b *view) int { return due[a].Compare(due[b]) })
	for _, v := range views {
		if err := s.pollOne(ctx, v); noAnswer(err) {
			return
		}
	}
}

func (s *Source) pollOne(ctx context.Context, v *view) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.LoadTimeout)
	defer cancel()
	err := s.askNewest(ctx, v)
	if err != nil && ctx.Err() != context.Canceled {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "asking for the KEK's newest version, will ask again",
			slog.String("kek", v.kek.Ref), slog.String("vault", v.kek.Vault), slog.Any("cause", err))
	}
	return err
}
