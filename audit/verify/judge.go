package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// unsignedFor is for how long a log's times may go on without a checkpoint. A
// sidecar writes a record every 10 minutes, and a checkpoint at most 10 minutes
// after one; the rest is for slow disks and clocks that are set.
const unsignedFor = 30 * time.Minute

// take takes the time of a record.
func (t *tail) take(micros int64) {
	if !t.begun {
		t.begun, t.earliest, t.latest = true, micros, micros
	}
	t.earliest, t.latest = min(t.earliest, micros), max(t.latest, micros)
}

// cover begins a new tail: a checkpoint of all records before was right.
func (t *tail) cover(c *chain) {
	*t = tail{}
	if c.linked {
		t.take(c.last.micros)
	}
}

func (t *tail) long() bool { return time.Duration(t.latest-t.earliest)*time.Microsecond > unsignedFor }

// standing says who else than the log itself vouches for it, from its start on.
type standing struct{ known, proved bool }

// stand returns the log's standing. What a later log has seen stands as that does.
func (c *chain) stand() *standing {
	if c.standing == nil {
		r := &c.report
		c.standing = &standing{
			known:  r.Outside > 0 || c.vouched() && c.covered() > 0,
			proved: r.Outside > 0,
		}
		seen := c.seen()
		c.standing.known, c.standing.proved = c.standing.known || seen.known, c.standing.proved || seen.proved
	}
	return c.standing
}

// seen returns how well the logs stand that have seen all of this one.
func (c *chain) seen() standing {
	var s standing
	for _, after := range c.after {
		a := after.stand()
		s.known, s.proved = s.known || a.known, s.proved || a.proved
	}
	return s
}

func (c *chain) vouched() bool { return c.report.Trusted || c.report.Certified != "" }

// covered is up to which size the records are as a checkpoint has signed them.
func (c *chain) covered() int64 { return max(c.report.Signed, c.report.Outside) }

// attested reports whether a later log has seen all of this one. If nothing is
// known from elsewhere, its own word is enough.
func (c *chain) attested() bool {
	trust := &c.v.cfg.Trust
	if len(trust.Checkpoints)+len(trust.Keys)+len(trust.Signers) > 0 {
		return c.seen().known
	}
	for _, after := range c.after {
		if after.covered() > 0 {
			return true
		}
	}
	return false
}

// dated reports whether the time of a record is as the log wrote it: a checkpoint
// covers it. Of others, anybody can have chosen it.
func (c *chain) dated(seq int64) bool { return seq < c.covered() || c.attested() }

// began is when the log was begun: the origin says it too, which the key signs.
func (c *chain) began() time.Time {
	begin := c.report.Begin
	id := c.id.log[strings.LastIndexByte(c.id.log, '/')+1:]
	text, _, _ := strings.Cut(id, "-")
	if at, err := time.Parse("20060102T150405Z", text); err == nil {
		begin = slices.MinFunc([]time.Time{begin, at}, time.Time.Compare)
	}
	return begin
}

// within reports whether a time is not further away than d.
func (v *Verifier) within(at time.Time, d time.Duration) bool { return v.cfg.Now.Sub(at).Abs() <= d }

// judge finds what only the whole log, and those after it, tell, and says what
// could not be checked.
func (c *chain) judge() {
	c.vouch()
	c.removed()
	if c.uncovered.isAged && !c.dated(c.uncovered.aged[0]) {
		from, to := c.uncovered.aged[0], c.uncovered.aged[1]
		c.problem(PrunedEarly, from, to, nil,
			"events were removed, and that their time was over say only records that no checkpoint covers: anybody can have dated them")
	}
	c.outsideNotes()
	c.unsigned()
	if !c.report.Stopped {
		c.note(OpenEnd, c.report.Last, c.report.Last, "the log has no end: its sidecar runs, or was killed, or the end was cut off")
	}
}

// vouch says if nobody vouches for the log's key.
func (c *chain) vouch() {
	r, trust := &c.report, &c.v.cfg.Trust
	switch {
	case c.vouched():
	case len(trust.Keys) > 0 || len(trust.Signers) > 0:
		c.problem(Unvouched, r.First, r.Last, nil, "no known key is the log's, and no known signer certifies it: the log may be made up")
	case c.key == nil:
		c.note(NoKey, r.First, r.Last, "the log's key is not here: who signed its checkpoints is not known")
	case r.Outside == 0:
		c.note(OwnWord, r.First, r.Last, "only the log itself says whose key it has: who can write here may have made up all of it")
	}
}

// outsideNotes says what checkpoints kept elsewhere do not prove.
func (c *chain) outsideNotes() {
	r := &c.report
	switch {
	case c.unproved():
	case r.Outside == 0:
		c.note(NoOutside, r.First, r.Last, "no checkpoint of the log that was kept elsewhere was compared: "+
			"with the log's key anything can have been changed, and without it records after any checkpoint cut off")
	case r.Outside < r.Last || r.Outside == r.Last && !(c.sealed && r.Stopped):
		c.note(AfterOutside, r.Outside, r.Last, "%s after the newest checkpoint that was kept elsewhere: "+
			"whether there were others is not known, and with the log's key they can have been changed", span(r.Outside, r.Last)+" came")
	}
	if c.older > 0 {
		c.note(OutsideOld, 0, c.older-1, "checkpoints of up to %d records were kept elsewhere, and the first record here is %d",
			c.older, r.First)
	}
}

// unproved reports, as a problem, that checkpoints kept elsewhere are behind. The
// age is that of the newest record that they prove: others may lie.
func (c *chain) unproved() bool {
	r, most := &c.report, c.v.cfg.MaxUnproved
	from := max(r.Outside, r.First)
	switch {
	case most <= 0 || len(c.v.cfg.Trust.Checkpoints) == 0 || c.seen().proved:
		return false
	case r.Outside == 0:
		if c.v.within(c.began(), most) {
			return false
		}
		c.problem(Unproved, r.First, r.Last, nil, "no checkpoint of the log kept elsewhere was compared, and it is older than %v", most)
		return true
	case from > r.Last || from == r.Last && c.sealed:
		return false
	case c.proved != 0 && c.v.within(time.UnixMicro(c.proved), most):
		return false
	}
	c.problem(Unproved, from, r.Last, nil,
		"%s after the newest checkpoint that was kept elsewhere, and that proves nothing younger than %v", span(from, r.Last)+" came", most)
	return true
}

// unsigned is about the records that no checkpoint covers.
func (c *chain) unsigned() {
	r := &c.report
	from := max(c.covered(), r.First)
	switch {
	case from > r.Last || c.sealed && c.stopped && from == r.Last || c.seen().known:
	case c.vouched() && c.covered() == 0 && !c.young() && !c.attested():
		c.problem(NeverSigned, r.First, r.Last, nil, "the log's key is known, and has signed nothing of what is here: it may be made up")
	case c.key != nil && !c.sealed && c.uncovered.long() && !c.attested():
		const text = "no checkpoint covers %s, and one is due within %v: they may be made up, and others removed"
		c.problem(UnsignedTail, from, r.Last, nil, text, span(from, r.Last), unsignedFor)
	default:
		c.note(Unsigned, from, r.Last, "no checkpoint covers %s: anybody can have changed or made up what is there", span(from, r.Last))
	}
}

// young reports whether the log can still be without a checkpoint.
func (c *chain) young() bool { return c.v.within(c.began(), unsignedFor) && !c.uncovered.long() }

// removed is about the records before a segment that is the first.
func (c *chain) removed() {
	if !c.segmented {
		return
	}
	kept, to := c.v.cfg.Kept.longest(), c.report.First-1
	switch {
	case kept == 0:
	case !c.dated(c.report.First):
		c.problem(PrunedEarly, 0, to, nil,
			"%s removed, and no checkpoint covers the record that begins the rest: anybody can have dated it", were(0, to))
		return
	case c.report.Begin.After(c.v.cfg.Now.Add(time.Hour - kept)):
		c.problem(PrunedEarly, 0, to, nil, "%s removed, and the last of them was to be kept %s", were(0, to), lasting(kept))
		return
	}
	c.note(Removed, 0, to, "%s removed; the rest is verified from the segment's checkpoint", were(0, to))
}

// pruned is about a removed event.
func (c *chain) pruned(e *entry) {
	c.report.prune(e.class, e.time())
	kept := c.v.cfg.Kept.of(e.class)
	if kept == 0 {
		return
	}
	if e.time().Before(c.v.cfg.Now.Add(-kept)) {
		t := &c.uncovered
		if !t.isAged {
			t.isAged, t.aged[0] = true, e.seq
		}
		t.aged[1] = e.seq
		return
	}
	if n := len(c.v.report.Problems); n > 0 {
		if f := &c.v.report.Problems[n-1]; f.Kind == PrunedEarly && f.Log == c.id.log && f.To+1 == e.seq {
			f.To = e.seq
			return
		}
	}
	c.problem(PrunedEarly, e.seq, e.seq, e, "the event, of class %v, was removed, and was to be kept %s", e.class, lasting(kept))
}

// keptNotes says of which classes nobody said how long they are kept.
func (v *Verifier) keptNotes() {
	kept := &v.cfg.Kept
	if kept.longest() == 0 {
		return
	}
	for _, class := range []record.Class{record.Keys, record.Denials, record.Data} {
		if kept.of(class) == 0 {
			v.note(Finding{
				Kind: KeptUnchecked, From: -1, To: -1,
				Text: fmt.Sprintf("how long class %v is kept was not said: which of its records were removed is not checked", class),
			})
		}
	}
}

// lasting is a time of Kept in words.
func lasting(d time.Duration) string {
	switch {
	case d >= Forever:
		return "for ever"
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("for %d days", d/(24*time.Hour))
	}
	return "for " + d.String()
}

// span names records.
func span(from, to int64) string {
	if from == to {
		return fmt.Sprintf("record %d", from)
	}
	return fmt.Sprintf("records %d to %d", from, to)
}

func are(from, to int64) string { return span(from, to) + verb(from, to, " is", " are") }

func were(from, to int64) string { return span(from, to) + verb(from, to, " was", " were") }

func verb(from, to int64, one, many string) string {
	if from == to {
		return one
	}
	return many
}
