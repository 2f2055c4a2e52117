package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal. What is written to it comes out of shown,
// which closes it.
func terminal(t *testing.T) (tty *os.File, shown func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal("unlocking the terminal:", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal("asking for the terminal's number:", err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string)
	go func() {
		var out bytes.Buffer
		_, _ = io.Copy(&out, master) // ends with EIO when the terminal is closed
		done <- out.String()
	}()
	closed := false
	shown = func() string {
		closed = true
		tty.Close()
		return <-done
	}
	t.Cleanup(func() {
		if !closed {
			shown()
		}
	})
	return tty, shown
}

// TestProgress reads a file with somebody looking, and with nobody.
func TestProgress(t *testing.T) {
	name := filepath.Join(t.TempDir(), "invoices")
	if err := os.WriteFile(name, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tty, shown := terminal(t)
	a := &app{stdio: stdio{err: tty}}
	if data, err := a.readInput(t.Context(), name); err != nil || len(data) != 3<<20 {
		t.Fatalf("readInput returned %d bytes, %v", len(data), err)
	}
	if got := shown(); !strings.Contains(got, "invoices") || !strings.Contains(got, "%") {
		t.Errorf("the terminal shows %q, no progress", got)
	}
	var nobody strings.Builder
	a.err = &nobody
	if _, err := a.readInput(t.Context(), name); err != nil || nobody.String() != "" {
		t.Errorf("without a terminal: %q, %v", nobody.String(), err)
	}
}

// TestProgressOfPipe reads standard input, whose length is not known.
func TestProgressOfPipe(t *testing.T) {
	tty, shown := terminal(t)
	a := &app{stdio: stdio{in: io.LimitReader(zeros{}, 1<<20), err: tty}}
	if data, err := a.readInput(t.Context(), ""); err != nil || len(data) != 1<<20 {
		t.Fatalf("readInput returned %d bytes, %v", len(data), err)
	}
	if got := shown(); !strings.Contains(got, "standard input") {
		t.Errorf("the terminal shows %q, no progress", got)
	}
}

// TestSealToTerminal refuses to write sealed data to a terminal; plaintext may.
func TestSealToTerminal(t *testing.T) {
	tty, _ := terminal(t)
	for verb, want := range map[string]int{"seal": exitUsage, "unseal": exitTryAgain} {
		code := run(t.Context(), []string{verb, "--tenant", "acme", "--socket", filepath.Join(t.TempDir(), "none")},
			stdio{strings.NewReader("x"), tty, io.Discard})
		if code != want {
			t.Errorf("%s to a terminal: exit code %d, want %d", verb, code, want)
		}
	}
}
