package limit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/internal/limit"
)

func newBytes(tb testing.TB, total int64, share float64) *limit.Bytes {
	tb.Helper()
	b, err := limit.NewBytes(limit.BytesConfig{Total: total, Share: share})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func mustHold(t *testing.T, b *limit.Bytes, key string, n int64) *limit.Hold {
	t.Helper()
	h, err := b.Acquire(t.Context(), key, n)
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

// A request is an Acquire that may be waiting. Only the goroutine that makes
// it writes to it, and synctest.Wait comes before it is read.
type request struct {
	hold   limit.Hold
	err    error
	done   bool
	cancel context.CancelFunc
}

// ask makes a request in a bubble and returns when it is done or waits.
func ask(b *limit.Bytes, key string, n int64) *request {
	ctx, cancel := context.WithCancel(context.Background())
	r := &request{cancel: cancel}
	go func() {
		r.hold, r.err = b.Acquire(ctx, key, n)
		r.done = true
	}()
	synctest.Wait()
	return r
}

func mustWait(t *testing.T, rs ...*request) {
	t.Helper()
	synctest.Wait()
	for i, r := range rs {
		if r.done {
			t.Fatalf("request %d is done with %v, want it to wait", i, r.err)
		}
	}
}

func mustHave(t *testing.T, rs ...*request) {
	t.Helper()
	synctest.Wait()
	for i, r := range rs {
		if !r.done || r.err != nil {
			t.Fatalf("request %d: done %t, %v; want it to have its bytes", i, r.done, r.err)
		}
	}
}

func release(rs ...*request) {
	for _, r := range rs {
		r.hold.Release()
		r.cancel()
	}
	synctest.Wait()
}

// mustBeEmpty checks that nothing is left behind.
func mustBeEmpty(t *testing.T, b *limit.Bytes) {
	t.Helper()
	if n, keys, reserved := b.InUse(), b.Keys(), b.Reserved(); n != 0 || keys != 0 || reserved != 0 {
		t.Errorf("%d bytes in use, %d keys, %d bytes reserved; want none", n, keys, reserved)
	}
}

func TestNewBytesRefuses(t *testing.T) {
	for _, cfg := range []limit.BytesConfig{
		{}, {Total: -1}, {Total: math.MinInt64}, {Share: 1}, {Total: 1, Share: -0.1}, {Total: 1, Share: 1.1},
		{Total: 1, Share: math.NaN()}, {Total: 1, Share: math.Inf(1)}, {Total: 1, Share: math.Inf(-1)},
	} {
		if b, err := limit.NewBytes(cfg); err == nil || b != nil {
			t.Errorf("NewBytes(%+v) = %v, %v", cfg, b, err)
		}
	}
}

func TestShareOfAKey(t *testing.T) {
	for _, tt := range []struct {
		total int64
		share float64
		want  int64
	}{
		{100, 0, 50},
		{100, 0.25, 25},
		{10, 0.29, 2},
		{100, 1, 100},
		{1, 0.5, 1},
		{100, math.SmallestNonzeroFloat64, 1},
		{math.MaxInt64, 1, math.MaxInt64},
		{math.MaxInt64, math.Nextafter(1, 0), 1<<63 - 1<<10},
	} {
		b := newBytes(t, tt.total, tt.share)
		h := mustHold(t, b, "a", tt.want)
		if got := b.InUse(); got != tt.want {
			t.Errorf("%d bytes in use, want %d", got, tt.want)
		}
		if _, ok := b.TryAcquire("a", 1); ok {
			t.Errorf("%d of %d: more than the share", tt.want, tt.total)
		}
		if _, ok := b.TryAcquire("a", tt.want); ok {
			t.Errorf("%d of %d: twice the share", tt.want, tt.total)
		}
		h.Release()
		if tt.want < math.MaxInt64 {
			_, err := b.Acquire(t.Context(), "a", tt.want+1)
			if !errors.Is(err, limit.ErrTooMany) || !strings.Contains(err.Error(), fmt.Sprint(tt.want)) {
				t.Errorf("over the share of %d: %v", tt.want, err)
			}
		}
		mustBeEmpty(t, b)
	}
}

func TestOddAmounts(t *testing.T) {
	b := newBytes(t, 10, 0.5)
	for _, n := range []int64{-1, math.MinInt64} {
		if _, err := b.Acquire(t.Context(), "a", n); err == nil || errors.Is(err, limit.ErrTooMany) {
			t.Errorf("Acquire(%d): %v", n, err)
		}
		if _, ok := b.TryAcquire("a", n); ok {
			t.Errorf("TryAcquire(%d) takes it", n)
		}
	}
	if _, ok := b.TryAcquire("a", math.MaxInt64); ok {
		t.Error("TryAcquire takes all there is")
	}
	full := mustHold(t, b, "a", 5)
	none := mustHold(t, b, "a", 0) // there is always room for nothing
	if _, ok := b.TryAcquire("a", 0); !ok {
		t.Error("TryAcquire(0) is refused")
	}
	none.Shrink(0)
	none.Release()
	full.Release()
	mustBeEmpty(t, b)
}

func TestHold(t *testing.T) {
	b := newBytes(t, 10, 1)
	h := mustHold(t, b, "a", 9)
	for _, step := range []struct{ shrink, want int64 }{{9, 9}, {10, 9}, {math.MaxInt64, 9}, {7, 7}, {8, 7}, {1, 1}, {-5, 0}, {3, 0}} {
		h.Shrink(step.shrink)
		if got := b.InUse(); got != step.want {
			t.Errorf("%d bytes in use after Shrink(%d), want %d", got, step.shrink, step.want)
		}
	}
	again := mustHold(t, b, "b", 4) // in what a had
	h.Release()
	h.Release()
	if got := b.InUse(); got != 4 {
		t.Errorf("%d bytes in use, want 4: Release gives back what is another's", got)
	}
	again.Release()
	again.Release()
	new(limit.Hold).Shrink(3)
	new(limit.Hold).Release()
	mustBeEmpty(t, b)
}

func TestReleasedCopyPanics(t *testing.T) {
	b := newBytes(t, 10, 1)
	h := mustHold(t, b, "a", 2)
	clone := *h
	h.Release()
	defer func() {
		if recover() == nil {
			t.Error("bytes are released twice")
		}
		mustBeEmpty(t, b)
	}()
	clone.Release()
}

func TestFIFOWithinAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 10, 0.5)
		held := ask(b, "a", 4)
		big, small := ask(b, "a", 2), ask(b, "a", 1) // small would fit
		mustWait(t, big, small)
		if _, ok := b.TryAcquire("a", 1); ok {
			t.Error("TryAcquire passes those who wait")
		}
		held.hold.Shrink(3)
		mustHave(t, big)
		mustWait(t, small)
		release(held)
		mustHave(t, small)
		release(big, small)
		mustBeEmpty(t, b)
	})
}

// TestNoHeadOfLineBlocking: neither a key that has its share nor a request that
// does not fit keeps others from room that is free.
func TestNoHeadOfLineBlocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 10, 0.5)
		a := ask(b, "a", 5)
		atShare := ask(b, "a", 1)
		mustWait(t, atShare)
		c := ask(b, "c", 2)
		tooBig := ask(b, "d", 4) // 3 are free
		mustWait(t, tooBig)
		e := ask(b, "e", 3)
		mustHave(t, a, c, e)
		release(c, e)
		mustHave(t, tooBig)
		release(a)
		mustHave(t, atShare)
		release(atShare, tooBig)
		mustBeEmpty(t, b)
	})
}

// TestBigRequestIsNotStarved: however many small ones come, a big one has its
// bytes as soon as as many have been given back since it was first.
func TestBigRequestIsNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 100, 0.5)
		var small []*request
		for i := range 100 {
			small = append(small, ask(b, fmt.Sprint(i), 1))
		}
		mustHave(t, small...)
		first, second := ask(b, "first", 50), ask(b, "second", 30)
		var late []*request
		for i := range 50 {
			mustWait(t, first)
			if r := b.Reserved(); r != int64(i) {
				t.Fatalf("%d bytes reserved, want %d", r, i)
			}
			late = append(late, ask(b, fmt.Sprint("late", i), 1))
			if _, ok := b.TryAcquire("newcomer", 1); ok {
				t.Fatal("a newcomer takes what is reserved")
			}
			release(small[i])
		}
		mustHave(t, first)
		mustWait(t, append(late, second)...)
		release(small[50:80]...)
		mustHave(t, second)
		mustWait(t, late...)
		release(first)
		mustHave(t, late...)
		release(append(append(late, second), small[80:]...)...)
		mustBeEmpty(t, b)
	})
}

// TestFreeRoomIsForAll: what was free when the first one began to wait is for
// others, until they give it back.
func TestFreeRoomIsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 100, 0.5)
		a, c := ask(b, "a", 50), ask(b, "c", 40)
		big := ask(b, "big", 50)
		d := ask(b, "d", 6)
		behind := ask(b, "d", 6)
		mustHave(t, a, c, d)
		mustWait(t, big, behind)
		e := ask(b, "e", 4)
		mustHave(t, e)
		release(e)
		if r := b.Reserved(); r != 4 {
			t.Errorf("%d bytes reserved, want 4", r)
		}
		if _, ok := b.TryAcquire("e", 1); ok {
			t.Error("a newcomer takes what is reserved")
		}
		release(d)
		mustWait(t, big, behind)
		c.hold.Shrink(1) // 49 are free, and 40 needed
		mustWait(t)
		if b.Reserved() != 49 {
			t.Errorf("%d bytes reserved, want 49", b.Reserved())
		}
		c.hold.Shrink(0)
		mustHave(t, big)
		mustWait(t, behind)
		release(a)
		mustHave(t, behind)
		release(big, behind)
		mustBeEmpty(t, b)
	})
}

// TestHugeAmounts: sums that are more than an int64 are no reason to be ready.
func TestHugeAmounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, math.MaxInt64, 1)
		a, a2 := ask(b, "a", math.MaxInt64), ask(b, "a", math.MaxInt64)
		mustHave(t, a)
		c := ask(b, "c", 2)
		mustWait(t, a2, c)
		a.hold.Shrink(math.MaxInt64 - 1)
		if _, ok := b.TryAcquire("d", 1); ok {
			t.Error("a newcomer takes what is reserved")
		}
		a.hold.Shrink(math.MaxInt64 - 2)
		mustHave(t, c)
		release(a)
		mustWait(t, a2)
		release(c)
		mustHave(t, a2)
		release(a2)
		mustBeEmpty(t, b)
	})
}

// TestReadyAgain: a key that was at its share lines up behind those who were
// ready before.
func TestReadyAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 10, 0.5)
		a, c := ask(b, "a", 5), ask(b, "c", 5)
		a2 := ask(b, "a", 5) // has to wait for itself
		d := ask(b, "d", 3)
		a.hold.Shrink(0)
		mustHave(t, d)
		mustWait(t, a2)
		release(c)
		mustHave(t, a2)
		release(a, a2, d)
		mustBeEmpty(t, b)
	})
}

func TestCancel(t *testing.T) {
	for _, name := range []string{"first", "head of its key", "last of its key", "at its share"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBytes(t, 10, 0.5)
				a, c := ask(b, "a", 5), ask(b, "c", 4)
				first, behindFirst := ask(b, "d", 5), ask(b, "d", 1)
				second, behindSecond := ask(b, "e", 3), ask(b, "e", 2)
				atShare := ask(b, "a", 1)
				c.hold.Shrink(1) // 1 is free, and 3 reserved
				mustWait(t, first, behindFirst, second, behindSecond, atShare)
				gone := map[string]*request{
					"first": first, "head of its key": second, "last of its key": behindSecond, "at its share": atShare,
				}[name]
				gone.cancel()
				synctest.Wait()
				if !gone.done || !errors.Is(gone.err, context.Canceled) || gone.hold != (limit.Hold{}) {
					t.Fatalf("cancelled: done %t, %v", gone.done, gone.err)
				}
				switch name {
				case "first": // 4 are free: 3 for e, and 1 for d's next
					mustHave(t, second, behindFirst)
					mustWait(t, behindSecond, atShare)
				default:
					mustWait(t, first, behindFirst)
				}
				for _, r := range []*request{a, c, first, second, behindFirst, behindSecond, atShare} {
					release(r)
				}
				synctest.Wait()
				for _, r := range []*request{first, second, behindFirst, behindSecond, atShare} {
					if r != gone {
						mustHave(t, r)
					}
					release(r)
				}
				mustBeEmpty(t, b)
			})
		})
	}
}

// TestCancelFreesTheReservation for all, also if whoever is first then has no
// use for it yet.
func TestCancelFreesTheReservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 10, 0.5)
		a, c := ask(b, "a", 5), ask(b, "c", 5)
		first, second, small := ask(b, "d", 5), ask(b, "e", 5), ask(b, "f", 2)
		c.hold.Shrink(2) // 3 are free, and reserved
		mustWait(t, first, second, small)
		first.cancel()
		mustHave(t, small)
		mustWait(t, second)
		release(a)
		mustHave(t, second)
		release(c, second, small)
		mustBeEmpty(t, b)
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBytes(t, 10, 1)
		h := mustHold(t, b, "a", 10)
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := b.Acquire(ctx, "c", 1)
		if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d != 250*time.Millisecond {
			t.Errorf("after %s: %v", d, err)
		}
		h.Release()
		if _, err := b.Acquire(ctx, "c", 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a context that has ended: %v", err)
		}
		mustBeEmpty(t, b)
	})
}

// endingContext ends when it is first waited for, just after calling ending.
type endingContext struct {
	context.Context
	cancel context.CancelFunc
	ending func()
}

func (c *endingContext) Done() <-chan struct{} {
	c.ending()
	c.cancel()
	return c.Context.Done()
}

// TestGrantedWins: who has been given bytes has them, even if the context ends
// at the same time.
func TestGrantedWins(t *testing.T) {
	for range 100 { // select takes either
		b := newBytes(t, 10, 1)
		held := mustHold(t, b, "a", 10)
		ctx, cancel := context.WithCancel(t.Context())
		h, err := b.Acquire(&endingContext{ctx, cancel, held.Release}, "c", 4)
		if err != nil || b.InUse() != 4 {
			t.Fatalf("%v, %d bytes in use", err, b.InUse())
		}
		h.Release()
		mustBeEmpty(t, b)
	}
}

// TestCancelRace: a context that ends while its bytes are granted leaves
// nothing behind, and what it does not take goes to the next.
func TestCancelRace(t *testing.T) {
	for range 2000 {
		b := newBytes(t, 2, 0.5)
		h, other := mustHold(t, b, "a", 1), mustHold(t, b, "c", 1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if h, err := b.Acquire(ctx, "a", 1); err == nil {
				h.Release()
			}
		})
		wg.Go(func() { mustHold(t, b, "a", 1).Release() })
		wg.Go(cancel)
		wg.Go(h.Release)
		wg.Wait()
		other.Release()
		mustBeEmpty(t, b)
	}
}

// TestBytesRace has many goroutines of few keys take all kinds of amounts, and
// give up. Neither Total nor a share is ever passed, and nothing is lost.
func TestBytesRace(t *testing.T) {
	const total, share = 1000, 250
	b := newBytes(t, total, 0.25)
	var held atomic.Int64
	var heldBy [6]atomic.Int64
	add := func(k int, n int64) {
		if all := held.Add(n); all > total {
			t.Errorf("%d bytes in use of %d", all, total)
		}
		if own := heldBy[k].Add(n); own > share {
			t.Errorf("%d bytes in use of key %d, at most %d", own, k, share)
		}
	}
	var wg sync.WaitGroup
	for worker := range 24 {
		wg.Go(func() {
			for range 500 {
				raceStep(t, b, worker%len(heldBy), rand.Int64N(share)+1, add)
			}
		})
	}
	wg.Wait()
	mustBeEmpty(t, b)
}

func raceStep(t *testing.T, b *limit.Bytes, k int, n int64, add func(k int, n int64)) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(100))*time.Microsecond)
	defer cancel()
	if rand.IntN(2) == 0 {
		ctx = context.Background()
	}
	h, err := b.Acquire(ctx, fmt.Sprint(k), n)
	if err != nil {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		return
	}
	add(k, n)
	if all := b.InUse(); all > 1000 || all < n {
		t.Errorf("%d bytes in use, %d of them ours", all, n)
	}
	if rand.IntN(2) == 0 {
		add(k, n/2-n)
		h.Shrink(n / 2)
		n /= 2
	}
	add(k, -n)
	h.Release()
}

// TestReleasedKeyIsForgotten, though its share is kept for another.
func TestReleasedKeyIsForgotten(t *testing.T) {
	b := newBytes(t, 10, 1)
	mustFreeKey(t, func(key string) { mustHold(t, b, key, 5).Release() })
	if b.Spare() != 1 {
		t.Errorf("%d spare shares, want 1", b.Spare())
	}
}

// TestSpareIsBounded: the peak of keys does not stay in memory.
func TestSpareIsBounded(t *testing.T) {
	b := newBytes(t, 10_000, 1)
	var hs []*limit.Hold
	for i := range 10_000 {
		hs = append(hs, mustHold(t, b, fmt.Sprint(i), 1))
	}
	if n := b.Keys(); n != 10_000 {
		t.Errorf("%d keys", n)
	}
	for _, h := range hs {
		h.Release()
	}
	mustBeEmpty(t, b)
	if n := b.Spare(); n == 0 || n > 256 {
		t.Errorf("%d spare shares", n)
	}
}
