// Package rows holds the claims that keysidecar makes about speed: what is measured, beside
// what, and what the ratio of the two may be.
package rows

import (
	"fmt"
	"slices"

	"github.com/keysidecar/keysidecar/internal/secret"
)

// A Row is one claim: Subject takes at most Bar times as long as Base.
type Row struct {
	// Claim names the subject and its base.
	Claim string
	// Subject and Base do one operation each, or the same number of operations each. They
	// panic when it fails.
	Subject, Base func()
	// Bar is the greatest ratio allowed, as a time of Subject over a time of Base.
	Bar float64
	// MaxAllocs is how many heap allocations Subject may make. The rows' results have
	// their room beforehand, so that allocating it does not hide what is measured.
	MaxAllocs uint64
}

// Set is all rows and what they need. Its rows are not safe for concurrent use.
type Set struct {
	Rows []Row
	slab *secret.Slab
}

// New prepares all rows.
func New() (*Set, error) {
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		return nil, fmt.Errorf("making key slab: %w", err)
	}
	key, err := slab.Put(testKey())
	if err != nil {
		return nil, fmt.Errorf("storing key: %w", err)
	}
	sealing, err := envelopeRows(key)
	if err != nil {
		return nil, fmt.Errorf("preparing envelope rows: %w", err)
	}
	hits, err := cacheRows()
	if err != nil {
		return nil, fmt.Errorf("preparing cache rows: %w", err)
	}
	deciding, err := policyRows()
	if err != nil {
		return nil, fmt.Errorf("preparing policy rows: %w", err)
	}
	return &Set{Rows: slices.Concat(sealing, cobblestoneRows(), hits, deciding), slab: slab}, nil
}

// Close wipes the key.
func (s *Set) Close() error { return s.slab.Close() }

// testKey returns a new copy of the key of all rows.
func testKey() *[secret.Size]byte {
	var key [secret.Size]byte
	for i := range key {
		key[i] = byte(i)
	}
	return &key
}

// must panics when an operation that is measured fails.
func must(ok bool) {
	if !ok {
		panic("rows: internal error: the operation measured has failed")
	}
}
