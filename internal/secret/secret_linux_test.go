package secret_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keysidecar/keysidecar/internal/secret"
)

const childEnv = "SECRET_TEST_CHILD"

// TestMain runs what cannot be undone in a process of its own: see inChild.
func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "harden":
		os.Stdout.WriteString(harden())
	case "memlock":
		os.Stdout.WriteString(memlock())
	default:
		os.Exit(m.Run())
	}
}

// inChild returns what this binary prints when TestMain does what is named.
func inChild(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// harden prints what the kernel says after HardenProcess.
func harden() string {
	err := secret.HardenProcess()
	dumpable, errD := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core unix.Rlimit
	errC := unix.Getrlimit(unix.RLIMIT_CORE, &core)
	return fmt.Sprint(err, errD, errC, " dumpable ", dumpable, " core ", core.Cur, " ", core.Max)
}

func TestHardenProcess(t *testing.T) {
	if got, want := inChild(t, "harden"), "<nil> <nil> <nil> dumpable 0 core 0 0"; got != want {
		t.Errorf("after HardenProcess: %s, want %s", got, want)
	}
}

// levels returns the levels that this kernel grants: always Heap, and what
// the system calls themselves, asked here without the package, allow.
func levels(t *testing.T) []secret.Level {
	t.Helper()
	ls := []secret.Level{secret.Heap}
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	if unix.Mlock(b) == nil {
		ls = append(ls, secret.Locked)
	}
	if err := unix.Munmap(b); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.MemfdSecret(unix.O_CLOEXEC); err == nil {
		ls = append(ls, secret.Memfd)
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	return ls
}

func TestNewTakesTheBestLevel(t *testing.T) {
	ls := levels(t)
	best := ls[len(ls)-1]
	s := newSlab(t, 1)
	if s.Level() != best {
		t.Errorf("New reached %s, this kernel grants %s: %v", s.Level(), best, s.Shortfall())
	}
	if (s.Shortfall() == nil) != (best == secret.Memfd) {
		t.Errorf("at %s the shortfall is %v", best, s.Shortfall())
	}
	refused := errors.New("refused")
	for _, without := range ls[1:] {
		want := best
		if without == best {
			want = ls[len(ls)-2]
		}
		s, err := secret.NewWithout(secret.Config{Slots: 1}, refused, without)
		if err != nil || s.Level() != want {
			t.Errorf("without %s: level %s, want %s, error %v", without, s.Level(), want, err)
			continue
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestProcMem reads a key through /proc/self/mem, as a debugger, a checkpoint
// or root does: Memfd must refuse that. The other levels must not, or the
// test shows nothing.
func TestProcMem(t *testing.T) {
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, level := range levels(t) {
		s, err := secret.NewAt(level, 1)
		if err != nil {
			t.Fatal(err)
		}
		k, want := put(t, s)
		var got [secret.Size]byte
		n, err := f.ReadAt(got[:], int64(uintptr(unsafe.Pointer(k.Expose()))))
		if level == secret.Memfd {
			var pathErr *fs.PathError
			if n != 0 || !errors.As(err, &pathErr) || !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: /proc/self/mem gives %d bytes, error %v; want EIO", level, n, err)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: /proc/self/mem gives %d bytes, error %v; the test cannot see memory", level, n, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestMappingFlags asks the kernel (proc(5), smaps VmFlags) whether the slab
// is locked, not dumped, and wiped on fork.
func TestMappingFlags(t *testing.T) {
	want := map[secret.Level][]string{
		secret.Heap: nil, secret.Locked: {"lo", "dd", "wf"}, secret.Memfd: {"lo", "dd"},
	}
	for _, level := range levels(t) {
		s, err := secret.NewAt(level, 1000)
		if err != nil {
			t.Fatal(err)
		}
		flags := vmFlags(t, uintptr(unsafe.Pointer(&s.Memory()[0])))
		for _, f := range want[level] {
			if !strings.Contains(flags, " "+f+" ") {
				t.Errorf("%s: VmFlags %q lack %s", level, flags, f)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func vmFlags(t *testing.T, addr uintptr) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(b)) {
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= addr && addr < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return flags
		}
	}
	t.Fatal("the slab is in no mapping")
	return ""
}

// TestMemlockLimit runs where only 64 KiB may be locked.
func TestMemlockLimit(t *testing.T) {
	want := "heap true true; memory protection is below the required level true"
	if got := inChild(t, "memlock"); got != want {
		t.Errorf("1 MiB slab under a limit of 64 KiB: %s, want %s", got, want)
	}
}

// memlock prints what New does as an ordinary user under a small limit.
func memlock() string {
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}); err != nil {
		return err.Error()
	}
	if os.Getuid() == 0 {
		if err := syscall.Setuid(65534); err != nil { // root has no limit
			return err.Error()
		}
	}
	s, err := secret.New(secret.Config{Slots: 1 << 15})
	if err != nil {
		return err.Error()
	}
	_, errReq := secret.New(secret.Config{Slots: 1 << 15, Require: secret.Locked})
	why := s.Shortfall().Error()
	return fmt.Sprint(s.Level(), strings.Contains(why, "memfd_secret: "), strings.Contains(why, "locked: mlock: "), "; ",
		secret.ErrLevel, " ", errors.Is(errReq, secret.ErrLevel))
}
