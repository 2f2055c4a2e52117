package dek_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
)

// inBubble runs f with a rig whose clock is synctest's.
func inBubble(t *testing.T, change func(*dek.Config), f func(*testing.T, *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		f(t, r)
		synctest.Wait()
		r.shutdown(t)
	})
}

// sleepUntil lets the bubble's clock run to d after start.
func sleepUntil(start time.Time, d time.Duration) {
	<-time.After(time.Until(start.Add(d)))
	synctest.Wait()
}

// down makes the vault unreachable for everything.
func down(context.Context, kektest.Call) error { return errors.New("connection refused") }

func TestSoftAgeMintsAhead(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		start := time.Now()
		_, first := r.seal(t)
		sleepUntil(start, 26*24*time.Hour) // under 0.9 x 30 d
		if _, got := r.seal(t); got.ID != first.ID {
			t.Error("replaced before its soft age")
		}
		sleepUntil(start, 31*24*time.Hour)
		if _, got := r.seal(t); got.ID != first.ID {
			t.Error("the first seal after soft age waited for the mint")
		}
		synctest.Wait()
		if _, got := r.seal(t); got.ID == first.ID {
			t.Error("not replaced after its soft age")
		}
	})
}

func TestHardAgeSealsNoMore(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		start := time.Now()
		prefix, first := r.seal(t)
		r.vault.SetHook(func(ctx context.Context, c kektest.Call) error { // leases are renewed
			if c.Op == "unwrap" {
				return nil
			}
			return down(ctx, c)
		})
		sleepUntil(start, 37*24*time.Hour) // between soft and hard age
		if _, got := r.seal(t); got.ID != first.ID {
			t.Error("sealed with another DEK while the vault wraps nothing")
		}
		sleepUntil(start, 38*24*time.Hour) // over 1.25 x 30 d
		if _, err := r.ForSeal(t.Context(), r.entry, 1, nil); kek.ReasonOf(err) != kek.Unreachable || err == nil {
			t.Errorf("ForSeal after the hard age: %v, want unreachable", err)
		}
		if err := r.open(t.Context(), prefix, first.ID); err != nil {
			t.Errorf("ForOpen after the hard age: %v", err)
		}
	})
}

func TestUsageLimit(t *testing.T) {
	for name, change := range map[string]func(*dek.Config){
		"messages": func(c *dek.Config) { c.MaxMessages = 4 },
		"bytes":    func(c *dek.Config) { c.MaxBytes = 400 },
	} {
		inBubble(t, change, func(t *testing.T, r *rig) {
			used := make(map[string]int)
			for range 40 {
				_, info := r.seal(t) // 100 bytes
				used[info.ID.String()]++
				synctest.Wait()
			}
			for id, n := range used {
				if n > 4 {
					t.Errorf("%s: DEK %s sealed %d messages, over the limit of 4", name, id, n)
				}
			}
		})
	}
}

func TestMessageOverTheUsageLimit(t *testing.T) {
	r := newRig(t, func(c *dek.Config) { c.MaxBytes = 10 })
	if _, err := r.ForSeal(t.Context(), r.entry, 11, nil); err == nil {
		t.Error("a message over the usage limit was given a DEK")
	}
}

// Within PollInterval of a rotation new messages use the new version, and old
// data still opens.
func TestRotationIsFollowedWithinThePollInterval(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		prefix, first := r.seal(t)
		sleepUntil(time.Now(), 17*time.Minute) // somewhere between two polls
		second := r.vault.Rotate(testKEK)
		sleepUntil(time.Now(), 5*time.Minute)
		_, got := r.seal(t)
		if got.KEKVersion != second {
			t.Errorf("sealed under %s, want %s", got.KEKVersion, second)
		}
		if err := r.open(t.Context(), prefix, first.ID); err != nil {
			t.Errorf("old data: %v", err)
		}
	})
}

// When a rotation has been noticed and the vault then fails, sealing goes on
// under the old version.
func TestRotationDuringAnOutage(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		_, first := r.seal(t)
		r.vault.Rotate(testKEK)
		r.vault.SetHook(func(ctx context.Context, c kektest.Call) error {
			if c.Op == "newest" {
				return nil
			}
			return down(ctx, c)
		})
		sleepUntil(time.Now(), 30*time.Minute)
		if _, got := r.seal(t); got.ID != first.ID {
			t.Errorf("sealed with %s, want the old DEK %s", got.ID, first.ID)
		}
	})
}

func TestNoMintOnOldKnowledgeOfVersions(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		r.seal(t)
		start := time.Now()
		r.vault.SetHook(func(ctx context.Context, c kektest.Call) error {
			if c.Op == "newest" {
				return down(ctx, c)
			}
			return nil
		})
		other := *r.entry
		other.ID = id(t, "globex")
		sleepUntil(start, 8*time.Minute)
		ref, err := r.ForSeal(t.Context(), &other, 1, nil)
		if err != nil {
			t.Fatalf("mint with knowledge of 8 minutes: %v", err)
		}
		ref.Release()
		other.ID = id(t, "initech")
		sleepUntil(start, 16*time.Minute)
		if _, err := r.ForSeal(t.Context(), &other, 1, nil); kek.ReasonOf(err) != kek.Unreachable || err == nil {
			t.Errorf("mint with knowledge of 16 minutes: %v, want unreachable", err)
		}
	})
}

func TestRefusalDropsTheDEK(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		prefix, info := r.seal(t)
		r.vault.SetEnabled(testKEK, r.first, false)
		sleepUntil(time.Now(), 5*time.Minute) // a poll finds no enabled version
		if n := r.slab.InUse(); n != 0 {
			t.Errorf("%d DEKs are still in the slab", n)
		}
		if err := r.open(t.Context(), prefix, info.ID); kek.ReasonOf(err) != kek.Disabled {
			t.Errorf("ForOpen: %v, want disabled", err)
		}
		r.vault.SetEnabled(testKEK, r.first, true)
		sleepUntil(time.Now(), 20*time.Second) // the refusal is forgotten
		if err := r.open(t.Context(), prefix, info.ID); err != nil {
			t.Errorf("ForOpen after the KEK was enabled again: %v", err)
		}
	})
}

func TestFailuresAreRememberedAndForgotten(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		r.vault.SetHook(down)
		for range 5 {
			if _, err := r.ForSeal(t.Context(), r.entry, 1, nil); kek.ReasonOf(err) != kek.Unreachable || err == nil {
				t.Fatalf("ForSeal: %v, want unreachable", err)
			}
		}
		if got := r.vault.Counts().Newest; got != 1 {
			t.Errorf("vault was asked %d times, want once", got)
		}
		r.vault.SetHook(nil)
		sleepUntil(time.Now(), 2*time.Second)
		r.seal(t)
	})
}

// 200 callers who miss one DEK cost one unwrap, also while a forger sends a
// block with the same DEK ID and garbage; and one who gives up fails nobody.
func TestOneUnwrapForAllCallers(t *testing.T) {
	minter := newRig(t, nil)
	prefix, info := minter.seal(t)
	inBubble(t, func(c *dek.Config) { c.KEKs = minter.vault }, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		before := minter.vault.Counts().Unwrap
		minter.vault.SetHook(func(context.Context, kektest.Call) error { <-gate; return nil })
		forged := append([]byte(nil), prefix...)
		forged[len(forged)-100] ^= 1 // in the wrapped bytes
		var failed, forgeries, gaveUp atomic.Int32
		var group sync.WaitGroup
		for i := range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			group.Go(func() {
				switch err := r.open(ctx, prefix, info.ID); {
				case errors.Is(err, context.Canceled):
					gaveUp.Add(1)
				case err != nil:
					failed.Add(1)
				}
			})
			if i%20 == 0 {
				group.Go(func() {
					if r.open(t.Context(), forged, info.ID) != nil {
						forgeries.Add(1)
					}
				})
			}
			if i == 0 || i == 100 { // the one whose call it is, and a waiter
				synctest.Wait()
				cancel()
			} else {
				defer cancel()
			}
		}
		synctest.Wait()
		close(gate)
		group.Wait()
		if failed.Load() != 0 || gaveUp.Load() != 2 || forgeries.Load() != 10 {
			t.Errorf("%d honest callers failed, %d gave up, %d forgeries refused; want 0, 2, 10", failed.Load(), gaveUp.Load(), forgeries.Load())
		}
		if got := minter.vault.Counts().Unwrap - before; got != 2 {
			t.Errorf("%d unwraps, want one for the DEK and one for the forgery", got)
		}
		minter.vault.SetHook(nil)
	})
}

// The second candidate is for a vault that does not answer, not for a refusal.
func TestSecondCandidate(t *testing.T) {
	second := testKEK
	second.Ref, second.Vault = "acme-us", "https://acme-us.vault.localhost"
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"no answer": {errors.New("connection refused"), true},
		"throttled": {&kek.Error{Reason: kek.Throttled}, true},
		"refusal":   {&kek.Error{Reason: kek.Forbidden}, false},
		"rejected":  {&kek.Error{Reason: kek.Rejected}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.vault.Create(second)
			there := *r.entry
			there.KEKs = []kek.Key{second}
			ref, err := r.ForSeal(t.Context(), &there, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			block, id := rawBlock(ref.BundlePrefix()), ref.Info().ID
			ref.Release()
			cold := newRig(t, func(cfg *dek.Config) { cfg.KEKs = r.vault })
			r.vault.SetHook(func(_ context.Context, call kektest.Call) error {
				if call.Key == testKEK {
					return c.err
				}
				return nil
			})
			candidates := []dek.Candidate{{Block: append([]byte(nil), block...), KEK: testKEK}, {Block: block, KEK: second}}
			candidates[0].Block[len(block)-50] ^= 1 // another block
			got, err := cold.ForOpen(t.Context(), r.entry, id, candidates, nil)
			if err == nil {
				got.Release()
			}
			if (err == nil) != c.want {
				t.Errorf("opened = %v (%v), want %v", err == nil, err, c.want)
			}
		})
	}
}
