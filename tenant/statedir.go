package tenant

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The names in a state directory. Others in it are left alone.
const (
	stateFile  = "suspensions.json"
	lockFile   = "suspensions.lock"
	tempPrefix = "suspensions-"
	tempSuffix = ".tmp"
)

// lockMark is what the lock file says from when there is a durable state file.
// An empty lock file is of a first start that did not get that far.
const lockMark = stateFile + " belongs to this file. Where it is missing, it was lost.\n"

// maxStateFile bounds the state file in bytes.
const maxStateFile = 64 << 20

// stateDir is a state directory that is nobody else's while it is open. It
// stays the directory that was checked, whatever happens to its path.
type stateDir struct {
	path string // absolute
	root *os.Root
	lock *os.File             // locked where there is flock
	sync func(*os.File) error // (*os.File).Sync, but for tests
}

func openStateDir(path string, sync func(*os.File) error) (_ *stateDir, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("finding state directory: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening state directory, which has to exist: %w", err)
	}
	d := &stateDir{path: path, root: root, sync: sync}
	if err := d.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening state directory %s: %w", path, err), d.close())
	}
	return d, nil
}

// prepare checks and locks the directory, and removes what a process killed
// inside replace left behind.
func (d *stateDir) prepare() error {
	info, err := d.root.Stat(".")
	if err != nil {
		return err
	}
	if err := checkOwner(info, os.Geteuid()); err != nil {
		return err
	}
	if _, err := d.regular(lockFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.lock, err = d.root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("opening lock: %w", err)
	}
	if err := lock(d.lock); err != nil {
		return fmt.Errorf("locking %s: %w", lockFile, err)
	}
	return d.removeTemps()
}

// close lets others open the directory. It is called once.
func (d *stateDir) close() error {
	err := d.root.Close()
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

func (d *stateDir) removeTemps() error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("reading directory: %w", err)
	}
	for _, e := range entries {
		if n := e.Name(); !e.Type().IsRegular() || !strings.HasPrefix(n, tempPrefix) || !strings.HasSuffix(n, tempSuffix) {
			continue
		}
		if err := d.root.Remove(e.Name()); err != nil {
			return fmt.Errorf("removing temporary file: %w", err)
		}
	}
	return nil
}

// load returns what the state file says. The first time it writes that file,
// and then marks the lock, so that later a missing one is a lost one.
func (d *stateDir) load() (map[ID]Suspension, error) {
	info, err := d.lock.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading suspensions: %w", err)
	}
	first := info.Size() == 0
	raw, err := d.read()
	if errors.Is(err, fs.ErrNotExist) {
		if !first {
			return nil, fmt.Errorf("%s is lost: restore it; if no tenant is to stay suspended, remove %s too",
				filepath.Join(d.path, stateFile), lockFile)
		}
		raw = encodeSuspensions(nil)
		_, err = d.replace(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("reading suspensions: %w", err)
	}
	all, err := decodeSuspensions(raw)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w: restore or correct it; to resume every tenant that is suspended in it, "+
			"remove it and %s", filepath.Join(d.path, stateFile), err, lockFile)
	}
	if first {
		err = d.mark()
	}
	return all, err
}

// mark makes the lock say that there is a state file, once that is durable:
// whoever wrote it may have been killed before that.
func (d *stateDir) mark() error {
	if err := d.syncDir(); err != nil {
		return err
	}
	_, err := d.lock.WriteString(lockMark)
	if err == nil {
		err = d.sync(d.lock)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Join(d.path, lockFile), err)
	}
	return nil
}

func (d *stateDir) read() ([]byte, error) {
	size, err := d.regular(stateFile)
	if err != nil {
		return nil, err
	}
	if size > maxStateFile {
		return nil, fmt.Errorf("%s has %d bytes, over %d: restore it", filepath.Join(d.path, stateFile), size, maxStateFile)
	}
	f, err := d.root.Open(stateFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// regular returns the size of a file that only this user and root can have
// written. The directory is theirs alone, so that it stays such a file.
func (d *stateDir) regular(name string) (int64, error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file: remove it", filepath.Join(d.path, name))
	}
	if err := checkOwner(info, os.Geteuid()); err != nil {
		return 0, fmt.Errorf("%s %w", filepath.Join(d.path, name), err)
	}
	return info.Size(), nil
}

// replace makes data the state file, mode 0600. After a crash at any point the
// file is as before or as after, never a part. With an error it is as before,
// unless renamed says that it is as after and perhaps not durable.
func (d *stateDir) replace(data []byte) (renamed bool, err error) {
	if err := d.checkPath(); err != nil {
		return false, err
	}
	temp := tempPrefix + rand.Text() + tempSuffix
	if err = d.writeTemp(temp, data); err == nil {
		if err = d.root.Rename(temp, stateFile); err == nil {
			return true, d.syncDir()
		}
	}
	_ = d.root.Remove(temp) // or the next start does it
	return false, fmt.Errorf("writing %s: %w", filepath.Join(d.path, stateFile), err)
}

func (d *stateDir) writeTemp(name string, data []byte) error {
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = d.sync(f)
	}
	return errors.Join(err, f.Close())
}

// checkPath sees to it that the next start reads what is written now, and that
// nobody else writes: that the path still leads to the directory that was
// opened, and the lock's name to the file that is locked.
func (d *stateDir) checkPath() error {
	opened, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("checking state directory: %w", err)
	}
	named, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("checking state directory: %w", err)
	}
	if !os.SameFile(opened, named) {
		return fmt.Errorf("state directory %s was replaced by another: put the old one back, or restart the sidecar", d.path)
	}
	locked, err := d.lock.Stat()
	if err != nil {
		return fmt.Errorf("checking lock: %w", err)
	}
	if named, err = d.root.Lstat(lockFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("checking lock: %w", err)
	}
	if err != nil || !os.SameFile(locked, named) {
		return fmt.Errorf("%s was removed or replaced, so that another sidecar may use the directory: stop that, and restart this one",
			filepath.Join(d.path, lockFile))
	}
	return nil
}
