// Package secret keeps 32-byte keys off the Go heap, in one slab of slots
// that is kept out of swap and core dumps as far as the kernel allows, and
// out of everything that prints, logs or marshals.
//
// What it claims: a key in a slot of a slab at level Locked is not written to
// swap or to a core dump; at level Memfd it is not in /proc/PID/mem or a
// checkpoint either. It claims nothing for copies: what a caller copies out
// of [Key.Expose], and what a library left behind before [Slab.Put], is
// ordinary memory.
package secret

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	// Size is the length of a key in bytes.
	Size = 32
	// MaxSlots is the largest Config.Slots: 512 MiB of keys.
	MaxSlots = 1 << 24
)

var (
	// ErrFull is returned by Slab.Put when every slot is taken.
	ErrFull = errors.New("key slab is full")
	// ErrClosed is returned by Slab.Put after Slab.Close.
	ErrClosed = errors.New("key slab is closed")
	// ErrLevel is returned by New when Config.Require cannot be met.
	ErrLevel = errors.New("memory protection is below the required level")
)

// Level says how well a slab is protected. Higher is better.
type Level uint8

// The levels.
const (
	// Heap is ordinary memory.
	Heap Level = iota
	// Locked is mmap(2) with mlock(2), MADV_DONTDUMP and MADV_WIPEONFORK.
	Locked
	// Memfd is memfd_secret(2): memory that the kernel itself does not map.
	Memfd
)

var levelNames = [...]string{Heap: "heap", Locked: "locked", Memfd: "memfd_secret"}

// String returns "heap", "locked" or "memfd_secret".
func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("level(%d)", uint8(l))
}

// Config configures a slab.
type Config struct {
	// Slots is how many keys fit: 1 to MaxSlots. Zero is refused.
	Slots int
	// Require is the lowest level that New accepts. Zero (Heap) accepts any.
	Require Level
}

// Slab is a fixed number of 32-byte slots that never move. It is safe for
// concurrent use.
type Slab struct {
	level     Level
	shortfall error
	closed    atomic.Bool

	mu   sync.Mutex
	mem  *region  // behind a pointer: fmt prints a nested pointer as an address
	free []uint32 // indices of free slots, the next one last
	size int
}

// New returns a slab at the best level that the system grants: Memfd, else
// Locked, else Heap. It returns an error for a wrong Slots, and ErrLevel,
// wrapped with the reasons, if the level is below cfg.Require. It starts no
// goroutine; the slab is to be closed.
//
// Memfd and Locked memory counts against RLIMIT_MEMLOCK (often 8 MiB without
// privilege: 7 MiB are 229,376 slots).
func New(cfg Config) (*Slab, error) {
	return newSlab(cfg, grades())
}

func newSlab(cfg Config, gs []grade) (*Slab, error) {
	if cfg.Slots < 1 || cfg.Slots > MaxSlots {
		return nil, fmt.Errorf("key slab of %d slots: not 1 to %d", cfg.Slots, MaxSlots)
	}
	if cfg.Require > Memfd {
		return nil, fmt.Errorf("unknown memory protection %s", cfg.Require)
	}
	mem, level, shortfall := allocate(cfg.Slots*Size, gs)
	if level < cfg.Require {
		if err := mem.release(); err != nil {
			shortfall = errors.Join(shortfall, err)
		}
		return nil, fmt.Errorf("%w: %s, not %s: %w", ErrLevel, level, cfg.Require, shortfall)
	}
	s := &Slab{level: level, shortfall: shortfall, mem: mem, size: cfg.Slots, free: make([]uint32, cfg.Slots)}
	for i := range s.free {
		s.free[i] = uint32(cfg.Slots - 1 - i) //nolint:gosec // Slots is bounded above
	}
	return s, nil
}

// Put copies key into a free slot and then wipes *key. It returns ErrFull, or
// ErrClosed after Close; then *key is as it was, and the caller's to wipe.
func (s *Slab) Put(key *[Size]byte) (*Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil, ErrClosed
	}
	n := len(s.free)
	if n == 0 {
		return nil, ErrFull
	}
	k := &Key{slab: s, index: s.free[n-1]}
	s.free = s.free[:n-1]
	p := s.mem.slot(k.index)
	*p = *key
	clear(key[:])
	k.p.Store(p)
	return k, nil
}

// Level returns the level that the slab reached.
func (s *Slab) Level() Level { return s.level }

// Shortfall says why each better level than Level was not reached; it is nil
// at Memfd. It may be logged.
func (s *Slab) Shortfall() error { return s.shortfall }

// InUse returns how many slots hold a key; zero after Close.
func (s *Slab) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return 0
	}
	return s.size - len(s.free)
}

// Close wipes every slot and gives the memory back to the system. Nobody may
// use a pointer from Key.Expose any more: it points nowhere, and the process
// crashes. Afterwards Key.Expose panics, Key.Wipe does nothing, Put returns
// ErrClosed, and Close returns nil.
func (s *Slab) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Swap(true) {
		return nil
	}
	s.free = nil
	return s.mem.release()
}

// wipe clears a slot and frees it.
func (s *Slab) wipe(index uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return // Close has wiped it, and the memory is gone.
	}
	clear(s.mem.slot(index)[:])
	s.free = append(s.free, index)
}

// Format writes the slab's level and nothing of its contents, for every verb.
func (s *Slab) Format(f fmt.State, _ rune) { writeState(f, "secret.Slab("+s.levelName()+")") }

func (s *Slab) levelName() string {
	if s == nil {
		return "nil"
	}
	return s.level.String()
}
