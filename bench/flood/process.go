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
)

// callerVar is set in the environment of a process of calls.
const callerVar = "KEYSIDECAR_BENCH_CALLER"

// IsCaller reports whether this process was started by Measure to make calls: then all it has
// to do is RunCaller. The program that calls Measure asks this first.
func IsCaller() bool { return os.Getenv(callerVar) != "" }

// RunCaller makes calls as standard input says, until that ends.
func RunCaller() error { return load.Serve(context.Background(), os.Stdin, os.Stdout) }

// process is a process that this one has started.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // then why
}

func startProcess(c *exec.Cmd) (*process, error) {
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Path, err)
	}
	p := &process{cmd: c, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = c.Wait()
	}()
	return p, nil
}

// stop ends the process, and waits until it has ended.
func (p *process) stop() error {
	err := p.cmd.Process.Signal(os.Interrupt)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.ended:
		return errors.Join(err, p.err)
	case <-time.After(20 * time.Second):
		err = errors.Join(err, p.cmd.Process.Kill())
		<-p.ended
		return errors.Join(err, errors.New("process did not end when it was asked to"))
	}
}

// cpu returns the CPU time that the process has used so far.
func (p *process) cpu() time.Duration { return cpuTime(p.cmd.Process.Pid) }

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
func (k *caller) cpu() time.Duration { return cpuTime(k.cmd.Process.Pid) }
