package sidecar_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/sidecar"
)

// What the environment tells a process of this test binary.
const (
	processKind   = "KEYSIDECAR_TEST_PROCESS" // vaultProcess or sidecarProcess
	processDir    = "KEYSIDECAR_TEST_DIR"
	processListen = "KEYSIDECAR_TEST_LISTEN" // of a vault
	processRotate = "KEYSIDECAR_TEST_ROTATE" // a vault whose KEK gets a version at start
	processPoint  = "KEYSIDECAR_TEST_POINT"  // where a sidecar kills itself
	processNth    = "KEYSIDECAR_TEST_NTH"    // the how many-th time it gets there

	vaultProcess, sidecarProcess = "vault", "sidecar"
)

// Where a sidecar is killed. All but the last two are moments of a mint.
const (
	afterWrap   = "after wrap, before the proof"
	afterProof  = "after the proof"
	beforeSwap  = "before the DEK becomes active"
	beforeUse   = "after the DEK became active, before its use"
	afterUse    = "after a seal, before its answer"
	afterUnwrap = "after an unwrap, before the cache"
	anywhere    = "at any moment, from outside"
)

func killPoints() []string {
	return []string{afterWrap, afterProof, beforeSwap, beforeUse, afterUse, afterUnwrap, anywhere}
}

// runProcess is the main of a process that the test starts. It ends when its
// standard input does: when the test says so, and when the test is dead.
func runProcess(kind string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	dir := os.Getenv(processDir)
	switch kind {
	case vaultProcess:
		return runVault(ctx, dir)
	case sidecarProcess:
		return runSidecar(ctx, dir)
	case servedProcess:
		return runServed(ctx, dir)
	case peekProcess:
		return runPeek()
	case auditedProcess:
		return runAudited(ctx, dir)
	}
	return fmt.Errorf("no process of kind %q", kind)
}

// say tells the test something, in a line.
func say(words ...any) { fmt.Fprintln(os.Stdout, words...) }

func runVault(ctx context.Context, dir string) error {
	vault, err := openVault(ctx, dir)
	if err != nil {
		return err
	}
	defer vault.Close()
	for name, keyType := range map[string]string{"acme": "RSA", "shared": "RSA", "globex": "oct-HSM"} {
		if vault.HasKey(name, kekName) {
			continue
		}
		if _, err := vault.CreateKey(name, kekName, devvault.KeySpec{Type: keyType}); err != nil {
			return err
		}
	}
	if name := os.Getenv(processRotate); name != "" {
		if _, err := vault.Rotate(name, kekName); err != nil {
			return err
		}
	}
	say("ready", vault.EntraTenant(), vault.CAFile(), vault.TokenFile())
	<-ctx.Done()
	return vault.Close()
}

// openVault tries until the address and the directory of the process before
// are free.
func openVault(ctx context.Context, dir string) (*devvault.Server, error) {
	giveUp := time.After(10 * time.Second)
	for {
		vault, err := devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault"), Listen: os.Getenv(processListen)})
		if err == nil {
			return vault, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-giveUp:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func runSidecar(ctx context.Context, dir string) error {
	cfg, err := config.Load(filepath.Join(dir, "config.yaml"))
	if err != nil {
		return err
	}
	nth, err := strconv.ParseInt(os.Getenv(processNth), 10, 64)
	if err != nil {
		return err
	}
	k := &killer{point: os.Getenv(processPoint)}
	k.left.Store(nth)
	s, err := sidecar.New(cfg, sidecar.Options{Logger: slog.New(slog.DiscardHandler), Record: k.record, Observe: k.observe})
	if err != nil {
		return err
	}
	k.sidecar = s
	say("ready")
	err = s.Run(ctx)
	return errors.Join(err, s.Close())
}

// A killer ends its own process, as kill -9 does, the left-th time that it
// gets to its point.
type killer struct {
	point   string
	left    atomic.Int64
	sidecar *sidecar.Sidecar // set before the first event
}

func (k *killer) at(point string) {
	if k.hits(point) {
		k.kill()
	}
}

func (k *killer) hits(point string) bool { return k.point == point && k.left.Add(-1) == 0 }

func (k *killer) kill() {
	say("killed", k.point)
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic("sidecar_test: internal error: " + err.Error())
	}
	select {} // until the signal arrives
}

func (k *killer) record(_ context.Context, e dek.Event) error {
	switch e.Kind {
	case dek.Wrapped:
		k.at(afterWrap)
	case dek.Proved:
		k.at(afterProof)
	case dek.Activated:
		k.at(beforeSwap)
		if k.hits(beforeUse) {
			minted := k.sidecar.Stats().Minted
			go func() {
				for k.sidecar.Stats().Minted == minted {
					runtime.Gosched()
				}
				k.kill()
			}()
		}
	case dek.Unwrapped:
		k.at(afterUnwrap)
	case dek.Fenced:
	}
	return nil
}

func (k *killer) observe(_ context.Context, e sealer.Event) {
	if e.Verb == policy.Seal && e.Reason == sealer.OK {
		k.at(afterUse)
	}
}

// A process is this test binary run again.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	stderr *journal
	// ready gets the first line of its standard output, ended is closed at the
	// end of it, and then last is the last line.
	ready chan string
	ended chan struct{}
	last  string
}

// spawn starts a process and returns it with the line in which it says that
// it is ready.
func spawn(t *testing.T, kind string, env ...string) (*process, []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self), stderr: &journal{}, ready: make(chan string, 1), ended: make(chan struct{})}
	p.cmd.Env = append(append(os.Environ(), processKind+"="+kind), env...)
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.destroy)
	go p.read(out)
	var line string
	select {
	case line = <-p.ready:
	case <-p.ended:
	case <-time.After(time.Minute):
	}
	if !strings.HasPrefix(line, "ready") {
		p.destroy()
		t.Fatalf("%s process says %q instead of ready:\n%s", kind, line, p.stderr)
	}
	return p, strings.Fields(line)[1:]
}

func (p *process) read(out io.Reader) {
	defer close(p.ended)
	for s := bufio.NewScanner(out); s.Scan(); {
		p.last = s.Text()
		select {
		case p.ready <- p.last:
		default:
		}
	}
}

// destroy ends what is left of a process.
func (p *process) destroy() {
	_ = p.cmd.Process.Kill() // if it is not gone
	<-p.ended
	_ = p.cmd.Wait() // if nobody has
}

// killed waits for a process that is being killed, and returns what it said
// last.
func (p *process) killed(t *testing.T) string {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		t.Fatal("process was not killed")
	}
	err := p.cmd.Wait()
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("process ended with %v instead of being killed", err)
	}
	if text := p.stderr.String(); text != "" {
		t.Errorf("process said:\n%s", text)
	}
	return p.last
}

// kill does what kill -9 does.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.killed(t)
}

// leave ends a process in good order.
func (p *process) leave(t *testing.T) {
	t.Helper()
	p.in.Close()
	<-p.ended
	if err := p.cmd.Wait(); err != nil || p.stderr.String() != "" {
		t.Errorf("process ended with %v and said:\n%s", err, p.stderr)
	}
}
