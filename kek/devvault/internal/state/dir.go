// Package state is everything that a devvault keeps in its directory: an
// identity, a certificate authority, a bearer token, and vaults of versioned
// keys that permit what Azure Key Vault permits.
//
// A change is durable before it is visible, and a process killed at any moment
// leaves a directory that opens.
package state

import (
	"errors"
	"path/filepath"
	"time"
)

// Dir is an open directory. Its fields do not change; what they point to is
// safe for concurrent use.
type Dir struct {
	// EntraTenant is a GUID that was drawn when the directory was created.
	EntraTenant string
	CA          *Authority
	Tokens      *Tokens
	Keys        *Store

	path string
	lock *dirLock
}

// Open loads or creates the directory at path. Certificates are for suffix and
// follow time.Now, all else follows now. The error wraps ErrInUse when the
// directory is open elsewhere. A file that does not parse is an error: nothing
// is dropped.
func Open(path, suffix string, now func() time.Time) (_ *Dir, err error) {
	if err := prepareDir(path); err != nil {
		return nil, err
	}
	d := &Dir{path: path}
	if d.lock, err = lockDir(filepath.Join(path, lockFile)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.lock.release())
		}
	}()
	if err = removeTemps(path); err != nil {
		return nil, err
	}
	if d.EntraTenant, err = loadIdentity(path); err != nil {
		return nil, err
	}
	if d.CA, err = openAuthority(path, suffix, time.Now); err != nil {
		return nil, err
	}
	if d.Tokens, err = openTokens(d.TokenFile(), now); err != nil {
		return nil, err
	}
	if d.Keys, err = openStore(filepath.Join(path, vaultsDir), now); err != nil {
		return nil, err
	}
	return d, nil
}

// CAFile returns the path of the authority's certificate, in PEM.
func (d *Dir) CAFile() string { return filepath.Join(d.path, caCertFile) }

// TokenFile returns the path of the bearer token.
func (d *Dir) TokenFile() string { return filepath.Join(d.path, tokenFile) }

// Close lets others open the directory.
func (d *Dir) Close() error { return d.lock.release() }
