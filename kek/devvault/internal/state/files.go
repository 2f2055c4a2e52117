package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The names in a devvault's directory.
const (
	lockFile     = "lock"
	identityFile = "devvault.json"
	caFile       = "ca.pem" // certificate and key in one file, so that they cannot part
	caCertFile   = "ca.crt" // the certificate alone, for clients
	tokenFile    = "token"
	vaultsDir    = "vaults"
	tempPrefix   = ".tmp-"
)

// fileFormat is the version of the directory's layout and of its JSON files.
const fileFormat = 1

// prepareDir makes dir private. It refuses a directory that holds somebody
// else's files, which a mistyped path would.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading directory: %w", err)
	}
	ours := slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == identityFile })
	foreign := slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() != lockFile && !strings.HasPrefix(e.Name(), tempPrefix)
	})
	if foreign && !ours {
		return fmt.Errorf("directory %s is not a devvault's: it has files and no %s", dir, identityFile)
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory needs its x bit
		return fmt.Errorf("making directory private: %w", err)
	}
	return nil
}

// removeTemps deletes what a process killed inside writeFile left behind.
func removeTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing temporary file: %w", err)
			}
		}
	}
	return nil
}

// identity is devvault.json: the first file written to a new directory.
type identity struct {
	Format      int    `json:"format"`
	EntraTenant string `json:"entra_tenant"`
}

// loadIdentity returns the directory's tenant GUID, making one the first time.
func loadIdentity(dir string) (string, error) {
	path := filepath.Join(dir, identityFile)
	id := identity{Format: fileFormat, EntraTenant: NewUUID()}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = json.Marshal(id)
		if err == nil {
			err = writeFile(path, raw)
		}
	}
	if err != nil {
		return "", fmt.Errorf("reading identity: %w", err)
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return "", fmt.Errorf("parsing %s: %w", path, err)
	}
	if id.Format != fileFormat {
		return "", fmt.Errorf("%s has format %d, not %d", path, id.Format, fileFormat)
	}
	return id.EntraTenant, nil
}

// writeFile replaces path by data, mode 0600. After a crash at any point path
// is either as before or as after, never a part.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return fmt.Errorf("creating temporary file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("writing file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("closing file: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("renaming file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// removeFile deletes path durably.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// makeDir creates one private directory durably; an existing one is fine.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("creating directory: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening directory: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing directory: %w", err)
	}
	return nil
}

// NewUUID returns a random UUID (RFC 9562, version 4).
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand documents it
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
