package verify

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/record"
)

// maxProof is the longest proof in bytes: a line, 63 hashes, a checkpoint.
const maxProof = 4 * record.MaxLine

// CheckProof verifies a proof from Prove, and returns the record that it is of:
// its place, time and class are proven, and its event, unless that was removed.
// The checkpoint must be signed by one of trust.Keys, or be one of
// trust.Checkpoints; signers certify keys in logs, and do not help here. Otherwise
// the error is ErrProof.
func CheckProof(text string, trust Trust) (*record.Record, error) {
	p, err := parseProof(text)
	if err != nil {
		return nil, err
	}
	r, err := record.Parse(p.line)
	if err != nil {
		return nil, fmt.Errorf("%w: its extra data: %w", ErrProof, err)
	}
	if !r.Intact() {
		return nil, fmt.Errorf("%w: the event is not the one that was written", ErrProof)
	}
	c, err := knownCheckpoint(p.signed, trust)
	if err != nil {
		return nil, err
	}
	if r.Log != c.Log || r.Seq != p.index {
		return nil, fmt.Errorf("%w: it is of record %d of %s, and has record %d of %s", ErrProof, p.index, c.Log, r.Seq, r.Log)
	}
	if err := tlog.CheckRecord(p.path, c.Size, c.Root, p.index, r.Leaf); err != nil {
		return nil, fmt.Errorf("%w: record %d of %s: %w", ErrProof, p.index, c.Log, err)
	}
	return r, nil
}

// proof is a proof's text, taken apart.
type proof struct {
	line   []byte
	index  int64
	path   tlog.RecordProof
	signed string
}

// parseProof takes a proof apart. It accepts what Prove writes.
func parseProof(text string) (*proof, error) {
	if len(text) > maxProof {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrProof, maxProof)
	}
	head, signed, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 3 || lines[0] != proofTitle {
		return nil, fmt.Errorf("%w: it does not begin with %s, an extra line and an index", ErrProof, proofTitle)
	}
	p := &proof{signed: signed}
	extra, isExtra := strings.CutPrefix(lines[1], "extra ")
	number, isIndex := strings.CutPrefix(lines[2], "index ")
	var err error
	if p.line, err = base64.StdEncoding.DecodeString(extra); err != nil || !isExtra || base64.StdEncoding.EncodeToString(p.line) != extra {
		return nil, fmt.Errorf("%w: its second line is not extra data in base64", ErrProof)
	}
	if p.index, err = strconv.ParseInt(number, 10, 64); err != nil || !isIndex || strconv.FormatInt(p.index, 10) != number {
		return nil, fmt.Errorf("%w: its third line is not an index", ErrProof)
	}
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil || hash.String() != line {
			return nil, fmt.Errorf("%w: %.50q is not a hash", ErrProof, line)
		}
		p.path = append(p.path, hash)
	}
	return p, nil
}

// knownCheckpoint reads a checkpoint that somebody known vouches for.
func knownCheckpoint(signed string, trust Trust) (record.Checkpoint, error) {
	c, err := record.ParseCheckpoint(signed)
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if slices.Contains(trust.Checkpoints, signed) {
		return c, nil
	}
	cause := fmt.Errorf("%w: no key of log %s is known", ErrProof, c.Log)
	for _, known := range trust.Keys {
		key, err := record.NewVerifier(known)
		if err != nil {
			return c, err
		}
		if key.Name() != c.Log {
			continue
		}
		opened, err := record.OpenCheckpoint(signed, key)
		if err == nil {
			return opened, nil
		}
		cause = fmt.Errorf("%w: %w", ErrProof, err)
	}
	return c, cause
}
