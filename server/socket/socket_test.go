//go:build unix

package socket_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/server/socket"
)

// listen listens on path until the test ends.
func listen(t *testing.T, path string) *socket.Listener {
	t.Helper()
	ln, err := socket.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// abandon leaves a socket file behind on which nobody listens.
func abandon(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
}

func connects(path string) bool {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestListen(t *testing.T) {
	for _, mode := range []fs.FileMode{0o600, 0o660, 0o666} {
		path := socketPath(t)
		ln, err := socket.Listen(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := info.Mode(), mode|fs.ModeSocket; got != want {
			t.Errorf("socket has mode %v, want %v", got, want)
		}
		if got := ln.Addr().String(); got != path {
			t.Errorf("Addr is %q, want %q", got, path)
		}
		if !connects(path) {
			t.Error("nobody answers on the socket")
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("directory has %v, want the socket alone (%v)", entries, err)
		}
		for range 2 {
			if err := ln.Close(); err != nil {
				t.Error("Close:", err)
			}
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket file after Close: %v", err)
		}
	}
}

func TestListenRelative(t *testing.T) {
	t.Chdir(filepath.Dir(socketPath(t)))
	listen(t, "s.sock")
	if !connects("s.sock") {
		t.Error("nobody answers on the socket")
	}
}

func TestListenReplacesAbandonedSocket(t *testing.T) {
	path := socketPath(t)
	abandon(t, path)
	listen(t, path)
	if !connects(path) {
		t.Error("nobody answers on the socket")
	}
}

func TestListenLeavesLiveSocket(t *testing.T) {
	path := socketPath(t)
	listen(t, path)
	if _, err := socket.Listen(path, 0o600); !errors.Is(err, socket.ErrInUse) {
		t.Errorf("second Listen returned %v, want ErrInUse", err)
	}
	if !connects(path) {
		t.Error("first listener lost its socket")
	}
}

func TestCloseLeavesAnothersSocket(t *testing.T) {
	path := socketPath(t)
	first := listen(t, path)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if !connects(path) {
		t.Error("the first listener removed the socket of the second")
	}
}

func TestListenRefuses(t *testing.T) {
	root := os.Geteuid() == 0
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string) (path string)
		mode    fs.FileMode
		want    string
	}{
		"file": {func(t *testing.T, dir string) string {
			return writeFile(t, filepath.Join(dir, "s"))
		}, 0o600, "no socket"},
		"directory": {func(t *testing.T, dir string) string {
			return makeDir(t, filepath.Join(dir, "s"), 0o700)
		}, 0o600, "no socket"},
		"link to a socket": {func(t *testing.T, dir string) string {
			abandon(t, filepath.Join(dir, "real"))
			return link(t, filepath.Join(dir, "real"), filepath.Join(dir, "s"))
		}, 0o600, "no socket"},
		"writable by the group": {func(t *testing.T, dir string) string {
			return filepath.Join(makeDir(t, filepath.Join(dir, "d"), 0o770), "s")
		}, 0o600, "writable by others"},
		"writable by all": {func(t *testing.T, dir string) string {
			return filepath.Join(makeDir(t, filepath.Join(dir, "d"), 0o707), "s")
		}, 0o600, "writable by others"},
		"sticky": {func(t *testing.T, dir string) string {
			return filepath.Join(makeDir(t, filepath.Join(dir, "d"), 0o777|fs.ModeSticky), "s")
		}, 0o600, "writable by others"},
		"above is writable": {func(t *testing.T, dir string) string {
			above := makeDir(t, filepath.Join(dir, "d"), 0o777)
			return filepath.Join(makeDir(t, filepath.Join(above, "e"), 0o700), "s")
		}, 0o600, "writable by others"},
		"a writable directory behind a link": {func(t *testing.T, dir string) string {
			above := makeDir(t, filepath.Join(dir, "d"), 0o777)
			makeDir(t, filepath.Join(above, "e"), 0o700)
			return filepath.Join(link(t, filepath.Join(above, "e"), filepath.Join(dir, "l")), "s")
		}, 0o600, map[bool]string{true: "writable by others", false: "symbolic link"}[root]},
		"no directory": {func(_ *testing.T, dir string) string {
			return filepath.Join(dir, "none", "s")
		}, 0o600, "no such file"},
		"a file above": {func(t *testing.T, dir string) string {
			return filepath.Join(writeFile(t, filepath.Join(dir, "f")), "s")
		}, 0o600, "not a directory"},
		"long": {func(_ *testing.T, dir string) string {
			return filepath.Join(dir, strings.Repeat("s", 108))
		}, 0o600, "shorter directory"},
		"mode": {func(_ *testing.T, dir string) string {
			return filepath.Join(dir, "s")
		}, 0o600 | fs.ModeSetuid, "more than permission bits"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.prepare(t, filepath.Dir(socketPath(t)))
			ln, err := socket.Listen(path, c.mode)
			if err == nil {
				ln.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Listen returned %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestListenBelowSticky shows that a private directory in /tmp will do.
func TestListenBelowSticky(t *testing.T) {
	above := makeDir(t, filepath.Join(filepath.Dir(socketPath(t)), "d"), 0o777|fs.ModeSticky)
	listen(t, filepath.Join(makeDir(t, filepath.Join(above, "e"), 0o755), "s"))
}

func makeDir(t *testing.T, path string, mode fs.FileMode) string {
	t.Helper()
	if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeFile(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func link(t *testing.T, target, path string) string {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// socketPath returns a free path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}
