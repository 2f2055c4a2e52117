package record

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Frontier is what of a Merkle tree is needed to add leaves to it: the roots of
// its perfect subtrees, the largest first (RFC 6962, section 2.1). The zero
// Frontier is the empty tree. It is not safe for concurrent use.
type Frontier struct {
	size  int64
	nodes []tlog.Hash
}

// NewFrontier returns the frontier of a tree of size leaves.
func NewFrontier(size int64, nodes []tlog.Hash) (Frontier, error) {
	if size < 0 || len(nodes) != bits.OnesCount64(uint64(size)) {
		return Frontier{}, fmt.Errorf("a tree of %d records does not have %d subtrees", size, len(nodes))
	}
	return Frontier{size: size, nodes: slices.Clone(nodes)}, nil
}

// ParseFrontier returns the frontier of a tree of size leaves from an event's.
func ParseFrontier(size int64, nodes []string) (Frontier, error) {
	hashes := make([]tlog.Hash, 0, len(nodes))
	for _, text := range nodes {
		hash, err := tlog.ParseHash(text)
		if err != nil {
			return Frontier{}, fmt.Errorf("reading a frontier: %w", err)
		}
		hashes = append(hashes, hash)
	}
	return NewFrontier(size, hashes)
}

// Size returns the number of leaves.
func (f *Frontier) Size() int64 { return f.size }

// Nodes returns the roots of the perfect subtrees. It is a copy.
func (f *Frontier) Nodes() []tlog.Hash { return append([]tlog.Hash(nil), f.nodes...) }

// Clone returns a Frontier that changes apart from f.
func (f *Frontier) Clone() Frontier { return Frontier{f.size, f.Nodes()} }

// Add adds a leaf.
func (f *Frontier) Add(leaf tlog.Hash) {
	for size := f.size; size&1 == 1; size >>= 1 {
		last := len(f.nodes) - 1
		leaf = tlog.NodeHash(f.nodes[last], leaf)
		f.nodes = f.nodes[:last]
	}
	f.nodes = append(f.nodes, leaf)
	f.size++
}

// Root returns the tree's root hash. That of the empty tree is SHA-256 of
// nothing.
func (f *Frontier) Root() tlog.Hash {
	if f.size == 0 {
		return sha256.Sum256(nil)
	}
	root := f.nodes[len(f.nodes)-1]
	for i := len(f.nodes) - 2; i >= 0; i-- {
		root = tlog.NodeHash(f.nodes[i], root)
	}
	return root
}
