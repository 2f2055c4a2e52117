package flood

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/keysidecar/keysidecar/bench/load"
	"github.com/keysidecar/keysidecar/bench/process"
)

// callerVar is set in the environment of a process of calls.
const callerVar = "KEYSIDECAR_BENCH_CALLER"

// IsCaller reports whether this process was started by Measure to make calls: then all it has
// to do is RunCaller. The program that calls Measure asks this first.
func IsCaller() bool { return os.Getenv(callerVar) != "" }

// RunCaller makes calls as standard input says, until that ends.
func RunCaller() error { return load.Serve(context.Background(), os.Stdin, os.Stdout) }

// caller is a process of calls.
type caller struct {
	*load.Remote
	cmd *exec.Cmd
	in  io.Closer
}

// startCaller starts a process of the caller of that name, which has connected then.
func (s *site) startCaller(ctx context.Context, name string, connections int) (*caller, error) {
	path, err := ownProgram()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, path)
	c.Env = append(os.Environ(), callerVar+"="+name)
	c.Stderr = os.Stderr
	c.Dir = "/"
	if s.sockets {
		setUser(c, uid(name))
	}
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("starting the %s's process: %w", name, err)
	}
	k := &caller{cmd: c, in: in}
	if k.Remote, err = load.NewRemote(s.target(name, connections), in, out); err != nil {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, k.stop()))
	}
	return k, nil
}

// stop ends the process by ending its input.
func (k *caller) stop() error { return errors.Join(k.in.Close(), k.cmd.Wait()) }

// cpu returns the CPU time that the process has used so far.
func (k *caller) cpu() time.Duration { return process.CPU(k.cmd.Process.Pid) }
