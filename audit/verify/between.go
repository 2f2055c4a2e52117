package verify

import (
	"fmt"
	"slices"
	"strings"

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
	var removed []string // logs whose time was over
	for _, c := range all {
		if c.start != nil && c.start.Log != "" && byLog[c.start.Log] == nil && c.noPrevious(all) {
			removed = append(removed, c.start.Log)
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
		v.missing(log, slices.ContainsFunc(removed, func(last string) bool { return log == last || older(log, last) }))
	}
}

// missing is about a log of which a checkpoint was kept elsewhere, and nothing is
// here. Over says that a later log's time was over.
func (v *Verifier) missing(log string, over bool) {
	kept := v.outside[log]
	f := Finding{
		Kind: MissingLog, Log: log, From: 0, To: max(kept[len(kept)-1].Size-1, 0),
		Text: "of this log a checkpoint was kept elsewhere, and nothing is here",
	}
	if over {
		f.Kind = LogRemoved
		f.Text += ": a later log's time was over, and so was this one's"
		v.note(f)
		return
	}
	if v.cfg.Kept.longest() == 0 {
		f.Text += "; whether its time was over is not known, for nobody said how long logs are kept"
	}
	v.problem(f)
}

// previous compares the log before with what the start of this one says of it.
func (c *chain) previous(copies []*chain) {
	size := c.start.Size
	root, err := tlog.ParseHash(c.start.Root)
	for _, p := range copies {
		switch {
		case p.next < size:
			p.problem(Cut, p.next, size-1, nil, "%s there when %s began", were(p.next, size-1), c.id.log)
		case p.next > size:
			p.problem(PreviousDiffers, max(size, 0), p.next-1, nil, "when %s began there were %d records, not %d", c.id.log, size, p.next)
		case err != nil || p.whole && root != p.tree.Root():
			p.problem(PreviousDiffers, min(p.foreign, max(size-1, 0)), max(size-1, 0), nil, "%s has seen other records", c.id.log)
		case p.whole:
			c.report.PreviousLinked, p.report.Next = true, c.id.log
			p.after = append(p.after, c)
		}
		if !p.stopped && c.secondPruned {
			c.problem(PrunedEarly, 1, 1, nil,
				"the log before did not stop, so record 1 says so, and its event was removed: retention never does that")
		}
	}
}

// noPrevious is about a log before of which nothing is here. It reports whether
// that is known to be right: its time was over.
func (c *chain) noPrevious(all []*chain) bool {
	kept, log := c.v.cfg.Kept.longest(), c.start.Log
	last := c.report.Begin // of the log before, at the latest
	if !c.start.From.IsZero() {
		last = c.start.From
	}
	text := fmt.Sprintf("the log before, %s, of %d records, is not here", log, c.start.Size)
	switch {
	case c.ordered && slices.ContainsFunc(all, func(o *chain) bool { return o.id.dir == c.id.dir && older(o.id.log, log) }):
		text += ", and an older one is: retention removes the oldest first"
	case kept == 0:
		c.note(LogRemoved, 0, 0, "%s; whether its time was over is not known, for nobody said how long logs are kept", text)
		return false
	case !c.dated(0):
		text += ", and no checkpoint covers the record that says how old it is"
	case last.Before(c.v.cfg.Now.Add(-kept)):
		c.note(LogRemoved, 0, 0, "%s: its time was over", text)
		return true
	default:
		text += ", and was to be kept " + lasting(kept)
	}
	c.problem(MissingLog, 0, 0, nil, "%s", text)
	return false
}

// older reports whether a log is an older one of the same sidecar than another,
// as their origins say: sidecars that share a name are taken for one.
func older(log, than string) bool {
	i := strings.LastIndexByte(than, '/') + 1
	return len(log) > i && log[:i] == than[:i] && log < than
}
