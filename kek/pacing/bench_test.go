package pacing_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

// fast lets through whatever a test can ask for.
func fast() pacing.Config { return pacing.Config{Quota: 1e12, FleetSize: 1} }

func TestUncontendedAllocatesNothing(t *testing.T) {
	p := newPacer(t, fast())
	ctx, stop := context.WithTimeout(kek.WithCall(t.Context(), kek.UnsealMiss, "acme"), time.Hour)
	defer stop()
	call := func() {
		if err := p.Wait(ctx, kv); err != nil {
			t.Error(err)
		}
		p.Answered(kv, false, 0)
	}
	if n := testing.AllocsPerRun(1000, call); n != 0 {
		t.Errorf("a call that does not wait allocates %v times", n)
	}
}

// TestConcurrentUse is for the race detector: calls of all kinds, in real time,
// that wait, leave, are refused and forgotten.
func TestConcurrentUse(t *testing.T) {
	p := newPacer(t, pacing.Config{Quota: 4000, Queue: 8, Vaults: 3, CallTime: time.Nanosecond, Random: func() float64 { return 0.5 }})
	var calls sync.WaitGroup
	for i := range 32 {
		calls.Go(func() {
			for n := range 100 {
				vault := fmt.Sprint(n % (3 + i%3))
				patience := time.Duration(1+(i*n)%7) * time.Millisecond
				ctx, stop := context.WithTimeout(kek.WithCall(t.Context(), kek.Priority(1+(i+n)%6), fmt.Sprint(i%5)), patience)
				if (i+n)%11 == 0 {
					time.AfterFunc(patience/2, stop)
				}
				err := p.Wait(ctx, vault)
				if e, ok := errors.AsType[*kek.Error](err); err != nil && (!ok || e.Vault != vault) {
					t.Errorf("Wait = %v", err)
				}
				if err == nil {
					p.Answered(vault, n%50 == 49, time.Duration(n%50/49)*time.Millisecond)
				}
				if n%10 == 0 {
					p.Charge(vault, 1)
					p.Stats()
				}
				stop()
			}
		})
	}
	calls.Wait()
	for _, v := range p.Stats().Vaults {
		if v.Waiting != [kek.Job + 1]int{} {
			t.Errorf("waiting in the end: %v", v.Waiting)
		}
	}
}

func BenchmarkUncontended(b *testing.B) {
	p := newPacer(b, fast())
	ctx := kek.WithCall(b.Context(), kek.UnsealMiss, "acme")
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Wait(ctx, kv); err != nil {
			b.Fatal(err)
		}
		p.Answered(kv, false, 0)
	}
}

// BenchmarkRefused is what a call costs that is too late, or one too many, while
// 256 tenants wait and the places of 256 others are kept.
func BenchmarkRefused(b *testing.B) {
	p := newPacer(b, pacing.Config{Quota: 1e-3})
	ctx, stop := context.WithCancel(b.Context())
	var calls sync.WaitGroup
	for i := range 257 {
		calls.Go(func() { p.Wait(kek.WithCall(ctx, kek.UnsealMiss, fmt.Sprint("waits-", i)), kv) })
	}
	soon, end := context.WithTimeout(b.Context(), time.Hour)
	var tenants []context.Context
	for i := range 300 {
		tenants = append(tenants, kek.WithCall(soon, kek.UnsealMiss, fmt.Sprint("tenant-", i)))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if p.Wait(tenants[i%len(tenants)], kv) == nil {
			b.Fatal("let through")
		}
	}
	end()
	stop()
	calls.Wait()
}

// BenchmarkTurn is what a turn costs while 64 callers wait.
func BenchmarkTurn(b *testing.B) {
	p := newPacer(b, pacing.Config{Quota: 1e6, FleetSize: 1})
	b.SetParallelism(64)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := p.Wait(b.Context(), kv); err != nil {
				b.Error(err)
			}
		}
	})
}
