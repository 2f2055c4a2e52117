package cache

// Stats counts what a cache did since New. A Get or Load that is answered
// from the cache is a hit, any other a miss; a Load whose key is stored just
// while it misses is both.
type Stats struct {
	Hits   uint64
	Misses uint64
	// Loads were started; LoadErrors of them failed or panicked.
	Loads      uint64
	LoadErrors uint64
	// NegativeHits are Loads that a remembered error answered.
	NegativeHits uint64
	// Evictions made room for a new entry, or kept a group to its share.
	Evictions uint64
	// Entries are stored now, and InFlight loads are running now.
	Entries  int
	InFlight int
}

// Stats returns the counts. Shards are read one after another: it is no
// snapshot of a cache in use.
func (c *Cache[K, L, V]) Stats() Stats {
	var s Stats
	for _, sh := range c.shards {
		sh.addStats(&s)
	}
	return s
}

func (sh *shard[K, L, V]) addStats(s *Stats) {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.Hits += sh.hits
	s.Misses += sh.misses
	s.Loads += sh.loads
	s.LoadErrors += sh.loadErrs
	s.NegativeHits += sh.negHits
	s.Evictions += sh.evictions
	s.Entries += sh.entries.Len()
	s.InFlight += sh.running
}
