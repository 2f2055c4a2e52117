// Package cache is a bounded, sharded, reference-counted LRU cache of any
// value, whose misses are loaded once for all who wait.
//
// A value is shared: [Cache.Get], [Cache.Load] and [Cache.Put] return a
// [Ref], and Config.Release is called once, after the value has left the
// cache and its last Ref is released. A load runs in a goroutine of its own,
// under its own deadline, detached from the callers that wait for it.
//
// A load that began before a Put, Drop, DropIf, DropKeys or Close that concerns its key
// hands its value to those who already wait for it, and is not stored. So
// whoever first makes a change, such as fencing a key, and then drops, finds
// nothing in the cache afterwards that was loaded before the change.
package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"
)

const (
	defaultShards          = 16
	defaultGroupShare      = 0.25
	defaultLoadTimeout     = 5 * time.Second
	defaultNegativeEntries = 10_000

	// minShardEntries keeps chance from filling one shard of a small cache
	// while others are empty.
	minShardEntries = 64
)

// ErrClosed is returned by Load after Close, and wrapped with a load's own
// error where Close cut it short.
var ErrClosed = errors.New("cache is closed")

// Config configures a cache. Its functions may be called concurrently.
type Config[K, L comparable, V any] struct {
	// Entries is how many values the cache holds at most; at least 1. Zero is
	// refused. Values that left the cache but are still in use do not count.
	Entries int
	// Shards is how many locks share the work; each has its part of Entries
	// and its own LRU order. Zero means 16, but fewer where a shard would
	// have under 64 entries. It is never more than Entries.
	Shards int
	// Hash spreads keys over shards. Where outsiders choose keys it has to be
	// seeded at random. Nil means hash/maphash with a random seed.
	Hash func(K) uint64
	// Group names the group (such as the tenant) that K belongs to: always
	// the same for a K. Nil means that there are no groups.
	Group func(K) string
	// GroupShare is the largest part of a shard's entries for one group,
	// rounded down, but at least one entry. A new entry of a group that has
	// its share evicts that group's least recently used, even while there is
	// room. Keys do not spread evenly, so over all shards a group may reach
	// somewhat less. Zero means 0.25; 1 switches it off.
	GroupShare float64
	// LoadTimeout ends a load's context. Zero means 5 s.
	LoadTimeout time.Duration
	// Release is called exactly once for every value that Put was given or
	// that a load returned without an error, when it has left the cache and
	// its last Ref is released; no lock is held. Nil means nothing to do.
	Release func(V)
	// NegativeTTL says for how long a load's error answers further Loads of
	// the same key and flight; zero or less means not at all. It is asked
	// for every error, a *PanicError too. Nil means never.
	NegativeTTL func(error) time.Duration
	// NegativeEntries is how many errors are remembered at most, oldest
	// forgotten first, over all shards, with at least one in each. Zero means
	// 10,000.
	NegativeEntries int
	// Stale reports whether a value must not be served any more; once true it
	// stays true. A hit that is stale is dropped and counts as a miss. A value
	// that is stale when Put or a load brings it goes to whoever waits for it
	// and is not kept. Stale is asked with no lock held, and has to be quick.
	// Nil means never.
	Stale func(V) bool
	// Now is the clock of negative entries. Nil means time.Now.
	Now func() time.Time
}

// Cache is a bounded cache of values V by key K. Loads under way and
// remembered errors are keyed by K and a flight L, so that loads of one key
// from different sources (a forged one among them) never affect each other.
// It is safe for concurrent use.
type Cache[K, L comparable, V any] struct {
	cfg    Config[K, L, V]
	shards []*shard[K, L, V]
	loads  sync.WaitGroup
	// closing ends at Close, and every load's context with it.
	closing context.Context
	cancel  context.CancelFunc
}

// New returns an empty cache, or an error for a Config out of range. It
// starts no goroutine.
func New[K, L comparable, V any](cfg Config[K, L, V]) (*Cache[K, L, V], error) {
	switch {
	case cfg.Entries < 1:
		return nil, fmt.Errorf("cache of %d entries: not at least 1", cfg.Entries)
	case cfg.Shards < 0:
		return nil, fmt.Errorf("cache of %d shards: not at least 1", cfg.Shards)
	case !(cfg.GroupShare >= 0 && cfg.GroupShare <= 1):
		return nil, fmt.Errorf("group share %v: not 0 to 1", cfg.GroupShare)
	case cfg.LoadTimeout < 0:
		return nil, fmt.Errorf("load timeout %s: negative", cfg.LoadTimeout)
	case cfg.NegativeEntries < 0:
		return nil, fmt.Errorf("%d negative entries: negative", cfg.NegativeEntries)
	}
	cfg.setDefaults()
	c := &Cache[K, L, V]{cfg: cfg}
	for i := range cfg.Shards {
		sh, err := newShard(&c.cfg, part(cfg.Entries, cfg.Shards, i), max(1, part(cfg.NegativeEntries, cfg.Shards, i)))
		if err != nil {
			return nil, fmt.Errorf("making cache shard: %w", err)
		}
		c.shards = append(c.shards, sh)
	}
	c.closing, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

func (cfg *Config[K, L, V]) setDefaults() {
	if cfg.Shards == 0 {
		cfg.Shards = max(1, min(defaultShards, cfg.Entries/minShardEntries))
	}
	cfg.Shards = min(cfg.Shards, cfg.Entries)
	if cfg.Hash == nil {
		seed := maphash.MakeSeed()
		cfg.Hash = func(k K) uint64 { return maphash.Comparable(seed, k) }
	}
	if cfg.GroupShare == 0 {
		cfg.GroupShare = defaultGroupShare
	}
	if cfg.LoadTimeout == 0 {
		cfg.LoadTimeout = defaultLoadTimeout
	}
	if cfg.NegativeEntries == 0 {
		cfg.NegativeEntries = defaultNegativeEntries
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
}

// part returns the i-th of n parts of total, the first ones larger by one.
func part(total, n, i int) int {
	if i < total%n {
		return total/n + 1
	}
	return total / n
}

func (c *Cache[K, L, V]) shard(k K) *shard[K, L, V] {
	if len(c.shards) == 1 {
		return c.shards[0]
	}
	return c.shards[c.cfg.Hash(k)%uint64(len(c.shards))]
}

// Get returns a Ref to the value under k, or false. A hit allocates nothing.
func (c *Cache[K, L, V]) Get(k K) (Ref[V], bool) {
	return c.lookup(c.shard(k), k)
}

func (c *Cache[K, L, V]) lookup(sh *shard[K, L, V], k K) (Ref[V], bool) {
	e := sh.get(k)
	if e == nil {
		return Ref[V]{}, false
	}
	if c.cfg.Stale != nil && c.cfg.Stale(e.v) {
		sh.dropStale(e)
		return Ref[V]{}, false
	}
	return Ref[V]{&e.value}, true
}

// Put stores v under k in place of what is there, and returns a Ref to it.
// Loads of k under way are not stored, as with Drop. After Close v is not stored, and the
// Ref is its only one.
func (c *Cache[K, L, V]) Put(k K, v V) Ref[V] {
	sh := c.shard(k)
	e := c.newEntry(k, v, 0)
	_, gone := sh.put(e)
	gone.leave()
	c.keepFresh(sh, e)
	return Ref[V]{&e.value}
}

// Drop removes the value under k, if any. Loads of k under way are not stored,
// and not joined by later callers. Errors are remembered as ever.
func (c *Cache[K, L, V]) Drop(k K) {
	c.shard(k).drop(k).leave()
}

// DropIf removes every value for which f returns true, and returns how many.
// It also keeps every load under way, of any key, from being stored: their
// values are not known yet, and from being joined by later callers. So it costs
// each of those keys a second load: what Stale can tell is for DropStale.
// Errors are remembered as ever, so a load may call it on itself.
//
// f is called with no lock held, once for each value that is stored when
// DropIf comes to its shard; it may use the cache, and must not retain the
// value.
func (c *Cache[K, L, V]) DropIf(f func(K, V) bool) int {
	for _, sh := range c.shards {
		sh.detachFlights()
	}
	return c.dropStored(f)
}

// DropKeys is Drop for every key for which f returns true, and returns how many
// values it removed. Loads of those keys that are under way are not stored, and
// not joined by later callers; loads of other keys go on, and are joined. Errors
// are remembered as ever, so a load may call it on itself.
//
// f is called with no lock held, for each key that is stored or being loaded
// when DropKeys comes to its shard, for some more than once; it may use the cache.
func (c *Cache[K, L, V]) DropKeys(f func(K) bool) int {
	for _, sh := range c.shards {
		for _, k := range sh.loading() {
			if f(k) {
				sh.detachKey(k)
			}
		}
	}
	return c.dropStored(func(k K, _ V) bool { return f(k) })
}

// DropStale removes every value that is stale, and returns how many. Loads
// under way go on, and are joined: a value that is stale when it comes is not
// kept. A load may call it.
func (c *Cache[K, L, V]) DropStale() int {
	if c.cfg.Stale == nil {
		return 0
	}
	return c.dropStored(func(_ K, v V) bool { return c.cfg.Stale(v) })
}

// Each calls f, with no lock held, for each value that is stored when Each
// comes to its shard. f may use the cache, and must not retain the value.
func (c *Cache[K, L, V]) Each(f func(K, V)) {
	c.dropStored(func(k K, v V) bool { f(k, v); return false })
}

func (c *Cache[K, L, V]) dropStored(f func(K, V) bool) int {
	n := 0
	for _, sh := range c.shards {
		for _, e := range sh.snapshot() {
			if f(e.k, e.v) && sh.remove(e) {
				e.leave()
				n++
			}
			e.release()
		}
	}
	return n
}

// Len returns how many values are stored; with Shards, it is no snapshot.
func (c *Cache[K, L, V]) Len() int { return c.Stats().Entries }

// Close drops every value, ends the contexts of the loads under way, and
// waits until those have returned. Values in use are released by their last
// Ref: Close does not wait for Refs. Afterwards nothing is stored, Get misses
// and Load returns ErrClosed. A second Close waits too.
func (c *Cache[K, L, V]) Close() {
	for _, sh := range c.shards {
		for _, e := range sh.close() {
			e.leave()
		}
	}
	c.cancel()
	c.loads.Wait()
}
