package verify

import (
	"cmp"
	"slices"

	"github.com/keysidecar/keysidecar/audit/record"
)

// sorted takes the records of streams in their order.
func (c *chain) sorted() {
	slices.SortStableFunc(c.entries, func(a, b entry) int { return cmp.Compare(a.seq, b.seq) })
	for rest := c.entries; len(rest) > 0; {
		n := sameSeq(rest)
		group := distinct(rest[:n])
		rest = rest[n:]
		chosen := c.choose(group, rest[:sameSeq(rest)])
		c.accept(group[chosen])
		for i := range group {
			if i != chosen {
				c.problem(Fork, group[i].seq, group[i].seq, &group[i], "there is another record %d: line %d of %s",
					group[i].seq, group[chosen].line, group[chosen].source)
				c.compareOwn(&group[i])
			}
		}
	}
	c.entries = nil
}

// sameSeq returns how many of the first entries have one number.
func sameSeq(all []entry) int {
	n := 0
	for n < len(all) && all[n].seq == all[0].seq {
		n++
	}
	return n
}

// distinct returns the entries that differ. Of those that are the same record it
// keeps one that has its event. It uses all.
func distinct(all []entry) []entry {
	kept := all[:0]
	for _, e := range all {
		i := slices.IndexFunc(kept, func(k entry) bool { return k.hash == e.hash })
		switch {
		case i < 0:
			kept = append(kept, e)
		case kept[i].pruned:
			kept[i] = e
		}
	}
	return kept
}

// choose returns which of the entries with one number fits best between its
// neighbours.
func (c *chain) choose(group, after []entry) int {
	best, most := 0, -1
	for i := range group {
		fits := 0
		if c.linked && group[i].prev == record.LinkTo(c.last.hash) {
			fits++
		}
		if slices.ContainsFunc(after, func(e entry) bool { return e.prev == record.LinkTo(group[i].hash) }) {
			fits += 2
		}
		if fits > most {
			best, most = i, fits
		}
	}
	return best
}

// compareOwn compares the root of a record that is not part of the log with
// that which the log has signed.
func (c *chain) compareOwn(e *entry) {
	if !e.is(record.CheckpointMade) && !e.is(record.Segment) || c.key == nil {
		return
	}
	if own, err := record.OpenCheckpoint(e.event.Note, c.key); err == nil {
		c.sign(own, e)
	}
}
