package tenant

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

// ErrNoState says that a suspension cannot be kept, because Suspensions is nil
// or closed.
var ErrNoState = errors.New("no state directory is open to keep suspensions in: configure one")

// The bounds of what is suspended here, and of who says so and why.
const (
	maxSuspensions = 100_000
	maxRemark      = 256 // bytes of By, and of Reason
)

// Suspension is one tenant's that an operator has suspended in this sidecar.
type Suspension struct {
	// Tenant is who is suspended. Required.
	Tenant ID
	// By is who suspended it: 1 to 256 bytes of printable text.
	By string
	// Reason is why: up to 256 bytes of printable text. Empty: not said.
	Reason string
	// At is when, from 1970 to 9999. It is kept in UTC. Required.
	At time.Time
}

// Suspensions are the tenants that an operator has suspended in this sidecar,
// besides those that are suspended in the Directory. They survive a restart.
// Nil holds none and keeps none. It is safe for concurrent use.
type Suspensions struct {
	mu  sync.Mutex // one change at a time; Get and All do not take it
	dir *stateDir  // nil after Close
	// all is in effect, and what the state file says. The map is never
	// changed, only replaced.
	all atomic.Pointer[map[ID]Suspension]
}

// OpenSuspensions reads the suspensions kept in dir and locks dir until Close.
// The directory has to exist, belong to this process's user or root, and be
// writable by nobody else. In a new one it writes a suspensions.json of nobody,
// and a suspensions.lock that remembers it. Later a file that is missing,
// damaged, or that others could have written is an error, so that nobody is
// resumed by an accident. The error is ErrNoState if dir is "".
func OpenSuspensions(dir string) (*Suspensions, error) {
	return openSuspensions(dir, (*os.File).Sync)
}

// openSuspensions is OpenSuspensions with that fsync.
func openSuspensions(dir string, sync func(*os.File) error) (*Suspensions, error) {
	if dir == "" {
		return nil, ErrNoState
	}
	d, err := openStateDir(dir, sync)
	if err != nil {
		return nil, err
	}
	all, err := d.load()
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	s := &Suspensions{dir: d}
	s.all.Store(&all)
	return s, nil
}

// Suspend keeps x, and then puts it in effect, before it returns. If the
// tenant is suspended already, the first suspension stays and nothing is
// written. With an error nothing has changed: ErrNoState if s is nil or
// closed. It writes the whole file, and takes as long as two fsyncs.
func (s *Suspensions) Suspend(x Suspension) error {
	if s == nil {
		return ErrNoState
	}
	x.At = x.At.UTC() // and without the monotonic clock, which would not survive a restart
	if err := x.check(); err != nil {
		return fmt.Errorf("suspending tenant %q: %w", x.Tenant, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return ErrNoState
	}
	now := s.current()
	if _, ok := now[x.Tenant]; ok {
		return nil
	}
	if len(now) >= maxSuspensions {
		return fmt.Errorf("suspending tenant %q: that would be over %d suspensions: resume some, or suspend in the tenants file",
			x.Tenant, maxSuspensions)
	}
	next := maps.Clone(now)
	next[x.Tenant] = x
	if err := s.replace(next); err != nil {
		return fmt.Errorf("suspending tenant %q: %w", x.Tenant, err)
	}
	return nil
}

// Resume ends a tenant's suspension, durably and then in effect, before it
// returns; was says whether there was one. With an error nothing has changed:
// ErrNoState if s is nil or closed.
func (s *Suspensions) Resume(id ID) (was bool, err error) {
	if s == nil {
		return false, ErrNoState
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return false, ErrNoState
	}
	now := s.current()
	if _, ok := now[id]; !ok {
		return false, nil
	}
	next := maps.Clone(now)
	delete(next, id)
	if err := s.replace(next); err != nil {
		return true, fmt.Errorf("resuming tenant %q: %w", id, err)
	}
	return true, nil
}

// Get returns the suspension of id, false if there is none. It takes no lock,
// does not allocate, and works after Close too.
func (s *Suspensions) Get(id ID) (Suspension, bool) {
	x, ok := s.current()[id]
	return x, ok
}

// All returns the suspensions, by tenant ID.
func (s *Suspensions) All() []Suspension { return sorted(s.current()) }

// Close lets others open the directory. What is suspended stays suspended,
// here and on disk; Suspend and Resume return ErrNoState from now on.
func (s *Suspensions) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dir
	s.dir = nil
	if d == nil {
		return nil
	}
	return d.close()
}

func (s *Suspensions) current() map[ID]Suspension {
	if s == nil {
		return nil
	}
	if all := s.all.Load(); all != nil {
		return *all
	}
	return nil
}

// replace keeps next and then puts it in effect. s.mu is held.
func (s *Suspensions) replace(next map[ID]Suspension) error {
	data := encodeSuspensions(next)
	if len(data) > maxStateFile {
		return fmt.Errorf("the state file would have %d bytes, over %d: resume some, or suspend in the tenants file",
			len(data), maxStateFile)
	}
	renamed, err := s.dir.replace(data)
	if err == nil {
		s.all.Store(&next)
		return nil
	}
	if renamed { // but perhaps not durably: put back what stays in effect
		if _, again := s.dir.replace(encodeSuspensions(s.current())); again != nil {
			return fmt.Errorf("%w; putting back the old file: %w", err, again)
		}
	}
	return err
}

// check returns what is wrong with x, the same for Suspend and for the file.
func (x *Suspension) check() error {
	switch y := x.At.Year(); {
	case x.Tenant == ID{}:
		return ErrInvalidID
	case x.By == "" || !printable(x.By):
		return fmt.Errorf("by %q is not 1 to %d bytes of printable text", x.By, maxRemark)
	case CheckReason(x.Reason) != nil:
		return CheckReason(x.Reason)
	case y < 1970 || y > 9999:
		return fmt.Errorf("at %s is not from 1970 to 9999", x.At)
	}
	return nil
}

// CheckReason returns an error unless a Suspension may have that Reason.
func CheckReason(reason string) error {
	if !printable(reason) {
		return fmt.Errorf("reason %q is not up to %d bytes of printable text", reason, maxRemark)
	}
	return nil
}

// printable reports whether s can be shown on a terminal without moving its
// cursor or the direction of its text.
func printable(s string) bool {
	return len(s) <= maxRemark && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func sorted(all map[ID]Suspension) []Suspension {
	return slices.SortedFunc(maps.Values(all), func(a, b Suspension) int { return strings.Compare(a.Tenant.s, b.Tenant.s) })
}
