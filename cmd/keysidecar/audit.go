package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/cmd/keysidecar/internal/auditcmd"
)

func (a *app) auditGroup() *cobra.Command {
	group := &cobra.Command{Use: "audit", Short: "Verify, prove, export, follow or reconcile audit logs, offline"}
	env := auditcmd.Env{
		In: a.in, Out: a.out, Err: a.err, JSON: func() bool { return a.output == "json" }, Print: a.print, ReadInput: a.readInput,
		Paths: paths, PathHelp: pathHelp, Until: until,
		Usage: usage, Permanent: permanent, TryAgain: tryAgain, File: fileError,
		Found: func(err error, hint string) error {
			return &exitError{code: exitPermanent, err: err, hint: hint, silent: hint == ""}
		},
	}
	group.AddCommand(env.Commands()...)
	group.AddCommand(a.auditReconcile())
	return group
}

const pathHelp = "PATH is a directory of an audit log, a file, or - for standard input.\n"

// paths is the Args of a command that takes PATH....
func paths(_ *cobra.Command, args []string) error {
	stdin := slices.Index(args, "-")
	switch {
	case len(args) == 0:
		return usage(errors.New("PATH is missing"))
	case slices.Contains(args, ""):
		return usage(errors.New("PATH is empty"))
	case stdin >= 0 && slices.Contains(args[stdin+1:], "-"):
		return usage(errors.New("standard input, -, is named twice"))
	}
	return nil
}

// until runs do, and gives up when ctx ends: reading a pipe may take for ever,
// and a signal has to end the command all the same.
func until(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return tryAgain(fmt.Errorf("reading: %w", context.Cause(ctx)))
	}
}
