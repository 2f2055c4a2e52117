package limit

import (
	"math"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxLooks bounds in how many entries evict looks for a full bucket.
const maxLooks = 16

// entry is what a Table knows of a key.
type entry struct {
	key    string
	bucket bucket
	calls  int // under way
}

// shard is a part of a Table: the keys whose hash leads here.
type shard struct {
	capacity int
	start    time.Time

	mu      sync.Mutex
	entries *simplelru.LRU[string, *entry]
	idle    int // entries without calls under way
}

func newShard(capacity int, start time.Time) (*shard, error) {
	// The list is not to evict on its own: it does not know what is in use.
	entries, err := simplelru.NewLRU[string, *entry](math.MaxInt, nil)
	return &shard{capacity: capacity, start: start, entries: entries}, err
}

func (sh *shard) enter(key string, l Limit) (p Pass, wait time.Duration, ok bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.entry(key)
	if l.Calls > 0 && e.calls >= l.Calls {
		return Pass{}, 0, false
	}
	if wait, ok = sh.token(e, l); !ok {
		return Pass{}, wait, false
	}
	if e.calls == 0 {
		sh.idle--
	}
	e.calls++
	return Pass{sh, e}, 0, true
}

func (sh *shard) take(key string, l Limit) (wait time.Duration, ok bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.token(sh.entry(key), l)
}

// token takes a token, if l has any. The clock is read under the lock, so
// that a bucket never sees it go back.
func (sh *shard) token(e *entry, l Limit) (wait time.Duration, ok bool) {
	if l.Rate == 0 {
		return 0, true
	}
	return e.bucket.take(time.Since(sh.start), l)
}

func (sh *shard) leave(e *entry) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e.calls == 0 {
		panic("limit: internal error: a call left twice")
	}
	if e.calls--; e.calls > 0 {
		return
	}
	sh.idle++
	if sh.entries.Len() > sh.capacity {
		sh.remove(e)
	}
}

func (sh *shard) len() int {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.entries.Len()
}

// entry returns the entry of key, which it makes if there is none, and makes
// it the youngest.
func (sh *shard) entry(key string) *entry {
	if e, ok := sh.entries.Get(key); ok {
		return e
	}
	if sh.entries.Len() >= sh.capacity && sh.idle > 0 {
		sh.evict()
	}
	e := &entry{key: strings.Clone(key)} // key may be a part of a message
	sh.entries.Add(e.key, e)
	sh.idle++
	return e
}

// evict removes an idle entry; there has to be one. It is the oldest of those
// it looks at that lose nothing, since their buckets are full again, and if
// there is none the oldest of all. What is kept becomes young, so that the next
// look goes on from there.
func (sh *shard) evict() {
	now := time.Since(sh.start)
	var oldest *entry // that is idle
	looks := min(maxLooks, sh.entries.Len())
	for i := 0; i < looks || oldest == nil; i++ {
		_, e, _ := sh.entries.GetOldest()
		if e.calls == 0 {
			if e.bucket.isFull(now) {
				sh.remove(e)
				return
			}
			if oldest == nil {
				oldest = e
			}
		}
		sh.entries.Get(e.key)
	}
	sh.remove(oldest)
}

// remove removes an idle entry.
func (sh *shard) remove(e *entry) {
	sh.entries.Remove(e.key)
	sh.idle--
}
