package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/cache"
)

var errLoad = errors.New("refused by the vault")

// gated is a load that waits for open, and counts itself.
type gated struct {
	l     *ledger
	open  chan struct{}
	count atomic.Int64
	err   error
}

func newGated(l *ledger, err error) *gated { return &gated{l: l, open: make(chan struct{}), err: err} }

func (g *gated) load(context.Context) (*thing, error) {
	n := g.count.Add(1)
	<-g.open
	if g.err != nil {
		return nil, g.err
	}
	return g.l.make(int(n)), nil
}

func TestOneLoadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8})
		g := newGated(l, nil)
		var admitted atomic.Int64
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				r, err := c.Load(t.Context(), 1, "a", func() error { admitted.Add(1); return nil }, g.load)
				if err != nil {
					t.Error(err)
					return
				}
				l.use(r)
				r.Release()
			})
		}
		synctest.Wait()
		if n := c.Stats().InFlight; n != 1 {
			t.Errorf("%d loads under way, want 1", n)
		}
		close(g.open)
		wg.Wait()
		if g.count.Load() != 1 || admitted.Load() != 1 {
			t.Errorf("%d loads, %d admissions, want 1 and 1", g.count.Load(), admitted.Load())
		}
		want := cache.Stats{Misses: 200, Loads: 1, Entries: 1}
		if diff := cmp.Diff(want, c.Stats()); diff != "" {
			t.Error(diff)
		}
		c.Close()
		l.settle()
	})
}

// TestOneLoadForAllUngated has no gate: callers come before, while and after
// the load ends.
func TestOneLoadForAllUngated(t *testing.T) {
	c, l := newCache(t, config{Entries: 4096})
	for k := range 300 {
		var count atomic.Int64
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				r, err := c.Load(t.Context(), k, "a", nil, func(context.Context) (*thing, error) {
					count.Add(1)
					return l.make(k), nil
				})
				if err != nil || l.use(r).id != k {
					t.Error(err)
				}
				r.Release()
			})
		}
		wg.Wait()
		if count.Load() != 1 {
			t.Fatalf("key %d was loaded %d times", k, count.Load())
		}
	}
	c.Close()
	l.settle()
}

func TestForgerAffectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8, NegativeTTL: func(error) time.Duration { return time.Hour }})
		honest, forged := newGated(l, nil), newGated(l, errLoad)
		var wg sync.WaitGroup
		call := func(flight string, g *gated) {
			wg.Go(func() {
				r, err := c.Load(t.Context(), 1, flight, nil, g.load)
				if !errors.Is(err, g.err) {
					t.Errorf("flight %s: %v, want %v", flight, err, g.err)
				}
				r.Release()
			})
		}
		for i := range 200 {
			call("honest", honest)
			call(fmt.Sprintf("forged %d", i%20), forged)
		}
		synctest.Wait()
		close(forged.open) // every forged flight fails first
		synctest.Wait()
		call("honest", honest)
		call("forged 0", forged)
		synctest.Wait()
		close(honest.open)
		wg.Wait()
		if honest.count.Load() != 1 || forged.count.Load() != 20 {
			t.Errorf("%d honest and %d forged loads, want 1 and 20", honest.count.Load(), forged.count.Load())
		}
		want := cache.Stats{Misses: 402, Loads: 21, LoadErrors: 20, NegativeHits: 1, Entries: 1}
		if diff := cmp.Diff(want, c.Stats()); diff != "" {
			t.Error(diff)
		}
		c.Close()
		l.settle()
	})
}

func TestSameFlightOfOtherKeysIsAnotherLoad(t *testing.T) {
	c, l := newCache(t, config{Entries: 8, Shards: 1})
	for k := range 2 {
		r, err := c.Load(t.Context(), k, "a", nil, func(context.Context) (*thing, error) { return l.make(k), nil })
		if err != nil || r.Value().id != k {
			t.Errorf("key %d: %v", k, err)
		}
		r.Release()
	}
	c.Close()
	l.settle()
}

func TestSecondValueOfAKeyIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8})
		first, second := newGated(l, nil), newGated(l, nil)
		second.count.Store(100)
		var wg sync.WaitGroup
		var ids [2]int
		for i, g := range []*gated{first, second} {
			wg.Go(func() {
				r, err := c.Load(t.Context(), 1, fmt.Sprint(i), nil, g.load)
				if err != nil {
					t.Error(err)
				}
				ids[i] = l.use(r).id
				r.Release()
			})
		}
		synctest.Wait()
		close(first.open)
		synctest.Wait()
		close(second.open)
		wg.Wait()
		if ids != [2]int{1, 1} {
			t.Errorf("waiters got values %v, want the older one", ids)
		}
		if n := l.all[1].released.Load(); n != 1 {
			t.Errorf("the newer value was released %d times while the older stays", n)
		}
		c.Close()
		l.settle()
	})
}

func TestLoadedReplacesStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8})
		first, second := newGated(l, nil), newGated(l, nil)
		second.count.Store(100)
		go c.Load(t.Context(), 1, "a", nil, first.load)
		var got int
		go func() {
			r, _ := c.Load(t.Context(), 1, "b", nil, second.load)
			got = r.Value().id
			r.Release()
		}()
		synctest.Wait()
		close(first.open)
		synctest.Wait()
		l.all[0].stale.Store(true)
		close(second.open)
		synctest.Wait()
		if got != 101 || !has(c, 1) {
			t.Errorf("waiter got value %d, stored = %t; want the new value, stored", got, has(c, 1))
		}
		c.Close()
	})
}

func TestAdmit(t *testing.T) {
	c, l := newCache(t, config{Entries: 8, NegativeTTL: func(error) time.Duration { return time.Hour }})
	errBudget := errors.New("no budget")
	load := func(context.Context) (*thing, error) { return l.make(1), nil }
	if _, err := c.Load(t.Context(), 1, "a", func() error { return errBudget }, load); err != errBudget {
		t.Errorf("refused Load: %v", err)
	}
	if got, want := c.Stats(), (cache.Stats{Misses: 1}); got != want {
		t.Errorf("a refused miss started or left something: %+v", got)
	}
	r, err := c.Load(t.Context(), 1, "a", func() error { return nil }, load)
	if err != nil {
		t.Fatalf("after another's refusal: %v", err)
	}
	r.Release()
	r, err = c.Load(t.Context(), 1, "a", func() error { return errBudget }, load)
	if err != nil {
		t.Errorf("a hit asked for admission: %v", err)
	}
	r.Release()
	c.Close()
	l.settle()
}

func TestWaiterGivesUpAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8, LoadTimeout: time.Hour})
		g := newGated(l, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { // starts the load, and leaves it
			if _, err := c.Load(ctx, 1, "a", nil, g.load); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient caller: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			r, err := c.Load(t.Context(), 1, "a", nil, g.load)
			if err != nil {
				t.Errorf("patient caller: %v", err)
			}
			l.use(r)
			r.Release()
		})
		<-time.After(2 * time.Second)
		close(g.open)
		wg.Wait()
		if g.count.Load() != 1 || !has(c, 1) {
			t.Errorf("%d loads, stored = %t", g.count.Load(), has(c, 1))
		}
		c.Close()
		l.settle()
	})
}

func TestAllWaitersGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8})
		g := newGated(l, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := c.Load(ctx, 1, "a", nil, g.load); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		close(g.open)
		synctest.Wait()
		if !has(c, 1) {
			t.Error("a load that nobody waits for any more was not stored")
		}
		if _, err := c.Load(ctx, 2, "b", nil, g.load); !errors.Is(err, context.Canceled) || g.count.Load() != 1 {
			t.Errorf("a caller whose context is over starts a load: %v", err)
		}
		c.Close()
		l.settle()
	})
}

func TestLoadContext(t *testing.T) {
	type key struct{}
	for timeout, want := range map[time.Duration]time.Duration{0: 5 * time.Second, time.Minute: time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newCache(t, config{Entries: 8, LoadTimeout: timeout})
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
			start := time.Now()
			var ended time.Duration
			var value any
			go c.Load(ctx, 1, "a", nil, func(ctx context.Context) (*thing, error) {
				<-ctx.Done()
				ended, value = time.Since(start), ctx.Value(key{})
				return nil, ctx.Err()
			})
			synctest.Wait()
			cancel()
			_, err := c.Load(t.Context(), 1, "a", nil, nil)
			if !errors.Is(err, context.DeadlineExceeded) || ended != want || value != "v" {
				t.Errorf("load ended after %s, want %s, with value %v and error %v", ended, want, value, err)
			}
			c.Close()
		})
	}
}

func TestPanicAndGoexit(t *testing.T) {
	for name, load := range map[string]func(context.Context) (*thing, error){
		"a marker":          func(context.Context) (*thing, error) { panic("a marker") },
		"<nil>":             func(context.Context) (*thing, error) { runtime.Goexit(); return nil, nil },
		"invalid memory":    func(context.Context) (*thing, error) { var th *thing; th.id++; return th, nil },
		"called with nil a": func(context.Context) (*thing, error) { panic(nil) },
	} {
		synctest.Test(t, func(t *testing.T) {
			c, l := newCache(t, config{Entries: 8})
			open := make(chan struct{})
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					_, err := c.Load(t.Context(), 1, "a", nil, func(ctx context.Context) (*thing, error) {
						<-open
						return load(ctx)
					})
					var pe *cache.PanicError
					if !errors.As(err, &pe) || !strings.Contains(err.Error(), name) || len(pe.Stack) == 0 {
						t.Errorf("%q: %v", name, err)
					}
				})
			}
			synctest.Wait()
			close(open)
			wg.Wait()
			r, err := c.Load(t.Context(), 1, "a", nil, func(context.Context) (*thing, error) { return l.make(1), nil })
			if err != nil {
				t.Errorf("%q: the next load: %v", name, err)
			}
			r.Release()
			c.Close()
			l.settle()
		})
	}
}

func TestNegativeTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errOther := errors.New("not to be remembered")
		c, l := newCache(t, config{Entries: 8, NegativeTTL: func(err error) time.Duration {
			if errors.Is(err, errLoad) {
				return 5 * time.Second
			}
			return 0
		}})
		loads := 0
		load := func(err error) error {
			r, err := c.Load(t.Context(), 1, "a", nil, func(context.Context) (*thing, error) {
				loads++
				if err != nil {
					return nil, err
				}
				return l.make(1), nil
			})
			r.Release()
			return err
		}
		for _, step := range []struct {
			after time.Duration
			would error // what a load would return
			want  error
			loads int
		}{
			{0, errOther, errOther, 1},
			{0, errLoad, errLoad, 2},
			{0, nil, errLoad, 2},
			{5*time.Second - 1, nil, errLoad, 2},
			{1, errLoad, errLoad, 3}, // to the nanosecond
			{4 * time.Second, nil, errLoad, 3},
			{time.Second, nil, nil, 4},
			{0, errLoad, nil, 4},
		} {
			<-time.After(step.after)
			if err := load(step.would); err != step.want || loads != step.loads {
				t.Fatalf("%+v: %v after %d loads", step, err, loads)
			}
		}
		if n := c.Stats().NegativeHits; n != 3 {
			t.Errorf("%d negative hits, want 3", n)
		}
		c.Close()
		l.settle()
	})
}

func TestNegativeEntriesBound(t *testing.T) {
	c, _ := newCache(t, config{Entries: 8, Shards: 1, NegativeEntries: 2,
		NegativeTTL: func(error) time.Duration { return time.Hour }})
	fail := func(flight string) bool {
		loaded := false
		_, err := c.Load(t.Context(), 1, flight, nil, func(context.Context) (*thing, error) {
			loaded = true
			return nil, errLoad
		})
		if !errors.Is(err, errLoad) {
			t.Error(err)
		}
		return loaded
	}
	for i, step := range []struct {
		flight string
		loads  bool
	}{{"a", true}, {"b", true}, {"a", false}, {"c", true}, {"a", false}, {"b", true}} {
		if got := fail(step.flight); got != step.loads {
			t.Errorf("step %d: loaded = %t, want %t", i, got, step.loads)
		}
	}
	c.Close()
}
