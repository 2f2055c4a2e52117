package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/server/socket"
)

// codeOf is the exit code that an error gives.
func codeOf(err error) int {
	if err == nil {
		return exitDone
	}
	a := &app{stdio: stdio{err: new(strings.Builder)}}
	return a.printFailure("keysidecar", err)
}

func TestCallError(t *testing.T) {
	a := &app{socket: "/a/socket"}
	for name, c := range map[string]struct {
		err  error
		code int
		hint string
	}{
		"authentication": {&client.Error{Reason: "AUTHENTICATION_FAILED", Code: codes.InvalidArgument}, 42, ""},
		"too large":      {&client.Error{Reason: "TOO_LARGE", Code: codes.ResourceExhausted}, 42, ""},
		"overloaded":     {&client.Error{Reason: "OVERLOADED", Code: codes.ResourceExhausted, RetryAfter: time.Second}, 1, "after 1s"},
		"forbidden":      {&client.Error{Reason: "KEK_FORBIDDEN", Code: codes.FailedPrecondition, RetryAfter: 5123400 * time.Microsecond}, 1, "after 5.123s"},
		"unreachable":    {&client.Error{Reason: "KEY_VAULT_UNREACHABLE", Code: codes.Unavailable}, 1, ""},
		"internal":       {&client.Error{Reason: "INTERNAL", Code: codes.Internal}, 42, ""},
		"lost":           {&client.Error{Code: codes.Unavailable}, 1, "/a/socket"},
		"too long":       {&client.Error{Code: codes.ResourceExhausted}, 42, "limits.unary_bytes"},
		"deadline":       {&client.Error{Code: codes.DeadlineExceeded}, 1, ""},
		"canceled":       {&client.Error{Code: codes.Canceled}, 1, ""},
		"old sidecar":    {&client.Error{Code: codes.Unimplemented}, 42, ""},
		"another":        {errors.New("other"), 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			exit, _ := errors.AsType[*exitError](a.callError(c.err))
			if exit == nil || exit.code != c.code || !errors.Is(exit, c.err) {
				t.Fatalf("callError returned %+v, want exit code %d", exit, c.code)
			}
			if (c.hint == "") != (exit.hint == "") || !strings.Contains(exit.hint, c.hint) {
				t.Errorf("hint is %q, want %q", exit.hint, c.hint)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"socket in use":  {startError(fmt.Errorf("x: %w", socket.ErrInUse)), 1},
		"vault in use":   {startError(fmt.Errorf("x: %w", devvault.ErrInUse)), 1},
		"port in use":    {startError(&net.OpError{Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}), 1},
		"cannot start":   {startError(errors.New("x")), 42},
		"no file":        {fileError(&fs.PathError{Err: syscall.ENOENT}), 42},
		"not allowed":    {fileError(&fs.PathError{Err: syscall.EACCES}), 42},
		"directory":      {fileError(&fs.PathError{Err: syscall.EISDIR}), 42},
		"file on way":    {fileError(&fs.PathError{Err: syscall.ENOTDIR}), 42},
		"disk full":      {fileError(&fs.PathError{Err: syscall.ENOSPC}), 1},
		"interrupted":    {fileError(context.Canceled), 1},
		"cobra's own":    {errors.New("unknown flag"), 2},
		"first of joint": {errors.Join(tryAgain(errors.New("x")), permanent(errors.New("y"))), 1},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%s: exit code %d, want %d", name, got, c.want)
		}
	}
}

func TestConfiguredLogger(t *testing.T) {
	for _, c := range []struct {
		cfg  config.Log
		want string
	}{
		{config.Log{Level: "info", Format: "json"}, `{"time":`},
		{config.Log{Level: "info", Format: "text"}, "time="},
		{config.Log{Level: "warn", Format: "text"}, ""},
	} {
		var out strings.Builder
		log, err := (&app{stdio: stdio{err: &out}}).configuredLogger(c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("x")
		if got := out.String(); !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%+v logs %q, want %q", c.cfg, got, c.want)
		}
	}
	if _, err := new(app).configuredLogger(config.Log{Level: "loud"}); err == nil {
		t.Error("level loud is accepted")
	}
}
