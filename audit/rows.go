package audit

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Row says what is alike in operations that are counted together.
type Row struct {
	// Class is Data or Denials.
	Class record.Class
	// Caller, Tenant, Verb and Result are as in record.Event.
	Caller, Tenant, Verb, Result string
}

// rowShards is how many counts of one moment do not wait for each other.
const rowShards = 16

// rows counts the operations of an interval.
type rows struct {
	seed   maphash.Seed
	most   int // in each shard
	mu     sync.Mutex
	since  time.Time
	shards [rowShards]rowShard
}

type rowShard struct {
	mu  sync.Mutex
	all map[Row]*sums
	_   [40]byte // a cache line each
}

type sums struct{ count, bytes int64 }

// counted is a row with what it came to.
type counted struct {
	row Row
	sums
}

func newRows(most int, now time.Time) *rows {
	r := &rows{seed: maphash.MakeSeed(), most: max(1, most/rowShards), since: now}
	for i := range r.shards {
		r.shards[i].all = make(map[Row]*sums)
	}
	return r
}

// add counts an operation. When there are too many different ones it loses whose
// it was, and for which tenant, but not that it was.
func (r *rows) add(row Row, bytes int64) { r.addAll(row, sums{1, bytes}) }

func (r *rows) addAll(row Row, n sums) {
	shard := &r.shards[maphash.Comparable(r.seed, row)%rowShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	s := shard.all[row]
	if s == nil && len(shard.all) >= r.most {
		row.Caller, row.Tenant = "", ""
		s = shard.all[row]
	}
	if s == nil {
		s = &sums{}
		shard.all[row] = s
	}
	s.count += n.count
	s.bytes += n.bytes
}

// take returns all rows and since when they were counted, and begins anew.
func (r *rows) take(now time.Time) (all []counted, since time.Time) {
	r.mu.Lock()
	since, r.since = r.since, now
	r.mu.Unlock()
	merged := make(map[Row]sums) // rows without a caller are in several shards
	for i := range r.shards {
		shard := &r.shards[i]
		shard.mu.Lock()
		taken := shard.all
		shard.all = make(map[Row]*sums, len(taken))
		shard.mu.Unlock()
		for row, s := range taken {
			merged[row] = sums{merged[row].count + s.count, merged[row].bytes + s.bytes}
		}
	}
	for row, s := range merged {
		all = append(all, counted{row, s})
	}
	slices.SortFunc(all, func(a, b counted) int { return strings.Compare(a.row.sortKey(), b.row.sortKey()) })
	return all, since
}

func (r Row) sortKey() string {
	return strings.Join([]string{r.Class.String(), r.Caller, r.Tenant, r.Verb, r.Result}, "\x00")
}

// start returns since when operations are counted that are not written yet.
func (r *rows) start() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

// putBack counts again what could not be written.
func (r *rows) putBack(all []counted, since time.Time) {
	if since.IsZero() {
		return
	}
	for _, c := range all {
		r.addAll(c.row, c.sums)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since = since
}

// event returns the record of a row.
func (c *counted) event(since, now time.Time) *record.Event {
	e := &record.Event{
		Kind: record.Calls, Caller: c.row.Caller, Tenant: c.row.Tenant, Verb: c.row.Verb, Result: c.row.Result,
		Count: c.count, Bytes: c.bytes, From: since, To: now,
	}
	if c.row.Class == record.Denials {
		e.Kind = record.ManyDenied
	}
	if c.row.Caller == "" && c.row.Tenant == "" {
		e.Detail = "callers and tenants beyond the rows of one interval"
	}
	return e
}
