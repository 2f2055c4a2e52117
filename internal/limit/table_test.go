package limit_test

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/internal/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTable(tb testing.TB, entries int) *limit.Table {
	tb.Helper()
	table, err := limit.New(limit.Config{Entries: entries})
	if err != nil {
		tb.Fatal(err)
	}
	return table
}

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func mustEnter(t *testing.T, table *limit.Table, key string, l limit.Limit) limit.Pass {
	t.Helper()
	p, wait, ok := table.Enter(key, l)
	if !ok || wait != 0 {
		t.Fatalf("Enter(%q, %+v) = wait %s, %t; want it to be let in", key, l, wait, ok)
	}
	return p
}

func mustRefuse(t *testing.T, table *limit.Table, key string, l limit.Limit, want time.Duration) {
	t.Helper()
	if p, wait, ok := table.Enter(key, l); ok || wait != want || p != (limit.Pass{}) {
		t.Fatalf("Enter(%q, %+v) = %v, wait %s, %t; want it refused for %s", key, l, p, wait, ok, want)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := limit.New(limit.Config{Entries: -1}); err == nil {
		t.Error("New takes a negative number of entries")
	}
}

// TestRefill checks rates whose tokens take a whole number of nanoseconds to
// the nanosecond, over many tokens.
func TestRefill(t *testing.T) {
	for _, tt := range []struct {
		l     limit.Limit
		burst int
		every time.Duration
	}{
		{limit.Limit{Rate: 1}, 1, time.Second},
		{limit.Limit{Rate: 1, Burst: 5}, 5, time.Second},
		{limit.Limit{Rate: 10}, 10, 100 * time.Millisecond},
		{limit.Limit{Rate: 0.1}, 1, 10 * time.Second},
		{limit.Limit{Rate: 2.5}, 3, 400 * time.Millisecond},
		{limit.Limit{Rate: 1000, Burst: 1}, 1, time.Millisecond},
		{limit.Limit{Rate: 1e6, Burst: 20}, 20, time.Microsecond},
		{limit.Limit{Rate: 1e9, Burst: 2}, 2, time.Nanosecond},
		{limit.Limit{Rate: 1.0 / (1 << 16), Burst: 2}, 2, (1 << 16) * time.Second},
	} {
		t.Run(fmt.Sprintf("%+v", tt.l), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(t, 0)
				for range 3 {
					for range tt.burst {
						mustEnter(t, table, "a", tt.l).Leave()
					}
					for range 100 {
						mustRefuse(t, table, "a", tt.l, tt.every)
						pass(tt.every / 3)
						mustRefuse(t, table, "a", tt.l, tt.every-tt.every/3)
						pass(tt.every - tt.every/3 - 1)
						if tt.every > 1 {
							mustRefuse(t, table, "a", tt.l, 1)
						}
						pass(1)
						mustEnter(t, table, "a", tt.l).Leave()
					}
					pass(time.Duration(tt.burst+3) * tt.every) // no more than a Burst is saved up
				}
			})
		})
	}
}

// TestAnyRate takes tokens at any rate as soon as they are there: after the
// Burst each comes exactly when it was said, and within a nanosecond of when
// it should: a Burst of 1 has no room for the rest of a nanosecond.
func TestAnyRate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate := rapid.OneOf(rapid.Float64Range(1e-6, 10), rapid.Float64Range(10, 1e9)).Draw(rt, "rate")
		l := limit.Limit{Rate: rate, Burst: rapid.IntRange(2, 2000).Draw(rt, "burst")}
		polls := rapid.IntRange(0, 2).Draw(rt, "polls")
		synctest.Test(t, func(t *testing.T) {
			if err := takeAtAnyRate(newTable(t, 1), l, polls); err != nil {
				rt.Error(err)
			}
		})
	})
}

func takeAtAnyRate(table *limit.Table, l limit.Limit, polls int) error {
	for i := range l.Burst {
		if wait, ok := table.Take("a", l); !ok {
			return fmt.Errorf("token %d of the burst has to wait for %s", i, wait)
		}
	}
	start := time.Now()
	for i := range 300 {
		due := math.Ceil(float64(i+1) / l.Rate * 1e9)
		wait, ok := table.Take("a", l)
		for range polls {
			if !ok && wait > 3 {
				pass(wait / 3)
				wait, ok = table.Take("a", l)
			}
		}
		if !ok {
			pass(wait)
			_, ok = table.Take("a", l)
		}
		d := float64(time.Since(start))
		if !ok || math.Abs(d-due) > due*1e-12+1 {
			return fmt.Errorf("token %d: taken %t after %.0f ns, due after %.0f", i, ok, d, due)
		}
	}
	return nil
}

func TestDefaultBurst(t *testing.T) {
	for rate, want := range map[float64]int{0.001: 1, 1: 1, 1.5: 2, 4: 4, 99.01: 100} {
		synctest.Test(t, func(t *testing.T) {
			table, l := newTable(t, 0), limit.Limit{Rate: rate}
			for range want {
				mustEnter(t, table, "a", l).Leave()
			}
			mustRefuse(t, table, "a", l, time.Duration(math.Ceil(1e9/rate)))
		})
	}
}

func TestSlots(t *testing.T) {
	table := newTable(t, 0)
	l := limit.Limit{Calls: 2}
	a, b := mustEnter(t, table, "a", l), mustEnter(t, table, "a", l)
	mustRefuse(t, table, "a", l, 0)
	mustEnter(t, table, "b", l)
	a.Leave()
	a = mustEnter(t, table, "a", l)
	mustRefuse(t, table, "a", l, 0)
	a.Leave()
	b.Leave()
	limit.Pass{}.Leave()
	if wait, ok := table.Take("a", limit.Limit{Calls: 1}); !ok || wait != 0 {
		t.Error("Take asks for a slot")
	}
}

// TestRefusedTakesNothing: neither a token where there is no slot, nor a slot
// where there is no token.
func TestRefusedTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, 0)
		l := limit.Limit{Rate: 1, Burst: 2, Calls: 1}
		p := mustEnter(t, table, "a", l)
		for range 5 {
			mustRefuse(t, table, "a", l, 0)
		}
		p.Leave()
		p = mustEnter(t, table, "a", l)
		mustRefuse(t, table, "a", l, 0) // neither a slot nor a token: it is the slots
		p.Leave()
		for range 5 {
			mustRefuse(t, table, "a", l, time.Second)
		}
		pass(time.Second)
		mustEnter(t, table, "a", l).Leave()
		mustRefuse(t, table, "a", l, time.Second)
	})
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, 0)
		none := limit.Limit{}
		a, b := mustEnter(t, table, "a", none), mustEnter(t, table, "a", none)
		mustRefuse(t, table, "a", limit.Limit{Calls: 2}, 0) // those let in without a limit count
		c := mustEnter(t, table, "a", limit.Limit{Calls: 3})
		mustRefuse(t, table, "a", limit.Limit{Calls: 1}, 0)
		a.Leave()
		b.Leave()
		mustRefuse(t, table, "a", limit.Limit{Calls: 1}, 0)
		c.Leave()

		// A new Rate: the tokens left stay, the next come at its pace.
		slow, fast := limit.Limit{Rate: 1, Burst: 4}, limit.Limit{Rate: 100, Burst: 4}
		for range 3 {
			mustEnter(t, table, "a", slow).Leave()
		}
		pass(500 * time.Millisecond) // 1.5 tokens
		mustEnter(t, table, "a", fast).Leave()
		mustRefuse(t, table, "a", fast, 5*time.Millisecond)
		mustRefuse(t, table, "a", slow, 500*time.Millisecond)
		pass(500 * time.Millisecond)
		mustEnter(t, table, "a", slow).Leave()

		// A larger Burst brings no tokens, a smaller one takes them.
		large := limit.Limit{Rate: 1, Burst: 100}
		mustRefuse(t, table, "a", large, time.Second)
		pass(50 * time.Second)
		small := limit.Limit{Rate: 1, Burst: 2}
		for range 2 {
			mustEnter(t, table, "a", small).Leave()
		}
		mustRefuse(t, table, "a", large, time.Second)

		// Without a Rate nothing is taken, and nobody starts again.
		mustEnter(t, table, "a", none).Leave()
		mustRefuse(t, table, "a", small, time.Second)
		// A first Rate finds a full bucket.
		mustEnter(t, table, "b", none).Leave()
		for range 2 {
			mustEnter(t, table, "b", small).Leave()
		}
		mustRefuse(t, table, "b", small, time.Second)
	})
}

func TestInvalidLimitLetsNothingThrough(t *testing.T) {
	table := newTable(t, 0)
	for _, l := range []limit.Limit{
		{Rate: math.NaN()}, {Rate: math.Inf(1)}, {Rate: math.Inf(-1)}, {Rate: -1}, {Rate: -math.SmallestNonzeroFloat64},
		{Burst: -1}, {Rate: 1, Burst: math.MinInt}, {Calls: -1}, {Rate: 1, Calls: math.MinInt},
	} {
		mustRefuse(t, table, "a", l, 0)
		if wait, ok := table.Take("a", l); ok || wait != 0 {
			t.Errorf("Take(%+v) = %s, %t; want it refused", l, wait, ok)
		}
	}
	if n := table.Len(); n != 0 {
		t.Errorf("%d entries made by refused calls", n)
	}
}

func TestExtremeLimits(t *testing.T) {
	rates := []float64{math.SmallestNonzeroFloat64, 1e-300, 1e-12, 1, 1e9, 1e12, 1e300, math.MaxFloat64}
	for _, rate := range rates {
		for _, burst := range []int{0, 1, 1000, math.MaxInt} {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(t, 0)
				l := limit.Limit{Rate: rate, Burst: burst, Calls: math.MaxInt}
				for range min(1000, max(1, burst)) {
					mustEnter(t, table, "a", l).Leave()
				}
				for _, next := range rates {
					wait, ok := table.Take("a", limit.Limit{Rate: next, Burst: burst})
					if wait < 0 || ok != (wait == 0) {
						t.Fatalf("rate %v burst %d, then rate %v: %s, %t", rate, burst, next, wait, ok)
					}
				}
				if _, ok := table.Take("a", l); burst == math.MaxInt && !ok {
					t.Fatalf("rate %v burst %d: used up", rate, burst)
				}
				pass(100 * time.Hour)
				if _, ok := table.Take("a", l); ok != (burst == math.MaxInt || rate >= 1) {
					t.Fatalf("rate %v burst %d: %t after a long time", rate, burst, ok)
				}
			})
		}
	}
}

// TestMonotonic: with a wall clock reading only, Since would follow a clock
// that is set.
func TestMonotonic(t *testing.T) {
	if start := newTable(t, 0).Start(); !strings.Contains(start.String(), " m=") {
		t.Errorf("start %s has no monotonic reading", start)
	}
}

// TestEviction: the key that has not been asked for longest goes, and comes
// back with a full bucket.
func TestEviction(t *testing.T) {
	table := newTable(t, 3)
	once := limit.Limit{Rate: 1e-9}
	for _, step := range []struct {
		key  string
		want bool
	}{
		{"a", true}, {"b", true}, {"c", true},
		{"a", false}, // to be refused is to be asked for
		{"d", true},  // in the place of b
		{"c", false}, {"a", false}, {"d", false},
		{"b", true}, // in the place of c
		{"a", false}, {"d", false},
		{"c", true}, // in the place of b
	} {
		if _, ok := table.Take(step.key, once); ok != step.want {
			t.Errorf("Take(%q) = %t, want %t", step.key, ok, step.want)
		}
	}
	if n := table.Len(); n != 3 {
		t.Errorf("%d entries, want 3", n)
	}
}

// TestInventedKeysDoNotLiftALimit: 50,000 keys whose buckets fill quickly go
// through a table of 10,000 again and again, and a key whose bucket is used up
// is still known.
func TestInventedKeysDoNotLiftALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, names := newTable(t, 0), benchNames(50_000)
		tight, loose := limit.Limit{Rate: 0.1, Burst: 10}, limit.Limit{Rate: 20_000}
		start, let := time.Now(), 0
		for i := range 3 * len(names) {
			for ok := i%12_000 == 0; ok; {
				if _, ok = table.Take("tight", tight); ok {
					let++
				}
			}
			table.Take(names[i%len(names)], loose)
			pass(50 * time.Microsecond)
		}
		if most := 10 + int(time.Since(start).Seconds()*tight.Rate); let > most {
			t.Errorf("%d calls in %s, at most %d", let, time.Since(start), most)
		}
	})
}

// TestEvictionLooks: a full bucket goes first, however old others are, but only
// 16 are looked at, and the next look goes on behind them.
func TestEvictionLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(t, 40)
		poor, quick := limit.Limit{Rate: 1e-9}, limit.Limit{Rate: 1e9}
		for i := range 32 {
			table.Take(fmt.Sprint("poor", i), poor)
		}
		for i := range 8 {
			table.Take(fmt.Sprint("quick", i), quick)
		}
		pass(time.Second)
		take := func(prefix string, i int, want bool) {
			if _, ok := table.Take(fmt.Sprint(prefix, i), poor); ok != want {
				t.Errorf("Take of %s%d = %t, want %t", prefix, i, ok, want)
			}
		}
		for i := range 10 { // two look at poor keys only, eight find a quick one
			take("new", i, true)
		}
		for i := range 32 {
			if i%16 > 0 {
				take("poor", i, false)
			}
		}
		for i := range 10 {
			take("new", i, false)
		}
		take("poor", 0, true)
		take("poor", 16, true)
	})
}

// TestKeyWithoutARateGoesFirst: it has no bucket to lose.
func TestKeyWithoutARateGoesFirst(t *testing.T) {
	table, once := newTable(t, 2), limit.Limit{Rate: 1e-9}
	mustEnter(t, table, "a", once).Leave()
	mustEnter(t, table, "b", limit.Limit{}).Leave()
	mustEnter(t, table, "c", once).Leave()
	for _, key := range []string{"a", "c"} {
		if _, ok := table.Take(key, once); ok {
			t.Errorf("%s was forgotten", key)
		}
	}
}

// TestInUseIsKept: while all entries have calls under way the table grows, and
// it shrinks as they end.
func TestInUseIsKept(t *testing.T) {
	table := newTable(t, 2)
	l := limit.Limit{Calls: 2, Rate: 1e-9, Burst: 2}
	var passes []limit.Pass
	for i := range 10 {
		passes = append(passes, mustEnter(t, table, fmt.Sprint(i), l), mustEnter(t, table, fmt.Sprint(i), l))
		if n := table.Len(); n != i+1 {
			t.Fatalf("%d entries, want %d", n, i+1)
		}
	}
	for i := range 10 {
		mustRefuse(t, table, fmt.Sprint(i), l, 0)
	}
	for range 3 { // one more while all are in use, each in the place of the one before
		if _, ok := table.Take("new", l); !ok || table.Len() != 11 {
			t.Fatalf("Take = %t with %d entries, want 11", ok, table.Len())
		}
		table.Take("other", l)
	}
	for i, p := range passes {
		p.Leave()
		if n, want := table.Len(), max(2, 11-(i+1)/2); n != want {
			t.Fatalf("%d entries after %d calls, want %d", n, i+1, want)
		}
	}
	if believed, counted := table.Idle(); believed != 2 || counted != 2 {
		t.Errorf("%d and %d idle entries, want 2", believed, counted)
	}
}

func TestLeaveTwicePanics(t *testing.T) {
	table := newTable(t, 0)
	p := mustEnter(t, table, "a", limit.Limit{})
	p.Leave()
	defer func() {
		if recover() == nil {
			t.Error("a call leaves twice")
		}
		mustEnter(t, table, "a", limit.Limit{Calls: 1}).Leave() // no lock is left behind
	}()
	p.Leave()
}

// TestShards: a table fills up before it forgets, and never holds too much.
func TestShards(t *testing.T) {
	for entries, shards := range map[int]int{1: 1, 511: 1, 512: 2, 1000: 3, 0: 16, 20_011: 16} {
		table := newTable(t, entries)
		if got := table.Shards(); got != shards {
			t.Errorf("%d entries: %d shards, want %d", entries, got, shards)
		}
		if entries == 0 {
			entries = 10_000
		}
		for i := range entries * 6 / 10 {
			mustEnter(t, table, fmt.Sprint(i), limit.Limit{}).Leave()
		}
		if got := table.Len(); got != entries*6/10 {
			t.Errorf("%d of %d keys are left", got, entries*6/10)
		}
		for i := range 3 * entries {
			table.Take(fmt.Sprint(i), limit.Limit{Rate: 1})
		}
		if got := table.Len(); got != entries {
			t.Errorf("%d entries of %d in a full table", got, entries)
		}
	}
}

func TestHugeTable(t *testing.T) {
	table := newTable(t, math.MaxInt)
	for i := range 100 {
		mustEnter(t, table, fmt.Sprint(i), limit.Limit{}).Leave()
	}
	if n := table.Len(); n != 100 {
		t.Errorf("%d entries, want 100", n)
	}
}

// mustFreeKey calls use with the key xxx, a part of something large, and checks
// that afterwards nothing keeps that alive.
func mustFreeKey(t *testing.T, use func(key string)) {
	t.Helper()
	const size = 32 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	use(strings.Repeat("x", size)[:3])
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+size/2 {
		t.Errorf("%d bytes more are in use", after.HeapAlloc-before.HeapAlloc)
	}
}

// TestKeyIsCopied: what a key is a part of is not kept alive.
func TestKeyIsCopied(t *testing.T) {
	table := newTable(t, 1)
	mustFreeKey(t, func(key string) { mustEnter(t, table, key, limit.Limit{Calls: 1}) })
	mustRefuse(t, table, "xxx", limit.Limit{Calls: 1}, 0)
}

func TestOr(t *testing.T) {
	defaults := limit.Limit{Rate: 1, Burst: 2, Calls: 3}
	for l, want := range map[limit.Limit]limit.Limit{
		{}:                              defaults,
		{Rate: 9}:                       {Rate: 9, Calls: 3},
		{Burst: 9}:                      {Rate: 1, Burst: 9, Calls: 3},
		{Calls: 9}:                      {Rate: 1, Burst: 2, Calls: 9},
		{Rate: 7, Burst: 8, Calls: 9}:   {Rate: 7, Burst: 8, Calls: 9},
		{Rate: -7, Burst: -8, Calls: 9}: {Rate: -7, Burst: -8, Calls: 9},
	} {
		if got := l.Or(defaults); got != want {
			t.Errorf("%+v.Or = %+v, want %+v", l, got, want)
		}
	}
}

// TestTableRace has many callers at once, more keys than entries, and limits
// that change. No key ever has more calls under way than the largest limit.
func TestTableRace(t *testing.T) {
	table := newTable(t, 4)
	var under [8]atomic.Int64
	var let atomic.Int64
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 2000 {
				k := (i*7 + worker) % len(under)
				l := limit.Limit{Calls: 1 + i%3, Rate: 1e6 * float64(1+i%2), Burst: 10_000}
				if i%5 == 0 {
					table.Take(fmt.Sprint(k), l)
					continue
				}
				p, _, ok := table.Enter(fmt.Sprint(k), l)
				if !ok {
					continue
				}
				let.Add(1)
				if n := under[k].Add(1); n > 3 {
					t.Errorf("%d calls of key %d under way, at most 3", n, k)
				}
				table.Len()
				under[k].Add(-1)
				p.Leave()
			}
		})
	}
	wg.Wait()
	believed, counted := table.Idle()
	if n := table.Len(); n > 4 || believed != n || counted != n {
		t.Errorf("%d entries of 4, idle %d, in truth %d", n, believed, counted)
	}
	if let.Load() == 0 {
		t.Error("nobody was let in")
	}
}

// TestBurstRace: together, those who ask at once get the Burst and no more.
func TestBurstRace(t *testing.T) {
	table := newTable(t, 0)
	var let atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if _, ok := table.Take("a", limit.Limit{Rate: 1e-6, Burst: 500}); ok {
					let.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := let.Load(); n != 500 {
		t.Errorf("%d tokens of 500", n)
	}
}
