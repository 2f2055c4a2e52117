package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/audit/export"
	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/reconcile"
)

// reconcileFlags are the flags of audit reconcile.
type reconcileFlags struct {
	vaultLogs        []string
	identities, keks []string
	tolerance        time.Duration
	fromText, toText string
}

func (a *app) auditReconcile() *cobra.Command {
	var f reconcileFlags
	c := &cobra.Command{
		Use:   "reconcile PATH... --vault-log FILE|DIR|- [--kek URL] [--identity ID] [--from TIME] [--to TIME]",
		Short: "Compare audit logs with Azure Key Vault's own logs: who else uses the KEKs",
		Long: "reconcile compares, offline, what sidecars recorded of their KEKs with what Azure Key Vault logged\n" +
			"(category AuditEvent): each key that was wrapped, proved or unwrapped, and each log that was certified,\n" +
			"has one request there. " + pathHelp + "\n" +
			"Run audit verify first: reconcile believes what the audit logs say. docs/reconcile.md tells how to\n" +
			"export Key Vault's logs, and what cannot be seen.\n\n" +
			"Exit codes: 0 all match; 1 a use of a KEK is too near to an end of the audit logs to tell, or outside of\n" +
			"them, or the logs do not cover --from to --to: try again with more of them; 42 something differs, could\n" +
			"not be read, or there was nothing to compare.",
		Example: "  keysidecar audit reconcile /var/log/keysidecar --vault-log insights-logs-auditevent \\\n" +
			"    --identity 6f0e4e1c-91a5-4c0b-9c5e-6a6d3d3f2b11 --from 2026-11-21T00:00:00Z --to 2026-11-22T00:00:00Z",
		Args: paths,
		RunE: func(c *cobra.Command, args []string) error {
			return until(c.Context(), func() error { return a.runReconcile(&f, args) })
		},
	}
	flags := c.Flags()
	flags.StringArrayVar(&f.vaultLogs, "vault-log", nil, "`file` or directory of Key Vault's logs, - for standard input; may be repeated")
	flags.StringArrayVar(&f.keks, "kek", nil, "`URL` of a KEK or of a vault of KEKs, also if no record names it; may be given again")
	flags.StringArrayVar(&f.identities, "identity", nil,
		"application or object `ID`, or user name, of the sidecars: uses by others are unrecorded; may be given again")
	flags.DurationVar(&f.tolerance, "tolerance", reconcile.DefaultTolerance, "longest `time` between a record and its request")
	flags.StringVar(&f.fromText, "from", "", "`time` from which to judge: 2026-11-22T00:00:00Z, or how long ago, 24h or 7d")
	flags.StringVar(&f.toText, "to", "", "`time` up to which to judge")
	return c
}

func (a *app) runReconcile(f *reconcileFlags, paths []string) error {
	cfg, err := f.config(paths)
	if err != nil {
		return usage(err)
	}
	r, err := reconcile.New(cfg)
	if err != nil {
		return usage(err)
	}
	if err := reader.Read(paths, a.in, r.AuditLine); err != nil {
		return fileError(err)
	}
	for _, path := range f.vaultLogs {
		if err := r.VaultFiles(path, a.in); err != nil {
			return fileError(err)
		}
	}
	report := r.Report()
	if err := a.print(report, "%s", report.Text()); err != nil {
		return err
	}
	switch report.Verdict {
	case reconcile.Match:
		return nil
	case reconcile.Undecided:
		return &exitError{code: exitTryAgain, err: errors.New("undecided"), silent: true}
	case reconcile.Differ, reconcile.Nothing:
	}
	return &exitError{code: exitPermanent, err: errors.New(string(report.Verdict)), silent: true}
}

// config checks what the flags say.
func (f *reconcileFlags) config(paths []string) (reconcile.Config, error) {
	cfg := reconcile.Config{Tolerance: f.tolerance, Identities: f.identities, Keys: f.keks}
	if len(f.vaultLogs) == 0 {
		return cfg, errors.New("--vault-log is missing")
	}
	if f.tolerance <= 0 {
		return cfg, fmt.Errorf("--tolerance is %s, not more than zero", f.tolerance)
	}
	standard := 0
	for _, path := range slices.Concat(paths, f.vaultLogs) {
		if path == "-" {
			standard++
		}
	}
	if standard > 1 {
		return cfg, errors.New("only one of PATH and --vault-log can be standard input")
	}
	now := time.Now()
	for _, t := range []struct {
		flag, text string
		to         *time.Time
	}{{"--from", f.fromText, &cfg.From}, {"--to", f.toText, &cfg.To}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.to, err = export.ParseTime(t.text, now); err != nil {
			return cfg, fmt.Errorf("%s: %w", t.flag, err)
		}
	}
	return cfg, nil
}
