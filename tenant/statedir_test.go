//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package tenant_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/tenant"
)

// failing returns an fsync that does not work from call first to call last.
func failing(first, last int) func(*os.File) error {
	n := 0
	return func(f *os.File) error {
		if n++; first <= n && n <= last {
			return syscall.EIO
		}
		return f.Sync()
	}
}

func TestFailedWriteChangesNothing(t *testing.T) {
	must := func(t *testing.T, errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	const file = "suspensions.json"
	for _, tt := range []struct {
		name       string
		breakIt    func(t *testing.T, s *tenant.Suspensions, dir string)
		repair     func(t *testing.T, s *tenant.Suspensions, dir string)
		want, path string // in the error; where dir is while it is broken
	}{
		{"the file cannot be synced", func(_ *testing.T, s *tenant.Suspensions, _ string) { s.SetSync(failing(1, 1)) },
			nil, "writing ", ""},
		{"the directory cannot be synced", func(_ *testing.T, s *tenant.Suspensions, _ string) { s.SetSync(failing(2, 2)) },
			nil, "syncing state directory", ""},
		{"the directory cannot be synced twice", func(_ *testing.T, s *tenant.Suspensions, _ string) { s.SetSync(failing(2, 4)) },
			func(_ *testing.T, s *tenant.Suspensions, _ string) { s.SetSync((*os.File).Sync) }, "putting back the old file: ", "?"},
		{"the directory is away", func(t *testing.T, _ *tenant.Suspensions, dir string) { must(t, os.Rename(dir, dir+"x")) },
			func(t *testing.T, _ *tenant.Suspensions, dir string) { must(t, os.Rename(dir+"x", dir)) }, "checking state directory", "x"},
		{"the directory is another", func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Rename(dir, dir+"x"), os.Mkdir(dir, 0o700))
		}, func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Remove(dir), os.Rename(dir+"x", dir))
		}, "was replaced by another", "x"},
		{"the directory is a file", func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Rename(dir, dir+"x"), os.WriteFile(dir, nil, 0o600))
		}, func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Remove(dir), os.Rename(dir+"x", dir))
		}, "was replaced by another", "x"},
		{"the lock is away", func(t *testing.T, _ *tenant.Suspensions, dir string) { must(t, os.Rename(lockOf(dir), dir+".lock")) },
			func(t *testing.T, _ *tenant.Suspensions, dir string) { must(t, os.Rename(dir+".lock", lockOf(dir))) },
			"suspensions.lock was removed or replaced", "?"},
		{"the lock is another's", func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Rename(lockOf(dir), dir+".lock"))
			checkSuspended(t, openSuspensions(t, dir), "a", "b") // a second sidecar
		}, func(t *testing.T, _ *tenant.Suspensions, dir string) { must(t, os.Rename(dir+".lock", lockOf(dir))) },
			"suspensions.lock was removed or replaced", ""},
		{"the file cannot be renamed", func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Rename(filepath.Join(dir, file), filepath.Join(dir, "kept")), os.Mkdir(filepath.Join(dir, file), 0o700))
		}, func(t *testing.T, _ *tenant.Suspensions, dir string) {
			must(t, os.Remove(filepath.Join(dir, file)), os.Rename(filepath.Join(dir, "kept"), filepath.Join(dir, file)))
		}, "writing ", "?"},
	} {
		for _, op := range []string{"suspend", "resume"} {
			t.Run(tt.name+"/"+op, func(t *testing.T) {
				dir := stateDir(t)
				s := openSuspensions(t, dir)
				mustSuspend(t, s, "a", "b")
				before := read(t, filepath.Join(dir, file))
				change := func() (err error) {
					if op == "suspend" {
						return s.Suspend(suspension(t, "c"))
					}
					_, err = s.Resume(mustParse(t, "b"))
					return err
				}
				tt.breakIt(t, s, dir)
				if err := change(); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v, want ...%s...", op, err, tt.want)
				}
				checkSuspended(t, s, "a", "b")
				if tt.path != "?" {
					if got := read(t, filepath.Join(dir+tt.path, file)); got != before {
						t.Errorf("the file is now %q", got)
					}
					if diff := cmp.Diff([]string{file, "suspensions.lock"}, names(t, dir+tt.path)); diff != "" {
						t.Errorf("files (-want +got):\n%s", diff)
					}
				}
				if tt.repair != nil {
					tt.repair(t, s, dir)
				}
				must(t, change())
				after := map[string][]string{"suspend": {"a", "b", "c"}, "resume": {"a"}}[op]
				checkSuspended(t, s, after...)
				must(t, s.Close())
				checkSuspended(t, openSuspensions(t, dir), after...)
			})
		}
	}
}

func lockOf(dir string) string { return filepath.Join(dir, "suspensions.lock") }

// checkLossIsMissed checks that nobody is resumed where the state file is lost,
// unless the operator says so. Nobody has dir open.
func checkLossIsMissed(t *testing.T, dir string) {
	t.Helper()
	state := filepath.Join(dir, "suspensions.json")
	if err := os.Rename(state, dir+".kept"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first does not make the second start
		s, err := tenant.OpenSuspensions(dir)
		if s != nil || err == nil || !strings.Contains(err.Error(), state+" is lost: restore it; ") ||
			!strings.Contains(err.Error(), "remove suspensions.lock too") {
			t.Fatalf("OpenSuspensions without the file = %v, %v", s.All(), err)
		}
	}
	if err := os.Rename(dir+".kept", state); err != nil {
		t.Fatal(err)
	}
	s := openSuspensions(t, dir)
	mustSuspend(t, s, "kept")
	if err := errors.Join(s.Close(), os.Remove(state), os.Remove(lockOf(dir))); err != nil {
		t.Fatal(err)
	}
	checkSuspended(t, openSuspensions(t, dir))
}

func TestLostFileStopsTheStart(t *testing.T) {
	dir := stateDir(t)
	if err := openSuspensions(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	checkLossIsMissed(t, dir)
	t.Run("of a directory with a file and no lock", func(t *testing.T) {
		dir := stateDir(t)
		write(t, filepath.Join(dir, "suspensions.json"), file(recordA))
		s := openSuspensions(t, dir)
		checkSuspended(t, s, "a")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		checkLossIsMissed(t, dir)
	})
}

// TestFirstOpenIsDurable: the lock is not marked while the file may be lost by
// a crash, not even by the start after one that failed.
func TestFirstOpenIsDurable(t *testing.T) {
	for call := 1; call <= 3; call++ { // of the file, of the directory, and of that again
		dir := stateDir(t)
		for _, first := range []int{call, 1} {
			s, err := tenant.OpenSuspensionsWith(dir, failing(first, 100))
			if s != nil || !errors.Is(err, syscall.EIO) {
				t.Fatalf("OpenSuspensions with sync %d failing = %v, %v", first, s.All(), err)
			}
			if got := read(t, lockOf(dir)); got != "" {
				t.Errorf("sync %d failing: the lock says %q", first, got)
			}
		}
		checkSuspended(t, openSuspensions(t, dir))
	}
}

func TestFailedFirstWriteLeavesNoSuspension(t *testing.T) {
	dir := stateDir(t)
	s := openSuspensions(t, dir)
	s.SetSync(failing(2, 2))
	if err := s.Suspend(suspension(t, "a")); !errors.Is(err, syscall.EIO) {
		t.Errorf("Suspend: %v", err)
	}
	checkSuspended(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkSuspended(t, openSuspensions(t, dir))
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := stateDir(t)
	write(t, filepath.Join(dir, "suspensions-"+strings.Repeat("A", 26)+".tmp"), `{"ver`)
	write(t, filepath.Join(dir, "suspensions-.tmp"), "")
	kept := []string{"audit.tmp", "suspensions-A", "suspensions-B.tmp", "suspensions-C.tmp", "xsuspensions-A.tmp"}
	for _, name := range []string{kept[0], kept[1], kept[4]} {
		write(t, filepath.Join(dir, name), "others'")
	}
	if err := os.Mkdir(filepath.Join(dir, kept[2]), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, kept[0]), filepath.Join(dir, kept[3])); err != nil {
		t.Fatal(err)
	}
	openSuspensions(t, dir)
	want := append(append(kept[:4:4], "suspensions.json", "suspensions.lock"), kept[4])
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestOpenRefusesDirectories(t *testing.T) {
	in := func(name string) func(dir string) string {
		return func(dir string) string { return filepath.Join(dir, name) }
	}
	chmod := func(name string, mode fs.FileMode) func(dir string) error {
		return func(dir string) error { return os.Chmod(filepath.Join(dir, name), mode) }
	}
	instead := func(name string, put func(path string) error) func(dir string) error {
		return func(dir string) error { return errors.Join(os.Remove(in(name)(dir)), put(in(name)(dir))) }
	}
	dir := func(path string) error { return os.Mkdir(path, 0o700) }
	fifo := func(path string) error { return syscall.Mkfifo(path, 0o600) }
	link := func(path string) error {
		target := filepath.Join(filepath.Dir(path), "real")
		return errors.Join(os.WriteFile(target, []byte(file()), 0o600), os.Symlink("real", path))
	}
	const state, lock = "suspensions.json", "suspensions.lock"
	for _, tt := range []struct {
		name   string
		change func(dir string) error
		want   string
	}{
		{"missing", os.RemoveAll, "no such file"},
		{"file", func(dir string) error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) }, "not a directory"},
		{"writable by the group", chmod("", 0o720), "mode 0720: chmod go-w it"},
		{"writable by all", chmod("", 0o702), "mode 0702: chmod go-w it"},
		{"sticky", chmod("", 0o777|fs.ModeSticky), "mode 0777: chmod go-w it"},
		{"file writable by the group", chmod(state, 0o620), state + " can be written by others"},
		{"file writable by all", chmod(state, 0o602), state + " can be written by others"},
		{"lock writable by all", chmod(lock, 0o602), lock + " can be written by others"},
		{"file is a directory", instead(state, dir), state + " is not a regular file"},
		{"file is a pipe", instead(state, fifo), state + " is not a regular file"},
		{"file is a link", instead(state, link), state + " is not a regular file"},
		{"lock is a directory", instead(lock, dir), lock + " is not a regular file"},
		{"lock is a pipe", instead(lock, fifo), lock + " is not a regular file"},
		{"lock is a link", instead(lock, link), lock + " is not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := stateDir(t)
			s := openSuspensions(t, dir)
			mustSuspend(t, s, "a")
			if err := errors.Join(s.Close(), tt.change(dir)); err != nil {
				t.Fatal(err)
			}
			s, err := tenant.OpenSuspensions(dir)
			if s != nil || err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("OpenSuspensions = %v, %v, want an error of %s: ...%s...", s.All(), err, dir, tt.want)
			}
		})
	}
	t.Run("readable by all", func(t *testing.T) {
		dir := stateDir(t)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, state), file(recordA))
		if err := os.Chmod(filepath.Join(dir, state), 0o644); err != nil {
			t.Fatal(err)
		}
		checkSuspended(t, openSuspensions(t, dir), "a")
	})
}

// owned is the fs.FileInfo of a file with that owner.
type owned struct {
	fs.FileInfo
	uid uint32
}

func (o owned) Sys() any { return &syscall.Stat_t{Uid: o.uid} }

func TestCheckOwner(t *testing.T) {
	info, err := os.Stat(stateDir(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		owner uint32
		uid   int
		ok    bool
	}{{0, 0, true}, {0, 10001, true}, {10001, 10001, true}, {10001, 0, false}, {10001, 10002, false}, {1<<32 - 1, -1, false}} {
		if err := tenant.CheckOwner(owned{info, tt.owner}, tt.uid); (err == nil) != tt.ok {
			t.Errorf("owner %d for user %d: %v, want ok %t", tt.owner, tt.uid, err, tt.ok)
		}
	}
	if err := tenant.CheckOwner(info, os.Geteuid()); err != nil {
		t.Error(err)
	}
}

// TestOpenChecksOwners needs root to give files away; TestCheckOwner does not.
func TestOpenChecksOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		if s, err := tenant.OpenSuspensions("/"); s != nil || err == nil {
			t.Errorf("OpenSuspensions of a directory that cannot be written to = %v, %v", s.All(), err)
		}
		return
	}
	for _, name := range []string{".", "suspensions.json", "suspensions.lock"} {
		dir := stateDir(t)
		s := openSuspensions(t, dir)
		mustSuspend(t, s, "a")
		if err := errors.Join(s.Close(), os.Chown(filepath.Join(dir, name), 10001, -1)); err != nil {
			t.Fatal(err)
		}
		if _, err := tenant.OpenSuspensions(dir); err == nil || !strings.Contains(err.Error(), "belongs to user 10001") {
			t.Errorf("%s: OpenSuspensions: %v", name, err)
		}
	}
}

func TestOneSidecarOnADirectory(t *testing.T) {
	dir := stateDir(t)
	first := openSuspensions(t, dir)
	mustSuspend(t, first, "a")
	leftover := filepath.Join(dir, "suspensions-A.tmp")
	write(t, leftover, "") // being written by the first
	if s, err := tenant.OpenSuspensions(dir); s != nil || err == nil || !strings.Contains(err.Error(), "another sidecar uses the directory") {
		t.Fatalf("second OpenSuspensions = %v, %v", s.All(), err)
	}
	if _, err := os.Stat(leftover); err != nil {
		t.Errorf("the second touched the first's files: %v", err)
	}
	mustSuspend(t, first, "b")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	checkSuspended(t, openSuspensions(t, dir), "a", "b")
}

func TestRelativeStateDirectory(t *testing.T) {
	dir := stateDir(t)
	t.Chdir(filepath.Dir(dir))
	s := openSuspensions(t, filepath.Base(dir))
	t.Chdir("/")
	mustSuspend(t, s, "a")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkSuspended(t, openSuspensions(t, dir), "a")
}
