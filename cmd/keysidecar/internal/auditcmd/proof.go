package auditcmd

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/verify"
)

func (e *Env) prove() *cobra.Command {
	var log string
	var checkpoints []string
	c := &cobra.Command{
		Use:   "prove PATH... SEQ [--log ORIGIN] [--checkpoints FILE|DIR]",
		Short: "Write a proof (C2SP tlog-proof) that a record is in a log, for who has no log",
		Long: "prove writes the line of record SEQ, and the hashes that lead from it to a checkpoint: check-proof needs\n" +
			"nothing else. With --checkpoints it leads to one that was kept elsewhere, if one covers the record.\n" + e.PathHelp,
		Example: "  keysidecar audit prove /var/lib/keysidecar-audit 4711 --log keysidecar/orders/20261122T093000Z-1a2b3c4d5e6f > proof",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return e.Usage(errors.New(strings.Join([]string{"PATH", "SEQ"}[len(args):], ", ") + " missing"))
			}
			return e.Paths(c, args[:len(args)-1])
		},
		RunE: func(c *cobra.Command, args []string) error {
			seq, err := strconv.ParseInt(args[len(args)-1], 10, 64)
			if err != nil || seq < 0 {
				return e.Usage(fmt.Errorf("SEQ is %q, not the number of a record", args[len(args)-1]))
			}
			return e.Until(c.Context(), func() error { return e.runProve(args[:len(args)-1], log, seq, checkpoints) })
		},
	}
	c.Flags().StringVar(&log, "log", "", "`origin` of the log, if there are several")
	c.Flags().StringArrayVar(&checkpoints, "checkpoints", nil, "`FILE|DIR` of checkpoints that were kept elsewhere; may be given again")
	return c
}

func (e *Env) runProve(paths []string, log string, seq int64, checkpoints []string) error {
	known, err := (&trustFlags{checkpoints: checkpoints}).trust(e)
	if err != nil {
		return err
	}
	proof, err := verify.Prove(paths, e.In, log, seq, known.Checkpoints)
	if _, ok := errors.AsType[*fs.PathError](err); ok || errors.Is(err, reader.ErrChanged) {
		return e.file(err)
	}
	if err != nil {
		return e.Permanent(err)
	}
	return e.Print(map[string]string{"proof": proof}, "%s", proof)
}

func (e *Env) checkProof() *cobra.Command {
	var known trustFlags
	c := &cobra.Command{
		Use:   "check-proof FILE [--checkpoints FILE|DIR] [--key FILE|KEY]",
		Short: "Check a proof from prove, and show what it proves",
		Long: "check-proof checks that a record is in the log whose key is given, or whose checkpoint was kept elsewhere.\n" +
			"FILE is - for standard input. audit verify --signer tells which log's key a Key Vault key has certified.",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return e.Usage(errors.New("FILE is missing"))
			case len(args) > 1:
				return e.Usage(fmt.Errorf("argument %q is not expected", args[1]))
			case len(known.keys)+len(known.checkpoints) == 0:
				return e.Usage(errors.New("neither --key nor --checkpoints: a proof is worth what its checkpoint is"))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			data, err := e.ReadInput(c.Context(), strings.TrimPrefix(args[0], "-"))
			if err != nil {
				return err
			}
			return e.runCheckProof(string(data), &known)
		},
	}
	known.add(c, false)
	return c
}

func (e *Env) runCheckProof(proof string, known *trustFlags) error {
	t, err := known.trust(e)
	if err != nil {
		return err
	}
	r, err := verify.CheckProof(proof, t)
	if err != nil {
		return e.Permanent(err)
	}
	return e.Print(proved(r), "%s", proved(r))
}
