package state

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// maxIssued bounds how many issued tokens are remembered; the one that
// expires first makes room.
const maxIssued = 1024

// Tokens knows which bearer tokens are good. Tokens are compared by their
// SHA-256, so neither timing nor a memory dump of the table tells them.
type Tokens struct {
	now  func() time.Time
	main [sha256.Size]byte

	mu     sync.Mutex
	issued map[[sha256.Size]byte]time.Time // expiry
}

// openTokens reads the token file, creating it the first time.
func openTokens(path string, now func() time.Time) (*Tokens, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		raw = []byte(newToken())
		err = writeFile(path, raw)
	}
	if err != nil {
		return nil, fmt.Errorf("reading token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if len(token) < 32 {
		return nil, fmt.Errorf("token in %s is shorter than 32 characters", path)
	}
	return &Tokens{
		now: now, main: sha256.Sum256([]byte(token)),
		issued: map[[sha256.Size]byte]time.Time{},
	}, nil
}

// newToken returns 256 random bits in base64url.
func newToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Admin reports whether header carries the token of the token file.
func (t *Tokens) Admin(header string) bool {
	sum, ok := bearer(header)
	return ok && subtle.ConstantTimeCompare(sum[:], t.main[:]) == 1
}

// Valid reports whether header carries the token of the token file or one that
// was issued and has not expired.
func (t *Tokens) Valid(header string) bool {
	if t.Admin(header) {
		return true
	}
	sum, ok := bearer(header)
	if !ok {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	expiry, ok := t.issued[sum]
	return ok && t.now().Before(expiry)
}

// bearer hashes the token of an Authorization header.
func bearer(header string) (sum [sha256.Size]byte, ok bool) {
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return sum, false
	}
	return sha256.Sum256([]byte(token)), true
}

// Issue returns a new token that is good for life, in memory only. At most
// 1,024 are kept.
func (t *Tokens) Issue(life time.Duration) string {
	token := newToken()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.issued) >= maxIssued {
		t.dropFirstToExpire()
	}
	t.issued[sha256.Sum256([]byte(token))] = t.now().Add(life)
	return token
}

func (t *Tokens) dropFirstToExpire() {
	var first [sha256.Size]byte
	var at time.Time
	for sum, expiry := range t.issued {
		if at.IsZero() || expiry.Before(at) {
			first, at = sum, expiry
		}
	}
	delete(t.issued, first)
}

// Revoke ends every token that was issued.
func (t *Tokens) Revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.issued)
}
