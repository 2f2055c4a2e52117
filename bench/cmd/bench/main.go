// Command bench measures every claim of the packages rows, audited and flood and prints a
// table of ratios.
//
//	go run ./cmd/bench [-quick] [-run PATTERN] [-keysidecar FILE] [-tcp]
//
// It exits with 1 when a bar is not met and with 2 when it cannot measure at all. A row
// whose interval is wider than +-10 % says nothing, is measured once more for longer, and
// if it is still so wide counts as not measured: neither met nor failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"github.com/keysidecar/keysidecar/bench/audited"
	"github.com/keysidecar/keysidecar/bench/flood"
	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/process"
	"github.com/keysidecar/keysidecar/bench/rows"
)

func main() {
	if flood.IsCaller() {
		if err := flood.RunCaller(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// quickSlack is what a measurement of half a second may be off.
const quickSlack = 1.1

// config measures for about 4 s a row, and half a second if quick. A row that is measured
// again takes 2.5 times as long.
func config(quick bool) pairs.Config {
	if quick {
		return pairs.Config{Pairs: 41, Sample: 5 * time.Millisecond}
	}
	return pairs.Config{Pairs: 301, Sample: 6 * time.Millisecond}
}

// floodConfig measures for one and a half to two and a half minutes, and a quarter of a
// minute if quick. Where that says nothing it goes on, for twice as long unless quick.
func floodConfig(quick bool) flood.Config {
	if quick {
		return flood.Config{Pairs: pairs.MinPairs, Calls: 250, Capacity: time.Second}
	}
	return flood.Config{Pairs: 31, More: 62, Calls: 1000, Capacity: 3 * time.Second}
}

// auditedConfig measures for two and a half minutes, and a sixth of a minute if quick. Where
// that says nothing it goes on, for twice as long unless quick.
func auditedConfig(quick bool) audited.Config {
	if quick {
		return audited.Config{Pairs: pairs.MinPairs, Half: 100 * time.Millisecond}
	}
	return audited.Config{Pairs: 60, More: 60, Half: 300 * time.Millisecond}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	quick := flags.Bool("quick", false, "measure for half a second a row, against bars a tenth higher, as CI does")
	pattern := flags.String("run", "", "measure only rows whose claim matches this regular expression")
	binary := flags.String("keysidecar", "", "measure this program, not one that is built for it")
	tcp := flags.Bool("tcp", false, "let callers prove who they are with certificates, also as root")
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
	var logs []audited.Claim
	for _, claim := range audited.Claims() {
		if match.MatchString(claim.Name) {
			logs = append(logs, claim)
		}
	}
	flooded := match.MatchString(flood.Claim)
	if len(chosen) == 0 && len(logs) == 0 && !flooded {
		fmt.Fprintf(stderr, "bench: no claim matches %q\n", *pattern)
		return 2
	}
	t := newTable(stdout)
	if *quick {
		t.slack = quickSlack
	}
	if err := t.measureRows(config(*quick), chosen); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if len(logs) > 0 || flooded {
		p := program{path: *binary, logs: logs, flooded: flooded, tcp: *tcp, quick: *quick}
		if err := p.measure(ctx, t); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 2
		}
	}
	return t.end()
}

// program is what is measured of the program keysidecar.
type program struct {
	path                string // empty: it is built
	logs                []audited.Claim
	flooded, tcp, quick bool
}

func (p *program) measure(ctx context.Context, t *table) (err error) {
	if p.path == "" {
		dir, mkErr := os.MkdirTemp("", "ksbench")
		if mkErr != nil {
			return mkErr
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		p.path = filepath.Join(dir, "keysidecar")
		if err := process.Build(ctx, p.path); err != nil {
			return err
		}
	}
	if len(p.logs) > 0 {
		cfg := auditedConfig(p.quick)
		cfg.Binary, cfg.Claims = p.path, p.logs
		if err := t.measureAudited(ctx, cfg); err != nil {
			return err
		}
	}
	if !p.flooded {
		return nil
	}
	cfg := floodConfig(p.quick)
	cfg.Binary, cfg.TCP = p.path, p.tcp
	return t.measureFlood(ctx, cfg)
}
