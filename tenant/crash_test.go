//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package tenant_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/tenant"
)

// childDir, in the environment, makes the test binary a child that changes
// suspensions in that directory until it is killed. childSync is the fsync in
// which it kills itself, childOpenSync the same while it opens the directory;
// without them, it waits to be killed.
const (
	childDir      = "TENANT_TEST_STATE_DIR"
	childSync     = "TENANT_TEST_DIE_IN_SYNC"
	childOpenSync = "TENANT_TEST_DIE_IN_OPEN_SYNC"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, changeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// changeForever says on standard output what it is about to do and, with "ok",
// that it is done.
func changeForever(dir string) error {
	s, err := tenant.OpenSuspensionsWith(dir, dieIn(os.Getenv(childOpenSync)))
	if err != nil {
		return err
	}
	s.SetSync(dieIn(os.Getenv(childSync)))
	for {
		id, err := tenant.Parse(fmt.Sprintf("c-%d", rand.N(6)))
		if err != nil {
			return err
		}
		if _, ok := s.Get(id); ok {
			fmt.Fprintln(os.Stdout, "-"+id.String())
			_, err = s.Resume(id)
		} else {
			fmt.Fprintln(os.Stdout, "+"+id.String())
			err = s.Suspend(tenant.Suspension{Tenant: id, By: "child", At: time.Now()})
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "ok")
	}
}

// dieIn returns an fsync that dies in that call, in none if it is "".
func dieIn(call string) func(*os.File) error {
	n := 0
	return func(f *os.File) error {
		if n++; fmt.Sprint(n) == call {
			die()
		}
		return f.Sync()
	}
}

// die kills this process as kill -9 does.
func die() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic("package: internal error: " + err.Error())
	}
	select {}
}

// child runs changeForever until it dies or has said so many lines, and
// returns all that it said.
func child(t *testing.T, dir string, lines int, env ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(append(os.Environ(), childDir+"="+dir), env...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, all := bufio.NewReader(out), ""
	for range lines {
		line, err := said.ReadString('\n')
		all += line
		if err != nil {
			break
		}
	}
	_ = cmd.Process.Kill() // it may have died already
	rest, err := io.ReadAll(said)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || problem.Len() > 0 {
		t.Fatalf("the child ended by itself: %v, %s", err, &problem)
	}
	return strings.Fields(all + string(rest))
}

// model is what is suspended, as the child says.
type model map[string]bool

// follow does what the child acknowledged. It returns what was under way.
func (m model) follow(t *testing.T, said []string) (pending string) {
	t.Helper()
	for _, word := range said {
		switch {
		case word != "ok" && pending == "":
			pending = word
		case word == "ok" && pending != "":
			m.do(pending)
			pending = ""
		default:
			t.Fatalf("the child said %q", said)
		}
	}
	return pending
}

func (m model) do(change string) {
	if change[0] == '+' {
		m[change[1:]] = true
	} else {
		delete(m, change[1:])
	}
}

func (m model) String() string {
	var ids []string
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// suspended returns what is suspended after a crash, as a model.
func suspended(t *testing.T, dir string) model {
	t.Helper()
	s, err := tenant.OpenSuspensions(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := model{}
	for _, x := range s.All() {
		m[x.Tenant.String()] = true
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, dir) {
		if strings.HasSuffix(name, ".tmp") {
			t.Errorf("%s was left behind", name)
		}
	}
	return m
}

// TestKilledAtAnyTime: the next process finds what was acknowledged last, or
// what was under way.
func TestKilledAtAnyTime(t *testing.T) {
	dir, now := stateDir(t), model{}
	acknowledged, half := 0, 0
	for range 25 {
		said := child(t, dir, 1+rand.N(40))
		pending := now.follow(t, said)
		acknowledged += len(said) / 2
		for _, name := range names(t, dir) {
			if strings.HasSuffix(name, ".tmp") {
				half++
			}
		}
		got := suspended(t, dir)
		before := now.String()
		if pending != "" && got.String() != before {
			now.do(pending)
		}
		if got.String() != now.String() {
			t.Fatalf("after a kill %q is suspended, want %q, perhaps with %q", got, before, pending)
		}
	}
	t.Logf("%d changes, %d of 25 kills left a temporary file", acknowledged, half)
	if acknowledged == 0 {
		t.Error("no child changed anything")
	}
}

// TestKilledInEachSync: the first sync of a change is of a file that has no
// name yet, the second of the directory that has its name.
func TestKilledInEachSync(t *testing.T) {
	for sync := 1; sync <= 6; sync++ {
		dir, now := stateDir(t), model{}
		said := child(t, dir, 1000, fmt.Sprintf("%s=%d", childSync, sync))
		pending := now.follow(t, said)
		if len(said)/2 != (sync-1)/2 || pending == "" {
			t.Fatalf("sync %d: the child said %q", sync, said)
		}
		left := slices.ContainsFunc(names(t, dir), func(name string) bool { return strings.HasSuffix(name, ".tmp") })
		if left != (sync%2 == 1) {
			t.Errorf("sync %d: a temporary file was left: %t", sync, left)
		}
		if sync%2 == 0 {
			now.do(pending)
		}
		if got := suspended(t, dir); got.String() != now.String() {
			t.Errorf("sync %d: %q is suspended, want %q", sync, got, now)
		}
	}
}

// TestKilledInFirstOpen: wherever a first start is killed, the next one finds
// nobody suspended, and from then on a lost file is missed.
func TestKilledInFirstOpen(t *testing.T) {
	const state, lock = "suspensions.json", "suspensions.lock"
	for sync, want := range [][]string{{lock}, {state, lock}, {state, lock}, {state, lock}} { // at first the file has no name yet
		dir := stateDir(t)
		if said := child(t, dir, 1, fmt.Sprintf("%s=%d", childOpenSync, sync+1)); len(said) > 0 {
			t.Fatalf("sync %d: the child said %q", sync+1, said)
		}
		left := slices.DeleteFunc(names(t, dir), func(name string) bool { return strings.HasSuffix(name, ".tmp") })
		if !slices.Equal(left, want) {
			t.Errorf("sync %d: %q is there, want %q", sync+1, left, want)
		}
		if marked := read(t, filepath.Join(dir, lock)) != ""; marked != (sync == 3) {
			t.Errorf("sync %d: the lock is marked: %t", sync+1, marked)
		}
		if got := suspended(t, dir); len(got) > 0 {
			t.Errorf("sync %d: %q is suspended", sync+1, got)
		}
		checkLossIsMissed(t, dir)
	}
}
