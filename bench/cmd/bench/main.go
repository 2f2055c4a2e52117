// Command bench measures every claim of package rows and prints a table of ratios.
//
//	go run ./cmd/bench [-quick] [-run PATTERN]
//
// It exits with 1 when a bar is not met and with 2 when it cannot measure at all. A row
// whose interval is wider than +-10 % says nothing, is measured once more for longer, and
// if it is still so wide counts as not measured: neither met nor failed.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/rows"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// config measures for about 4 s a row, and half a second if quick. A row that is measured
// again takes 2.5 times as long.
func config(quick bool) pairs.Config {
	if quick {
		return pairs.Config{Pairs: 41, Sample: 5 * time.Millisecond}
	}
	return pairs.Config{Pairs: 301, Sample: 6 * time.Millisecond}
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	quick := flags.Bool("quick", false, "measure for half a second a row, as CI does")
	pattern := flags.String("run", "", "measure only rows whose claim matches this regular expression")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintln(stderr, "bench: takes no arguments")
		return 2
	}
	match, err := regexp.Compile(*pattern)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	set, err := rows.New()
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	defer set.Close()
	var chosen []rows.Row
	for _, row := range set.Rows {
		if match.MatchString(row.Claim) {
			chosen = append(chosen, row)
		}
	}
	if len(chosen) == 0 {
		fmt.Fprintf(stderr, "bench: no claim matches %q\n", *pattern)
		return 2
	}
	return table(stdout, stderr, config(*quick), chosen)
}

// table measures the rows, prints them, and returns the exit code.
func table(stdout, stderr io.Writer, cfg pairs.Config, chosen []rows.Row) int {
	fmt.Fprintf(stdout, "%s %s/%s, %d CPUs; %d pairs a row, 95 %% intervals of the median; only ratios carry over\n\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cfg.Pairs)
	const format = "| %-36s | %-18s | %-4s | %-42s | %-15s | %-21s |\n"
	fmt.Fprintf(stdout, format, "claim", "ratio", "bar", "verdict", "allocations", "time / base")
	fmt.Fprintln(stdout, strings.Repeat("|---", 6)+"|")
	count := map[pairs.Verdict]int{}
	for _, row := range chosen {
		result, err := measure(cfg, row)
		if err != nil {
			fmt.Fprintf(stderr, "bench: measuring %s: %v\n", row.Claim, err)
			return 2
		}
		allocs := pairs.Allocs(row.Subject)
		verdict := result.Against(row.Bar)
		if allocs > row.MaxAllocs {
			verdict = pairs.NotMet
		}
		count[verdict]++
		fmt.Fprintf(stdout, format, row.Claim, result, fmt.Sprint(row.Bar), explain(verdict),
			fmt.Sprintf("%d (at most %d)", allocs, row.MaxAllocs), fmt.Sprint(short(result.Subject), " / ", short(result.Base)))
	}
	fmt.Fprintf(stdout, "\n%d met, %d not met, %d not measured\n",
		count[pairs.Met], count[pairs.NotMet], count[pairs.NotMeasured])
	if count[pairs.NotMet] > 0 {
		return 1
	}
	return 0
}

// measure measures once more, for longer, what the machine was too busy to tell.
func measure(cfg pairs.Config, row rows.Row) (pairs.Result, error) {
	result, err := pairs.Measure(cfg, row.Subject, row.Base)
	if err != nil || !result.Wide() {
		return result, err
	}
	cfg.Pairs += cfg.Pairs / 2
	return pairs.Measure(cfg, row.Subject, row.Base)
}

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
