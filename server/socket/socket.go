//go:build unix

// Package socket makes Unix sockets that nobody else can replace or reach too
// early.
package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ErrInUse is returned by Listen when a process answers on the path.
var ErrInUse = errors.New("another process listens on the socket")

// liveTimeout is how long Listen waits for a process that may listen on
// the path already.
const liveTimeout = time.Second

// A socket is made as tempDir, some digits, and tempName within it.
const (
	tempDir  = ".ks"
	tempName = "s"
)

// Listener listens on a Unix socket whose file appears, with its final
// mode, only once it accepts connections.
type Listener struct {
	*net.UnixListener
	path  string
	file  fs.FileInfo
	close func() error
}

var _ net.Listener = (*Listener)(nil)

// Listen listens on path, absolute or relative, and sets the socket's mode,
// at most 0777; connecting needs the write bit. The path, as given, and its
// directory with 16 bytes more have to fit into a socket address: 107 bytes,
// on some systems 103.
//
// Nobody but root and this process's user may be able to replace the
// directory or anything above it: each has to belong to one of them and be
// writable by its owner only (above the directory itself, sticky will do), and
// symbolic links on the way have to be root's.
//
// A socket on which nobody listens is replaced; anything else on path is an
// error, ErrInUse if a process answers there. Of two processes that start
// at the same moment the last one wins.
func Listen(path string, mode fs.FileMode) (*Listener, error) {
	if mode&^fs.ModePerm != 0 {
		return nil, fmt.Errorf("socket mode %v has more than permission bits", mode)
	}
	if err := checkLength(path); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolving socket path %s: %w", path, err)
	}
	if err := checkDirectory(filepath.Dir(abs)); err != nil {
		return nil, err
	}
	if err := checkReplaceable(path); err != nil {
		return nil, err
	}
	return bindAndRename(path, mode)
}

// bindAndRename makes the socket in a directory that only this user can enter,
// so that nobody connects before its mode is set, and moves it to path.
func bindAndRename(path string, mode fs.FileMode) (*Listener, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), tempDir)
	if err != nil {
		return nil, fmt.Errorf("making a directory beside socket %s: %w", path, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()

	name := filepath.Join(dir, tempName)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("binding socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	file, err := publish(name, path, mode)
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	l := &Listener{UnixListener: ln, path: path, file: file}
	l.close = sync.OnceValue(l.removeAndClose)
	return l, nil
}

// publish sets the mode of the socket name and renames it to path. It returns
// what identifies the file.
func publish(name, path string, mode fs.FileMode) (fs.FileInfo, error) {
	if err := os.Chmod(name, mode); err != nil {
		return nil, fmt.Errorf("setting the mode of socket %s: %w", path, err)
	}
	file, err := os.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("reading back socket %s: %w", path, err)
	}
	if err := os.Rename(name, path); err != nil {
		return nil, fmt.Errorf("moving socket to %s: %w", path, err)
	}
	return file, nil
}

// Addr returns the address of the socket's path.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close removes the socket file if it still is this listener's, and stops
// listening. Later calls return what the first one did.
func (l *Listener) Close() error { return l.close() }

// removeAndClose removes first: as long as this process listens, no other
// Listen takes the path.
func (l *Listener) removeAndClose() error {
	var removeErr error
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		removeErr = os.Remove(l.path)
	}
	return errors.Join(l.UnixListener.Close(), removeErr)
}

// checkLength checks path and the temporary name beside it.
func checkLength(path string) error {
	temporary := filepath.Join(filepath.Dir(path), tempDir+"4294967295", tempName)
	longest := len(syscall.RawSockaddrUnix{}.Path) - 1
	if need := max(len(path), len(temporary)); need > longest {
		return fmt.Errorf("socket path %s needs %d bytes of a socket address, which holds %d: use a shorter directory",
			path, need, longest)
	}
	return nil
}

// checkReplaceable returns an error unless path is free or a socket on which
// nobody listens.
func checkReplaceable(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at socket path: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket path %s is taken by something that is no socket (%v)", path, info.Mode().Type())
	}
	conn, err := net.DialTimeout("unix", path, liveTimeout)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("socket path %s: %w", path, ErrInUse)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("finding out whether anybody listens: %w", err)
}

// checkDirectory checks dir and everything above it, both as written and with
// symbolic links resolved.
func checkDirectory(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("resolving socket directory: %w", err)
	}
	for _, start := range []string{dir, resolved} {
		for p := start; ; p = filepath.Dir(p) {
			if err := checkComponent(p, p == start); err != nil {
				return err
			}
			if p == filepath.Dir(p) {
				break
			}
		}
	}
	return nil
}

// checkComponent checks one directory or symbolic link; last is the directory
// that will hold the socket.
func checkComponent(p string, last bool) error {
	info, err := os.Lstat(p)
	if err != nil {
		return fmt.Errorf("checking socket directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("owner of %s is unknown", p)
	}
	mode := info.Mode()
	switch {
	case mode.Type() == fs.ModeSymlink && stat.Uid == 0:
		return nil
	case mode.Type() == fs.ModeSymlink:
		return fmt.Errorf("%s, on the way to the socket, is a symbolic link that is not root's: name its target", p)
	case !mode.IsDir():
		return fmt.Errorf("%s, on the way to the socket, is not a directory", p)
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("directory %s, on the way to the socket, belongs to user %d: others could replace the socket",
			p, stat.Uid)
	case mode.Perm()&0o022 != 0 && (last || mode&fs.ModeSticky == 0):
		return fmt.Errorf("directory %s, on the way to the socket, is writable by others (%v): chmod go-w, or use "+
			"a directory of its own", p, mode)
	}
	return nil
}
