package cache

import (
	"cmp"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// entry is a value with its place in the cache.
type entry[K comparable, V any] struct {
	value[V]
	used  uint64 // the shard's clock at the last hit
	k     K
	group string
}

// leave gives up the cache's own reference. It does nothing for nil.
func (e *entry[K, V]) leave() {
	if e != nil {
		e.release()
	}
}

// newEntry returns an entry that is in no shard yet.
func (c *Cache[K, L, V]) newEntry(k K, v V, refs int64) *entry[K, V] {
	e := &entry[K, V]{value: value[V]{v: v, free: c.cfg.Release}, k: k}
	e.refs.Store(refs)
	if c.cfg.Group != nil {
		e.group = c.cfg.Group(k)
	}
	return e
}

// shard is a part of the cache: the keys whose hash leads here, and their
// loads. missMu is taken before mu. Under missMu the caller's admit is called,
// and no other function of Config or a caller under either.
type shard[K, L comparable, V any] struct {
	capacity   int
	groupLimit int // 0: none

	missMu    sync.Mutex
	closed    bool // set under both locks, read under either
	flights   map[flightKey[K, L]]*flight[K, L, V]
	negatives *simplelru.LRU[flightKey[K, L], negative]
	running   int // loads, those no longer in flights too
	loads     uint64
	loadErrs  uint64
	negHits   uint64

	mu        sync.Mutex
	entries   *simplelru.LRU[K, *entry[K, V]]
	groups    map[string][]*entry[K, V] // in no order; empty if groupLimit is 0
	clock     uint64                    // one tick for each hit and store
	hits      uint64
	misses    uint64
	evictions uint64
}

func newShard[K, L comparable, V any](cfg *Config[K, L, V], capacity, negatives int) (*shard[K, L, V], error) {
	sh := &shard[K, L, V]{
		capacity: capacity,
		flights:  make(map[flightKey[K, L]]*flight[K, L, V]),
		groups:   make(map[string][]*entry[K, V]),
	}
	if cfg.Group != nil && cfg.GroupShare < 1 {
		sh.groupLimit = max(1, int(cfg.GroupShare*float64(capacity)))
	}
	var err error
	if sh.entries, err = simplelru.NewLRU[K, *entry[K, V]](capacity, nil); err != nil {
		return nil, err
	}
	sh.negatives, err = simplelru.NewLRU[flightKey[K, L], negative](negatives, nil)
	return sh, err
}

// get returns the entry under k with a reference, or nil.
func (sh *shard[K, L, V]) get(k K) *entry[K, V] {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e, ok := sh.entries.Get(k)
	if !ok {
		sh.misses++
		return nil
	}
	sh.hits++
	e.refs.Add(1)
	sh.touch(e)
	return e
}

// peek is get for those who do not use the value.
func (sh *shard[K, L, V]) peek(k K) *entry[K, V] {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e, ok := sh.entries.Peek(k)
	if !ok {
		return nil
	}
	e.refs.Add(1)
	return e
}

func (sh *shard[K, L, V]) contains(k K) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.entries.Contains(k)
}

// dropStale turns a hit into a miss: it removes e and releases the hit's
// reference.
func (sh *shard[K, L, V]) dropStale(e *entry[K, V]) {
	sh.mu.Lock()
	sh.hits--
	sh.misses++
	removed := sh.unlink(e)
	sh.mu.Unlock()
	if removed {
		e.leave()
	}
	e.release()
}

// remove takes e out, unless it has already gone, and reports whether it did.
// Then the caller calls e.leave.
func (sh *shard[K, L, V]) remove(e *entry[K, V]) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.unlink(e)
}

// put stores e in place of what is there, with a reference for the caller.
func (sh *shard[K, L, V]) put(e *entry[K, V]) (held, gone *entry[K, V]) {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	sh.detach(e.k)
	return sh.insert(e, 1, true)
}

// insert stores e, or with replace false leaves an entry that is already
// there. It adds refs references to the entry that then stands for the key,
// held; e itself if the shard is closed. The caller calls leave of gone, which
// had to make room and may be nil.
func (sh *shard[K, L, V]) insert(e *entry[K, V], refs int64, replace bool) (held, gone *entry[K, V]) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		e.refs.Add(refs)
		return e, nil
	}
	old, ok := sh.entries.Peek(e.k)
	switch {
	case ok && !replace:
		old.refs.Add(refs)
		return old, nil
	case ok:
		sh.unlink(old)
		gone = old
	default:
		gone = sh.makeRoom(e.group)
	}
	e.refs.Add(refs + 1)
	sh.link(e)
	return e, gone
}

// makeRoom evicts the entry that a new one of a group displaces, or returns
// nil. It never takes more than one, since capacity and share were kept before.
func (sh *shard[K, L, V]) makeRoom(group string) *entry[K, V] {
	var out *entry[K, V]
	if g := sh.groups[group]; len(g) > 0 && len(g) >= sh.groupLimit {
		out = slices.MinFunc(g, func(a, b *entry[K, V]) int { return cmp.Compare(a.used, b.used) })
	} else if sh.entries.Len() >= sh.capacity {
		_, out, _ = sh.entries.GetOldest()
	}
	if out != nil {
		sh.unlink(out)
		sh.evictions++
	}
	return out
}

func (sh *shard[K, L, V]) link(e *entry[K, V]) {
	sh.touch(e)
	sh.entries.Add(e.k, e)
	if sh.groupLimit > 0 {
		sh.groups[e.group] = append(sh.groups[e.group], e)
	}
}

// touch notes a use. A group has no list in LRU order: a hit would pay for
// it, and who evicts from a full group has just paid for a load.
func (sh *shard[K, L, V]) touch(e *entry[K, V]) {
	sh.clock++
	e.used = sh.clock
}

// unlink takes e out and reports whether it was in.
func (sh *shard[K, L, V]) unlink(e *entry[K, V]) bool {
	if in, ok := sh.entries.Peek(e.k); !ok || in != e {
		return false
	}
	sh.entries.Remove(e.k)
	if sh.groupLimit > 0 {
		sh.leaveGroup(e)
	}
	return true
}

func (sh *shard[K, L, V]) leaveGroup(e *entry[K, V]) {
	g := sh.groups[e.group]
	if len(g) == 1 {
		delete(sh.groups, e.group)
		return
	}
	i := slices.Index(g, e)
	sh.groups[e.group] = slices.Delete(g, i, i+1)
}

// drop removes the entry under k and returns it for the caller to leave.
func (sh *shard[K, L, V]) drop(k K) *entry[K, V] {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	sh.detach(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e, ok := sh.entries.Peek(k); ok {
		sh.unlink(e)
		return e
	}
	return nil
}

// detachFlights keeps every load under way from being stored.
func (sh *shard[K, L, V]) detachFlights() {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	sh.detachAll()
}

// loading returns the key of every flight.
func (sh *shard[K, L, V]) loading() []K {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	keys := make([]K, 0, len(sh.flights))
	for key := range sh.flights {
		keys = append(keys, key.k)
	}
	return keys
}

// detachKey keeps the loads of k under way from being stored.
func (sh *shard[K, L, V]) detachKey(k K) {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	sh.detach(k)
}

// snapshot returns every entry with a reference each, oldest use first.
func (sh *shard[K, L, V]) snapshot() []*entry[K, V] {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	es := sh.entries.Values()
	for _, e := range es {
		e.refs.Add(1)
	}
	return es
}

// close empties the shard for good, and returns its entries for the caller to
// leave.
func (sh *shard[K, L, V]) close() []*entry[K, V] {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	sh.detachAll()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.closed = true
	es := sh.entries.Values()
	for _, e := range es {
		sh.unlink(e)
	}
	return es
}
