package pacing_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

func (s *site) wantRate(want float64, when string) {
	s.t.Helper()
	if got := s.rate(); math.Abs(got-want) > 1e-12 {
		s.t.Errorf("%s the rate is %v, want %v", when, got, want)
	}
}

func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, x := range []struct {
			cfg   pacing.Config
			rate  float64
			burst int
		}{
			{pacing.Config{}, 2, 10},
			{pacing.Config{FleetSize: 1}, 25, 10},
			{pacing.Config{FleetSize: 100}, 0.25, 1},
			{pacing.Config{FleetSize: 20, Quota: 200}, 5, 10},
			{pacing.Config{FleetSize: 50, Quota: 50}, 0.5, 2},
			{pacing.Config{FleetSize: 10_000, Quota: 50}, 0.0025, 1},
			{pacing.Config{Quota: 1}, 0.5, 2},
		} {
			s := newSite(t, x.cfg)
			burst := 0
			for ; ; burst++ {
				ctx, stop := s.ctx(kek.Renewal, "", time.Nanosecond)
				err := s.p.Wait(ctx, kv)
				if stop(); err != nil {
					break
				}
			}
			s.wantRate(x.rate, fmt.Sprintf("with %+v", x.cfg))
			if burst != x.burst {
				t.Errorf("%+v lets %d calls through at once, want %d", x.cfg, burst, x.burst)
			}
		}
	})
}

func TestGrowth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		stop := s.crowd(40, kek.UnsealMiss)
		defer stop()
		synctest.Wait()
		rate, tokens := 2.0, 10.0
		for window := range 20 {
			s.until(time.Duration(window+1)*10*time.Second - 1)
			s.wantRate(rate, fmt.Sprintf("after %s", time.Since(s.begin)))
			tokens += 10 * rate
			rate = min(25, rate*1.25)
			if got := float64(s.p.Stats().Granted[kek.UnsealMiss]); math.Abs(got-tokens) > 1 {
				t.Errorf("after %d windows %v calls, want %v", window+1, got, tokens)
			}
			s.until(time.Duration(window+1) * 10 * time.Second)
			s.wantRate(rate, fmt.Sprintf("after %s", time.Since(s.begin)))
		}
		if rate != 25 {
			t.Errorf("rate %v after 20 windows", rate)
		}
	})
}

// Nothing is learned from a vault that was not asked, that did not answer, or
// whose answers nobody had to wait for.
func TestNoGrowthWithoutNeed(t *testing.T) {
	type use struct{ waits, answers bool }
	for name, u := range map[string]use{"idle": {}, "no answers": {waits: true}, "no need": {answers: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, pacing.Config{})
				s.drain()
				for i := range 60 {
					s.until(time.Duration(10+i) * time.Second)
					for range 2 {
						if u.answers || u.waits {
							s.call("", kek.Poll, "", 0)
						}
						if u.answers {
							s.p.Answered(kv, false, 0)
						}
					}
					for range 8 {
						if u.waits {
							s.call("", kek.Poll, "", 0)
						}
					}
				}
				s.wantRate(2, "in the end")
				s.calls.Wait()
			})
		})
	}
}

func TestHalving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{FleetSize: 1})
		stop := s.crowd(5, kek.UnsealMiss)
		defer stop()
		for _, x := range []struct {
			at, rate float64 // seconds; rate after a 429 then
		}{
			{1, 12.5}, {1.5, 12.5}, {10.999, 12.5}, {11, 6.25}, {12, 6.25}, {21, 3.125},
		} {
			s.until(time.Duration(x.at * float64(time.Second)))
			s.p.Answered(kv, true, 0)
			s.wantRate(x.rate, fmt.Sprintf("with a 429 after %v s", x.at))
		}
		s.until(31*time.Second - 1)
		s.wantRate(3.125, "up to 10 s after the last 429")
		s.until(31 * time.Second)
		s.wantRate(3.125*1.25, "10 s after the last 429")
		s.until(33 * time.Second)
		s.p.Answered(kv, true, 0)
		s.wantRate(3.125*1.25/2, "with the next 429")
		if n := s.p.Stats().Throttled; n != 7 {
			t.Errorf("%d 429s counted, want 7", n)
		}
	})
}

func TestLowestRate(t *testing.T) {
	for size, lowest := range map[int]float64{0: 0.1, 1: 0.1, 100: 0.1, 1000: 0.0125, 10_000: 0.00125} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, pacing.Config{FleetSize: size})
			for i := range 20 {
				s.until(time.Duration(i) * 10 * time.Second)
				s.p.Answered(kv, true, 0)
			}
			s.wantRate(lowest, fmt.Sprintf("with a fleet of %d and 429s only", size))
		})
	}
}

// A 429 uses up what was saved, but for one call, less a random part of one.
func TestThrottledEmptiesTheBucket(t *testing.T) {
	for random, want2 := range map[float64][]string{0: {"1@0s", "2@1s"}, 0.25: {"1@250ms", "2@1.25s"}, 0.75: {"1@750ms", "2@1.75s"}} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, pacing.Config{Random: func() float64 { return random }})
			s.p.Answered(kv, true, 0)
			s.call("1", kek.Renewal, "", 0)
			s.call("2", kek.Renewal, "", 0)
			want(t, s.ended(), want2...)
		})
	}
}

func TestRetryAfterStopsTheVault(t *testing.T) {
	for name, throttled := range map[string]bool{"429": true, "503": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, pacing.Config{Random: func() float64 { return 0.5 }})
				s.until(time.Second)
				s.drain()
				s.call("impatient", kek.UnsealMiss, "a", 5*time.Second)
				s.call("patient", kek.UnsealMiss, "a", 30*time.Second)
				s.call("leaves", kek.UnsealMiss, "b", 20*time.Second)()
				synctest.Wait()
				s.p.Answered(kv, throttled, 7*time.Second)
				s.p.Answered(kv, throttled, 2*time.Second) // does not shorten it
				synctest.Wait()
				s.call("comes later", kek.Renewal, "b", 7*time.Second)
				if paused := s.p.Stats().Vaults[0].Paused; paused != 7*time.Second {
					t.Errorf("paused for %s", paused)
				}
				ctx, stop := s.ctx(kek.Job, "", time.Nanosecond)
				defer stop()
				if err := s.p.Wait(ctx, "https://other.example.com"); err != nil {
					t.Errorf("another vault is stopped too: %v", err)
				}
				s.p.Answered(kv, false, 0) // of a call before
				s.call("first", kek.Renewal, "c", 0)
				// One and a half tokens are missing when it goes on: at 1 per second
				// after a 429, and 2 else.
				if throttled {
					want(t, s.ended(), "leaves@1s left", "impatient@1s refused 8.5s", "comes later@1s refused 8.5s", "first@9.5s", "patient@10.5s")
				} else {
					want(t, s.ended(), "leaves@1s left", "impatient@1s refused 7.75s", "comes later@1s refused 7.75s", "first@8.75s", "patient@9.25s")
				}
			})
		})
	}
}

func TestRetryAfterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.p.Answered(kv, true, math.MaxInt64)
		if paused := s.p.Stats().Vaults[0].Paused; paused != 30*time.Second {
			t.Errorf("paused for %s", paused)
		}
		s.until(10 * time.Second)
		s.p.Answered(kv, true, time.Hour)
		s.call("first", kek.Renewal, "", 0)
		want(t, s.ended(), "first@40s")
	})
}

// The clean time begins when calls go on, not while they are stopped.
func TestNoGrowthWhileStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.p.Answered(kv, false, 20*time.Second)
		stop := s.crowd(5, kek.UnsealMiss)
		defer stop()
		s.p.Answered(kv, false, 0)
		s.until(30*time.Second - 1)
		s.wantRate(2, "up to 10 s after the pause")
		s.until(30 * time.Second)
		s.wantRate(2.5, "10 s after the pause")
	})
}

func TestCharge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, pacing.Config{})
		s.p.Charge(kv, 1) // of a vault that is not known
		s.drain()
		s.p.Charge(kv, 3)
		s.p.Charge(kv, -3)
		s.call("after them", kek.Renewal, "", 0)
		want(t, s.ended(), "after them@2s")
		s.p.Charge(kv, 1_000_000)
		s.call("after 10 s of them", kek.Renewal, "", 0)
		want(t, s.ended()[1:], "after 10 s of them@12.5s")
		if n := s.p.Stats().Charged; n != 1_000_003 {
			t.Errorf("%d charged", n)
		}
	})
}
