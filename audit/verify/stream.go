package verify

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/keysidecar/keysidecar/audit/record"
)

// mostVariants is how many records of one number are told apart.
const mostVariants = 64

// sorted takes the records of streams in their order, each once: with its event,
// if any of them has it.
func (c *chain) sorted() {
	slices.SortStableFunc(c.entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.seq, b.seq), bytes.Compare(a.hash[:], b.hash[:]), cmp.Compare(a.lacks(), b.lacks()))
	})
	c.entries = slices.CompactFunc(c.entries, func(a, b entry) bool { return a.seq == b.seq && a.hash == b.hash })
	for rest := c.entries; len(rest) > 0; {
		n := sameSeq(rest)
		group := rest[:n]
		rest = rest[n:]
		chosen := c.choose(group, rest[:sameSeq(rest)])
		c.accept(group[chosen])
		if n > mostVariants {
			c.problem(Fork, group[0].seq, group[0].seq, &group[chosen], "there are %d different records %d", n, group[0].seq)
			continue
		}
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

// lacks is 0 if the entry has its event.
func (e *entry) lacks() int {
	switch {
	case e.edited:
		return 2
	case e.pruned:
		return 1
	}
	return 0
}

// choose returns which of the entries with one number fits best between its
// neighbours.
func (c *chain) choose(group, after []entry) int {
	links := make(map[record.Link]bool, len(after))
	for i := range after {
		links[after[i].prev] = true
	}
	best, most := 0, -1
	for i := range group {
		fits := 0
		if c.linked && group[i].prev == record.LinkTo(c.last.hash) {
			fits++
		}
		if links[record.LinkTo(group[i].hash)] {
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
