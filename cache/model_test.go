package cache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/cache"
)

const (
	modelKeys   = 12
	modelGroups = 3
)

func modelGroup(k int) string { return fmt.Sprint("g", k%modelGroups) }

// model is what the cache should be: for each shard its entries, the least
// recently used first, and how many references each value has.
type model struct {
	capacity []int
	share    float64
	shards   [][]*thing // thing.id is the key
	refs     map[*thing]int
	freed    map[*thing]bool
	stats    cache.Stats
}

func newModel(entries, shards int, share float64) *model {
	m := &model{share: share, refs: map[*thing]int{}, freed: map[*thing]bool{}, shards: make([][]*thing, shards)}
	for i := range shards {
		m.capacity = append(m.capacity, entries/shards)
		if i < entries%shards {
			m.capacity[i]++
		}
	}
	return m
}

func (m *model) ref(th *thing, n int) {
	m.refs[th] += n
	if m.refs[th] == 0 {
		m.freed[th] = true
	}
}

func (m *model) find(k int) (shard, at int) {
	shard = k % len(m.shards)
	return shard, slices.IndexFunc(m.shards[shard], func(th *thing) bool { return th.id == k })
}

func (m *model) take(shard, at int) *thing {
	th := m.shards[shard][at]
	m.shards[shard] = slices.Delete(m.shards[shard], at, at+1)
	return th
}

// get returns a value with a reference, or nil.
func (m *model) get(k int) *thing {
	shard, at := m.find(k)
	if at < 0 {
		m.stats.Misses++
		return nil
	}
	th := m.take(shard, at)
	if th.stale.Load() {
		m.stats.Misses++
		m.ref(th, -1)
		return nil
	}
	m.stats.Hits++
	m.shards[shard] = append(m.shards[shard], th)
	m.ref(th, 1)
	return th
}

// store puts th, which replaces an older value, with a reference.
func (m *model) store(th *thing) {
	m.ref(th, 2)
	shard, at := m.find(th.id)
	switch victim := m.victim(shard, th.id); {
	case at >= 0:
		m.ref(m.take(shard, at), -1)
	case victim >= 0:
		m.stats.Evictions++
		m.ref(m.take(shard, victim), -1)
	}
	m.shards[shard] = append(m.shards[shard], th)
}

func (m *model) limit(shard int) int {
	if m.share == 1 {
		return m.capacity[shard]
	}
	return max(1, int(m.share*float64(m.capacity[shard])))
}

// victim returns which entry makes room for a new k, or -1.
func (m *model) victim(shard, k int) int {
	mine := func(th *thing) bool { return modelGroup(th.id) == modelGroup(k) }
	n := 0
	for _, th := range m.shards[shard] {
		if mine(th) {
			n++
		}
	}
	if n >= m.limit(shard) {
		return slices.IndexFunc(m.shards[shard], mine)
	}
	if len(m.shards[shard]) >= m.capacity[shard] {
		return 0
	}
	return -1
}

func (m *model) dropIf(f func(*thing) bool) int {
	n := 0
	for i := range m.shards {
		m.shards[i] = slices.DeleteFunc(m.shards[i], func(th *thing) bool {
			if !f(th) {
				return false
			}
			n++
			m.ref(th, -1)
			return true
		})
	}
	return n
}

// machine drives a cache and its model.
type machine struct {
	c    *things
	m    *model
	l    *ledger
	held []cache.Ref[*thing]
}

func (x *machine) hold(t *rapid.T, r cache.Ref[*thing], want *thing) {
	if got := x.l.use(r); got != want {
		t.Fatalf("got value of key %d at %p, want %p", got.id, got, want)
	}
	x.held = append(x.held, r)
}

func (x *machine) actions() map[string]func(*rapid.T) {
	key := rapid.IntRange(0, modelKeys-1)
	return map[string]func(*rapid.T){
		"get": func(t *rapid.T) {
			k := key.Draw(t, "k")
			want := x.m.get(k)
			got, ok := x.c.Get(k)
			if ok != (want != nil) {
				t.Fatalf("Get(%d) = %t, want %t", k, ok, want != nil)
			}
			if ok {
				x.hold(t, got, want)
			}
		},
		"put": func(t *rapid.T) {
			th := x.l.make(key.Draw(t, "k"))
			x.m.store(th)
			x.hold(t, x.c.Put(th.id, th), th)
		},
		"load": func(t *rapid.T) { x.load(t, key.Draw(t, "k"), rapid.Bool().Draw(t, "fails")) },
		"drop": func(t *rapid.T) {
			k := key.Draw(t, "k")
			x.m.dropIf(func(th *thing) bool { return th.id == k })
			x.c.Drop(k)
		},
		"drop if": func(t *rapid.T) {
			n := rapid.IntRange(1, 5).Draw(t, "divisor")
			want := x.m.dropIf(func(th *thing) bool { return th.id%n == 0 })
			if got := x.c.DropIf(func(k int, _ *thing) bool { return k%n == 0 }); got != want {
				t.Fatalf("DropIf dropped %d, want %d", got, want)
			}
		},
		"drop keys": func(t *rapid.T) {
			n := rapid.IntRange(1, 5).Draw(t, "divisor")
			want := x.m.dropIf(func(th *thing) bool { return th.id%n == 0 })
			if got := x.c.DropKeys(func(k int) bool { return k%n == 0 }); got != want {
				t.Fatalf("DropKeys dropped %d, want %d", got, want)
			}
		},
		"stale": func(t *rapid.T) {
			if k := key.Draw(t, "k"); x.m.get(k) != nil {
				r, _ := x.c.Get(k)
				r.Value().stale.Store(true)
				x.m.ref(r.Value(), -1)
				r.Release()
			} else {
				x.c.Get(k)
			}
		},
		"release": func(t *rapid.T) {
			if len(x.held) > 0 {
				i := rapid.IntRange(0, len(x.held)-1).Draw(t, "i")
				x.release(i)
			}
		},
		"": x.check,
	}
}

func (x *machine) load(t *rapid.T, k int, fails bool) {
	th := x.l.make(k)
	loaded := false
	r, err := x.c.Load(context.Background(), k, "a", nil, func(context.Context) (*thing, error) {
		loaded = true
		if fails {
			return nil, errLoad
		}
		return th, nil
	})
	want := x.m.get(k)
	if loaded != (want == nil) || (err != nil) != (loaded && fails) || err != nil && !errors.Is(err, errLoad) {
		t.Fatalf("Load(%d): loaded %t, error %v", k, loaded, err)
	}
	if loaded {
		x.m.stats.Loads++
	}
	if !loaded || fails {
		th.released.Add(1) // The cache never had it.
		x.m.freed[th] = true
	}
	switch {
	case err != nil:
		x.m.stats.LoadErrors++
	case loaded:
		x.m.store(th)
		x.hold(t, r, th)
	default:
		x.hold(t, r, want)
	}
}

func (x *machine) release(i int) {
	th := x.l.use(x.held[i])
	x.held[i].Release()
	x.m.ref(th, -1)
	x.held = slices.Delete(x.held, i, i+1)
}

// check compares the cache with the model.
func (x *machine) check(t *rapid.T) {
	x.m.stats.Entries = 0
	for i, shard := range x.m.shards {
		if len(shard) > x.m.capacity[i] {
			t.Fatalf("the model holds %d entries of %d", len(shard), x.m.capacity[i])
		}
		x.m.stats.Entries += len(shard)
	}
	x.awaitFlights()
	if got := x.c.Stats(); got != x.m.stats {
		t.Fatalf("stats %+v, want %+v", got, x.m.stats)
	}
	for _, th := range x.l.all {
		if got := th.released.Load() == 1; got != x.m.freed[th] {
			t.Fatalf("value of key %d at %p released = %t, want %t", th.id, th, got, x.m.freed[th])
		}
	}
}

// awaitFlights waits for a flight's goroutine to give up its own reference,
// which it does just after its waiters have theirs.
func (x *machine) awaitFlights() { x.c.AwaitFlights() }

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := rapid.IntRange(1, 12).Draw(t, "entries")
		shards := rapid.IntRange(1, min(3, entries)).Draw(t, "shards")
		share := rapid.SampledFrom([]float64{0.25, 0.5, 0.9, 1}).Draw(t, "share")
		l := &ledger{t: t}
		c, err := cache.New(config{
			Entries: entries, Shards: shards, GroupShare: share, Group: modelGroup,
			Hash: func(k int) uint64 { return uint64(k) }, Release: l.release,
			Stale: func(th *thing) bool { return th.stale.Load() },
		})
		if err != nil {
			t.Fatal(err)
		}
		x := &machine{c: c, l: l, m: newModel(entries, shards, share)}
		t.Repeat(x.actions())
		c.Close()
		for len(x.held) > 0 {
			x.release(0)
		}
		l.settle()
	})
}
