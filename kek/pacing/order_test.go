package pacing_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("calls ended otherwise (-want +got):\n%s", diff)
	}
}

func TestBurstThenRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.drain()
		for i := range 3 {
			s.call(fmt.Sprint(i), kek.UnsealMiss, "acme", 0)
		}
		want(t, s.ended(), "0@500ms", "1@1s", "2@1.5s")
		s.until(20 * time.Second) // time for many, and ten are saved up
		for i := range 12 {
			s.call(fmt.Sprint(i), kek.UnsealMiss, "acme", 0)
		}
		want(t, s.ended()[11:], "8@20s", "9@20s", "10@20.5s", "11@21s")
	})
}

func TestStrictPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.drain()
		for p := kek.Job; p >= kek.Renewal; p-- {
			s.call(p.String()+" 1", p, "acme", 0)
			s.call(p.String()+" 2", p, "other", 0)
		}
		got := s.ended()
		want(t, got, "renewal 1@500ms", "renewal 2@1s", "unseal miss 1@1.5s", "unseal miss 2@2s", "seal miss 1@2.5s", "seal miss 2@3s",
			"mint ahead 1@3.5s", "mint ahead 2@4s", "poll 1@4.5s", "poll 2@5s", "job 1@5.5s", "job 2@6s")
	})
}

// A lower priority gets what those above it leave: here nothing, for as long as
// they want all; it is told in time.
func TestLowerPriorityWaitsForTheHigher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{Quota: 4})
		s.drain()
		stop := s.crowd(8, kek.UnsealMiss)
		synctest.Wait()
		s.call("told at once", kek.SealMiss, "acme", 4*time.Second)
		s.call("told when certain", kek.SealMiss, "acme", 20*time.Second)
		s.call("patient", kek.SealMiss, "acme", 0)
		s.call("first", kek.Renewal, "acme", 0)
		s.until(60 * time.Second)
		stop()
		want(t, s.ended(), "told at once@0s refused 4.5s", "first@500ms", "told when certain@19.5s refused 4s", "patient@1m0.5s")
	})
}

func TestTenantsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.drain()
		for i, tenant := range []string{"a", "a", "a", "a", "b", "c", "c"} {
			s.call(fmt.Sprint(tenant, i), kek.UnsealMiss, tenant, 0)
		}
		s.until(600 * time.Millisecond)
		s.call("d7", kek.UnsealMiss, "d", 0) // joins behind those who wait
		want(t, s.ended(), "a0@500ms", "b4@1s", "c5@1.5s", "a1@2s", "d7@2.5s", "c6@3s", "a2@3.5s", "a3@4s")
	})
}

func TestEarliestDeadlineFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.drain()
		s.call("ever", kek.UnsealMiss, "a", 0)
		for i, patience := range []int{30, 10, 20, 10} {
			s.call(fmt.Sprint(i, "in", patience), kek.UnsealMiss, "a", time.Duration(patience)*time.Second)
		}
		s.call("other", kek.UnsealMiss, "b", 15*time.Second) // not before its tenant's turn
		want(t, s.ended(), "1in10@500ms", "other@1s", "3in10@1.5s", "2in20@2s", "0in30@2.5s", "ever@3s")
	})
}

// Everybody has a turn within one round, whatever one of them wants.
func TestNobodyStarvesWithinAPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{Quota: 4})
		s.drain()
		for i := range 250 {
			s.call(fmt.Sprint("greedy", i), kek.UnsealMiss, "greedy", 0)
		}
		for i := range 50 { // more than the queue has room for
			s.call(fmt.Sprint("small", i), kek.UnsealMiss, fmt.Sprint("small", i), 30*time.Second)
		}
		s.until(26 * time.Second)
		small, greedy, refused := 0, 0, 0
		for _, end := range s.so() {
			var i int
			var at string
			switch {
			case scan(end, "small%d@%s", &i, &at):
				small++
			case scan(end, "greedy%d@%s refused", &i, &at):
				refused++
			case scan(end, "greedy%d@%s", &i, &at):
				greedy++
			}
		}
		if small != 50 || greedy != 2 || refused != 44 {
			t.Errorf("after one round %d of 50 and %d of the greedy one had their turn, %d were put out; want 50, 2, 44", small, greedy, refused)
		}
		s.calls.Wait()
	})
}

func scan(s, format string, into ...any) bool {
	n, err := fmt.Sscanf(s, format, into...)
	return err == nil && n == len(into)
}

func TestFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{Queue: 4})
		s.drain()
		s.call("poll", kek.Poll, "a", 0)
		s.call("a1", kek.UnsealMiss, "a", 30*time.Second)
		s.call("a2", kek.UnsealMiss, "a", 20*time.Second)
		s.call("b1", kek.UnsealMiss, "b", 0)
		s.call("job", kek.Job, "c", 0)        // is the lowest itself
		s.call("c1", kek.UnsealMiss, "c", 0)  // puts out the poll
		s.call("c2", kek.UnsealMiss, "c", 0)  // a has as many, but its turns come before
		s.call("d1", kek.UnsealMiss, "d", 0)  // puts out a1, the later of a's
		s.call("d2", kek.UnsealMiss, "d", 0)  // has most now
		s.call("first", kek.Renewal, "c", 0)  // puts out d1: all have one, and its turn is last
		s.call("last", kek.MintAhead, "e", 0) // is the lowest itself
		want(t, s.ended(), "job@0s refused 2.5s", "poll@0s refused 2.5s", "c2@0s refused 2.5s", "a1@0s refused 2.5s", "d2@0s refused 2.5s",
			"d1@0s refused 2.5s", "last@0s refused 3s", "first@500ms", "a2@1s", "b1@1.5s", "c1@2s")
	})
}

func TestJobsAreAFifth(t *testing.T) {
	for name, busy := range map[string]bool{"idle": false, "busy": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, pacing.Config{Quota: 4}) // 2 per second for ever
				s.drain()
				stop := s.crowd(20, kek.Job)
				others := func() {}
				if busy {
					others = s.crowd(2, kek.Poll)
				}
				s.until(100*time.Second + time.Millisecond)
				granted := s.p.Stats().Granted
				// 2 saved up, the first after 0.5 s, and from then on 0.4 per second;
				// under strict priority none.
				want := map[string]uint64{"idle": 41, "busy": 0}[name]
				if jobs := granted[kek.Job]; jobs != want {
					t.Errorf("%d jobs in 100 s, want %d", jobs, want)
				}
				if polls := granted[kek.Poll]; busy && polls != 200 {
					t.Errorf("%d polls in 100 s, want 200", polls)
				}
				s.call("past the jobs", kek.Poll, "", 0)
				if !busy {
					want := []string{"past the jobs@1m40.001s"}
					if diff := cmp.Diff(want, s.so()); diff != "" {
						t.Errorf("a call had to wait for jobs (-want +got):\n%s", diff)
					}
				}
				others()
				stop()
			})
		})
	}
}

func TestRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{CallTime: 100 * time.Millisecond})
		s.drain()
		s.call("too late by 1 ns", kek.UnsealMiss, "a", 600*time.Millisecond-1)
		s.call("just in time", kek.UnsealMiss, "a", 600*time.Millisecond)
		s.call("behind it", kek.UnsealMiss, "a", time.Second)
		s.call("second", kek.UnsealMiss, "b", 1100*time.Millisecond)
		s.call("job", kek.Job, "b", 1500*time.Millisecond)
		want(t, s.ended(), "too late by 1 ns@0s refused 500ms", "behind it@0s refused 1s", "job@0s refused 1.5s",
			"just in time@500ms", "second@1s")
	})
}

func TestCancelledWaitersGiveTheirTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.drain()
		stops := make([]func(), 5)
		for i := range stops {
			stops[i] = s.call(fmt.Sprint(i), kek.UnsealMiss, fmt.Sprint(i%2), 0)
		}
		s.until(200 * time.Millisecond)
		for _, i := range []int{0, 3} { // the first of one tenant, the last of another
			stops[i]()
			synctest.Wait()
		}
		s.until(600 * time.Millisecond)
		stops[1]() // all of its tenant
		want(t, s.ended(), "0@200ms left", "3@200ms left", "2@500ms", "1@600ms left", "4@1s")
		for _, v := range s.p.Stats().Vaults {
			if v.Waiting != [kek.Job + 1]int{} {
				t.Errorf("waiting when nobody waits: %v", v.Waiting)
			}
		}
	})
}

// A turn that comes at the very moment when its caller leaves is the next one's.
func TestTurnOfWhoLeftGoesOn(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, pacing.Config{})
			s.drain()
			time.AfterFunc(500*time.Millisecond, s.call("leaves", kek.UnsealMiss, "a", 0))
			s.call("stays", kek.SealMiss, "b", 0)
			got := s.ended()
			slices.Sort(got)
			if slices.Contains(got, "leaves@500ms left") {
				want(t, got, "leaves@500ms left", "stays@500ms")
			} else {
				want(t, got, "leaves@500ms", "stays@1s")
			}
		})
	}
}

// endsLater is a context that ends when it is asked for the second time, which is
// after the turn has come.
type endsLater struct {
	context.Context
	asked int
}

func (c *endsLater) Err() error {
	if c.asked++; c.asked < 2 {
		return nil
	}
	return context.Canceled
}

func TestTurnThatComesTooLateIsGivenBack(t *testing.T) {
	for _, class := range []kek.Priority{kek.UnsealMiss, kek.Job} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, pacing.Config{})
			s.drain()
			for range 2 { // more would be more jobs than may be
				s.calls.Go(func() {
					s.note("leaves", s.p.Wait(&endsLater{Context: kek.WithCall(t.Context(), class, "a")}, kv))
				})
				synctest.Wait()
			}
			for range 2 {
				s.call("stays", class, "b", 0)
			}
			s.until(2 * time.Second)
			got := s.ended()
			slices.Sort(got)
			want(t, got, "leaves@1s left", "leaves@500ms left", "stays@1s", "stays@500ms")
			if n := s.p.Stats(); n.Granted[class] != 2 || n.Refused[class] != 2 {
				t.Errorf("%d granted, %d refused, want 2 each", n.Granted[class], n.Refused[class])
			}
		})
	}
}

// endsWith is a context that ends when its end is waited for, and just before
// that its vault stops.
type endsWith struct {
	context.Context
	p *pacing.Pacer
}

func (c *endsWith) Done() <-chan struct{} {
	c.p.Answered(kv, false, 20*time.Second)
	ended := make(chan struct{})
	close(ended)
	return ended
}

// Who is refused and leaves at the same moment was refused.
func TestRefusedWhileLeaving(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, pacing.Config{})
			s.drain()
			ctx, stop := s.ctx(kek.Poll, "", 5*time.Second)
			defer stop()
			s.note("call", s.p.Wait(&endsWith{ctx, s.p}, kv))
			want(t, s.so(), "call@0s refused 20.5s")
			if n := s.p.Stats().Refused[kek.Poll]; n != 1 {
				t.Errorf("%d refused, want 1", n)
			}
		})
	}
}
