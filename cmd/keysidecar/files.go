package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/schollz/progressbar/v3"
)

// maxInput is the most that a command reads: the highest unary limit, and
// room for what sealing adds. The sidecar has the real limit.
const maxInput = 64<<20 + 1<<20

// readInput reads the file of that name, or standard input if it is empty,
// with a progress bar when somebody is looking.
func (a *app) readInput(name string) ([]byte, error) {
	in, size := a.in, int64(-1)
	if name != "" {
		f, err := os.Open(name)
		if err != nil {
			return nil, permanent(err)
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		in = f
	} else {
		name = "standard input"
	}
	if isTerminal(a.err) {
		bar := progressbar.NewOptions64(size, progressbar.OptionSetWriter(a.err),
			progressbar.OptionSetDescription(name), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
		defer bar.Close()
		reader := progressbar.NewReader(in, bar)
		in = &reader
	}
	data, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return nil, tryAgain(fmt.Errorf("reading %s: %w", name, err))
	}
	if len(data) > maxInput {
		return nil, permanent(fmt.Errorf("%s is over %d bytes; a sidecar takes at most 64 MiB in one call", name, maxInput))
	}
	return data, nil
}

// writeOutput writes data to the file of that name, whole or not at all, or to
// standard output if it is empty.
func (a *app) writeOutput(name string, data []byte) error {
	if name != "" {
		if err := writeWhole(name, data); err != nil {
			return tryAgain(fmt.Errorf("writing %s: %w", name, err))
		}
		return nil
	}
	if _, err := a.out.Write(data); err != nil {
		return tryAgain(fmt.Errorf("writing standard output: %w", err))
	}
	return nil
}

// writeWhole replaces a file atomically and durably. Only its owner can read
// it: it may hold plaintext.
func writeWhole(name string, data []byte) (err error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(name, data, 0o600) // a pipe or a device
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".keysidecar-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
