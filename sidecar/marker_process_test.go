package sidecar_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/sidecar"
)

const (
	processOpen = "KEYSIDECAR_TEST_OPEN" // a sidecar that does not harden itself
	processPID  = "KEYSIDECAR_TEST_PID"  // of whom a peeking process looks at

	// binaryFD is the file that a process is made of.
	binaryFD = 3

	// lookSignal makes a servedProcess, once, say what it sees of itself.
	lookSignal = syscall.SIGUSR1

	// A servedProcess does what "keysidecar serve" does. A peekProcess tries to
	// see into another process of the same user.
	servedProcess, peekProcess = "served", "peek"
)

// runServed is runServe of cmd/keysidecar, but for its limits, with all the core
// file allowed that may be.
func runServed(ctx context.Context, dir string) error {
	core, err := allowCore()
	if err := errors.Join(err, syscall.Close(binaryFD)); err != nil {
		return err
	}
	cfg, err := config.Load(filepath.Join(dir, "config.yaml"))
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if os.Getenv(processOpen) == "" {
		if err := secret.HardenProcess(); err != nil {
			return err
		}
	}
	s, err := sidecar.New(cfg, sidecar.Options{Logger: log, Version: "marker"})
	if err != nil {
		return err
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, lookSignal)
	go func() {
		<-asked
		in, _ := json.Marshal(lookInside()) // of strings and numbers
		say("inside", string(in))
		<-ctx.Done()
		say("stopping")
	}()
	say("ready", core)
	err = s.Run(ctx)
	return errors.Join(err, s.Close())
}

// allowCore raises the limit of a core file as far as it goes, and returns it.
// Of a process that is not hardened a little is enough.
func allowCore() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	limit.Cur = limit.Max
	if os.Getenv(processOpen) != "" {
		limit.Cur = min(limit.Max, 1<<20)
	}
	return limit.Cur, os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_CORE, &limit))
}

// An inside is what a process sees of itself, and nobody else if it is
// hardened.
type inside struct {
	Environment []string
	Files       []string // that are open: paths, sockets, pipes
	// LockedKB is the memory that is neither swapped nor dumped, SwappedKB what
	// is swapped of it.
	LockedKB, SwappedKB int
}

func lookInside() inside {
	in := inside{Environment: os.Environ()}
	fds, _ := os.ReadDir("/proc/self/fd") // nothing is open, or this is not Linux: the test wants more
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			in.Files = append(in.Files, target)
		}
	}
	smaps, _ := os.ReadFile("/proc/self/smaps")
	var size, swap int
	for line := range strings.Lines(string(smaps)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, " kB\n"), ":")
		n, _ := strconv.Atoi(strings.TrimSpace(value))
		switch key {
		case "Size":
			size, swap = n, 0
		case "Swap":
			swap = n
		case "VmFlags":
			if strings.Contains(line, " lo ") && strings.Contains(line, " dd ") {
				in.LockedKB += size
				in.SwappedKB += swap
			}
		}
	}
	return in
}

// runPeek says which files of another process it may not open.
func runPeek() error {
	for _, name := range []string{"mem", "maps", "environ", "fd"} {
		path := "/proc/" + os.Getenv(processPID) + "/" + name
		f, err := os.Open(path)
		if err == nil && name == "fd" {
			_, err = f.ReadDir(-1)
		}
		if err == nil {
			f.Close()
		} else if errors.Is(err, os.ErrPermission) {
			say("refused", name)
		} else {
			return err
		}
	}
	return nil
}

// A user is whom the processes run as: for root, somebody who is not.
type user struct {
	id         uint32
	credential *syscall.Credential
}

func otherUser() user {
	if os.Geteuid() != 0 {
		return user{id: uint32(os.Geteuid())}
	}
	const nonroot = 65532
	return user{nonroot, &syscall.Credential{Uid: nonroot, Gid: nonroot}}
}

// give makes everything below dir the user's.
func (u user) give(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if u.credential == nil {
			return err
		}
		return errors.Join(err, os.Lchown(path, int(u.id), int(u.id)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A life is that of one process, from its start to its end.
type life struct {
	*process
	stdout *journal
}

// begin starts this binary again as the user, who may not be able to find it:
// it gets the file. The process works in dir.
func (u user) begin(t *testing.T, kind, dir string, env ...string) *life {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	l := &life{stdout: &journal{}, process: &process{
		cmd: exec.Command(fmt.Sprint("/proc/self/fd/", binaryFD)), stderr: &journal{}, ready: make(chan string, 1), ended: make(chan struct{}),
	}}
	l.cmd.ExtraFiles, l.cmd.Dir, l.cmd.Stderr = []*os.File{binary}, dir, l.stderr
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.credential}
	l.cmd.Env = append(append(os.Environ(), processKind+"="+kind), env...)
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.destroy)
	go l.read(io.TeeReader(out, l.stdout))
	return l
}

// says waits until the process says a line that begins with word, and returns
// the rest of it.
func (l *life) says(t *testing.T, word string) (rest string) {
	t.Helper()
	await(t, "the process says "+word, func() bool {
		for line := range strings.Lines(l.stdout.String()) {
			var found bool
			if rest, found = strings.CutPrefix(line, word); found && strings.HasSuffix(line, "\n") {
				rest = strings.TrimSpace(rest)
				return true
			}
		}
		select {
		case <-l.ended:
			t.Fatalf("the process ended before it said %s:\n%s\n%s", word, l.stdout, l.stderr)
		default:
		}
		return false
	})
	return rest
}

// end waits for the process, and returns how it ended.
func (l *life) end(t *testing.T) syscall.WaitStatus {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
	}
	_ = l.cmd.Wait() // how it ended is in the status
	status, ok := l.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		t.Fatal("the process has no status")
	}
	return status
}

func (l *life) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := l.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// peek returns what another process of the same user may not open of this one.
func (l *life) peek(t *testing.T, u user, dir string) []string {
	t.Helper()
	p := u.begin(t, peekProcess, dir, processPID+"="+strconv.Itoa(l.cmd.Process.Pid))
	if status := p.end(t); status != 0 {
		t.Fatalf("peeking: status %v: %s", status, p.stderr)
	}
	return strings.Fields(strings.ReplaceAll(p.stdout.String(), "refused ", ""))
}

// proc returns a file that is open to everybody.
func (l *life) proc(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", l.cmd.Process.Pid, name))
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		t.Fatalf("reading %s of the process: %q, %v", name, b, err)
	}
	return b
}
