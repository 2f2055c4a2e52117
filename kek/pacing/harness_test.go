package pacing_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const kv = "https://kv.example.com"

// newPacer makes a Pacer that draws no numbers, if cfg does not.
func newPacer(t testing.TB, cfg pacing.Config) *pacing.Pacer {
	t.Helper()
	if cfg.Random == nil {
		cfg.Random = func() float64 { return 0 }
	}
	p, err := pacing.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A site makes calls in a bubble of synctest, and notes what becomes of them.
type site struct {
	t     *testing.T
	p     *pacing.Pacer
	begin time.Time
	calls sync.WaitGroup

	mu  sync.Mutex
	got []string // "name@500ms", in the order in which the calls ended
}

func newSite(t *testing.T, cfg pacing.Config) *site {
	return &site{t: t, p: newPacer(t, cfg), begin: time.Now()}
}

// ctx is for a call that waits for as long as patience; 0: for ever.
func (s *site) ctx(class kek.Priority, tenant string, patience time.Duration) (context.Context, context.CancelFunc) {
	ctx := kek.WithCall(s.t.Context(), class, tenant)
	if patience == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, patience)
}

// call begins a call, which is queued or over when it returns. Calling stop ends
// its context.
func (s *site) call(name string, class kek.Priority, tenant string, patience time.Duration) (stop context.CancelFunc) {
	ctx, stop := s.ctx(class, tenant, patience)
	s.calls.Go(func() {
		defer stop()
		err := s.p.Wait(ctx, kv)
		s.note(name, err)
	})
	synctest.Wait()
	return stop
}

func (s *site) note(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := fmt.Sprint(time.Since(s.begin))
	var e *kek.Error
	switch {
	case err == nil:
	case !errors.As(err, &e) || !errors.Is(err, pacing.ErrPaced) || e.Reason != kek.Throttled || e.Status != 0 || e.Vault != kv:
		s.t.Errorf("%s: %v is no refusal of a Pacer", name, err)
	default:
		end = fmt.Sprintf("%s refused %s", end, e.RetryAfter)
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			end = fmt.Sprint(time.Since(s.begin)) + " left"
		}
	}
	s.got = append(s.got, name+"@"+end)
}

// ended waits for all calls, and returns what became of them.
func (s *site) ended() []string {
	s.calls.Wait()
	return s.so()
}

// so returns what has become of the calls up to now.
func (s *site) so() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// drain uses up what a new vault lets through at once.
func (s *site) drain() { s.t.Helper(); s.take(10) }

func (s *site) take(n int) {
	s.t.Helper()
	for range n {
		ctx, stop := s.ctx(kek.Renewal, "", time.Nanosecond)
		if err := s.p.Wait(ctx, kv); err != nil {
			s.t.Fatalf("draining the bucket: %v", err)
		}
		stop()
	}
}

// until lets time pass, up to d after the beginning.
func (s *site) until(d time.Duration) {
	<-time.After(time.Until(s.begin.Add(d)))
	synctest.Wait()
}

func (s *site) rate() float64 {
	s.t.Helper()
	for _, v := range s.p.Stats().Vaults {
		if v.Vault == kv {
			return v.Rate
		}
	}
	s.t.Fatal("vault is not remembered")
	return 0
}

// crowd keeps n calls waiting, each of which is answered at once, until stop.
func (s *site) crowd(n int, class kek.Priority) (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			ctx := kek.WithCall(ctx, class, fmt.Sprint("crowd-", i))
			for s.p.Wait(ctx, kv) == nil {
				s.p.Answered(kv, false, 0)
			}
		})
	}
	return func() { cancel(); calls.Wait() }
}
