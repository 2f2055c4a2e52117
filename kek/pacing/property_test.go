package pacing_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

// A move is a step of the property test: time passes, and then a call begins, or
// an answer comes.
type move struct {
	After      time.Duration
	Class      kek.Priority
	Tenant     string
	Patience   time.Duration // 0: for ever
	LeaveAfter time.Duration // 0: never
	Answer     int           // 0: a call; 1: an answer; 2: a 429; 3: a 503
	RetryAfter time.Duration
}

func genMoves() *rapid.Generator[[]move] {
	ms := func(most int) *rapid.Generator[time.Duration] {
		return rapid.Map(rapid.IntRange(0, most), func(n int) time.Duration { return time.Duration(n) * 10 * time.Millisecond })
	}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) move {
		m := move{
			After: rapid.OneOf(rapid.Just(time.Duration(0)), ms(20), ms(1500)).Draw(t, "after"),
			Class: kek.Priority(rapid.IntRange(1, 6).Draw(t, "class")), Tenant: rapid.StringMatching("[a-d]").Draw(t, "tenant"),
			Patience:   rapid.OneOf(rapid.Just(time.Duration(0)), ms(1000), ms(6000)).Draw(t, "patience"),
			LeaveAfter: rapid.OneOf(rapid.Just(time.Duration(0)), rapid.Just(time.Duration(0)), ms(1000)).Draw(t, "leave"),
			Answer:     max(0, rapid.IntRange(-9, 3).Draw(t, "answer")),
		}
		if m.Answer > 1 {
			m.RetryAfter = ms(4000).Draw(t, "retry after")
		}
		return m
	}), 1, 150)
}

// A fate is what became of a call.
type fate struct {
	move
	begin, end time.Time
	latest     time.Time // zero: whenever
	err        error
}

func (f *fate) String() string {
	return fmt.Sprintf("%s of %s from %s to %s, at the latest %s: %v", f.Class, f.Tenant, f.begin.Format("05.000"), f.end.Format("05.000"),
		f.latest.Format("05.000"), f.err)
}

const testCallTime = 50 * time.Millisecond

// play makes the moves, and returns the calls in the order in which they ended,
// and in which times no call may go.
func play(t *testing.T, cfg pacing.Config, moves []move) (fates []*fate, stops [][2]time.Time) {
	p := newPacer(t, cfg)
	var mu sync.Mutex
	var calls sync.WaitGroup
	for _, m := range moves {
		<-time.After(m.After)
		synctest.Wait()
		now := time.Now()
		if m.Answer > 0 {
			p.Answered(kv, m.Answer == 2, m.RetryAfter)
			stops = append(stops, [2]time.Time{now, now.Add(min(m.RetryAfter, 30*time.Second))})
			continue
		}
		f := &fate{move: m, begin: now}
		ctx, stop := context.WithCancel(kek.WithCall(t.Context(), m.Class, m.Tenant))
		if m.Patience > 0 {
			ctx, stop = context.WithTimeout(ctx, m.Patience)
			f.latest = now.Add(m.Patience - testCallTime)
		}
		if m.LeaveAfter > 0 {
			time.AfterFunc(m.LeaveAfter, stop)
		}
		calls.Go(func() {
			defer stop()
			f.err = p.Wait(ctx, kv)
			mu.Lock()
			defer mu.Unlock()
			f.end = time.Now()
			fates = append(fates, f)
		})
	}
	calls.Wait()
	for _, v := range p.Stats().Vaults {
		if v.Waiting != [kek.Job + 1]int{} {
			t.Errorf("waiting in the end: %v", v.Waiting)
		}
	}
	return fates, stops
}

// TestProperties checks, for whatever comes: that calls stay below the rate, and
// jobs below theirs; that none goes while the vault is stopped; that no call
// overtakes one of a higher priority, and no tenant has two turns while another
// waits; and that everybody is told in time.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := pacing.Config{
			Quota:    rapid.SampledFrom([]float64{0.5, 4, 20, 50}).Draw(rt, "quota"),
			Queue:    rapid.SampledFrom([]int{1, 4, 0}).Draw(rt, "queue"),
			CallTime: testCallTime,
		}
		random := rapid.SampledFrom([]float64{0, 0.3, 0.99}).Draw(rt, "random")
		cfg.Random = func() float64 { return random }
		moves := genMoves().Draw(rt, "moves")
		synctest.Test(t, func(t *testing.T) {
			fates, stops := play(t, cfg, moves)
			for _, check := range []func() error{
				func() error { return checkRate(fates, cfg.Quota/2) },
				func() error { return checkStops(fates, stops) },
				func() error { return checkOrder(fates) },
				func() error { return checkTurns(fates) },
				func() error { return checkTold(fates) },
			} {
				if err := check(); err != nil {
					rt.Errorf("%v", err)
				}
			}
		})
	})
}

// checkRate: in no time are there more calls than the rate allows, and ten.
func checkRate(fates []*fate, rate float64) error {
	var all, jobs []time.Time
	for _, f := range fates {
		if f.err == nil {
			all = append(all, f.end)
			if f.Class == kek.Job {
				jobs = append(jobs, f.end)
			}
		}
	}
	for i := range all {
		for j := i; j < len(all); j++ {
			if n := float64(j - i + 1); n > max(1, min(10, 5*rate))+rate*all[j].Sub(all[i]).Seconds()+1e-6 {
				return fmt.Errorf("%v calls within %s at %v per second", n, all[j].Sub(all[i]), rate)
			}
		}
	}
	for i := range jobs {
		for j := i; j < len(jobs); j++ {
			if n := float64(j - i + 1); n > max(1, min(2, rate))+0.2*rate*jobs[j].Sub(jobs[i]).Seconds()+1e-6 {
				return fmt.Errorf("%v jobs within %s at %v per second", n, jobs[j].Sub(jobs[i]), rate)
			}
		}
	}
	return nil
}

func checkStops(fates []*fate, stops [][2]time.Time) error {
	for _, f := range fates {
		for _, s := range stops {
			if f.err == nil && f.end.After(s[0]) && f.end.Before(s[1]) {
				return fmt.Errorf("%s, but the vault is stopped until %s", f, s[1].Format("05.000"))
			}
		}
	}
	return nil
}

// checkOrder: nobody goes while somebody of a higher priority waits.
func checkOrder(fates []*fate) error {
	for _, low := range fates {
		for _, high := range fates {
			if low.err == nil && high.Class < low.Class && high.begin.Before(low.end) && high.end.After(low.end) {
				return fmt.Errorf("%s overtook %s", low, high)
			}
		}
	}
	return nil
}

// checkTurns: between two turns of a tenant, all others that wait have one.
func checkTurns(fates []*fate) error {
	for i, first := range fates {
		for _, second := range fates[i+1:] {
			if first.err != nil || second.err != nil || first.Class != second.Class || first.Tenant != second.Tenant {
				continue
			}
			for _, other := range fates {
				if other.Class == first.Class && other.Tenant != first.Tenant && other.begin.Before(first.end) && other.end.After(second.end) {
					if !hadTurn(fates, other, first.end, second.end) {
						return fmt.Errorf("%s\nand %s\nwhile there was no turn for %s", first, second, other)
					}
				}
			}
		}
	}
	return nil
}

// hadTurn reports whether the tenant of f had a turn in that time.
func hadTurn(fates []*fate, f *fate, from, to time.Time) bool {
	for _, g := range fates {
		if g.err == nil && g.Class == f.Class && g.Tenant == f.Tenant && !g.end.Before(from) && !g.end.After(to) {
			return true
		}
	}
	return false
}

// checkTold: a turn comes in time, or the call is told so before, and when.
func checkTold(fates []*fate) error {
	for _, f := range fates {
		waited := f.end.After(f.begin)
		left := errors.Is(f.err, context.Canceled) || f.LeaveAfter > 0
		switch {
		case !f.latest.IsZero() && waited && f.end.After(f.latest):
			return fmt.Errorf("too late: %s", f)
		case f.err == nil || left:
		case !errors.Is(f.err, pacing.ErrPaced) || errors.Is(f.err, context.DeadlineExceeded):
			return fmt.Errorf("not told: %s", f)
		case kek.RetryAfterOf(f.err) <= 0:
			return fmt.Errorf("not told when: %s", f)
		case f.latest.IsZero() || isFull(f.err):
		case !f.end.Add(kek.RetryAfterOf(f.err)).After(f.latest):
			return fmt.Errorf("refused, though its turn would have come in time, in %s: %s", kek.RetryAfterOf(f.err), f)
		}
	}
	return nil
}

func isFull(err error) bool {
	e, ok := errors.AsType[*kek.Error](err)
	return ok && e.Err.Error() == pacing.ErrPaced.Error()+": too many calls wait already"
}
