package verify

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// ErrProof says that something is no proof that a record is in a log, or that
// there is none.
var ErrProof = errors.New("no proof of a record")

// proofTitle is the first line of a proof.
const proofTitle = "c2sp.org/tlog-proof@v1"

// Prove returns a C2SP tlog-proof, with the record's line as extra data, that
// record seq is in the log: in the newest of checkpoints, kept elsewhere, that has
// it, else in the newest of the log's own. An empty log means the only one that
// there is. Records before it may have been removed, with whole segments; those
// after it, up to the checkpoint, must be there. It keeps 40 bytes of each record
// of the log. Paths and stdin are as for reader.Read. What is not in the log, or
// not as a checkpoint has it, is ErrProof.
func Prove(paths []string, stdin io.Reader, log string, seq int64, checkpoints []string) (string, error) {
	p := prover{log: log, seq: seq, subtrees: make(map[subtree]tlog.Hash)}
	if err := reader.Read(paths, stdin, p.take); err != nil {
		return "", err
	}
	if p.line == nil {
		return "", fmt.Errorf("%w: record %d of log %s is not here", ErrProof, seq, cmp.Or(p.log, "(any)"))
	}
	if err := p.sort(); err != nil {
		return "", err
	}
	cause := fmt.Errorf("%w: no checkpoint covers record %d of log %s yet", ErrProof, seq, p.log)
	for i, signed := range p.candidates(checkpoints) {
		text, err := p.prove(signed)
		if err == nil {
			return text, nil
		}
		if i == 0 {
			cause = err
		}
	}
	return "", cause
}

// prover collects what a proof needs.
type prover struct {
	log      string
	only     bool // there must be no other
	seq      int64
	line     []byte // of the record
	leaves   []leaf
	subtrees map[subtree]tlog.Hash // of removed records, from the frontiers of segments
	own      string                // the log's newest checkpoint
	ownSize  int64
	key      note.Verifier // as the log says; nil: it is not here
}

type leaf struct {
	seq  int64
	hash tlog.Hash
}

// subtree is the n-th perfect subtree of 2^level records.
type subtree struct {
	level int
	n     int64
}

// take takes a line. What is no record is left to verification.
func (p *prover) take(l reader.Line) error {
	r := l.Record
	if r == nil || r.Seq >= maxSeq {
		return nil
	}
	if p.log == "" {
		p.log, p.only = r.Log, true
	}
	if r.Log != p.log {
		if p.only {
			return fmt.Errorf("there are several logs, among them %s and %s: name one (--log)", p.log, r.Log)
		}
		return nil
	}
	p.leaves = append(p.leaves, leaf{r.Seq, r.Leaf})
	if r.Seq == p.seq && r.Intact() && (p.line == nil || !r.Pruned()) {
		p.line = bytes.Clone(l.Text)
	}
	if r.Class != record.Keys || r.Pruned() || !r.Intact() {
		return nil
	}
	if e, err := record.ParseEvent(r.Event); err == nil {
		p.event(e)
	}
	return nil
}

// event keeps the log's key, its newest checkpoint, and subtrees.
func (p *prover) event(e *record.Event) {
	switch e.Kind {
	case record.Start:
		p.key, _ = record.NewVerifier(e.Key)
	case record.CheckpointMade, record.Segment:
		c, err := record.ParseCheckpoint(e.Note)
		if err != nil || c.Size >= maxSeq {
			return
		}
		if c.Size > p.ownSize {
			p.own, p.ownSize = e.Note, c.Size
		}
		if tree, err := record.ParseFrontier(c.Size, e.Frontier); err == nil {
			p.frontier(c.Size, tree.Nodes())
		}
	}
}

// frontier keeps the subtrees of a frontier, the largest of which is the first.
func (p *prover) frontier(size int64, nodes []tlog.Hash) {
	first := int64(0)
	for _, hash := range nodes {
		level := bits.Len64(uint64(size-first)) - 1
		p.subtrees[subtree{level, first >> level}] = hash
		first += 1 << level
	}
}

// sort puts the leaves in their order, each once.
func (p *prover) sort() error {
	slices.SortFunc(p.leaves, func(a, b leaf) int {
		return cmp.Or(cmp.Compare(a.seq, b.seq), bytes.Compare(a.hash[:], b.hash[:]))
	})
	p.leaves = slices.Compact(p.leaves)
	for i := 1; i < len(p.leaves); i++ {
		if seq := p.leaves[i].seq; seq == p.leaves[i-1].seq {
			return fmt.Errorf("%w: there are two different records %d of log %s: verify it", ErrProof, seq, p.log)
		}
	}
	return nil
}

// candidates returns the checkpoints that cover the record, the best first.
func (p *prover) candidates(outside []string) []string {
	type sized struct {
		signed string
		size   int64
	}
	var all []sized
	for _, signed := range outside {
		if c, err := record.ParseCheckpoint(signed); err == nil && c.Log == p.log && c.Size > p.seq {
			all = append(all, sized{signed, c.Size})
		}
	}
	slices.SortStableFunc(all, func(a, b sized) int { return cmp.Compare(b.size, a.size) })
	if p.ownSize > p.seq {
		all = append(all, sized{p.own, p.ownSize})
	}
	signed := make([]string, len(all))
	for i := range all {
		signed[i] = all[i].signed
	}
	return signed
}

// prove returns the proof that the record is in a checkpoint.
func (p *prover) prove(signed string) (string, error) {
	c, err := record.ParseCheckpoint(signed)
	if err == nil && p.key != nil {
		c, err = record.OpenCheckpoint(signed, p.key)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrProof, err)
	}
	if last := p.leaves[len(p.leaves)-1].seq; c.Size > last+1 {
		return "", fmt.Errorf("%w: the checkpoint of log %s has %d records, and the last one here is %d", ErrProof, p.log, c.Size, last)
	}
	root, err := tlog.TreeHash(c.Size, tlog.HashReaderFunc(p.hashes))
	if err != nil {
		return "", err
	}
	if root != c.Root {
		return "", fmt.Errorf("%w: the records of log %s are not those of its checkpoint of %d: verify it", ErrProof, p.log, c.Size)
	}
	path, err := tlog.ProveRecord(c.Size, p.seq, tlog.HashReaderFunc(p.hashes))
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofTitle, base64.StdEncoding.EncodeToString(p.line), p.seq)
	for _, hash := range path {
		b.WriteString(hash.String() + "\n")
	}
	b.WriteString("\n" + signed)
	return b.String(), nil
}

// hashes is a tlog.HashReader.
func (p *prover) hashes(indexes []int64) ([]tlog.Hash, error) {
	all := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		hash, err := p.hash(subtree{level, n})
		if err != nil {
			return nil, err
		}
		all[i] = hash
	}
	return all, nil
}

// hash returns the root of a subtree.
func (p *prover) hash(t subtree) (tlog.Hash, error) {
	if hash, ok := p.subtrees[t]; ok {
		return hash, nil
	}
	if t.level == 0 {
		i, ok := slices.BinarySearchFunc(p.leaves, t.n, func(l leaf, seq int64) int { return cmp.Compare(l.seq, seq) })
		if !ok {
			return tlog.Hash{}, fmt.Errorf("%w: it needs record %d of log %s, which is not here", ErrProof, t.n, p.log)
		}
		return p.leaves[i].hash, nil
	}
	left, err := p.hash(subtree{t.level - 1, 2 * t.n})
	if err != nil {
		return tlog.Hash{}, err
	}
	right, err := p.hash(subtree{t.level - 1, 2*t.n + 1})
	if err != nil {
		return tlog.Hash{}, err
	}
	return tlog.NodeHash(left, right), nil
}
