package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/audit/segments"
	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/server/socket"
)

// The exit codes: what a script or a CronJob should do next.
const (
	exitDone      = 0
	exitTryAgain  = 1  // the same command may work later
	exitUsage     = 2  // the command line is wrong
	exitPermanent = 42 // the same command will not work until something is changed
)

// exitError carries an exit code out of a command, and what helps.
type exitError struct {
	code   int
	err    error
	reason string // as in docs/errors.md, for what no sidecar was asked
	hint   string
	silent bool // the command has printed its result, which is all there is to say
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usage(err error) error     { return &exitError{code: exitUsage, err: err} }
func permanent(err error) error { return &exitError{code: exitPermanent, err: err} }
func tryAgain(err error) error  { return &exitError{code: exitTryAgain, err: err} }

// refused is permanent, with one of the sidecar's own reasons.
func refused(reason string, err error) error {
	return &exitError{code: exitPermanent, reason: reason, err: fmt.Errorf("%s: %w", reason, err)}
}

// failure is what --output json tells of an error.
type failure struct {
	Error      string  `json:"error"`
	Hint       string  `json:"hint,omitempty"`
	Reason     string  `json:"reason,omitempty"`
	RequestID  string  `json:"request_id,omitempty"`
	RetryAfter float64 `json:"retry_after_seconds,omitempty"`
	Exit       int     `json:"exit"`
}

// printFailure prints an error once, to standard error, and returns its exit
// code. One that no command has given a code is cobra's own: an unknown flag, a
// missing one.
func (a *app) printFailure(command string, err error) int {
	f := failure{Error: err.Error(), Exit: exitUsage}
	if exit, ok := errors.AsType[*exitError](err); ok {
		if exit.silent {
			return exit.code
		}
		f.Exit, f.Hint, f.Reason = exit.code, exit.hint, exit.reason
	}
	if f.Exit == exitUsage {
		f.Hint = fmt.Sprintf("see %q", command+" --help")
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		f.Reason, f.RequestID, f.RetryAfter = e.Reason, e.RequestID, e.RetryAfter.Seconds()
	}
	if a.output == "json" {
		_ = json.NewEncoder(a.err).Encode(f) // a terminal that is gone: nobody to tell
		return f.Exit
	}
	fmt.Fprintf(a.err, "keysidecar: %s\n", f.Error)
	if f.Hint != "" {
		fmt.Fprintln(a.err, f.Hint)
	}
	return f.Exit
}

// callError gives a failed call its exit code, 1 where trying again may help,
// and a hint.
func (a *app) callError(err error) error {
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return tryAgain(err)
	}
	exit := &exitError{code: exitPermanent, err: err}
	switch {
	case errors.Is(err, client.ErrServerUID):
		exit.hint = "if that is the sidecar's user, name it: --server-uid"
	case e.RetryAfter > 0:
		exit.code = exitTryAgain
		exit.hint = fmt.Sprintf("the sidecar asks to try again after %v", e.RetryAfter.Round(time.Millisecond))
	case e.Reason == "" && e.Code == codes.ResourceExhausted:
		exit.hint = "the data is over the sidecar's limit: limits.unary_bytes"
	case e.Reason == "" && e.Code == codes.Unavailable:
		exit.code = exitTryAgain
		exit.hint = fmt.Sprintf("is a sidecar running, and is its socket %s? Name another with --socket", a.socket)
	case e.Code == codes.Unavailable, e.Code == codes.DeadlineExceeded, e.Code == codes.Canceled:
		exit.code = exitTryAgain
	}
	return exit
}

// startError gives a sidecar or a vault that did not start its exit code: 1
// where it is only that another one still runs.
func startError(err error) error {
	for _, busy := range []error{socket.ErrInUse, devvault.ErrInUse, segments.ErrInUse, syscall.EADDRINUSE} {
		if errors.Is(err, busy) {
			return tryAgain(err)
		}
	}
	return permanent(err)
}

// fileError gives a file that cannot be read or written its exit code.
func fileError(err error) error {
	for _, wrong := range []error{fs.ErrNotExist, fs.ErrPermission, syscall.EISDIR, syscall.ENOTDIR} {
		if errors.Is(err, wrong) {
			return permanent(err)
		}
	}
	return tryAgain(err)
}
