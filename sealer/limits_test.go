package sealer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// retryOf returns the reason of an error, and when a retry may help.
func retryOf(err error) (sealer.Reason, time.Duration) {
	if e, ok := errors.AsType[*sealer.Error](err); ok {
		return e.Reason, e.RetryAfter
	}
	return sealer.OK, 0
}

// Operations for a tenant are limited, each tenant by itself, whoever calls; a
// limit of the tenant's own wins.
func TestTenantLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *sealer.Config) { c.Limits.Tenant = limit.Limit{Rate: 1, Burst: 2} })
		r.entries["globex"].Limits = tenant.Limits{Rate: 1, Burst: 5}
		for name, allowed := range map[string]int{"acme": 2, "hooli": 2, "globex": 5} {
			for i := range allowed {
				if _, err := r.Seal(t.Context(), request(name, nil)); err != nil {
					t.Fatalf("%s: Seal %d of %d: %v", name, i+1, allowed, err)
				}
			}
			_, err := r.Seal(t.Context(), request(name, nil))
			if got, retry := retryOf(err); got != sealer.RateLimited || retry <= 0 || retry > time.Second {
				t.Errorf("%s: Seal over the rate: %v, retry after %s", name, err, retry)
			}
		}
		<-time.After(time.Second)
		if _, err := r.Seal(t.Context(), request("acme", nil)); err != nil {
			t.Errorf("Seal a second later: %v", err)
		}
	})
}

// Who may not act for a tenant cannot use up its limits, and neither can calls
// that are refused before.
func TestDeniedCallsCostATenantNothing(t *testing.T) {
	r := newRig(t, func(c *sealer.Config) { c.Limits.Tenant = limit.Limit{Rate: 0.001, Burst: 1} })
	stranger := request("acme", nil)
	stranger.Caller = policy.PeerCaller(10002, 10002, 1)
	for range 10 {
		if _, err := r.Seal(t.Context(), stranger); reasonOf(err) != sealer.PermissionDenied {
			t.Fatalf("Seal by a stranger: %v", err)
		}
		if _, err := r.Seal(t.Context(), request("sleepy", nil)); reasonOf(err) != sealer.TenantSuspended {
			t.Fatalf("Seal for a suspended tenant: %v", err)
		}
		if _, err := r.Seal(t.Context(), request("abroad", nil)); reasonOf(err) != sealer.Residency {
			t.Fatalf("Seal for a tenant elsewhere: %v", err)
		}
	}
	if _, err := r.Seal(t.Context(), request("acme", nil)); err != nil {
		t.Errorf("Seal for acme: %v", err)
	}
}

// Operations under way are counted, and forgotten when they end, however.
func TestTenantCalls(t *testing.T) {
	r := newRig(t, func(c *sealer.Config) { c.Limits.Tenant = limit.Limit{Calls: 1} })
	sealed := r.mustSeal(t, request("acme", nil)).Data
	for range 3 {
		if _, err := r.Unseal(t.Context(), request("acme", sealed[:len(sealed)-1])); reasonOf(err) == sealer.OK {
			t.Fatal("unsealed")
		}
		r.mustSeal(t, request("acme", nil))
	}
	pass, _, ok := r.limits.Tenants.Enter("acme", limit.Limit{Calls: 1})
	if !ok {
		t.Fatal("an operation is still counted")
	}
	_, err := r.Seal(t.Context(), request("acme", nil))
	if got, retry := retryOf(err); got != sealer.Overloaded || retry <= 0 {
		t.Errorf("Seal beside another: %v, retry after %s, want OVERLOADED", err, retry)
	}
	pass.Leave()
	r.mustSeal(t, request("acme", nil))
}

// A caller that may name any tenant, or sends forged blocks, costs a vault no
// more than its budget; warm keys are not counted, and others have their own.
func TestMissBudget(t *testing.T) {
	r := newRig(t, func(c *sealer.Config) { c.Limits.Miss = limit.Limit{Rate: 0.001, Burst: 2} })
	for i := range 10 {
		name := fmt.Sprintf("t%d", i)
		id, err := tenant.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		r.entries[name] = &tenant.Entry{ID: id, KEKs: []kek.Key{testKEK("shared")}}
	}
	sealed := r.mustSeal(t, request("acme", []byte("data"))).Data // another vault
	for i, want := range []sealer.Reason{sealer.OK, sealer.OK, sealer.RateLimited, sealer.RateLimited} {
		_, err := r.Seal(t.Context(), request(fmt.Sprintf("t%d", i), nil))
		if got, retry := retryOf(err); got != want || (retry > 0) != (want != sealer.OK) {
			t.Errorf("Seal for tenant %d: %v, retry after %s, want %s", i, err, retry, want)
		}
	}
	before := r.vault.Counts()
	for range 10 {
		if _, err := r.Unseal(t.Context(), request("acme", sealed)); err != nil {
			t.Fatalf("Unseal with a warm key: %v", err)
		}
		if _, err := r.Seal(t.Context(), request("t9", nil)); reasonOf(err) != sealer.RateLimited {
			t.Fatalf("Seal over the budget: %v", err)
		}
	}
	if after := r.vault.Counts(); after != before {
		t.Errorf("the vault was asked: %+v, then %+v", before, after)
	}
	other := request("t9", nil)
	other.CallerName = "other"
	if _, err := r.Seal(t.Context(), other); err != nil {
		t.Errorf("Seal by another caller: %v", err)
	}
}

// Who is over the miss budget does not come back for every single token.
func TestMissBudgetRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *sealer.Config) { c.Limits.Miss = limit.Limit{Rate: 100, Burst: 1} })
		r.mustSeal(t, request("hooli", nil))
		_, err := r.Seal(t.Context(), request("initech", nil)) // the same vault
		if got, retry := retryOf(err); got != sealer.RateLimited || retry != time.Second {
			t.Errorf("Seal: %v, retry after %s, want 1s", err, retry)
		}
	})
}

// One caller's cold start: 2,000 tenants at once, as configured by default in
// one vault, and with vaults of their own whatever the budget for each.
func TestColdStart(t *testing.T) {
	const tenants = 2000
	miss := config.Default().Limits.Misses
	for name, c := range map[string]struct {
		miss  limit.Limit
		vault func(i int) kek.Key
	}{
		"own vaults": {limit.Limit{Rate: 0.001, Burst: 1}, func(i int) kek.Key { return testKEK(fmt.Sprintf("t%d", i)) }},
		"one vault":  {limit.Limit{Rate: miss.Rate, Burst: miss.Burst}, func(int) kek.Key { return testKEK("shared") }},
	} {
		vault := kektest.NewMemory()
		slab, err := secret.New(secret.Config{Slots: 4 * tenants})
		if err != nil {
			t.Fatal(err)
		}
		deks, err := dek.New(dek.Config{KEKs: vault, Slab: slab, Logger: slog.New(slog.DiscardHandler), CacheEntries: 2 * tenants})
		if err != nil {
			t.Fatal(err)
		}
		r := rigOver(t, vault, func(cfg *sealer.Config) {
			cfg.DEKs, cfg.Limits.Miss, cfg.Observe = deks, c.miss, nil
		})
		for i := range tenants {
			key := c.vault(i)
			if name == "own vaults" || i == 0 {
				vault.Create(key)
			}
			id, err := tenant.Parse(fmt.Sprintf("t%d", i))
			if err != nil {
				t.Fatal(err)
			}
			r.entries[id.String()] = &tenant.Entry{ID: id, KEKs: []kek.Key{key}}
		}
		var group sync.WaitGroup
		for i := range tenants {
			group.Go(func() {
				if _, err := r.Seal(t.Context(), request(fmt.Sprintf("t%d", i), nil)); err != nil {
					t.Errorf("%s: tenant %d: %v", name, i, err)
				}
			})
		}
		group.Wait()
		deks.Close()
		if err := slab.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Those who wait for a vault that hangs are few; others come again.
func TestHangingVault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *sealer.Config) { c.Observe = nil })
		r.vault.SetHook(func(ctx context.Context, _ kektest.Call) error { <-ctx.Done(); return ctx.Err() })
		reasons := make(map[sealer.Reason]int)
		var mu sync.Mutex
		var group sync.WaitGroup
		for range 40 {
			group.Go(func() {
				_, err := r.Seal(t.Context(), request("acme", nil))
				got, retry := retryOf(err)
				mu.Lock()
				defer mu.Unlock()
				reasons[got]++
				if got == sealer.Overloaded && (retry <= 0 || !strings.Contains(err.Error(), testKEK("acme").Vault)) {
					t.Errorf("Seal: %v, retry after %s", err, retry)
				}
			})
		}
		group.Wait()
		want := map[sealer.Reason]int{sealer.KeyVaultUnreachable: 32, sealer.Overloaded: 8}
		if diff := cmp.Diff(want, reasons); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
	})
}

// brokenContext panics when it is first looked at, which is for a cold DEK.
type brokenContext struct{ context.Context }

func (brokenContext) Err() error { panic("broken") }

// An operation that panics is not under way any more.
func TestPanicLeavesNoSlot(t *testing.T) {
	r := newRig(t, func(c *sealer.Config) { c.Limits.Tenant = limit.Limit{Calls: 1} })
	sealed := r.mustSeal(t, request("hooli", nil)).Data
	ctx := brokenContext{t.Context()}
	for name, call := range map[string]func(context.Context) (sealer.Result, error){
		"Seal":   func(ctx context.Context) (sealer.Result, error) { return r.Seal(ctx, request("hooli", nil)) },
		"Unseal": func(ctx context.Context) (sealer.Result, error) { return r.Unseal(ctx, request("hooli", sealed)) },
	} {
		r.deks.Evict(func(tenant.ID) bool { return true })
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s did not panic", name)
				}
			}()
			_, err := call(ctx)
			t.Errorf("%s: %v", name, err)
		}()
		if _, err := call(t.Context()); err != nil {
			t.Errorf("%s after a panic: %v", name, err)
		}
	}
}

// A break-glass grant ends, for operations that begin then.
func TestGrantEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		uid := uint32(10001)
		var err error
		r.policy, err = policy.New(policy.Config{
			Callers: []policy.CallerRule{{Name: "me", UID: &uid}},
			Rules: []policy.Rule{{
				Callers: []string{"me"}, Tenants: []string{"acme"}, Verbs: []string{"seal"},
				NotAfter: time.Now().Add(time.Minute), Ticket: "INC-1",
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		r.mustSeal(t, request("acme", nil))
		<-time.After(time.Minute)
		if _, err := r.Seal(t.Context(), request("acme", nil)); reasonOf(err) != sealer.PermissionDenied {
			t.Errorf("Seal after the grant ended: %v", err)
		}
	})
}
