//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package segments

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOwner returns why others than user uid and root can write to what info
// is about.
func checkOwner(info fs.FileInfo, uid int) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("has no owner")
	}
	if st.Uid != 0 && int64(st.Uid) != int64(uid) {
		return fmt.Errorf("belongs to user %d: chown it to user %d or root", st.Uid, uid)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("can be written by others, mode %04o: chmod go-w it", mode)
	}
	return nil
}

// lock takes an exclusive lock, which the kernel drops when the file is closed
// or the process dies.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}

// syncDir makes the names in the directory durable.
func (d *Dir) syncDir() error {
	f, err := d.root.Open(".")
	if err != nil {
		return fmt.Errorf("opening audit directory: %w", err)
	}
	defer f.Close()
	if err := d.sync(f); err != nil {
		return fmt.Errorf("syncing audit directory %s: %w", d.cfg.Path, err)
	}
	return nil
}
