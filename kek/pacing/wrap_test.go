package pacing_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

func memoryKey(alg kek.Alg) kek.Key {
	return kek.Key{Ref: "acme", Vault: kv, Name: "kek", Alg: alg}
}

// A paced Wrapper is a Wrapper.
func TestContract(t *testing.T) {
	for _, alg := range []kek.Alg{kek.RSAOAEP256, kek.A256KW} {
		t.Run(alg.String(), func(t *testing.T) {
			p := newPacer(t, pacing.Config{Quota: 1e6, FleetSize: 1})
			kektest.Run(t, func(*testing.T) (kek.Wrapper, kek.Key, kektest.Owner) {
				m := kektest.NewMemory()
				k := memoryKey(alg)
				m.Create(k)
				return pacing.Wrap(m, p), k, kektest.Owner{
					Rotate:  func(testing.TB) kek.Version { return m.Rotate(k) },
					Disable: func(_ testing.TB, v kek.Version) { m.SetEnabled(k, v, false) },
					Enable:  func(_ testing.TB, v kek.Version) { m.SetEnabled(k, v, true) },
				}
			})
		})
	}
}

func TestWhatAWrapperIsCharged(t *testing.T) {
	for alg, calls := range map[kek.Alg]uint64{kek.RSAOAEP256: 2, kek.A256KW: 3} {
		p, m, k := newPacer(t, pacing.Config{}), kektest.NewMemory(), memoryKey(alg)
		v := m.Create(k)
		w, dek := pacing.Wrap(m, p), [kek.Size]byte{1, 2, 3}
		ctx := kek.WithCall(t.Context(), kek.MintAhead, "acme")
		newest, err := w.Newest(ctx, k)
		if err != nil || newest != v {
			t.Fatalf("Newest = %s, %v", newest, err)
		}
		wrapped, err := w.Wrap(ctx, k, v, &dek)
		if err != nil {
			t.Fatal(err)
		}
		var got [kek.Size]byte
		if err := w.Unwrap(ctx, k, v, wrapped, &got); err != nil || got != dek {
			t.Fatalf("Unwrap: %v", err)
		}
		want := pacing.Counts{}
		want.Granted[kek.MintAhead] = calls
		if got := p.Stats().Counts; got != want {
			t.Errorf("%s: %+v, want %+v", alg, got, want)
		}
	}
}

// A call that is not made names what it was for, and gives nothing.
func TestRefusedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m, k := newSite(t, pacing.Config{}), kektest.NewMemory(), memoryKey(kek.A256KW)
		v := m.Create(k)
		m.SetHook(func(context.Context, kektest.Call) error { t.Error("the vault was asked"); return nil })
		w, dek := pacing.Wrap(m, s.p), [kek.Size]byte{1}
		s.drain()
		ctx, stop := s.ctx(kek.SealMiss, "acme", 700*time.Millisecond)
		defer stop()
		check := func(err error, op string, v kek.Version) {
			t.Helper()
			e, ok := errors.AsType[*kek.Error](err)
			if !ok || !errors.Is(err, pacing.ErrPaced) {
				t.Fatalf("%v is no refusal", err)
			}
			e.Err = nil
			if want := (kek.Error{Reason: kek.Throttled, Op: op, Ref: "acme", Vault: kv, Version: v, RetryAfter: 500 * time.Millisecond}); *e != want {
				t.Errorf("got %+v, want %+v", *e, want)
			}
		}
		newest, err := w.Newest(ctx, k)
		check(err, "newest", kek.Version{})
		wrapped, err := w.Wrap(ctx, k, v, &dek)
		check(err, "wrap", v)
		check(w.Unwrap(ctx, k, v, make([]byte, 40), &dek), "unwrap", v)
		if !newest.IsZero() || wrapped != nil || dek != [kek.Size]byte{} {
			t.Errorf("with an error: version %s, wrapped %x, DEK %x", newest, wrapped, dek)
		}
	})
}

// A local wrap needs nobody, and tells what it hears if it asks after all.
func TestLocalWrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m, k := newSite(t, pacing.Config{}), kektest.NewMemory(), memoryKey(kek.RSAOAEP256)
		v := m.Create(k)
		w, dek := pacing.Wrap(m, s.p), [kek.Size]byte{1}
		s.drain()
		s.p.Answered(kv, true, 9*time.Second)
		if _, err := w.Wrap(t.Context(), k, v, &dek); err != nil || time.Since(s.begin) > 0 {
			t.Errorf("while the vault is stopped: %v after %s", err, time.Since(s.begin))
		}
		m.SetHook(func(context.Context, kektest.Call) error {
			return &kek.Error{Reason: kek.Throttled, Status: 429, RetryAfter: 20 * time.Second}
		})
		w.Wrap(t.Context(), k, v, &dek)
		if paused := s.p.Stats().Vaults[0].Paused; paused != 20*time.Second {
			t.Errorf("paused for %s", paused)
		}
	})
}

func TestWhatAnswersTell(t *testing.T) {
	type effect struct {
		rate   float64 // after 10 s in which calls had to wait
		paused time.Duration
	}
	for name, x := range map[string]struct {
		err  error
		want effect
	}{
		"yes":                 {nil, effect{rate: 2.5}},
		"no":                  {&kek.Error{Reason: kek.Disabled, Status: 403}, effect{rate: 2.5}},
		"rejected":            {&kek.Error{Reason: kek.Rejected, Status: 400}, effect{rate: 2.5}},
		"rejected, not asked": {&kek.Error{Reason: kek.Rejected}, effect{rate: 2}},
		"no answer":           {&kek.Error{Reason: kek.Unreachable}, effect{rate: 2}},
		"503":                 {&kek.Error{Reason: kek.Unreachable, Status: 503}, effect{rate: 2}},
		"503, Retry-After":    {&kek.Error{Reason: kek.Unreachable, Status: 503, RetryAfter: 3 * time.Second}, effect{rate: 2, paused: 3 * time.Second}},
		"429":                 {&kek.Error{Reason: kek.Throttled, Status: 429}, effect{rate: 1}},
		"429, Retry-After":    {&kek.Error{Reason: kek.Throttled, Status: 429, RetryAfter: 3 * time.Second}, effect{rate: 1, paused: 3 * time.Second}},
		"a stranger's":        {errors.New("cause"), effect{rate: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, m, k := newSite(t, pacing.Config{}), kektest.NewMemory(), memoryKey(kek.A256KW)
				v := m.Create(k)
				m.SetHook(func(context.Context, kektest.Call) error { return x.err })
				_, err := pacing.Wrap(m, s.p).Wrap(t.Context(), k, v, new([kek.Size]byte))
				if (err == nil) != (x.err == nil) || kek.ReasonOf(err) != kek.ReasonOf(x.err) {
					t.Errorf("answer %v came as %v", x.err, err)
				}
				got := effect{paused: s.p.Stats().Vaults[0].Paused}
				if x.want.paused == 0 {
					for range 30 {
						s.call("", kek.Job, "", 9*time.Second)
					}
				}
				s.until(10 * time.Second)
				if got.rate = s.rate(); got != x.want {
					t.Errorf("effect %+v, want %+v", got, x.want)
				}
				s.calls.Wait()
			})
		})
	}
}
