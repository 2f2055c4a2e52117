package verify

import (
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// together compares the logs with one another.
func (v *Verifier) together(all []*chain) {
	byLog := make(map[string][]*chain)
	for _, c := range all {
		copies := append(byLog[c.id.log], c)
		byLog[c.id.log] = copies
		if key := copies[0].report.Key; key != "" && c.report.Key != "" && key != c.report.Key {
			c.problem(BadKey, 0, 0, nil, "two copies of the log have different keys")
		}
	}
	for _, c := range all {
		if c.start != nil && c.start.Log != "" {
			c.previous(byLog[c.start.Log])
		}
	}
	var missing []string
	for log := range v.outside {
		if byLog[log] == nil {
			missing = append(missing, log)
		}
	}
	slices.Sort(missing)
	for _, log := range missing {
		kept := v.outside[log]
		size := kept[len(kept)-1].Size
		v.problem(Finding{
			Kind: MissingLog, Log: log, From: 0, To: max(size-1, 0),
			Text: "of this log a checkpoint was kept elsewhere, and nothing is here",
		})
	}
}

// previous compares the log before with what the start of this one says of it.
func (c *chain) previous(copies []*chain) {
	if len(copies) == 0 {
		c.noPrevious()
		return
	}
	size := c.start.Size
	root, err := tlog.ParseHash(c.start.Root)
	for _, p := range copies {
		switch {
		case p.next < size:
			p.problem(Cut, p.next, size-1, nil, "records %d to %d were there when %s began", p.next, size-1, c.id.log)
		case p.next > size:
			p.problem(PreviousDiffers, max(size, 0), p.next-1, nil, "when %s began there were %d records, not %d", c.id.log, size, p.next)
		case err != nil || p.whole && root != p.tree.Root():
			p.problem(PreviousDiffers, min(p.foreign, max(size-1, 0)), max(size-1, 0), nil, "%s has seen other records", c.id.log)
		case p.whole:
			c.report.PreviousLinked, p.report.Next = true, c.id.log
			p.seen = c.report.Signed > 0 || c.report.Outside > 0
		}
	}
}

// noPrevious is about a log before of which nothing is here.
func (c *chain) noPrevious() {
	text := "the log before, %s, of %d records, is not here"
	kept := c.v.cfg.Kept.longest()
	if kept > 0 && c.report.Begin.Before(c.v.cfg.Now.Add(-kept)) {
		c.note(LogRemoved, 0, 0, text, c.start.Log, c.start.Size)
		return
	}
	c.problem(MissingLog, 0, 0, nil, text, c.start.Log, c.start.Size)
}
