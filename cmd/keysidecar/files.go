package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/schollz/progressbar/v3"
)

// maxInput is the most that a command reads: the highest unary limit, and
// room for what sealing adds. The sidecar has the real limit.
const maxInput = 64<<20 + 1<<20

// readInput reads the file of that name, or standard input if it is empty. It
// gives up when ctx ends: opening or reading a pipe may take for ever, and a
// signal has to end the command all the same.
func (a *app) readInput(ctx context.Context, name string) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := a.readFile(name)
		done <- result{data, err}
	}()
	select {
	case res := <-done:
		return res.data, res.err
	case <-ctx.Done():
		return nil, tryAgain(fmt.Errorf("reading: %w", context.Cause(ctx)))
	}
}

// readFile reads with a progress bar when somebody is looking.
func (a *app) readFile(name string) ([]byte, error) {
	in, size := a.in, int64(-1)
	if name != "" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fileError(err)
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
		return nil, fileError(fmt.Errorf("reading %s: %w", name, err))
	}
	if len(data) > maxInput {
		return nil, refused("TOO_LARGE", fmt.Errorf("%s is over %d bytes; a sidecar takes at most 64 MiB in one call", name, maxInput))
	}
	return data, nil
}

// writeOutput writes data to the file of that name, whole or not at all, or to
// standard output if it is empty.
func (a *app) writeOutput(name string, data []byte) error {
	if name != "" {
		if err := writeWhole(name, data); err != nil {
			return fileError(fmt.Errorf("writing %s: %w", name, err))
		}
		return nil
	}
	if _, err := a.out.Write(data); err != nil {
		return tryAgain(fmt.Errorf("writing standard output: %w", err))
	}
	return nil
}

// writeWhole replaces a file atomically and durably: the one that a symbolic
// link leads to, not the link. Only its owner can read it: it may hold
// plaintext.
func writeWhole(name string, data []byte) error {
	info, err := os.Stat(name)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return os.WriteFile(name, data, 0o600) // a pipe or a device
	case err == nil:
		if name, err = filepath.EvalSymlinks(name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".keysidecar-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(name))
}

// syncDir makes a rename within a directory durable, where that is possible.
func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, dir.Close())
}
