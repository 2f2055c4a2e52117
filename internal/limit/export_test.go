package limit

import "time"

// Start returns the time that t counts from.
func (t *Table) Start() time.Time { return t.shards[0].start }

// Shards returns in how many parts t is.
func (t *Table) Shards() int { return len(t.shards) }

// Idle returns how many entries t believes to have no calls under way, and
// how many have none.
func (t *Table) Idle() (believed, counted int) {
	for _, sh := range t.shards {
		sh.mu.Lock()
		believed += sh.idle
		for _, e := range sh.entries.Values() {
			if e.calls == 0 {
				counted++
			}
		}
		sh.mu.Unlock()
	}
	return believed, counted
}

// Keys returns for how many keys b keeps something.
func (b *Bytes) Keys() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.shares)
}

// Reserved returns how much room is kept for the first of those who are ready.
func (b *Bytes) Reserved() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reserved
}

// Spare returns how many shares b keeps for keys to come.
func (b *Bytes) Spare() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.spare)
}
