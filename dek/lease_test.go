package dek_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/kek/lease"
)

// leased is a rig with one DEK, for which nothing but its lease asks the vault.
func leased(t *testing.T, test func(t *testing.T, r *rig, use func() error)) {
	inBubble(t, func(c *dek.Config) { c.PollInterval, c.MaxVersionAge = 24*time.Hour, 48*time.Hour }, func(t *testing.T, r *rig) {
		prefix, info := r.seal(t)
		test(t, r, func() error { return r.open(t.Context(), prefix, info.ID) })
	})
}

// every calls use every second for so long, and returns the first error and when
// it was, -1 if there is none.
func every(d time.Duration, use func() error) (after time.Duration, err error) {
	start := time.Now()
	for at := time.Duration(0); at < d; at += time.Second {
		sleepUntil(start, at)
		if err := use(); err != nil {
			return time.Since(start), err
		}
	}
	return -1, nil
}

func TestLeaseIsRenewedInTime(t *testing.T) {
	leased(t, func(t *testing.T, r *rig, use func() error) {
		before := r.vault.Counts().Unwrap
		if after, err := every(time.Hour, use); err != nil {
			t.Fatalf("after %v: %v", after, err)
		}
		if n := r.vault.Counts().Unwrap - before; n < 60/4 || n > 60*2/5+1 {
			t.Errorf("%d renewals in an hour, want one in 2.5 to 3.75 minutes", n)
		}
		renewed := 0
		for _, kind := range r.events {
			if kind == dek.Renewed {
				renewed++
			}
		}
		if n := r.vault.Counts().Unwrap - before; renewed != n {
			t.Errorf("%d of %d renewals were recorded", renewed, n)
		}
		before = r.vault.Counts().Unwrap
		sleepUntil(time.Now(), time.Hour)
		if n := r.vault.Counts().Unwrap - before; n != 0 {
			t.Errorf("%d renewals of what nobody used", n)
		}
		if err := use(); err != nil {
			t.Errorf("after an hour without use: %v", err)
		}
	})
}

// A version that is disabled is obeyed within one lease, and for good.
func TestDisabledIsObeyed(t *testing.T) {
	leased(t, func(t *testing.T, r *rig, use func() error) {
		r.vault.SetHook(refuse("unwrap", kek.Version{}, kek.Disabled))
		after, err := every(10*time.Minute, use)
		if kek.ReasonOf(err) != kek.Disabled || after > 5*time.Minute {
			t.Errorf("after %v: %v, want disabled within the lease", after, err)
		}
		r.vault.SetHook(down) // whoever cuts the way now gains nothing
		if err := use(); err == nil {
			t.Error("a cut undoes a refusal")
		}
		if n := r.Stats().Cached; n != 0 {
			t.Errorf("%d DEKs cached", n)
		}
	})
}

// A role that is missing for a while costs nobody a call; one that is missing
// for good is obeyed.
func TestForbiddenForAWhile(t *testing.T) {
	for lasts, refused := range map[time.Duration]bool{15 * time.Second: false, time.Hour: true} {
		leased(t, func(t *testing.T, r *rig, use func() error) {
			var since time.Time
			r.vault.SetHook(func(context.Context, kektest.Call) error {
				if since.IsZero() {
					since = time.Now()
				}
				if time.Since(since) < lasts {
					return &kek.Error{Reason: kek.Forbidden}
				}
				return nil
			})
			_, err := every(20*time.Minute, use)
			if refused && (kek.ReasonOf(err) != kek.Forbidden || time.Since(since) > 20*time.Second) {
				t.Errorf("%v after the first refusal: %v, want forbidden", time.Since(since), err)
			}
			if !refused && err != nil {
				t.Errorf("%v after the first refusal: %v", time.Since(since), err)
			}
		})
	}
}

// Warm DEKs outlast an outage as long as their tenant tolerates one, and no call
// waits long; when the vault is back, it is asked within a probe.
func TestOutage(t *testing.T) {
	leased(t, func(t *testing.T, r *rig, use func() error) {
		r.vault.SetHook(down)
		after, err := every(2*time.Hour, use)
		var over *lease.GraceOverError
		if !errors.As(err, &over) || after < 64*time.Minute || after > 66*time.Minute {
			t.Errorf("after %v: %v, want the end of 5 minutes and an hour", after, err)
		}
		r.vault.SetHook(nil)
		sleepUntil(time.Now(), 31*time.Second)
		if err := use(); err != nil {
			t.Errorf("31 s after the vault came back: %v", err)
		}
	})
}

func TestNoOutageTolerated(t *testing.T) {
	leased(t, func(t *testing.T, r *rig, use func() error) {
		r.entry.OutageGrace = 0
		r.vault.SetHook(down)
		after, err := every(time.Hour, use)
		var over *lease.GraceOverError
		if !errors.As(err, &over) || after < 4*time.Minute || after > 301*time.Second {
			t.Errorf("after %v: %v, want the end of the lease", after, err)
		}
	})
}

// A vault that hangs holds a call up once, and not for long.
func TestHangingVaultAtTheEndOfALease(t *testing.T) {
	leased(t, func(t *testing.T, r *rig, use func() error) {
		r.vault.SetHook(func(ctx context.Context, _ kektest.Call) error {
			<-ctx.Done()
			return ctx.Err()
		})
		sleepUntil(time.Now(), 10*time.Minute)
		start := time.Now()
		if err := use(); err != nil || time.Since(start) > 250*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		r.vault.SetHook(nil)
	})
}

// A machine that slept gains nothing: what was proved before is asked again.
func TestSleepingMachine(t *testing.T) {
	var slept atomic.Int64
	inBubble(t, func(c *dek.Config) { c.Slept = func() time.Duration { return time.Duration(slept.Load()) } }, func(t *testing.T, r *rig) {
		prefix, info := r.seal(t)
		r.entry.OutageGrace = 0
		r.vault.SetHook(refuse("unwrap", kek.Version{}, kek.Disabled))
		slept.Store(int64(10 * time.Minute))
		sleepUntil(time.Now(), 16*time.Second) // a tick of the poll
		if err := r.open(t.Context(), prefix, info.ID); kek.ReasonOf(err) != kek.Disabled {
			t.Errorf("after the machine slept: %v, want disabled", err)
		}
	})
}
