// Package process builds and runs the program keysidecar, to be measured as users have it:
// in a process of its own.
package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// patience is how long a process may take to start or to end.
const patience = 20 * time.Second

// Build makes the program, as `make build` does, from the module that this one replaces.
func Build(ctx context.Context, path string) error {
	const module = "github.com/keysidecar/keysidecar"
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return fmt.Errorf("finding module %s: %w", module, err)
	}
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "./cmd/keysidecar")
	c.Dir = strings.TrimSpace(string(dir))
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building keysidecar: %w: %s", err, text)
	}
	return nil
}

// Sidecar says how to run `keysidecar serve`.
type Sidecar struct {
	// Binary is the path of the program, Config that of config.yaml.
	Binary, Config string
	// Log is the path of a file, which is written anew, for what it logs.
	Log string
	// Network and Address are where it listens.
	Network, Address string
}

// Process is a sidecar that runs.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // then why
}

// Start starts the sidecar, and returns when it listens. It is killed when ctx ends.
func (s *Sidecar) Start(ctx context.Context) (*Process, error) {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, s.Binary, "serve", "--config", s.Config)
	c.Stderr = log
	err = c.Start()
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.Binary, err)
	}
	p := &Process{cmd: c, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = c.Wait()
	}()
	if err := p.listens(ctx, s.Network, s.Address); err != nil {
		err = errors.Join(err, p.Stop())
		text, _ := os.ReadFile(s.Log) // what there is of it
		return nil, fmt.Errorf("starting keysidecar: %w: %s", err, text)
	}
	return p, nil
}

// listens waits until the process does.
func (p *Process) listens(ctx context.Context, network, address string) error {
	giveUp := time.After(patience)
	for {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.ended:
			return errors.New("it has ended")
		case <-giveUp:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop ends the process, and waits until it has ended.
func (p *Process) Stop() error {
	err := p.cmd.Process.Signal(os.Interrupt)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.ended:
		return errors.Join(err, p.err)
	case <-time.After(patience):
		err = errors.Join(err, p.cmd.Process.Kill())
		<-p.ended
		return errors.Join(err, errors.New("process did not end when it was asked to"))
	}
}

// CPU returns the CPU time that the process has used so far.
func (p *Process) CPU() time.Duration { return CPU(p.cmd.Process.Pid) }
