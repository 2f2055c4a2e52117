package audit

import (
	"cmp"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Row says what is alike in operations that are counted together.
type Row struct {
	// Class is Data or Denials.
	Class record.Class
	// Caller, Tenant, Verb and Result are as in record.Event. A tenant ID that
	// nobody has allowed the caller to use does not belong here: it could have
	// any number of them.
	Caller, Tenant, Verb, Result string

	rest bool // it stands for rows that found no room
}

const (
	// rowShards is how many counts of one moment do not wait for each other.
	rowShards = 16
	// callerShare is the part of all rows that one caller may have, and
	// callerLeast what it may have though others have used up all.
	callerShare = 0.25
	callerLeast = 64
)

// rows counts the operations of an interval. Each caller has its own, in one
// shard: what a caller does never hides what another did.
type rows struct {
	seed   maphash.Seed
	most   int
	mu     sync.Mutex
	since  time.Time
	shards [rowShards]rowShard
}

type rowShard struct {
	mu      sync.Mutex
	callers map[string]*callerRows
	count   int      // of rows
	_       [40]byte // a cache line each
}

type callerRows map[Row]*sums

type sums struct{ count, bytes int64 }

// counted is a row with what it came to.
type counted struct {
	row Row
	sums
}

func newRows(most int, now time.Time) *rows {
	r := &rows{seed: maphash.MakeSeed(), most: most, since: now}
	for i := range r.shards {
		r.shards[i].callers = make(map[string]*callerRows)
	}
	return r
}

// add counts an operation. When its caller has too many different ones, it loses
// for which tenant it was. Only when there are too many callers it loses whose
// it was.
func (r *rows) add(row Row, n sums) {
	shard := &r.shards[maphash.String(r.seed, row.Caller)%rowShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	s := shard.find(&row, max(1, r.most/rowShards))
	s.count += n.count
	s.bytes += n.bytes
}

func (s *rowShard) find(row *Row, most int) *sums {
	all := s.callers[row.Caller]
	if all == nil && len(s.callers) >= most {
		row.Caller, row.Tenant, row.rest = "", "", true
		all = s.callers[""]
	}
	if all == nil {
		all = &callerRows{}
		s.callers[row.Caller] = all
	}
	if sum := (*all)[*row]; sum != nil {
		return sum
	}
	own := len(*all)
	if own >= callerLeast && (s.count >= most || own >= max(callerLeast, int(callerShare*float64(most*rowShards)))) {
		row.Tenant, row.rest = "", true
		if sum := (*all)[*row]; sum != nil {
			return sum
		}
	}
	sum := &sums{}
	(*all)[*row] = sum
	s.count++
	return sum
}

// take returns all rows and since when they were counted, and begins anew.
func (r *rows) take(now time.Time) (all []counted, since time.Time) {
	r.mu.Lock()
	since, r.since = r.since, now
	r.mu.Unlock()
	for i := range r.shards {
		shard := &r.shards[i]
		shard.mu.Lock()
		callers := shard.callers
		shard.callers, shard.count = make(map[string]*callerRows, len(callers)), 0
		shard.mu.Unlock()
		for _, rows := range callers {
			for row, s := range *rows {
				all = append(all, counted{row, *s})
			}
		}
	}
	slices.SortFunc(all, func(a, b counted) int { return a.row.compare(&b.row) })
	return all, since
}

func (r *Row) compare(o *Row) int {
	return cmp.Or(cmp.Compare(r.Class, o.Class), cmp.Compare(r.Caller, o.Caller), cmp.Compare(r.Tenant, o.Tenant),
		cmp.Compare(r.Verb, o.Verb), cmp.Compare(r.Result, o.Result))
}

// start returns since when operations are counted that are not written yet.
func (r *rows) start() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

// putBack counts again what could not be written.
func (r *rows) putBack(all []counted, since time.Time) {
	for _, c := range all {
		r.add(c.row, c.sums)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since = since
}

// event returns the record of a row.
func (c *counted) event(since, until time.Time) *record.Event {
	e := &record.Event{
		Kind: record.Calls, Caller: c.row.Caller, Tenant: c.row.Tenant, Verb: c.row.Verb, Result: c.row.Result,
		Count: c.count, Bytes: c.bytes, From: since, To: until,
	}
	if c.row.Class == record.Denials {
		e.Kind = record.ManyDenied
	}
	switch {
	case !c.row.rest:
	case c.row.Caller == "":
		e.Detail = "callers beyond those that are counted apart: audit.rows"
	default:
		e.Detail = "tenants beyond those that are counted apart: audit.rows"
	}
	return e
}

// coarse puts the rows of each caller together, whatever the tenant.
func coarse(all []counted) []counted {
	sum := make(map[Row]sums)
	for _, c := range all {
		if c.row.Tenant != "" {
			c.row.Tenant, c.row.rest = "", true
		}
		sum[c.row] = sums{sum[c.row].count + c.count, sum[c.row].bytes + c.bytes}
	}
	all = all[:0]
	for row, s := range sum {
		all = append(all, counted{row, s})
	}
	slices.SortFunc(all, func(a, b counted) int { return a.row.compare(&b.row) })
	return all
}
