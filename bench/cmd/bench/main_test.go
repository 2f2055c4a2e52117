package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/rows"
)

// work burns n rounds of CPU.
func work(n int) func() {
	x := uint64(1)
	return func() {
		for range n {
			x = x*6364136223846793005 + 1442695040888963407
		}
	}
}

func TestTable(t *testing.T) {
	var sink []byte
	leak := func() { sink = make([]byte, 100); work(10_000)() }
	base := work(10_000)
	for _, tt := range []struct {
		row  rows.Row
		code int
		want string
	}{
		{rows.Row{Claim: "same", Subject: work(10_000), Base: base, Bar: 2}, 0, "1 met, 0 not met, 0 not met as is known, 0 not measured"},
		{rows.Row{Claim: "slow", Subject: work(40_000), Base: base, Bar: 2}, 1, "0 met, 1 not met, 0 not met as is known, 0 not measured"},
		{rows.Row{Claim: "leak", Subject: leak, Base: base, Bar: 2}, 1, "0 met, 1 not met, 0 not met as is known, 0 not measured"},
	} {
		var out bytes.Buffer
		cfg := pairs.Config{Pairs: 61, Sample: time.Millisecond}
		table := newTable(&out)
		err := table.measureRows(cfg, []rows.Row{tt.row})
		if code := table.end(); err != nil || code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: exit code %d, %v, want %d and %q:\n%s", tt.row.Claim, code, err, tt.code, tt.want, &out)
		}
	}
	_ = sink
}

// A bar that is the least is told apart from one that is the greatest.
func TestBars(t *testing.T) {
	for _, tt := range []struct {
		bar  string
		want string
	}{{atMost(1.15), "| 1.15    |"}, {atLeast(5), "| >= 5    |"}, {atLeast(5 / 1.1), "| >= 4.55 |"}} {
		var out bytes.Buffer
		newTable(&out).row("claim", pairs.Result{}, 11, tt.bar, pairs.Met, "")
		if !strings.Contains(out.String(), tt.want) {
			t.Errorf("no %q in\n%s", tt.want, &out)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{"-nonsense"}, {"argument"}, {"-run", "("}, {"-run", "no such row"}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("run(%q) = %d, wrote %q", args, code, &errs)
		}
	}
}
