package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keysidecar": main})
}

// TestScript runs the scripts of testdata. In each, keysidecar is a process of
// its own; $D is an empty directory whose path is short enough for a socket,
// and these commands are added:
//
//	exits CODE PROGRAM [ARGS]...  run it; the exit code has to be CODE
//	term WORD                     SIGTERM to the background commands with WORD in their arguments
//	hangup WORD                   SIGHUP to them
//	vault FILE                    wait until devvault has written FILE (--output json); set $ADDRESS, $CA, $TOKEN, $ENTRA
//	size N FILE                   make FILE, N bytes long
//	cpenv FROM TO                 copy, with variables replaced
//	mode PERM FILE                FILE has to have these permissions
//	only NAME... DIR              DIR has to have exactly these entries
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "ks")
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("D", dir)
			env.Setenv("UID", strconv.Itoa(os.Geteuid()))
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "term": send(syscall.SIGTERM), "hangup": send(syscall.SIGHUP),
			"vault": vault, "size": size, "cpenv": cpenv, "mode": mode, "only": only,
		},
	})
}

// want ends the script unless it gave a command n arguments and no "!".
func want(ts *testscript.TestScript, n int, neg bool, args []string) {
	if neg || len(args) < n {
		ts.Fatalf("used wrongly: see TestScript")
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, 2, neg, args)
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code is %d, not %s", code, args[0])
	}
}

// send returns the command that sends a signal.
func send(signal syscall.Signal) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		want(ts, 1, neg, args)
		found := false
		for _, cmd := range ts.BackgroundCmds() {
			if strings.Contains(strings.Join(cmd.Args, " "), args[0]) {
				ts.Check(cmd.Process.Signal(signal))
				found = true
			}
		}
		if !found {
			ts.Fatalf("no background command has %q", args[0])
		}
	}
}

func vault(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, 1, neg, args)
	var v struct {
		Address string
		CA      string `json:"ca_file"`
		Token   string `json:"token_file"`
		Entra   string `json:"entra_tenant"`
	}
	eventually(ts, func() bool {
		data, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && json.Unmarshal(data, &v) == nil
	})
	for name, value := range map[string]string{"ADDRESS": v.Address, "CA": v.CA, "TOKEN": v.Token, "ENTRA": v.Entra} {
		if value == "" {
			ts.Fatalf("devvault tells no %s", name)
		}
		ts.Setenv(name, value)
	}
}

// eventually waits until ok is true, and ends the script if that takes 30 s.
func eventually(ts *testscript.TestScript, ok func() bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			ts.Fatalf("it does not happen")
		}
	}
}

func size(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, 2, neg, args)
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), make([]byte, n), 0o600))
}

func cpenv(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, 2, neg, args)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, 2, neg, args)
	perm, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if info.Mode().Perm() != fs.FileMode(perm) {
		ts.Fatalf("%s has mode %v", args[1], info.Mode())
	}
}

func only(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, 1, neg, args)
	dir, names := args[len(args)-1], args[:len(args)-1]
	entries, err := filepath.Glob(filepath.Join(ts.MkAbs(dir), "*"))
	ts.Check(err)
	hidden, err := filepath.Glob(filepath.Join(ts.MkAbs(dir), ".[!.]*"))
	ts.Check(err)
	got := []string{}
	for _, entry := range append(entries, hidden...) {
		got = append(got, filepath.Base(entry))
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		ts.Fatalf("%s has %q", dir, got)
	}
}
