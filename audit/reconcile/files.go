package reconcile

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// VaultFiles takes the vault logs at a path: a file, "-" for stdin, or a
// directory, of which it reads all files, also those in directories below, as
// blobs lie when they were downloaded, but none whose name begins with a dot.
func (r *Reconciler) VaultFiles(path string, stdin io.Reader) error {
	if path == "-" {
		return r.VaultLog(path, stdin)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reading a vault log: %w", err)
	}
	if !info.IsDir() {
		return r.vaultFile(path)
	}
	files := 0
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		hidden := strings.HasPrefix(d.Name(), ".") && name != path
		switch {
		case err != nil:
			return fmt.Errorf("reading the directory of a vault log: %w", err)
		case hidden && d.IsDir():
			return fs.SkipDir
		case hidden || d.IsDir():
			return nil
		}
		files++
		return r.vaultFile(name)
	})
	if err == nil && files == 0 {
		err = fmt.Errorf("reading the directory of a vault log: there is no file in %s: %w", path, fs.ErrNotExist)
	}
	return err
}

func (r *Reconciler) vaultFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("reading a vault log: %w", err)
	}
	defer f.Close()
	return r.VaultLog(name, f)
}
