package kek_test

import (
	"context"
	"testing"

	"github.com/keysidecar/keysidecar/kek"
)

func TestCallOf(t *testing.T) {
	check := func(ctx context.Context, priority kek.Priority, tenant string) {
		t.Helper()
		if p, got := kek.CallOf(ctx); p != priority || got != tenant {
			t.Errorf("CallOf = %s of %q, want %s of %q", p, got, priority, tenant)
		}
	}
	check(t.Context(), kek.UnsealMiss, "")
	check(kek.WithCall(t.Context(), 0, "acme"), kek.UnsealMiss, "acme")
	check(kek.WithCall(t.Context(), kek.Job+1, "acme"), kek.Job, "acme")
	for p := kek.Renewal; p <= kek.Job; p++ {
		check(kek.WithCall(t.Context(), p, "acme"), p, "acme")
	}
	outer := kek.WithCall(t.Context(), kek.Job, "acme")
	check(kek.WithCall(outer, kek.Renewal, "other"), kek.Renewal, "other")
	check(outer, kek.Job, "acme")
	if n := testing.AllocsPerRun(100, func() { kek.CallOf(outer) }); n != 0 {
		t.Errorf("CallOf allocates %v times", n)
	}
}

func TestPriorityOrder(t *testing.T) {
	names := []string{"renewal", "unseal miss", "seal miss", "mint ahead", "poll", "job", "priority(7)"}
	for i, want := range names {
		if p := kek.Renewal + kek.Priority(i); p.String() != want {
			t.Errorf("number %d is %q, want %q", p, p, want)
		}
	}
	if s := kek.Priority(0).String(); s != "priority(0)" {
		t.Errorf("zero is %q", s)
	}
}
