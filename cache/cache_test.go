package cache_test

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/cache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// thing is a value that knows when it is used after its release.
type thing struct {
	id       int
	released atomic.Int32
	stale    atomic.Bool
}

// ledger makes things, and checks that each is released exactly once.
type ledger struct {
	t interface {
		Helper()
		Errorf(string, ...any)
	}
	mu  sync.Mutex
	all []*thing
}

func (l *ledger) make(id int) *thing {
	l.mu.Lock()
	defer l.mu.Unlock()
	th := &thing{id: id}
	l.all = append(l.all, th)
	return th
}

func (l *ledger) release(th *thing) {
	if n := th.released.Add(1); n != 1 {
		l.t.Errorf("value %d released %d times", th.id, n)
	}
}

// use fails if a value is used after its release.
func (l *ledger) use(r cache.Ref[*thing]) *thing {
	l.t.Helper()
	th := r.Value()
	if th == nil || th.released.Load() != 0 {
		l.t.Errorf("a held value is nil or released: %v", th)
	}
	return th
}

// settle fails unless every value has been released.
func (l *ledger) settle() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, th := range l.all {
		if n := th.released.Load(); n != 1 {
			l.t.Errorf("value %d released %d times at the end, want 1", th.id, n)
		}
	}
}

type (
	config = cache.Config[int, string, *thing]
	things = cache.Cache[int, string, *thing]
)

// newCache returns a cache and its ledger. The test closes the cache.
func newCache(t *testing.T, cfg config) (*things, *ledger) {
	t.Helper()
	l := &ledger{t: t}
	cfg.Release = l.release
	cfg.Stale = func(th *thing) bool { return th.stale.Load() }
	c, err := cache.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, l
}

func has(c *things, k int) bool {
	r, ok := c.Get(k)
	r.Release()
	return ok
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []config{
		{}, {Entries: -1}, {Entries: 1, Shards: -1}, {Entries: 1, GroupShare: -0.1}, {Entries: 1, GroupShare: 1.1},
		{Entries: 1, GroupShare: math.NaN()}, {Entries: 1, LoadTimeout: -1}, {Entries: 1, NegativeEntries: -1},
	} {
		if _, err := cache.New(cfg); err == nil {
			t.Errorf("New(%+v) succeeded", cfg)
		}
	}
}

func TestPutGetDrop(t *testing.T) {
	c, l := newCache(t, config{Entries: 100})
	if _, ok := c.Get(1); ok {
		t.Fatal("hit in an empty cache")
	}
	put := c.Put(1, l.make(10))
	got, ok := c.Get(1)
	if !ok || l.use(got).id != 10 || l.use(put).id != 10 {
		t.Fatal("Get does not return what was put")
	}
	c.Drop(1)
	c.Drop(2)
	if has(c, 1) || c.Len() != 0 {
		t.Error("the value is there after Drop")
	}
	put.Release()
	l.use(got)
	got.Release()
	l.settle()
	c.Close()
}

func TestPutReplaces(t *testing.T) {
	c, l := newCache(t, config{Entries: 4})
	old := c.Put(1, l.make(10))
	c.Put(1, l.make(11)).Release()
	if l.use(old).id != 10 {
		t.Error("the replaced value changed in use")
	}
	r, ok := c.Get(1)
	if !ok || r.Value().id != 11 || c.Len() != 1 {
		t.Error("the new value is not there")
	}
	r.Release()
	old.Release()
	c.Close()
	l.settle()
}

func TestEvictionInUse(t *testing.T) {
	c, l := newCache(t, config{Entries: 2, Shards: 1})
	refs := []cache.Ref[*thing]{c.Put(1, l.make(1)), c.Put(2, l.make(2))}
	if !has(c, 1) { // 2 is now the oldest
		t.Fatal("1 is missing")
	}
	refs = append(refs, c.Put(3, l.make(3)))
	if has(c, 2) || !has(c, 1) || !has(c, 3) {
		t.Error("the least recently used was not the one evicted")
	}
	for _, r := range refs {
		l.use(r)
		r.Release()
	}
	if got := c.Stats(); got.Evictions != 1 || got.Entries != 2 {
		t.Errorf("stats %+v", got)
	}
	c.Close()
	l.settle()
}

func TestZeroRef(t *testing.T) {
	var r cache.Ref[int]
	if r.Value() != 0 {
		t.Error("zero Ref has a value")
	}
	r.Release()
	r.Release()
}

func TestReleaseTooOften(t *testing.T) {
	c, _ := newCache(t, config{Entries: 1})
	defer c.Close()
	r := c.Put(1, &thing{})
	c.Drop(1)
	r.Release()
	defer func() {
		if recover() == nil {
			t.Error("a second Release of the last Ref did not panic")
		}
	}()
	r.Release()
}

func TestStale(t *testing.T) {
	c, l := newCache(t, config{Entries: 4})
	r := c.Put(1, l.make(1))
	r.Value().stale.Store(true)
	if has(c, 1) || c.Len() != 0 {
		t.Error("a stale value was served or kept")
	}
	l.use(r)
	r.Release()
	l.settle()
	if got, want := c.Stats(), (cache.Stats{Misses: 1}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	c.Close()
}

func TestDropIf(t *testing.T) {
	c, l := newCache(t, config{Entries: 64, Shards: 4})
	for k := range 20 {
		c.Put(k, l.make(k)).Release()
	}
	n := c.DropIf(func(k int, th *thing) bool {
		if k != th.id || th.released.Load() != 0 {
			t.Errorf("key %d comes with value %d", k, th.id)
		}
		c.Get(-1) // using the cache must not deadlock
		return k%2 == 0
	})
	if n != 10 || c.Len() != 10 {
		t.Errorf("dropped %d, left %d; want 10, 10", n, c.Len())
	}
	for k := range 20 {
		if has(c, k) != (k%2 == 1) {
			t.Errorf("key %d: stored = %t", k, has(c, k))
		}
	}
	c.Close()
	l.settle()
}

func TestGroupShare(t *testing.T) {
	group := func(k int) string { return fmt.Sprint(k / 1000) }
	for _, tc := range []struct {
		entries int
		share   float64
		want    int
	}{
		{8, 0, 2}, {8, 0.5, 4}, {8, 1, 8}, {10, 0.25, 2}, {3, 0.25, 1}, {1, 0.25, 1}, {4, 0.01, 1},
	} {
		c, l := newCache(t, config{Entries: tc.entries, Shards: 1, Group: group, GroupShare: tc.share})
		c.Put(9000, l.make(9000)).Release()
		for k := 1000; k < 1100; k++ {
			c.Put(k, l.make(k)).Release()
			if !has(c, k) {
				t.Errorf("%+v: a new entry was not admitted", tc)
			}
		}
		n := 0
		for k := 1000; k < 1100; k++ {
			if has(c, k) {
				n++
			}
		}
		if n != tc.want {
			t.Errorf("%+v: group holds %d entries", tc, n)
		}
		if tc.want < tc.entries && !has(c, 9000) {
			t.Errorf("%+v: a group over its share evicted another's entry", tc)
		}
		c.Close()
		l.settle()
	}
}

func TestGroupEvictsItsLeastRecentlyUsed(t *testing.T) {
	c, l := newCache(t, config{Entries: 12, Shards: 1, Group: func(k int) string { return fmt.Sprint(k / 10) }})
	for _, k := range []int{10, 11, 20, 12} { // share of 3
		c.Put(k, l.make(k)).Release()
	}
	has(c, 10)
	c.Put(13, l.make(13)).Release()
	if !has(c, 10) || has(c, 11) || !has(c, 12) || !has(c, 13) || !has(c, 20) {
		t.Error("the group's least recently used entry was not the one evicted")
	}
	c.Close()
	l.settle()
}

func TestDefaultShardsKeepSmallCachesWhole(t *testing.T) {
	for _, entries := range []int{1, 2, 63, 100} {
		c, l := newCache(t, config{Entries: entries})
		for k := range entries {
			c.Put(k, l.make(k)).Release()
		}
		if c.Len() != entries {
			t.Errorf("%d keys in a cache for as many: %d stored", entries, c.Len())
		}
		c.Close()
		l.settle()
	}
}

func TestEntriesBoundOverShards(t *testing.T) {
	for _, cfg := range []config{{Entries: 100, Shards: 16}, {Entries: 3, Shards: 16}, {Entries: 2000}} {
		c, l := newCache(t, cfg)
		for k := range 20 * cfg.Entries {
			c.Put(k, l.make(k)).Release()
		}
		if c.Len() != cfg.Entries {
			t.Errorf("%+v: %d stored", cfg, c.Len())
		}
		c.Close()
		l.settle()
	}
}

func TestHashSpreads(t *testing.T) {
	var asked atomic.Int64
	c, l := newCache(t, config{Entries: 8, Shards: 4, Hash: func(k int) uint64 {
		asked.Add(1)
		return uint64(k)
	}})
	for k := range 8 {
		c.Put(k, l.make(k)).Release()
	}
	if c.Len() != 8 || asked.Load() != 8 {
		t.Errorf("%d of 8 evenly spread keys stored, Hash asked %d times", c.Len(), asked.Load())
	}
	c.Close()
	l.settle()
}

func TestAfterClose(t *testing.T) {
	c, l := newCache(t, config{Entries: 8})
	held := c.Put(1, l.make(1))
	c.Put(2, l.make(2)).Release()
	c.Close()
	c.Close()
	l.use(held)
	held.Release()
	l.settle()
	r := c.Put(3, l.make(3))
	if has(c, 1) || has(c, 3) || c.Len() != 0 {
		t.Error("a closed cache serves or stores")
	}
	l.use(r)
	r.Release()
	c.Drop(3)
	if n := c.DropIf(func(int, *thing) bool { return true }); n != 0 {
		t.Errorf("DropIf found %d", n)
	}
	l.settle()
}

// TestReplacedMeanwhile replaces a value just when it is found stale, or found
// by DropIf: what came instead stays.
func TestReplacedMeanwhile(t *testing.T) {
	l := &ledger{t: t}
	var c *things
	replace := func(k int, th *thing) bool {
		if th.id < 0 {
			return false
		}
		c.Put(k, l.make(-1)).Release()
		return true
	}
	c, err := cache.New(config{Entries: 4, Release: l.release, Stale: func(th *thing) bool {
		return th.stale.Load() && replace(1, th)
	}})
	if err != nil {
		t.Fatal(err)
	}
	r := c.Put(1, l.make(1))
	r.Value().stale.Store(true)
	r.Release()
	if has(c, 1) {
		t.Error("a stale value was served")
	}
	if !has(c, 1) {
		t.Error("the replacement of a stale value was dropped with it")
	}
	c.Put(2, l.make(2)).Release()
	if n := c.DropIf(replace); n != 0 || !has(c, 1) || !has(c, 2) {
		t.Errorf("DropIf dropped %d, replacements stored: %t %t", n, has(c, 1), has(c, 2))
	}
	c.Close()
	l.settle()
}
