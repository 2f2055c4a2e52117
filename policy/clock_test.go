package policy_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/policy"
)

// A wall clock that is set back does not take a Clock back, and one that is set
// forward takes it along.
func TestClock(t *testing.T) {
	start := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct{ wall, steady, want time.Duration }{
		"in step":            {time.Hour, time.Hour, time.Hour},
		"set back":           {-time.Hour, time.Minute, time.Minute},
		"set back by little": {59 * time.Second, time.Minute, time.Minute},
		"set forward":        {24 * time.Hour, time.Minute, 24 * time.Hour},
	} {
		if got := policy.Later(start.Add(c.wall), start.Add(c.steady)); !got.Equal(start.Add(c.want)) {
			t.Errorf("%s: the clock says %s, want %s", name, got, start.Add(c.want))
		}
	}
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
