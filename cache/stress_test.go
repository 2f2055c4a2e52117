package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/cache"
)

// TestStress runs every operation against every other. The cache is so small
// that values are evicted while they are delivered, and waiters give up at any
// moment. The ledger finds a value used after its release, released twice, or
// never.
func TestStress(t *testing.T) {
	for _, cfg := range []config{
		{Entries: 1}, {Entries: 6, Shards: 2}, {Entries: 8, Shards: 1, GroupShare: 1},
	} {
		cfg.Group = modelGroup
		cfg.NegativeTTL = func(error) time.Duration { return time.Duration(rand.IntN(2)) * time.Microsecond }
		cfg.NegativeEntries = 2
		c, l := newCache(t, cfg)
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for range 1500 {
					stressStep(t, c, l, worker)
				}
			})
		}
		wg.Wait()
		if n := c.Len(); n > cfg.Entries {
			t.Errorf("%d entries of %d", n, cfg.Entries)
		}
		c.Close()
		l.settle()
	}
}

func stressStep(t *testing.T, c *things, l *ledger, worker int) {
	k := rand.IntN(modelKeys)
	switch rand.IntN(20) {
	case 0:
		r := c.Put(k, l.make(k))
		l.use(r)
		r.Release()
	case 1:
		c.Drop(k)
	case 2:
		c.DropIf(func(k int, th *thing) bool {
			if th.released.Load() != 0 {
				t.Error("DropIf sees a released value")
			}
			return k%5 == worker%5
		})
	case 3, 4, 5, 6:
		if r, ok := c.Get(k); ok {
			if l.use(r).id != k {
				t.Error("wrong value")
			}
			if rand.IntN(8) == 0 {
				r.Value().stale.Store(true)
			}
			r.Release()
		}
	default:
		stressLoad(t, c, l, k)
	}
}

func stressLoad(t *testing.T, c *things, l *ledger, k int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if rand.IntN(2) == 0 {
		go cancel()
	}
	r, err := c.Load(ctx, k, fmt.Sprint(rand.IntN(2)), nil, func(context.Context) (*thing, error) {
		if rand.IntN(5) == 0 {
			return nil, errLoad
		}
		return l.make(k), nil
	})
	switch {
	case err == nil:
		if l.use(r).id != k {
			t.Error("wrong value")
		}
		r.Release()
	case !errors.Is(err, errLoad) && !errors.Is(err, context.Canceled):
		t.Error(err)
	}
}

// TestCloseRaces closes a cache in full use.
func TestCloseRaces(t *testing.T) {
	for range 100 {
		c, l := newCache(t, config{Entries: 2})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					k := rand.IntN(4)
					load := func(context.Context) (*thing, error) { return l.make(k), nil }
					r, err := c.Load(context.Background(), k, "a", nil, load)
					if errors.Is(err, cache.ErrClosed) {
						return
					}
					l.use(r)
					r.Release()
				}
			})
		}
		wg.Go(c.Close)
		wg.Wait()
		l.settle()
	}
}

// TestNoResurrectionRaces: make the change, then DropIf; nothing that was
// loaded before the change is in the cache then, or comes later.
func TestNoResurrectionRaces(t *testing.T) {
	c, l := newCache(t, config{Entries: 16, Shards: 2})
	var epoch atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := c.Load(context.Background(), rand.IntN(4), fmt.Sprint(rand.IntN(2)), nil,
					func(context.Context) (*thing, error) { return l.make(int(epoch.Load())), nil })
				if err != nil {
					t.Error(err)
				}
				r.Release()
			}
		})
	}
	for e := int64(1); e <= 1000; e++ {
		epoch.Store(e)
		c.DropIf(func(_ int, th *thing) bool { return int64(th.id) < e })
		for k := range 4 {
			r, ok := c.Get(k)
			if ok && int64(r.Value().id) < e {
				t.Errorf("epoch %d: a value of epoch %d is stored", e, r.Value().id)
			}
			r.Release()
		}
	}
	close(stop)
	wg.Wait()
	c.Close()
	l.settle()
}
