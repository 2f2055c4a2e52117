package auditcmd

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/audit/export"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

func (e *Env) verify() *cobra.Command {
	var known trustFlags
	var kept map[string]string
	var unproved string
	c := &cobra.Command{
		Use: "verify PATH... [--checkpoints FILE|DIR] [--key FILE|KEY] [--signer FILE] " +
			"[--min-retention CLASS=TIME,...] [--max-unproved TIME]",
		Short: "Tell what in audit logs is not as the sidecars wrote it, and what cannot be known",
		Long: "verify checks every record, link, checkpoint and signature of audit logs, and how they follow one another.\n" +
			e.PathHelp + "Directories have the records in order; files and standard input are streams: other output between\n" +
			"the lines, repeated lines, and any order are no problem.\n\n" +
			"Without --checkpoints a log is only compared with itself: that its end was cut off cannot be found. Without\n" +
			"--key or --signer whoever can write where the log is kept may have made all of it up. Without\n" +
			"--min-retention old records, and whole logs, may have been removed at any time.\n\n" +
			"Exit 0 if nothing is wrong, also when something could not be checked (notes); 42 if something is.",
		Example: "  keysidecar audit verify /var/lib/keysidecar-audit --checkpoints kept/ --signer audit-signer.pem",
		Args:    e.Paths,
		RunE: func(c *cobra.Command, args []string) error {
			return e.Until(c.Context(), func() error { return e.runVerify(args, &known, kept, unproved) })
		},
	}
	known.add(c, true)
	c.Flags().StringToStringVar(&kept, "min-retention", nil,
		"`CLASS=TIME,...`, as in keys=400d,denials=400d,data=90d: what is younger must be there; 0d: for ever")
	c.Flags().StringVar(&unproved, "max-unproved", "1h",
		"`time` that a log may go on without one of --checkpoints that proves it: it is a problem if they are behind; 0: not checked")
	return c
}

func (e *Env) runVerify(args []string, known *trustFlags, kept map[string]string, unproved string) error {
	var cfg verify.Config
	var err error
	if cfg.MaxUnproved, err = export.ParseDuration(unproved); err != nil {
		return e.Usage(fmt.Errorf("--max-unproved: %w", err))
	}
	for name, text := range kept {
		class, err := record.ParseClass(name)
		if err != nil {
			return e.Usage(fmt.Errorf("--min-retention: %w", err))
		}
		d, err := export.ParseDuration(text)
		if err != nil {
			return e.Usage(fmt.Errorf("--min-retention: %s: %w", class, err))
		}
		if d == 0 { // as in config.yaml
			d = verify.Forever
		}
		switch class {
		case record.Keys:
			cfg.Kept.Keys = d
		case record.Denials:
			cfg.Kept.Denials = d
		case record.Data:
			cfg.Kept.Data = d
		}
	}
	if cfg.Trust, err = known.trust(e); err != nil {
		return err
	}
	report, err := verify.Verify(args, e.In, cfg)
	if err != nil {
		return e.file(err)
	}
	if err := e.Print(report, "%s", text(report)); err != nil || report.Verified() {
		return err
	}
	return e.Found(errors.New("not verified"), "")
}
