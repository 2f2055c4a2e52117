package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// The exit codes: what a script or a CronJob should do next.
const (
	exitDone      = 0
	exitTryAgain  = 1  // the same command may work later
	exitUsage     = 2  // the command line is wrong
	exitPermanent = 42 // the same command will not work until something is changed
)

const defaultSocket = "/run/keysidecar/keysidecar.sock"

// stdio is what a command reads and writes, so that tests can hold it.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// app is what the flags of every command set.
type app struct {
	stdio
	config string
	socket string
	output string
}

// exitError carries an exit code out of a command.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usage(err error) error     { return &exitError{exitUsage, err} }
func permanent(err error) error { return &exitError{exitPermanent, err} }
func tryAgain(err error) error  { return &exitError{exitTryAgain, err} }

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, io stdio) int {
	a := &app{stdio: io}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(io.err, "keysidecar: %v\n", err)
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return exitUsage // cobra's own: an unknown command or flag, a missing argument
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keysidecar",
		Short: "Envelope encryption beside your service: per-tenant data keys, wrapped in Azure Key Vault",
		Long: "keysidecar seals and unseals tenant data over local gRPC under per-tenant data keys\n" +
			"(DEKs), wrapped by key-encryption keys (KEKs) that never leave Azure Key Vault.\n\n" +
			"Exit codes: 0 done, 1 try again, 2 usage, 42 permanent.",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains([]string{"text", "json"}, a.output) {
				return usage(fmt.Errorf("--output is %q, not text or json", a.output))
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.config, "config", "config.yaml", "configuration `file`")
	flags.StringVar(&a.socket, "socket", defaultSocket, "Unix `socket` of the sidecar")
	flags.StringVar(&a.output, "output", "text", "how to print results: `text|json`")
	root.AddCommand(a.serve(), a.dev(), a.devvault(), a.seal(), a.unseal(), a.inspect(),
		a.configGroup(), a.probe(), a.version())
	requireVerbs(root)
	return root
}

// requireVerbs makes a group without a verb, or with one that it has not, a
// usage error. cobra prints help and exits 0, so that a misspelt CronJob would
// succeed.
func requireVerbs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		requireVerbs(sub)
	}
	if c.Runnable() {
		if c.Args == nil {
			c.Args = cobra.NoArgs
		}
		return
	}
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		var verbs []string
		for _, sub := range c.Commands() {
			verbs = append(verbs, sub.Name())
		}
		what := "no verb"
		if len(args) > 0 {
			what = fmt.Sprintf("unknown verb %q", args[0])
		}
		return usage(fmt.Errorf("%s: %s; it has: %s", c.CommandPath(), what, strings.Join(verbs, ", ")))
	}
}

// print writes v as JSON, or else the text.
func (a *app) print(v any, format string, args ...any) error {
	var err error
	if a.output == "json" {
		err = json.NewEncoder(a.out).Encode(v)
	} else {
		_, err = fmt.Fprintf(a.out, format, args...)
	}
	if err != nil {
		return tryAgain(fmt.Errorf("writing the result: %w", err))
	}
	return nil
}

// isTerminal reports whether f, which may be anything, is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
