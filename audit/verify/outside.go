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
			c.skipped = append(c.skipped, o)
		case !c.genuine(o):
		case o.Size != size: // the tree was not known, or empty
		case o.Root == c.tree.Root():
			c.foreign, c.report.Outside = size, size
			if c.proved = 0; c.next == size && size > c.report.First {
				c.proved = c.last.micros
			}
			c.uncovered.cover(c)
		case !c.differs:
			c.differs = true
			c.problem(OutsideDiffers, min(c.foreign, size-1), size-1, nil,
				"%s not those of the checkpoint of %d records that was kept elsewhere", are(c.foreign, size-1), size)
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
	c.compareSkipped()
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
			"%s there when a checkpoint was made that was kept elsewhere", were(c.next, largest-1))
	}
	c.outside = nil
}

// compareSkipped looks at the checkpoints that are of removed records only. Their
// roots compare with nothing here, but another's log they have not signed.
func (c *chain) compareSkipped() {
	for _, o := range c.skipped {
		if c.genuine(o) {
			c.older = o.Size
		}
	}
	if c.key == nil && c.report.Outside == 0 && len(c.v.outside[c.id.log]) > 0 {
		c.problem(OutsideUnchecked, c.report.First, c.report.Last, nil,
			"checkpoints were kept elsewhere, and none of them could be compared: the log has no key, and begins after them")
	}
	c.skipped = nil
}
