package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/bench/audited"
	"github.com/keysidecar/keysidecar/bench/flood"
	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/rows"
)

// table prints a row as soon as it is measured.
type table struct {
	out   io.Writer
	notes []string // for below
	count map[pairs.Verdict]int
	slack float64 // times a row's bar is what it has to reach
}

const rowFormat = "| %-44s | %-18s | %-5s | %-7s | %-42s | %-15s | %-21s |\n"

func newTable(out io.Writer) *table {
	fmt.Fprintf(out, "%s %s/%s, %d CPUs; 95 %% intervals of the median; only ratios carry over\n\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	fmt.Fprintf(out, rowFormat, "claim", "ratio", "pairs", "bar", "verdict", "allocations", "time / base")
	fmt.Fprintln(out, strings.Repeat("|---", 7)+"|")
	return &table{out: out, count: map[pairs.Verdict]int{}, slack: 1}
}

func (t *table) row(claim string, result pairs.Result, n int, bar string, v pairs.Verdict, allocs string) {
	t.count[v]++
	fmt.Fprintf(t.out, rowFormat, claim, result, fmt.Sprint(n), bar, explain(v), allocs,
		fmt.Sprint(short(result.Subject), " / ", short(result.Base)))
}

// end prints the sums, and returns the exit code.
func (t *table) end() int {
	for _, note := range t.notes {
		fmt.Fprintf(t.out, "\n%s\n", note)
	}
	fmt.Fprintf(t.out, "\n%d met, %d not met, %d not met as is known, %d not measured\n",
		t.count[pairs.Met], t.count[pairs.NotMet], t.count[audited.KnownMiss], t.count[pairs.NotMeasured])
	if t.count[pairs.NotMet] > 0 {
		return 1
	}
	return 0
}

func (t *table) measureRows(cfg pairs.Config, chosen []rows.Row) error {
	for _, row := range chosen {
		result, n, err := measure(cfg, row)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", row.Claim, err)
		}
		allocs := pairs.Allocs(row.Subject)
		verdict := result.Against(row.Bar * t.slack)
		if allocs > row.MaxAllocs {
			verdict = pairs.NotMet
		}
		t.row(row.Claim, result, n, atMost(row.Bar*t.slack), verdict, fmt.Sprintf("%d (at most %d)", allocs, row.MaxAllocs))
	}
	return nil
}

// measure measures once more, for longer, what the machine was too busy to tell.
func measure(cfg pairs.Config, row rows.Row) (result pairs.Result, n int, err error) {
	result, err = pairs.Measure(cfg, row.Subject, row.Base)
	if err != nil || !result.Wide() {
		return result, cfg.Pairs, err
	}
	cfg.Pairs += cfg.Pairs / 2
	result, err = pairs.Measure(cfg, row.Subject, row.Base)
	return result, cfg.Pairs, err
}

// measureFlood measures what an attacker does to a victim.
func (t *table) measureFlood(ctx context.Context, cfg flood.Config) error {
	result, err := flood.Measure(ctx, cfg)
	if err != nil {
		return fmt.Errorf("measuring %s: %w", flood.Claim, err)
	}
	t.row(flood.Claim, result.Result, len(result.Ratios), atMost(flood.Bar), result.Verdict(), "")
	t.notes = append(t.notes, result.String())
	return nil
}

// measureAudited measures what the audit log costs.
func (t *table) measureAudited(ctx context.Context, cfg audited.Config) error {
	results, note, err := audited.Measure(ctx, cfg)
	if err != nil {
		return fmt.Errorf("measuring the audit log: %w", err)
	}
	for _, r := range results {
		bar := atMost(r.Claim.Bar * t.slack)
		if r.Claim.Least {
			bar = atLeast(r.Claim.Bar / t.slack)
		}
		t.row(r.Claim.Name, r.Result, len(r.Ratios), bar, r.Verdict(t.slack), "")
	}
	if note != "" {
		t.notes = append(t.notes, note)
	}
	return nil
}

func atMost(bar float64) string { return fmt.Sprintf("%.3g", bar) }

func atLeast(bar float64) string { return fmt.Sprintf(">= %.3g", bar) }

func explain(v pairs.Verdict) string {
	if v == pairs.NotMeasured {
		return string(v) + " (interval wider than +-10 %)"
	}
	return string(v)
}

// short rounds d to three digits or so.
func short(d time.Duration) time.Duration {
	switch {
	case d < 10*time.Microsecond:
		return d.Round(10 * time.Nanosecond)
	case d < time.Millisecond:
		return d.Round(100 * time.Nanosecond)
	default:
		return d.Round(10 * time.Microsecond)
	}
}
