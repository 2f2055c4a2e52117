package cache_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
)

// What is stale when it comes goes to those who wait, and is not kept.
func TestStaleOnArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 8})
		open := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				r, err := c.Load(t.Context(), 1, "a", nil, func(context.Context) (*thing, error) {
					<-open
					th := l.make(7)
					th.stale.Store(true)
					return th, nil
				})
				if err != nil || r.Value().id != 7 {
					t.Errorf("Load: %v", err)
				}
				r.Release()
			})
		}
		synctest.Wait()
		close(open)
		wg.Wait()
		stale := l.make(8)
		stale.stale.Store(true)
		c.Put(2, stale).Release()
		if c.Len() != 0 {
			t.Errorf("%d stale values are kept", c.Len())
		}
		l.settle()
		c.Close()
	})
}

// DropStale takes what is stale, and lets loads under way be stored and joined.
func TestDropStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newCache(t, config{Entries: 64, Shards: 4})
		for k := range 20 {
			c.Put(k, l.make(k)).Release()
		}
		g := newGated(l, nil)
		var wg sync.WaitGroup
		call := func() {
			wg.Go(func() {
				r, err := c.Load(t.Context(), 100, "a", nil, g.load)
				if err != nil {
					t.Error(err)
				}
				r.Release()
			})
		}
		call()
		synctest.Wait()
		for _, th := range l.all[:20] {
			th.stale.Store(th.id%2 == 0)
		}
		if n := c.DropStale(); n != 10 || c.Len() != 10 {
			t.Errorf("dropped %d, left %d; want 10, 10", n, c.Len())
		}
		call() // joins
		synctest.Wait()
		close(g.open)
		wg.Wait()
		if n := g.count.Load(); n != 1 || !has(c, 100) {
			t.Errorf("%d loads, stored = %t; want one, stored", n, has(c, 100))
		}
		c.Close()
		l.settle()
	})
}

func TestEach(t *testing.T) {
	c, l := newCache(t, config{Entries: 64, Shards: 4})
	for k := range 20 {
		c.Put(k, l.make(k)).Release()
	}
	seen := make(map[int]bool)
	c.Each(func(k int, th *thing) {
		if k != th.id || seen[k] {
			t.Errorf("key %d comes with value %d, seen before: %t", k, th.id, seen[k])
		}
		seen[k] = true
		c.Get(-1) // using the cache must not deadlock
	})
	if len(seen) != 20 || c.Len() != 20 {
		t.Errorf("%d values seen, %d left; want 20, 20", len(seen), c.Len())
	}
	c.Close()
	l.settle()
}
