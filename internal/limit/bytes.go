package limit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
)

const (
	defaultShare = 0.5
	// maxSpare bounds the shares that are kept for keys to come.
	maxSpare = 256
)

// ErrTooMany is wrapped by what Acquire returns for more bytes than its key
// may ever have.
var ErrTooMany = errors.New("more bytes than one caller or tenant may have in flight")

// BytesConfig configures Bytes.
type BytesConfig struct {
	// Total is how many bytes may be in flight. At least 1: zero is refused.
	Total int64
	// Share is the largest part of Total for one key, rounded down, but at
	// least one byte. Zero means 0.5; 1 lets a key have everything.
	Share float64
}

// Bytes bounds the bytes in flight of all keys, and of each. Who comes when
// there is no room waits:
//
//   - Within a key, first come, first served.
//   - A key that has its share waits for itself alone.
//   - The others are ready: only room keeps them waiting. The one that has been
//     ready for longest reserves what is given back from then on, until that
//     and what is free anyway are enough. So a big request waits in front until
//     as many bytes as it needs have been given back, and no longer.
//   - All room that is free and not reserved goes to whoever fits into it, in
//     the order in which they became ready, and at once to a newcomer.
//
// A key never has more than its share, held and reserved together.
//
// There is state for the keys that hold bytes or wait for them, and for no
// others. Whoever holds bytes and waits for more may wait for itself, so a call
// should ask once, for all that it may need, and then shrink its Hold.
//
// Bytes is safe for concurrent use.
type Bytes struct {
	total  int64
	perKey int64

	mu       sync.Mutex
	used     int64
	shares   map[string]*share
	spare    []*share  // empty ones
	ready    list.List // of *waiter: the heads of their queues, within their shares
	reserved int64     // by the first of ready; less than it needs
}

// share is what a key has, and who waits for more.
type share struct {
	key   string
	used  int64
	queue list.List // of *waiter
}

// waiter waits for n bytes.
type waiter struct {
	s       *share
	n       int64
	inQueue *list.Element
	inReady *list.Element // nil while it is not ready
	granted chan struct{} // closed under mu
}

// NewBytes returns Bytes of which nothing is in use, or an error for a config
// out of range.
func NewBytes(cfg BytesConfig) (*Bytes, error) {
	if cfg.Total < 1 {
		return nil, fmt.Errorf("%d bytes in flight: not at least 1", cfg.Total)
	}
	if !(cfg.Share >= 0 && cfg.Share <= 1) {
		return nil, fmt.Errorf("share %v of the bytes in flight: not 0 to 1", cfg.Share)
	}
	if cfg.Share == 0 {
		cfg.Share = defaultShare
	}
	b := &Bytes{total: cfg.Total, perKey: cfg.Total, shares: make(map[string]*share)}
	if cfg.Share < 1 {
		b.perKey = max(1, int64(cfg.Share*float64(cfg.Total)))
	}
	return b, nil
}

// Acquire takes n bytes for key, and waits until they are there. The caller
// releases the Hold. The error wraps ErrTooMany if n is more than the share of
// a key, and ctx's error if ctx ends first; then nothing is taken. An n of 0
// never waits; below 0 it is an error.
//
// Acquire allocates nothing if it does not wait, except while far more keys
// than before are in use.
func (b *Bytes) Acquire(ctx context.Context, key string, n int64) (Hold, error) {
	if n < 0 || n > b.perKey {
		return Hold{}, b.refusal(key, n)
	}
	if err := ctx.Err(); err != nil {
		return Hold{}, fmt.Errorf("acquiring %d bytes for %q: %w", n, key, err)
	}
	h, w := b.take(key, n, true)
	if w == nil {
		return h, nil
	}
	select {
	case <-w.granted:
	case <-ctx.Done():
		if b.cancel(w) {
			return Hold{}, fmt.Errorf("waiting for room for %d bytes of %q: %w", n, key, ctx.Err())
		}
	}
	return Hold{b: b, s: w.s, n: n}, nil
}

// TryAcquire is Acquire for those who do not wait. It returns false where
// Acquire would wait or return an error.
func (b *Bytes) TryAcquire(key string, n int64) (Hold, bool) {
	if n < 0 {
		return Hold{}, false
	}
	h, _ := b.take(key, n, false)
	return h, n == 0 || h.b != nil
}

func (b *Bytes) refusal(key string, n int64) error {
	if n < 0 {
		return fmt.Errorf("acquiring %d bytes for %q: negative", n, key)
	}
	return fmt.Errorf("acquiring %d bytes for %q, at most %d: %w", n, key, b.perKey, ErrTooMany)
}

// InUse returns how many bytes are held.
func (b *Bytes) InUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// take returns a Hold if there is room, else with wait a waiter in its queue.
// A Hold of nothing is the zero Hold.
func (b *Bytes) take(key string, n int64, wait bool) (Hold, *waiter) {
	if n == 0 {
		return Hold{}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.share(key)
	switch {
	case s.queue.Len() == 0 && n <= b.perKey-s.used && n <= b.total-b.used-b.reserved:
		b.charge(s, n)
		return Hold{b: b, s: s, n: n}, nil
	case !wait:
		b.tidy(s)
		return Hold{}, nil
	}
	w := &waiter{s: s, n: n, granted: make(chan struct{})}
	w.inQueue = s.queue.PushBack(w)
	b.promote(s)
	return Hold{}, w
}

// share returns the share of key, which it makes if there is none.
func (b *Bytes) share(key string) *share {
	s, ok := b.shares[key]
	if ok {
		return s
	}
	if last := len(b.spare) - 1; last >= 0 {
		s, b.spare = b.spare[last], b.spare[:last]
	} else {
		s = new(share)
	}
	s.key = key
	b.shares[key] = s
	return s
}

// tidy removes s if nothing is held or waited for.
func (b *Bytes) tidy(s *share) {
	if s.used > 0 || s.queue.Len() > 0 {
		return
	}
	delete(b.shares, s.key)
	s.key = "" // it may be a part of a message
	if len(b.spare) < maxSpare {
		b.spare = append(b.spare, s)
	}
}

func (b *Bytes) charge(s *share, n int64) {
	s.used += n
	b.used += n
}

// giveBack returns n bytes of s.
func (b *Bytes) giveBack(s *share, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > s.used {
		panic("limit: internal error: bytes released twice")
	}
	b.charge(s, -n)
	if b.ready.Len() > 0 {
		b.reserved += n // settle grants the first its bytes before this is too much
	}
	b.settle(b.promote(s))
	b.tidy(s)
}

// cancel takes w out, or returns false because it has its bytes already.
func (b *Bytes) cancel(w *waiter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.inQueue == nil {
		return false
	}
	first := b.ready.Front()
	b.remove(w)
	added := b.promote(w.s)
	if b.ready.Front() != first { // what w had reserved is free
		added = b.ready.Front()
	}
	b.settle(added)
	b.tidy(w.s)
	return true
}

// remove takes w out of its lists, and gives up what it has reserved.
func (b *Bytes) remove(w *waiter) {
	w.s.queue.Remove(w.inQueue)
	w.inQueue = nil
	if w.inReady == nil {
		return
	}
	if b.ready.Front() == w.inReady {
		b.reserved = 0
	}
	b.ready.Remove(w.inReady)
}

// promote makes the head of s's queue ready, if it has become so, and returns
// its place, else nil. Once ready it stays so: only its own turn adds to s.
func (b *Bytes) promote(s *share) *list.Element {
	head := s.queue.Front()
	if head == nil {
		return nil
	}
	w := head.Value.(*waiter)
	if w.inReady != nil || w.n > b.perKey-s.used {
		return nil
	}
	w.inReady = b.ready.PushBack(w)
	return w.inReady
}

// settle grants what there is room for. Only the first of ready gains from
// bytes given back: as long as it has not enough, nothing has changed for the
// others. Then only added is looked at, which has just become the last of
// ready, or is nil. All are looked at only when the first leaves.
func (b *Bytes) settle(added *list.Element) {
	at := b.ready.Front()
	if at == nil {
		return
	}
	if !b.fits(at) {
		at = added
	}
	for at != nil {
		next := at.Next()
		if b.fits(at) {
			added := b.grant(at.Value.(*waiter))
			if next == nil {
				next = added
			}
		}
		at = next
	}
}

// grant gives w its bytes, and returns who is ready because w has left.
func (b *Bytes) grant(w *waiter) *list.Element {
	b.remove(w)
	b.charge(w.s, w.n)
	close(w.granted)
	return b.promote(w.s)
}

// fits reports whether there is room for a ready waiter.
func (b *Bytes) fits(at *list.Element) bool {
	room := b.total - b.used
	if at != b.ready.Front() {
		room -= b.reserved
	}
	return at.Value.(*waiter).n <= room
}

// Hold is bytes in use. The zero Hold holds nothing. A Hold has one owner: it
// is not for concurrent use, and of its copies only one may be used.
type Hold struct {
	b *Bytes
	s *share
	n int64
}

// Shrink gives back all but n bytes. It does nothing if the Hold has no more;
// n below 0 is 0.
func (h *Hold) Shrink(n int64) {
	n = max(0, n)
	if n >= h.n {
		return
	}
	gone := h.n - n
	h.n = n
	h.b.giveBack(h.s, gone)
}

// Release gives everything back. Again, it does nothing.
func (h *Hold) Release() { h.Shrink(0) }
