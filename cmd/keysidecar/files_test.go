package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestReadInterrupted reads what never comes: a signal has to end the command.
func TestReadInterrupted(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{stdio: stdio{in: in, err: io.Discard}}
	for _, name := range []string{"", fifo} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("terminated signal received"))
		data, err := a.readInput(ctx, name)
		if data != nil || codeOf(err) != exitTryAgain || !strings.Contains(err.Error(), "terminated signal received") {
			t.Errorf("readInput(%q) returned %q, %v", name, data, err)
		}
	}
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0) // lets go of who opens it
	if err != nil {
		t.Fatal(err)
	}
	writer.Close()
}

func TestReadLimit(t *testing.T) {
	for n, want := range map[int64]int{maxInput: exitDone, maxInput + 1: exitPermanent} {
		a := &app{stdio: stdio{in: io.LimitReader(zeros{}, n), err: io.Discard}}
		data, err := a.readInput(t.Context(), "")
		if codeOf(err) != want || err == nil && int64(len(data)) != n {
			t.Errorf("reading %d bytes: %d bytes, %v", n, len(data), err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type broken struct{ error }

func (b broken) Read([]byte) (int, error)  { return 0, b.error }
func (b broken) Write([]byte) (int, error) { return 0, b.error }

// TestBroken breaks standard input and output: what may be gone tomorrow.
func TestBroken(t *testing.T) {
	cause := errors.New("gone")
	gone := broken{cause}
	a := &app{stdio: stdio{in: gone, out: gone, err: io.Discard}}
	_, err := a.readInput(t.Context(), "")
	for what, err := range map[string]error{
		"readInput": err, "writeOutput": a.writeOutput("", []byte("x")), "print": a.print(1, "x"),
	} {
		if codeOf(err) != exitTryAgain || !errors.Is(err, cause) {
			t.Errorf("%s returned %v", what, err)
		}
	}
}

func TestWriteWholeLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(target, []byte("old"), 0o644), os.Symlink("target", link), writeWhole(link, []byte("new"))); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(target); string(data) != "new" {
		t.Errorf("the link's target has %q, %v", data, err)
	}
	if _, err := os.Readlink(link); err != nil {
		t.Error("the link is gone:", err)
	}
}
