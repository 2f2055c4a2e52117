package verify

import (
	"slices"

	"github.com/keysidecar/keysidecar/audit/record"
)

// about takes what a record says about the log itself. The tree is of the
// records before it.
func (c *chain) about(e *entry) {
	if e.seq == 1 {
		c.secondPruned = e.pruned
	}
	if c.stopped && !e.edited && !e.is(record.CheckpointMade) {
		c.problem(AfterStop, e.seq, e.seq, e, "there is a record after the one that says that the log ends")
	}
	if e.event == nil {
		return
	}
	switch e.event.Kind {
	case record.Start:
		c.started(e)
	case record.Stop:
		c.stopped, c.report.Stopped = true, true
	case record.Unaccounted:
		c.report.Unaccounted = append(c.report.Unaccounted, Interval{e.event.From, e.event.To})
	case record.Lost:
		c.report.Lost += e.event.Count
	case record.Certified:
		c.certified(e, e.event.Note)
	case record.CheckpointMade:
		if own, ok := c.checkpoint(e); ok {
			c.compareRoot(own, e)
		}
	case record.Segment:
		c.segment(e)
	}
}

// started takes the first record of a log.
func (c *chain) started(e *entry) {
	if e.seq != 0 {
		c.problem(BadBegin, e.seq, e.seq, e, "record %d says that a sidecar has started", e.seq)
		return
	}
	c.start = e.event
	c.report.Version, c.report.Previous = e.event.Version, e.event.Log
	c.ownKey(e)
}

// ownKey takes the key that the log names. One that is known from elsewhere is
// taken instead.
func (c *chain) ownKey(e *entry) {
	c.report.Key = e.event.Key
	key, err := record.NewVerifier(e.event.Key)
	if err != nil || key.Name() != c.id.log {
		c.problem(BadKey, e.seq, e.seq, e, "%q is no key of this log", e.event.Key)
		c.report.Key = ""
		return
	}
	c.key = key
	if known := c.v.keys[c.id.log]; len(known) > 0 {
		if c.report.Trusted = slices.Contains(known, c.report.Key); !c.report.Trusted {
			c.problem(BadKey, e.seq, e.seq, e, "the log's key %s is not the known one, %s", c.report.Key, known[0])
			c.key, _ = record.NewVerifier(known[0])
		}
	}
}

// knownKey takes the key that is known from elsewhere, if the log names none.
func (c *chain) knownKey() {
	if known := c.v.keys[c.id.log]; c.key == nil && c.report.Key == "" && len(known) > 0 {
		c.report.Key, c.report.Trusted = known[0], true
		c.key, _ = record.NewVerifier(known[0])
	}
}

// certified takes a certificate.
func (c *chain) certified(e *entry, signed string) {
	signers := c.v.cfg.Trust.Signers
	if len(signers) == 0 {
		return
	}
	name, _ := record.SignerOf(signed)
	for _, public := range signers {
		certificate, err := record.OpenCertificate(signed, name, public)
		if err != nil {
			continue
		}
		if certificate.Key != c.report.Key {
			c.problem(BadCertificate, e.seq, e.seq, e, "%s certifies another key than the log's, %.200s", name, certificate.Key)
			return
		}
		c.report.Certified = name
		return
	}
	c.problem(BadCertificate, e.seq, e.seq, e, "the certificate of the log's key, by %.200q, is not signed by a known signer", name)
}

// checkpoint reads a record's checkpoint, and checks who signed it.
func (c *chain) checkpoint(e *entry) (record.Checkpoint, bool) {
	c.knownKey()
	if c.key != nil {
		own, err := record.OpenCheckpoint(e.event.Note, c.key)
		if err != nil {
			c.problem(BadSignature, e.seq, e.seq, e, "checkpoint in record %d: %v", e.seq, err)
			return own, false
		}
		c.sign(own, e)
		return own, true
	}
	own, err := record.ParseCheckpoint(e.event.Note)
	if err != nil || own.Log != c.id.log {
		c.problem(BadSignature, e.seq, e.seq, e, "checkpoint in record %d: it is not one of this log", e.seq)
		return own, false
	}
	return own, true
}

// sign keeps what the log's key has signed, and finds out if it has signed two
// things.
func (c *chain) sign(own record.Checkpoint, e *entry) {
	size := signedSize{c.id.log, own.Size}
	root, ok := c.v.signed[size]
	if !ok {
		c.v.signed[size] = own.Root
		return
	}
	if root != own.Root {
		c.problem(TwoRoots, min(c.foreign, max(own.Size-1, 0)), max(own.Size-1, 0), e,
			"the log's key has signed two different logs of %d records: %v and %v", own.Size, root, own.Root)
	}
}

// compareRoot compares a checkpoint in the log with the records before it.
func (c *chain) compareRoot(own record.Checkpoint, e *entry) {
	switch {
	case own.Size != e.seq:
		shift := own.Size - e.seq
		c.lose(c.good)
		if shift == c.shift {
			return // as told already
		}
		c.shift = shift
		c.problem(SizeDiffers, min(c.good, e.seq), e.seq, e, "the checkpoint in record %d is of %d records", e.seq, own.Size)
	case !c.whole:
	case own.Root != c.tree.Root():
		c.problem(RootDiffers, c.good, e.seq-1, e, "%s not those that the checkpoint in record %d has signed",
			are(c.good, e.seq-1), e.seq)
		c.lose(c.good)
	default:
		c.good = e.seq
		if c.key != nil {
			c.report.Signed, c.sealed = e.seq, e.is(record.CheckpointMade)
			c.uncovered.cover(c)
		}
	}
}

// segment takes the checkpoint and the frontier that begin a segment. If the tree
// is not known, it is from here on.
func (c *chain) segment(e *entry) {
	if c.key == nil && e.event.Key != "" {
		c.ownKey(e)
	}
	if e.event.Certificate != "" && c.report.Certified == "" {
		c.certified(e, e.event.Certificate)
	}
	own, ok := c.checkpoint(e)
	if !ok {
		return
	}
	tree, err := record.ParseFrontier(own.Size, e.event.Frontier)
	if err != nil || tree.Root() != own.Root {
		c.problem(BadFrontier, e.seq, e.seq, e, "the frontier in record %d is not that of its checkpoint", e.seq)
		c.compareRoot(own, e)
		return
	}
	c.compareRoot(own, e)
	if c.whole || own.Size != e.seq {
		return
	}
	c.unchecked(e.seq - 1)
	c.whole, c.tree, c.good, c.foreign = true, tree, e.seq, max(c.foreign, e.seq)
	if c.key != nil {
		c.report.Signed = e.seq
	}
	c.compareOutside(e.seq)
}

// unchecked notes that roots could not be compared up to a record.
func (c *chain) unchecked(to int64) {
	if c.lost >= 0 && c.lost <= to {
		c.note(Unchecked, c.lost, to, "because of the problem before, %s compared with no checkpoint", are(c.lost, to))
	}
	c.lost = -1
}
