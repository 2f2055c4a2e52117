package process_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/bench/process"
)

// script writes a program that does as the text says, in place of keysidecar.
func script(t *testing.T, text string) process.Sidecar {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "keysidecar")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return process.Sidecar{
		Binary: path, Config: "config.yaml", Log: filepath.Join(dir, "log"), Network: "unix", Address: filepath.Join(dir, "s"),
	}
}

// A sidecar that does not start says why.
func TestStartFails(t *testing.T) {
	s := script(t, `echo "cannot $*" >&2; exit 3`)
	if _, err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot serve --config config.yaml") ||
		!strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v", err)
	}
	s.Binary = "/no/such/program"
	if _, err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), s.Binary) {
		t.Errorf("%v", err)
	}
}

func TestCPU(t *testing.T) {
	before := process.CPU(os.Getpid())
	x := uint64(1)
	for range 100_000_000 {
		x = x*6364136223846793005 + 1442695040888963407
	}
	runtime.KeepAlive(x)
	if got := process.CPU(os.Getpid()); process.HasCPU != (got > before) || process.CPU(1<<22) != 0 {
		t.Errorf("%v before, %v after", before, got)
	}
}
