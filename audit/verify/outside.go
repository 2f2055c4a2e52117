package verify

import (
	"github.com/keysidecar/keysidecar/audit/record"
)

// compareOutside compares the checkpoints kept elsewhere that are of up to size
// records. The tree is of size records, if it is known.
func (c *chain) compareOutside(size int64) {
	for len(c.outside) > 0 && c.outside[0].Size <= size {
		o := c.outside[0]
		if o.Size == size && !c.whole {
			return // a segment may begin here, and tell the tree
		}
		c.outside = c.outside[1:]
		switch {
		case o.Size < c.report.First:
			c.older = o.Size
		case !c.genuine(o):
		case o.Size != size: // the tree was not known, or empty
		case o.Root == c.tree.Root():
			c.foreign, c.report.Outside = size, size
		case !c.differs:
			c.differs = true
			c.problem(OutsideDiffers, min(c.foreign, size-1), size-1, nil,
				"records %d to %d are not those of the checkpoint of %d records that was kept elsewhere", c.foreign, size-1, size)
		}
	}
}

// genuine reports whether a checkpoint kept elsewhere is signed by the log's key.
// If the key is not known, nobody can tell.
func (c *chain) genuine(o outside) bool {
	c.knownKey()
	if c.key == nil {
		return true
	}
	signed, err := record.OpenCheckpoint(o.note, c.key)
	if err != nil {
		c.problem(OutsideForged, 0, max(o.Size-1, 0), nil,
			"the checkpoint of %d records that was kept elsewhere is not signed by the key of the log that is here: "+
				"one of them is forged", o.Size)
		return false
	}
	c.sign(signed, nil)
	return true
}

// end takes what is left, and looks for what should still come.
func (c *chain) end() {
	c.sorted()
	c.flush()
	c.knownKey()
	c.compareOutside(c.next)
	c.cut()
	if c.back != nil {
		c.problem(ClockBack, c.back.seq, c.back.seq, c.back, "the time goes back, and no record says that the clock was set")
	}
	for _, f := range c.torn {
		if f.Text == tornText {
			continue
		}
		f.Kind = Torn
		c.v.note(f)
	}
	c.unchecked(c.next - 1)
}

// cut compares the checkpoints kept elsewhere that are of more records than are
// here. All are looked at; the largest that is genuine is told.
func (c *chain) cut() {
	largest := int64(-1)
	for _, o := range c.outside {
		if o.Size > c.next && c.genuine(o) {
			largest = o.Size
		}
	}
	if largest >= 0 {
		c.problem(Cut, c.next, largest-1, nil,
			"records %d to %d were there when a checkpoint was made that was kept elsewhere", c.next, largest-1)
	}
	c.outside = nil
}

// notes says what could not be checked.
func (c *chain) notes() {
	r, trust := &c.report, &c.v.cfg.Trust
	switch {
	case r.Trusted || r.Certified != "":
	case len(trust.Keys) > 0 || len(trust.Signers) > 0:
		c.problem(Unvouched, r.First, r.Last, nil, "no known key is the log's, and no known signer certifies it: the log may be made up")
	case c.key == nil:
		c.note(NoKey, r.First, r.Last, "the log's key is not here: who signed its checkpoints is not known")
	case r.Outside == 0:
		c.note(OwnWord, r.First, r.Last, "only the log itself says whose key it has: who can write here may have made up all of it")
	}
	switch {
	case r.Outside == 0:
		c.note(NoOutside, r.First, r.Last, "no checkpoint of the log that was kept elsewhere was compared: "+
			"with the log's key anything can have been changed, and without it records after any checkpoint cut off")
	case r.Outside <= r.Last:
		c.note(AfterOutside, r.Outside, r.Last, "records %d to %d came after the newest checkpoint that was kept elsewhere: "+
			"whether there were others is not known, and with the log's key they can have been changed", r.Outside, r.Last)
	}
	if from := max(r.Signed, r.Outside, r.First); from <= r.Last && !c.seen {
		c.note(Unsigned, from, r.Last, "no checkpoint covers records %d to %d: they can have been changed or made up", from, r.Last)
	}
	if c.older > 0 {
		c.note(OutsideOld, 0, c.older-1, "checkpoints of up to %d records were kept elsewhere, and the first record here is %d",
			c.older, r.First)
	}
	if !r.Stopped {
		c.note(OpenEnd, r.Last, r.Last, "the log has no end: its sidecar runs, or was killed, or the end was cut off")
	}
}
