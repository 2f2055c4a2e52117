package verify

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// chain verifies one log in one place. Records of a directory are taken as they
// come; those of streams are kept, and sorted at the end.
type chain struct {
	v       *Verifier
	id      chainID
	ordered bool
	report  LogReport
	entries []entry   // of streams
	stray   *entry    // stands where another should; the next one tells why
	told    bool      // stray was
	torn    []Finding // lines at the end of a file: problems if others follow
	gaps    [][2]int64

	begun bool
	next  int64 // the number of the record to come
	last  entry // the one before
	// linked says that last is the record before next, whole that tree is of all
	// the records before next.
	linked, whole bool
	tree          record.Frontier

	key     note.Verifier // nil: not known
	start   *record.Event
	good    int64 // the size of the newest checkpoint whose root was that of tree
	foreign int64 // the same, of those kept elsewhere
	differs bool  // one of those did not have that root
	shift   int64 // by how much the size of the last checkpoint was not its place
	lost    int64 // from where roots could not be compared; -1: nowhere
	outside []outside
	back    *entry // its time goes back; the next one may say why
	older   int64  // the size of the newest of outside that is of removed records only
	skipped []outside
	stopped bool

	sealed       bool     // the last record is a checkpoint of all before it
	secondPruned bool     // record 1 has no event
	segmented    bool     // the first record here begins a segment
	uncovered    tail     // what no checkpoint covers yet
	proved       int64    // the time of the last record that outside proves; 0: not here
	after        []*chain // logs that have seen all of this one
	standing     *standing
}

// tail is about the records after the newest checkpoint that is right. What they
// say of their times, anybody can have written.
type tail struct {
	begun            bool
	earliest, latest int64    // microseconds; from the last that is covered on
	aged             [2]int64 // the first and the last that lost its event, in time as it says
	isAged           bool
}

// entry is what is kept of a record: about 100 bytes.
type entry struct {
	seq    int64
	micros int64 // since 1970
	hash   tlog.Hash
	prev   record.Link
	class  record.Class
	pruned bool          // it has no event
	edited bool          // its event is not the right one
	event  *record.Event // of the log itself; else nil
	source string
	line   int
}

func (e *entry) time() time.Time { return time.UnixMicro(e.micros).UTC() }

func (e *entry) is(kind record.Kind) bool { return e.event != nil && e.event.Kind == kind }

func newChain(v *Verifier, id chainID, ordered bool) *chain {
	return &chain{
		v: v, id: id, ordered: ordered, outside: v.outside[id.log], lost: -1,
		report: LogReport{Log: id.log, Directory: id.dir},
	}
}

// problem records a problem with the records from to to. At is where, if it is
// one line.
func (c *chain) problem(kind Kind, from, to int64, at *entry, format string, args ...any) {
	f := Finding{Kind: kind, Log: c.id.log, From: from, To: to, Text: fmt.Sprintf(format, args...)}
	if at != nil {
		f.Source, f.Line = at.source, at.line
	}
	c.v.problem(f)
}

func (c *chain) note(kind Kind, from, to int64, format string, args ...any) {
	c.v.note(Finding{Kind: kind, Log: c.id.log, From: from, To: to, Text: fmt.Sprintf(format, args...)})
}

// expected returns the number that the next line should have.
func (c *chain) expected() int64 {
	switch {
	case !c.ordered && len(c.entries) > 0:
		return c.entries[len(c.entries)-1].seq + 1
	case c.stray != nil && !c.told:
		return c.stray.seq + 1
	}
	return c.next
}

// tornText says that only the line feed is not there.
const tornText = "the line has no line feed"

// line takes a record.
func (c *chain) line(l *reader.Line) {
	e := c.entry(l)
	if !c.ordered {
		c.entries = append(c.entries, e)
		return
	}
	for _, f := range c.torn {
		c.v.problem(f)
	}
	c.torn = nil
	if l.Torn {
		c.torn = append(c.torn, Finding{
			Kind: Malformed, Log: c.id.log, From: e.seq, To: e.seq, Source: e.source, Line: e.line, Text: tornText,
		})
	}
	c.place(e)
}

// entry keeps of a record what is needed, and looks at its event.
func (c *chain) entry(l *reader.Line) entry {
	r := l.Record
	e := entry{
		seq: r.Seq, micros: r.Time.UnixMicro(), hash: r.Leaf, prev: r.Prev, class: r.Class, pruned: r.Pruned(),
		source: l.Source, line: l.Number,
	}
	switch {
	case e.pruned:
	case !r.Intact():
		c.problem(EventChanged, e.seq, e.seq, &e, "the event of record %d is not the one that was written", e.seq)
		e.edited = true
	default:
		c.parse(&e, r.Event)
	}
	return e
}

// parse reads the event if it is about the log itself.
func (c *chain) parse(e *entry, event []byte) {
	kind, _, ok := bytes.Cut(bytes.TrimPrefix(event, []byte(`{"kind":"`)), []byte{'"'})
	if ok {
		switch record.Kind(kind) {
		case record.Start, record.Stop, record.Unaccounted, record.Lost, record.Clock, record.CheckpointMade, record.Segment,
			record.Certified:
		default:
			return
		}
	}
	var err error
	if e.event, err = record.ParseEvent(event); err != nil {
		c.problem(Malformed, e.seq, e.seq, e, "the event of record %d: %v", e.seq, err)
	}
}

// place finds a record's place among those of a directory. One that stands where
// another should is put aside until the next one tells whether records are
// missing, or only this one is wrong.
func (c *chain) place(e entry) {
	s := c.stray
	switch {
	case c.begun && e.seq < c.next:
		c.behind(&e)
	case c.begun && e.seq == c.next:
		c.misplaced(c.next)
		c.accept(e)
		if s != nil && s.seq < c.next {
			c.stray = nil
		}
	case s == nil:
		c.stray, c.told = &e, false
	case e.seq > s.seq:
		c.flush()
		c.place(e)
	case e.seq == s.seq:
		c.problem(Repeated, max(e.seq-1, 0), e.seq, &e, "the number %d is there twice", e.seq)
		c.stray = &e
	default:
		c.misplaced(max(e.seq-1, 0))
		c.stray, c.told = &e, false
	}
}

// misplaced says, once, that the record put aside stands where record seq should.
func (c *chain) misplaced(seq int64) {
	if s := c.stray; s != nil && !c.told {
		c.told = true
		c.problem(OutOfOrder, seq, min(s.seq, seq+1), s, "record %d stands where record %d should", s.seq, seq)
	}
}

// behind is about a record whose number was there, or should have been.
func (c *chain) behind(e *entry) {
	for _, gap := range c.gaps {
		if e.seq >= gap[0] && e.seq <= gap[1] {
			c.problem(OutOfOrder, e.seq, e.seq, e, "record %d stands after record %d", e.seq, c.next-1)
			return
		}
	}
	from := c.next
	if e.seq == c.next-1 {
		from = e.seq
	}
	same := "again"
	if c.linked && e.seq == c.last.seq && e.hash != c.last.hash {
		same = "again, and another"
	}
	c.problem(Repeated, from, c.next, e, "record %d is here %s, after record %d", e.seq, same, c.next-1)
}

// flush takes the record that was put aside.
func (c *chain) flush() {
	if s := c.stray; s != nil {
		c.stray = nil
		c.accept(*s)
	}
}

// accept takes the record that comes next of those that are here.
func (c *chain) accept(e entry) {
	switch {
	case !c.begun:
		c.begin(&e)
	case e.seq > c.next:
		c.problem(Missing, c.next, e.seq-1, &e, "%s not here", are(c.next, e.seq-1))
		if len(c.gaps) < most {
			c.gaps = append(c.gaps, [2]int64{c.next, e.seq - 1})
		}
		c.linked = false
		c.lose(c.next)
	case c.linked && e.prev != record.LinkTo(c.last.hash):
		c.problem(BrokenLink, c.last.seq, e.seq, &e, "record %d does not link to record %d: one of them was changed", e.seq, c.last.seq)
	}
	c.clock(&e)
	c.sealed = false
	if e.seq > 0 { // at the first, the key is not known yet
		c.compareOutside(e.seq)
	}
	c.about(&e)
	c.uncovered.take(e.micros)
	if e.pruned {
		c.pruned(&e)
	}
	if c.whole {
		c.tree.Add(e.hash)
	}
	c.last, c.linked, c.next = e, true, e.seq+1
	c.report.Last, c.report.End = e.seq, e.time()
}

// begin takes the first record.
func (c *chain) begin(e *entry) {
	c.begun, c.next = true, e.seq
	c.report.First, c.report.Begin = e.seq, e.time()
	c.good, c.foreign = e.seq, e.seq
	switch {
	case e.seq == 0:
		c.whole = true
		if e.prev != (record.Link{}) {
			c.problem(BrokenLink, 0, 0, e, "record 0 links to a record before it")
		}
		switch {
		case e.edited || e.is(record.Start):
		case e.pruned:
			c.problem(BadBegin, 0, 0, e, "the event of record 0 was removed: retention never does that")
		default:
			c.problem(BadBegin, 0, 0, e, "record 0 does not say that a sidecar has started")
		}
	case e.is(record.Segment):
		c.lost, c.segmented = e.seq, true
	default:
		c.lost = e.seq
		c.problem(BadBegin, e.seq-1, e.seq, e,
			"record %d is the first here, and begins neither a log nor a segment: %s not here", e.seq, are(0, e.seq-1))
	}
}

// lose says that from here on the tree is not known.
func (c *chain) lose(from int64) {
	if c.whole {
		c.whole, c.lost = false, from
	}
}

// clock checks that time goes back only where a record says so: the first, or
// the second after one that begins a segment.
func (c *chain) clock(e *entry) {
	excused := e.pruned || e.edited || e.is(record.Clock)
	if c.back != nil && !excused {
		c.problem(ClockBack, c.back.seq, e.seq, c.back, "the time goes back, and no record says that the clock was set")
	}
	c.back = nil
	if !c.linked || excused || c.last.time().Sub(e.time()) <= time.Second {
		return
	}
	if e.is(record.Segment) {
		c.back = e
		return
	}
	c.problem(ClockBack, c.last.seq, e.seq, e, "the time goes back, and no record says that the clock was set")
}
