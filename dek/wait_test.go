package dek_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/tenant"
)

// hanging adds a tenant whose vault hangs from now on, and returns ways to ask
// for its DEKs, all cold.
func hanging(t *testing.T, r *rig) map[string]func(context.Context) error {
	t.Helper()
	k := testKEK
	k.Ref, k.Vault, k.Alg = "globex", "https://globex.vault.localhost", kek.A256KW
	r.vault.Create(k)
	entry := &tenant.Entry{ID: id(t, "globex"), KEKs: []kek.Key{k}}
	ref, err := r.ForSeal(t.Context(), entry, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	block, dekID := rawBlock(ref.BundlePrefix()), ref.Info().ID
	ref.Release()
	r.Evict(func(id tenant.ID) bool { return id == entry.ID })
	r.vault.SetHook(func(ctx context.Context, c kektest.Call) error {
		if c.Key.Vault == k.Vault {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	return map[string]func(context.Context) error{
		"seal": func(ctx context.Context) error {
			ref, err := r.ForSeal(ctx, entry, 1, nil)
			return release(ref, err)
		},
		"open": func(ctx context.Context) error {
			ref, err := r.ForOpen(ctx, entry, dekID, []dek.Candidate{{Block: block, KEK: k}}, nil)
			return release(ref, err)
		},
	}
}

// release gives back a ref that there is without an error.
func release(ref dek.Ref, err error) error {
	if err == nil {
		ref.Release()
	}
	return err
}

// A tenant's vault that hangs holds up few of its operations, and no other
// tenant's: others find it busy soon.
func TestHangingVaultHoldsUpFew(t *testing.T) {
	const calls, pause = 1000, 10 * time.Millisecond
	const most = 32 + int32(500*time.Millisecond/pause) + 1
	for _, name := range []string{"seal", "open"} {
		inBubble(t, nil, func(t *testing.T, r *rig) {
			prefix, info := r.seal(t)
			ask := hanging(t, r)[name]
			var waiting, busy atomic.Int32
			var group sync.WaitGroup
			peak := int32(0)
			for range calls {
				group.Go(func() {
					waiting.Add(1)
					defer waiting.Add(-1)
					switch err := ask(t.Context()); {
					case errors.Is(err, dek.ErrBusy) && strings.Contains(err.Error(), "https://globex.vault.localhost"):
						busy.Add(1)
					case err == nil || kek.ReasonOf(err) != kek.Unreachable:
						t.Errorf("%s: %v, want busy or unreachable", name, err)
					}
				})
				synctest.Wait()
				peak = max(peak, waiting.Load())
				start := time.Now()
				if r.seal(t); r.open(t.Context(), prefix, info.ID) != nil || time.Since(start) != 0 {
					t.Fatalf("%s: another tenant was held up", name)
				}
				<-time.After(pause)
			}
			group.Wait()
			if peak <= 32 || peak > most || busy.Load() == 0 {
				t.Errorf("%s: up to %d calls waited, want 33 to %d; %d found it busy", name, peak, most, busy.Load())
			}
			if n := r.Waiting(); n != 0 {
				t.Errorf("%s: %d tenants are still counted", name, n)
			}
		})
	}
}

// Who does not wait gives up alone, and whose own deadline is sooner is not
// told that the vault is busy.
func TestImpatientCallers(t *testing.T) {
	for _, name := range []string{"seal", "open"} {
		inBubble(t, func(c *dek.Config) { c.PatientWaiters = 1 }, func(t *testing.T, r *rig) {
			ask := hanging(t, r)[name]
			gate := make(chan struct{})
			r.vault.SetHook(func(context.Context, kektest.Call) error { <-gate; return nil })
			before := r.vault.Counts()
			var patient error
			var group sync.WaitGroup
			group.Go(func() { patient = ask(t.Context()) })
			synctest.Wait()
			for limit, want := range map[time.Duration]error{
				499 * time.Millisecond: context.DeadlineExceeded, 501 * time.Millisecond: dek.ErrBusy, time.Hour: dek.ErrBusy,
			} {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				err := ask(ctx)
				cancel()
				if took := time.Since(start); !errors.Is(err, want) || took != min(limit, 500*time.Millisecond) {
					t.Errorf("%s: after %s of %s: %v, want %v", name, took, limit, err, want)
				}
			}
			close(gate)
			group.Wait()
			if after := r.vault.Counts(); patient != nil || after.Unwrap != before.Unwrap+1 {
				t.Errorf("%s: patient caller: %v; %d unwraps, want 1", name, patient, after.Unwrap-before.Unwrap)
			}
		})
	}
}
