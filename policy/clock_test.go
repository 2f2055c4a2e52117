package policy_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/policy"
)

var clockStart = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// A wall clock that is set forward takes a Clock along, and one that is set back
// does not take it back, whether or not it was set forward before.
func TestClock(t *testing.T) {
	type reading struct{ wall, steady, want time.Duration }
	for name, readings := range map[string][]reading{
		"in step":            {{time.Hour, time.Hour, time.Hour}},
		"set back":           {{-time.Hour, time.Minute, time.Minute}},
		"set back by little": {{59 * time.Second, time.Minute, time.Minute}},
		"set forward":        {{24 * time.Hour, time.Minute, 24 * time.Hour}},
		"set forward, then back": {
			{24 * time.Hour, time.Minute, 24 * time.Hour},
			{2 * time.Minute, 2 * time.Minute, 24*time.Hour + time.Minute},
			{-time.Hour, 2 * time.Minute, 24*time.Hour + time.Minute},
			{48 * time.Hour, 3 * time.Minute, 48 * time.Hour},
			{4 * time.Minute, 4 * time.Minute, 48*time.Hour + time.Minute},
		},
		"forward and back by a nanosecond": {{1, 0, 1}, {0, 0, 1}, {1, 1, 2}},
	} {
		clock := policy.NewClock()
		for i, r := range readings {
			if got := clock.Latest(clockStart.Add(r.wall), clockStart.Add(r.steady)); !got.Equal(clockStart.Add(r.want)) {
				t.Errorf("%s: reading %d is %s, want %s", name, i, got, clockStart.Add(r.want))
			}
		}
	}
}

// However the wall clock is set, a Clock never goes back and is never behind it.
func TestClockNeverGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clock, steady, last := policy.NewClock(), clockStart, clockStart
		step := rapid.Int64Range(0, int64(time.Hour))
		for range rapid.IntRange(1, 20).Draw(t, "readings") {
			steady = steady.Add(time.Duration(step.Draw(t, "passes")))
			wall := steady.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "set")))
			got := clock.Latest(wall, steady)
			if got.Before(last) || got.Before(wall) || got.Before(steady) {
				t.Fatalf("wall clock %s, steady %s: got %s after %s", wall, steady, got, last)
			}
			last = got
		}
	})
}

// What one goroutine has seen end, no other sees again.
func TestClockOfMany(t *testing.T) {
	clock := policy.NewClock()
	var ahead atomic.Int64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 300_000 {
				forward := clock.Latest(clockStart.Add(time.Duration(ahead.Add(1))), clockStart)
				if back := clock.Latest(clockStart, clockStart); back.Before(forward) {
					t.Errorf("got %s after %s", back, forward)
					return
				}
			}
		})
	}
	group.Wait()
}

func TestClockGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock, start := policy.NewClock(), time.Now()
		<-time.After(time.Hour)
		if got := clock.At(time.Now()); !got.Equal(start.Add(time.Hour)) {
			t.Errorf("an hour after %s the clock says %s", start, got)
		}
		if got := clock.At(start.Add(30 * time.Minute)); !got.Equal(start.Add(30 * time.Minute)) {
			t.Errorf("half an hour after %s it said %s", start, got)
		}
	})
}

func TestClockDoesNotAllocate(t *testing.T) {
	clock := policy.NewClock()
	if n := testing.AllocsPerRun(100, func() { clock.At(time.Now()) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
