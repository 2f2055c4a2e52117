// Package limit bounds what each key, such as a caller or a tenant, may take
// from all: calls per second and at a time ([Table]), and bytes in flight
// ([Bytes]). What it keeps is bounded too, however many keys come.
//
// A Table never waits: who is over the limit is refused, and told when to come
// again. Bytes waits for room.
package limit

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"time"
)

const (
	defaultEntries = 10_000
	maxShards      = 16

	// minShardEntries keeps chance from filling one shard of a table while
	// others have room.
	minShardEntries = 256
)

// Limit is what one key may do. A zero field means no limit of that kind. A
// Limit with a negative field, or a Rate that is no finite number, lets
// nothing through: a mistake must not lift a limit.
type Limit struct {
	// Rate is how many calls per second are let through in the long run. It
	// may be a fraction: 0.1 is a call every 10 s.
	Rate float64
	// Burst is how many calls may come at once after a quiet time. Zero means
	// Rate rounded up, so at least 1. Without a Rate it means nothing.
	Burst int
	// Calls is how many calls may be under way at a time.
	Calls int
}

// Or returns l with what it leaves open taken from other. A Rate of its own
// brings its own Burst: the other's would let through, at once, more than it
// means to allow in hours.
func (l Limit) Or(other Limit) Limit {
	if l.Rate != 0 {
		other.Burst = 0
	}
	return Limit{
		Rate:  cmp.Or(l.Rate, other.Rate),
		Burst: cmp.Or(l.Burst, other.Burst),
		Calls: cmp.Or(l.Calls, other.Calls),
	}
}

func (l Limit) valid() bool {
	return l.Rate >= 0 && l.Rate-l.Rate == 0 && l.Burst >= 0 && l.Calls >= 0 // Inf-Inf is NaN
}

// Config configures a Table.
type Config struct {
	// Entries is how many keys are remembered at most. Zero means 10,000.
	Entries int
}

// Table counts the calls of each key, under way and per second. It remembers
// Config.Entries keys: a new one takes the place of one that has no call under
// way. Of the 16 keys that were asked for, or last passed over, longest ago it
// is the first whose bucket is full again, since that loses nothing; if none
// is, the oldest.
//
// A forgotten key comes back with a full bucket. So invented keys do not lift
// the limit of another key as long as their own buckets fill quickly: a token
// is there again before their turn comes. Whoever can bring Entries fresh keys
// whose buckets stay in use can have the Burst of another key over again:
// Entries has to be more than the keys that are in use within the time in which
// such a bucket fills (Burst/Rate), and whoever invents keys needs a limit of
// their own.
//
// A key with calls under way is never forgotten, since their count would be
// lost. If all have some, the table holds more than Entries for as long as that
// lasts, and then forgets those whose calls end first: how many calls are under
// way has to be bounded elsewhere. A new key then costs time in proportion to
// the keys whose calls have been under way for longer than another has not been
// asked for.
//
// A large table is in up to 16 parts with a lock and a share of Entries each,
// and keys go to them at random: one part may be full a little before all are.
//
// Time is Go's monotonic clock: setting the wall clock forward or back changes
// nothing. While the machine is suspended it stops, and no tokens come.
//
// Table is safe for concurrent use.
type Table struct {
	seed   maphash.Seed
	shards []*shard
}

// New returns an empty Table, or an error for a negative Entries.
func New(cfg Config) (*Table, error) {
	if cfg.Entries < 0 {
		return nil, fmt.Errorf("limit table of %d entries: negative", cfg.Entries)
	}
	if cfg.Entries == 0 {
		cfg.Entries = defaultEntries
	}
	t := &Table{seed: maphash.MakeSeed()}
	start := time.Now()
	n := max(1, min(maxShards, cfg.Entries/minShardEntries))
	for i := range n {
		capacity := cfg.Entries / n
		if i < cfg.Entries%n {
			capacity++
		}
		sh, err := newShard(capacity, start)
		if err != nil {
			return nil, fmt.Errorf("making limit shard: %w", err)
		}
		t.shards = append(t.shards, sh)
	}
	return t, nil
}

func (t *Table) shard(key string) *shard {
	if len(t.shards) == 1 {
		return t.shards[0]
	}
	return t.shards[maphash.String(t.seed, key)%uint64(len(t.shards))]
}

// Enter begins a call of key, if l lets it: it takes a token and a slot, and
// the caller owes p a [Pass.Leave] when the call has ended. Otherwise it takes
// nothing, and wait is when a token will be there, if nobody else takes it
// first; zero if there is no slot, or l is not valid.
//
// l may differ from the last one for this key: it is in force from then on.
// Calls under way and tokens that were left count on, up to the new Burst.
// Calls are counted even if l does not limit them.
//
// Enter allocates nothing for a key that is remembered.
func (t *Table) Enter(key string, l Limit) (p Pass, wait time.Duration, ok bool) {
	if !l.valid() {
		return Pass{}, 0, false
	}
	return t.shard(key).enter(key, l)
}

// Take takes a token of key, if l lets it: as Enter does, but there is no call
// to count, and l.Calls means nothing.
func (t *Table) Take(key string, l Limit) (wait time.Duration, ok bool) {
	switch {
	case !l.valid():
		return 0, false
	case l.Rate == 0:
		return 0, true
	}
	return t.shard(key).take(key, l)
}

// Len returns how many keys are remembered; it is no snapshot of a moment.
func (t *Table) Len() int {
	n := 0
	for _, sh := range t.shards {
		n += sh.len()
	}
	return n
}

// Pass is a call under way. It may be copied, and left in another goroutine.
type Pass struct {
	sh *shard
	e  *entry
}

// Leave ends the call. It is to be called exactly once for each Pass that
// Enter returned; on the zero Pass it does nothing.
func (p Pass) Leave() {
	if p.e != nil {
		p.sh.leave(p.e)
	}
}
