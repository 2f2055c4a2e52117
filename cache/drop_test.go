package cache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/cache"
)

// TestNoResurrection drops while a load is under way, in every way.
func TestNoResurrection(t *testing.T) {
	for name, drop := range map[string]func(c *things, l *ledger){
		"Drop":   func(c *things, _ *ledger) { c.Drop(1) },
		"DropIf": func(c *things, _ *ledger) { c.DropIf(func(int, *thing) bool { return false }) },
		"DropKeys": func(c *things, _ *ledger) {
			if n := c.DropKeys(func(k int) bool { return k == 1 }); n != 0 {
				t.Errorf("DropKeys found %d values", n)
			}
		},
		"Put": func(c *things, l *ledger) { c.Put(1, l.make(50)).Release(); c.Drop(1) },
	} {
		synctest.Test(t, func(t *testing.T) {
			c, l := newCache(t, config{Entries: 8, Shards: 1, NegativeTTL: func(error) time.Duration { return time.Hour }})
			before, after, other := newGated(l, nil), newGated(l, nil), newGated(l, nil)
			failing := newGated(l, errLoad)
			var wg sync.WaitGroup
			call := func(k int, flight string, g *gated) {
				wg.Go(func() {
					r, err := c.Load(t.Context(), k, flight, nil, g.load)
					if !errors.Is(err, g.err) {
						t.Errorf("%s: %v", name, err)
					}
					if err == nil {
						l.use(r)
					}
					r.Release()
				})
			}
			call(1, "a", before)
			call(1, "a", before)
			call(1, "f", failing)
			call(2, "o", other)
			synctest.Wait()
			drop(c, l)
			call(1, "a", after) // must not get what was loaded before the drop
			synctest.Wait()
			close(before.open)
			close(failing.open)
			close(other.open)
			synctest.Wait()
			if has(c, 1) {
				t.Errorf("%s: a load that began before it was stored after it", name)
			}
			if has(c, 2) != (name != "DropIf") {
				t.Errorf("%s: another key's load: stored = %t", name, has(c, 2))
			}
			call(1, "a", after) // joins the new flight, though an old one of that name has ended
			call(1, "f", failing)
			synctest.Wait()
			if failing.count.Load() != 1 {
				t.Errorf("%s: the error of a load under way was not remembered", name)
			}
			close(after.open)
			wg.Wait()
			if !has(c, 1) || before.count.Load() != 1 || after.count.Load() != 1 {
				t.Errorf("%s: stored = %t after %d and %d loads", name, has(c, 1), before.count.Load(), after.count.Load())
			}
			c.Close()
			l.settle()
		})
	}
}

// TestDropKeysLeavesOthers drops some keys while others are stored and loaded.
func TestDropKeysLeavesOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 64, Shards: 4, GroupShare: 1})
		for k := range 8 {
			c.Put(k, l.make(k)).Release()
		}
		var wg sync.WaitGroup
		loads := make(map[int]*gated)
		ask := func() {
			for k := 8; k < 16; k++ {
				wg.Go(func() {
					r, err := c.Load(t.Context(), k, "a", nil, loads[k].load)
					if err != nil {
						t.Errorf("key %d: %v", k, err)
					}
					r.Release()
				})
			}
			synctest.Wait()
		}
		for k := 8; k < 16; k++ {
			loads[k] = newGated(l, nil)
		}
		ask()
		if n := c.DropKeys(func(k int) bool { return k%2 == 0 || has(c, -1) }); n != 4 {
			t.Errorf("%d values dropped, want 4", n)
		}
		ask()
		for k, g := range loads {
			if got, want := g.count.Load(), int64(2-k%2); got != want {
				t.Errorf("key %d was loaded %d times, want %d", k, got, want)
			}
			close(g.open)
		}
		wg.Wait()
		for k := range 8 {
			if has(c, k) != (k%2 == 1) {
				t.Errorf("key %d: stored = %t", k, has(c, k))
			}
		}
		c.Close()
		l.settle()
	})
}

func TestPutBeatsLoadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8})
		g := newGated(l, nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			r, err := c.Load(t.Context(), 1, "a", nil, g.load)
			if err != nil || l.use(r).id != 1 {
				t.Errorf("waiter: %v", err)
			}
			r.Release()
		})
		synctest.Wait()
		c.Put(1, l.make(50)).Release()
		close(g.open)
		wg.Wait()
		r, ok := c.Get(1)
		if !ok || r.Value().id != 50 {
			t.Error("a load that began before Put took its place")
		}
		r.Release()
		c.Close()
		l.settle()
	})
}

func TestCloseDuringLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8, LoadTimeout: time.Hour})
		g := newGated(l, nil)
		var wg sync.WaitGroup
		wg.Go(func() { // a load that heeds its context
			_, err := c.Load(t.Context(), 1, "a", nil, func(ctx context.Context) (*thing, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			if !errors.Is(err, cache.ErrClosed) || !errors.Is(err, context.Canceled) {
				t.Errorf("load cut short: %v", err)
			}
		})
		wg.Go(func() { // one that does not
			r, err := c.Load(t.Context(), 2, "b", nil, g.load)
			if err != nil {
				t.Errorf("load that ends after Close: %v", err)
			}
			l.use(r)
			r.Release()
		})
		synctest.Wait()
		var closed atomic.Int32
		for range 2 {
			wg.Go(func() { c.Close(); closed.Add(1) })
		}
		synctest.Wait()
		if closed.Load() != 0 {
			t.Error("Close did not wait for a load")
		}
		if _, err := c.Load(t.Context(), 2, "b", nil, g.load); !errors.Is(err, cache.ErrClosed) {
			t.Errorf("Load after Close: %v", err)
		}
		close(g.open)
		wg.Wait()
		if has(c, 2) || c.Len() != 0 {
			t.Error("a load was stored after Close")
		}
		l.settle()
	})
}
