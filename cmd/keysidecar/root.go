package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
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

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, io stdio) int {
	a := &app{stdio: io}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	return a.printFailure(command.CommandPath(), err)
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
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"text", "json"}, a.output) {
				return usage(fmt.Errorf("--output is %q, not text or json", a.output))
			}
			if slices.Contains([]string{"serve", "dev"}, c.Name()) && c.Flags().Changed("socket") {
				return usage(fmt.Errorf("--socket is for callers: %s listens where its configuration says (listen.socket)", c.Name()))
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.config, "config", "config.yaml", "configuration `file`")
	flags.StringVar(&a.socket, "socket", defaultSocket, "Unix `socket` of the sidecar")
	flags.StringVar(&a.output, "output", "text", "how to print results and errors: `text|json`")
	root.AddCommand(a.serve(), a.dev(), a.devvault(), a.seal(), a.unseal(), a.inspect(),
		a.configGroup(), a.sidecarGroup(), a.tenantGroup(), a.auditGroup(), a.probe(), a.version())
	root.SetHelpCommand(helpCommand(root))
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd() // now, so that its verbs are required too
	requireVerbs(root)
	return root
}

// helpCommand is cobra's, but a command that there is not is a usage error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		Args:  cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usage(fmt.Errorf("unknown command %q", strings.Join(args, " ")))
			}
			return c.Help()
		},
	}
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
			c.Args = noArguments
		}
		return
	}
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(fmt.Errorf("verb missing: one of %s", strings.Join(verbs(c), ", ")))
		}
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return usage(fmt.Errorf("unknown verb %q: do you mean %s?", args[0], strings.Join(near, " or ")))
		}
		return usage(fmt.Errorf("unknown verb %q: one of %s", args[0], strings.Join(verbs(c), ", ")))
	}
	c.SuggestionsMinimumDistance = 2
}

func verbs(c *cobra.Command) []string {
	var names []string
	for _, sub := range c.Commands() {
		names = append(names, sub.Name())
	}
	return names
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("argument %q is not expected", args[0]))
	}
	return nil
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
