package auditcmd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/audit/export"
	"github.com/keysidecar/keysidecar/audit/record"
)

func (e *Env) export() *cobra.Command {
	var f exportFlags
	c := &cobra.Command{
		Use:   "export PATH... [--format jsonl|csv] [--tenant ID] [--verb VERB] [--caller NAME] [--from TIME] [--to TIME]",
		Short: "Write records of audit logs as JSON lines or CSV",
		Long: "export writes the records that have all that the flags ask for, in the order in which they come. JSON lines\n" +
			"are the log's own, byte for byte; in CSV no cell is a formula.\n" + e.PathHelp +
			"TIME is like 2026-11-22T09:30:00Z, or how long ago: 90m, 24h, 7d. Records about an interval, such as\n" +
			"counts, are of all of it.\n\n" +
			"Export verifies nothing: run audit verify first. Lines that are damaged are left out, and the exit code is 42.",
		Example: "  keysidecar audit export /var/lib/keysidecar-audit --format csv --tenant acme --from 30d > acme.csv",
		Args:    e.Paths,
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := f.config(time.Now())
			if err != nil {
				return e.Usage(err)
			}
			return e.Until(c.Context(), func() error { return e.runExport(args, cfg) })
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.format, "format", string(export.JSONL), "`jsonl|csv`")
	flags.StringVar(&f.tenant, "tenant", "", "tenant `ID`")
	flags.StringVar(&f.verb, "verb", "", "`verb`, as in policy.yaml")
	flags.StringVar(&f.caller, "caller", "", "`name` of the caller, as the policy has it")
	flags.StringVar(&f.kind, "kind", "", "`kind` of event: docs/audit-log.md has them")
	flags.StringVar(&f.class, "class", "", "`class`: keys, denials or data")
	flags.StringVar(&f.from, "from", "", "`time` of the first")
	flags.StringVar(&f.to, "to", "", "`time` before which the last is")
	return c
}

// exportFlags are the flags of audit export.
type exportFlags struct{ format, tenant, verb, caller, kind, class, from, to string }

// config checks what the flags say.
func (f *exportFlags) config(now time.Time) (export.Config, error) {
	cfg := export.Config{Filter: export.Filter{Tenant: f.tenant, Verb: f.verb, Caller: f.caller}}
	var err error
	parse := func(flag, text string, to func() error) {
		if text != "" && err == nil {
			if err = to(); err != nil {
				err = fmt.Errorf("%s: %w", flag, err)
			}
		}
	}
	parse("--format", f.format+" ", func() (err error) { cfg.Format, err = export.ParseFormat(f.format); return })
	parse("--kind", f.kind, func() (err error) { cfg.Filter.Kind, err = export.ParseKind(f.kind); return })
	parse("--class", f.class, func() (err error) { cfg.Filter.Class, err = record.ParseClass(f.class); return })
	parse("--from", f.from, func() (err error) { cfg.Filter.From, err = export.ParseTime(f.from, now); return })
	parse("--to", f.to, func() (err error) { cfg.Filter.To, err = export.ParseTime(f.to, now); return })
	if from, to := cfg.Filter.From, cfg.Filter.To; err == nil && !to.IsZero() && !from.Before(to) {
		err = fmt.Errorf("--from, %s, is not before --to, %s", instant(from), instant(to))
	}
	return cfg, err
}

func (e *Env) runExport(args []string, cfg export.Config) error {
	stats, err := export.Export(args, e.In, e.Out, cfg)
	if err != nil {
		return e.file(err)
	}
	if stats.Unknown > 0 {
		fmt.Fprintf(e.Err, "keysidecar: %d more records may be meant: their events were removed when their time was over\n", stats.Unknown)
	}
	if stats.Torn > 0 {
		fmt.Fprintf(e.Err, "keysidecar: %d unfinished lines were left out: they are being written, or a sidecar was killed\n", stats.Torn)
	}
	if stats.Damaged > 0 {
		return e.Found(fmt.Errorf("%d damaged lines were left out, the first of them %s", stats.Damaged, stats.First),
			"run: keysidecar audit verify")
	}
	return nil
}

func (e *Env) tail() *cobra.Command {
	var last uint
	var follow bool
	c := &cobra.Command{
		Use:   "tail PATH [-n N] [-f]",
		Short: "Show the last records of an audit log, and new ones as they come; verify nothing",
		Long: "tail shows the last records of an audit log in short lines, or as it has them with --output json.\n" + e.PathHelp +
			"With -f it goes on with new records, also those of new files, until it is interrupted. Of standard input it\n" +
			"then shows all.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return e.Usage(fmt.Errorf("argument %q is not expected", args[1]))
			}
			return e.Paths(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error { return e.runTail(c.Context(), args[0], last, follow) },
	}
	c.Flags().UintVarP(&last, "lines", "n", 20, "`number` of records, 100,000 at most")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new records")
	return c
}

// tailPoll is how often tail looks for new records.
const tailPoll = 250 * time.Millisecond

func (e *Env) runTail(ctx context.Context, path string, last uint, follow bool) error {
	if last > 100_000 {
		return e.Usage(fmt.Errorf("--lines is %d, over 100,000", last))
	}
	cfg := export.TailConfig{Path: path, Stdin: e.In, Last: int(last), Format: export.Text}
	if e.JSON() {
		cfg.Format = export.JSONL
	}
	if follow {
		ticker := time.NewTicker(tailPoll)
		defer ticker.Stop()
		cfg.Poll = ticker.C
	}
	err := e.Until(ctx, func() error {
		if err := export.Tail(ctx, e.Out, cfg); err != nil {
			return e.File(err)
		}
		return nil
	})
	if follow && ctx.Err() != nil {
		return nil // that is how it ends
	}
	return err
}
