package secret

import (
	"errors"
	"fmt"
)

// A grade is one way to get memory, and the level that it reaches.
type grade struct {
	level Level
	// alloc returns at least size zero bytes, already backed by memory.
	alloc func(size int) (*region, error)
}

// A region is a slab's memory.
type region struct {
	b    []byte
	free func([]byte) error // nil for the heap
}

// slot returns slot i.
func (r *region) slot(i uint32) *[Size]byte {
	return (*[Size]byte)(r.b[int(i)*Size:])
}

// release wipes the memory and gives it back.
func (r *region) release() error {
	clear(r.b)
	b := r.b
	r.b = nil
	if r.free == nil {
		return nil
	}
	if err := r.free(b); err != nil {
		return fmt.Errorf("unmapping the key slab: %w", err)
	}
	return nil
}

// allocate tries the grades in order, and then the heap, which never fails.
// The error has the reason for each grade that did not work.
func allocate(size int, gs []grade) (*region, Level, error) {
	var reasons []error
	for _, g := range gs {
		r, err := g.alloc(size)
		if err == nil {
			return r, g.level, errors.Join(reasons...)
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", g.level, err))
	}
	return &region{b: make([]byte, size)}, Heap, errors.Join(reasons...)
}
