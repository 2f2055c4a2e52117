// Package auditcmd is the commands about audit logs that need no sidecar: what
// they are called, what their flags mean, and what they print.
package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/audit/verify/trust"
)

// Env is what the commands have from the program. All fields are required.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	// JSON reports, when a command runs, whether it prints JSON.
	JSON func() bool
	// Print prints a result, as JSON or as text.
	Print func(v any, format string, args ...any) error
	// ReadInput reads a file, or standard input if the name is empty.
	ReadInput func(ctx context.Context, name string) ([]byte, error)
	// Paths is the Args of a command that takes PATH..., PathHelp says what that is.
	Paths    cobra.PositionalArgs
	PathHelp string
	// Until runs what may read for ever, until ctx ends.
	Until func(ctx context.Context, do func() error) error
	// Usage, Permanent and TryAgain give an error its exit code, and File one of
	// reading or writing files.
	Usage, Permanent, TryAgain, File func(error) error
	// Found is Permanent for what a command has found, with what to do. Without
	// that, the command has printed all there is to say.
	Found func(err error, hint string) error
}

// Commands returns the commands.
func (e *Env) Commands() []*cobra.Command {
	return []*cobra.Command{e.verify(), e.prove(), e.checkProof(), e.export(), e.tail()}
}

// file gives an error of reading logs its exit code.
func (e *Env) file(err error) error {
	if errors.Is(err, reader.ErrChanged) {
		return e.TryAgain(err)
	}
	return e.File(err)
}

// trustFlags say what is known from elsewhere than the log.
type trustFlags struct{ checkpoints, keys, signers []string }

// add adds the flags; signers certify keys in logs, and proofs have none.
func (f *trustFlags) add(c *cobra.Command, logs bool) {
	flags := c.Flags()
	flags.StringArrayVar(&f.checkpoints, "checkpoints", nil, "`FILE|DIR` of checkpoints that were kept elsewhere; may be given again")
	flags.StringArrayVar(&f.keys, "key", nil, "`FILE|KEY` of a log that is known to be its own; may be given again")
	if logs {
		flags.StringArrayVar(&f.signers, "signer", nil, "`file` of the Key Vault key that certifies logs, PEM or JWK; may be given again")
	}
}

// trust reads what the flags name.
func (f *trustFlags) trust(e *Env) (verify.Trust, error) {
	var t verify.Trust
	for _, path := range f.checkpoints {
		all, torn, err := trust.ReadCheckpoints(path)
		for _, file := range torn {
			fmt.Fprintf(e.Err, "keysidecar: the last line of %s is not whole, and was left out\n", shown(file))
		}
		if err == nil && len(all) == 0 {
			err = fmt.Errorf("%s has no checkpoints", path)
		}
		if err != nil {
			return t, e.Permanent(err)
		}
		t.Checkpoints = append(t.Checkpoints, all...)
	}
	for _, key := range f.keys {
		if _, err := record.NewVerifier(key); err == nil {
			t.Keys = append(t.Keys, key)
			continue
		}
		all, err := trust.ReadKeys(key)
		if err != nil {
			return t, e.Permanent(fmt.Errorf("--key is no log's key, and no file of them: %w", err))
		}
		t.Keys = append(t.Keys, all...)
	}
	for _, path := range f.signers {
		all, err := trust.ReadSigners(path)
		if err != nil {
			return t, e.Permanent(fmt.Errorf("--signer is no file of a public key: %w", err))
		}
		t.Signers = append(t.Signers, all...)
	}
	return t, nil
}
