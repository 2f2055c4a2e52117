package limit_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keysidecar/keysidecar/internal/limit"
)

// allowing is a limit with everything to count, that refuses nobody here.
func allowing() limit.Limit { return limit.Limit{Rate: 1e9, Burst: 1e9, Calls: 1000} }

func benchNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("tenant-%05d", i)
	}
	return names
}

func TestTableAllocatesNothing(t *testing.T) {
	table, names, i := newTable(t, 0), benchNames(100), 0
	call := func() {
		i++
		key, poor, busy := names[i%40], names[40+i%30], names[70+i%30]
		p, _, ok := table.Enter(key, allowing())
		if !ok {
			t.Error("refused")
		}
		p.Leave()
		table.Take(key, allowing())
		table.Take(poor, limit.Limit{Rate: 1e-9})
		if _, _, ok := table.Enter(poor, limit.Limit{Rate: 1e-9}); ok {
			t.Error("let in without a token")
		}
		table.Take(poor, limit.Limit{Rate: 1e-9 * float64(1+i%2)}) // a reload
		p, _, _ = table.Enter(busy, limit.Limit{Calls: 1})
		if _, _, ok := table.Enter(busy, limit.Limit{Calls: 1}); ok {
			t.Error("let in without a slot")
		}
		p.Leave()
	}
	for range names {
		call()
	}
	if n := testing.AllocsPerRun(1000, call); n != 0 {
		t.Errorf("a call allocates %v times", n)
	}
}

func TestBytesAllocateNothing(t *testing.T) {
	b, names, i := newBytes(t, 1<<20, 0.25), benchNames(300), 0
	call := func() {
		key := names[i%len(names)]
		i++
		h, err := b.Acquire(t.Context(), key, 1<<10)
		if err != nil {
			t.Error(err)
		}
		second, ok := b.TryAcquire(names[(i+7)%len(names)], 1<<10)
		if _, ok := b.TryAcquire(key, 1<<18); ok || b.InUse() != 2<<10 {
			t.Error("more than the share")
		}
		h.Shrink(100)
		h.Release()
		if second.Release(); !ok || b.InUse() != 0 {
			t.Error("no room")
		}
	}
	for range names {
		call()
	}
	if n := testing.AllocsPerRun(1000, call); n != 0 {
		t.Errorf("bytes without waiting cost %v allocations", n)
	}
}

func benchParallel(b *testing.B, keys int, call func(key string)) {
	names := benchNames(keys)
	for _, key := range names {
		call(key)
	}
	for _, parallel := range []bool{false, true} {
		b.Run(fmt.Sprintf("keys=%d/parallel=%t", keys, parallel), func(b *testing.B) {
			b.ReportAllocs()
			if !parallel {
				for i := 0; b.Loop(); i++ {
					call(names[i%keys])
				}
				return
			}
			var start atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(start.Add(1)) * 37; pb.Next(); i++ {
					call(names[i%keys])
				}
			})
		})
	}
}

func BenchmarkEnterLeave(b *testing.B) {
	for _, keys := range []int{1, 5000} {
		table := newTable(b, 0)
		benchParallel(b, keys, func(key string) {
			p, _, ok := table.Enter(key, allowing())
			if !ok {
				b.Error("refused")
			}
			p.Leave()
		})
	}
}

func BenchmarkRefused(b *testing.B) {
	table := newTable(b, 0)
	benchParallel(b, 1, func(key string) { table.Take(key, limit.Limit{Rate: 1e-9}) })
}

// BenchmarkNewKey is what a stranger costs a full table.
func BenchmarkNewKey(b *testing.B) {
	for _, busy := range []int{0, 9_000} {
		table, names := newTable(b, 10_000), benchNames(100_000)
		b.Run(fmt.Sprintf("busy=%d", busy), func(b *testing.B) {
			for i := range busy {
				table.Enter(fmt.Sprint("busy", i), limit.Limit{})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				table.Take(names[i%len(names)], allowing())
			}
		})
	}
	b.Run("none=full", func(b *testing.B) {
		table, names := newTable(b, 10_000), benchNames(100_000)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			table.Take(names[i%len(names)], limit.Limit{Rate: 1e-9})
		}
	})
}

// BenchmarkBytesCrowd is what giving back costs while thousands of keys wait.
func BenchmarkBytesCrowd(b *testing.B) {
	bytes := newBytes(b, 1<<40, 1)
	h, err := bytes.Acquire(b.Context(), "holder", 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for i := range 5000 {
		wg.Go(func() {
			if h, err := bytes.Acquire(ctx, fmt.Sprint(i), 1<<39); err == nil {
				h.Release()
			}
		})
	}
	for bytes.Keys() <= 5000 {
		runtime.Gosched()
	}
	for n := int64(1)<<40 - 1; b.Loop(); n-- {
		h.Shrink(n)
	}
	cancel()
	wg.Wait()
}

func BenchmarkBytes(b *testing.B) {
	for _, keys := range []int{1, 5000} {
		bytes := newBytes(b, 1<<30, 0.25)
		benchParallel(b, keys, func(key string) {
			h, ok := bytes.TryAcquire(key, 1<<20)
			if !ok {
				b.Error("no room")
			}
			h.Shrink(1 << 10)
			h.Release()
		})
	}
}
