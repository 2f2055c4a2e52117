package segments

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/record"
)

// Previous is how far the log before went: of those in the directory, the one
// that started last.
type Previous struct {
	// Log is its origin.
	Log string
	// Size is how many records it has, up to the first that is damaged.
	Size int64
	// Root is the root hash of their Merkle tree.
	Root tlog.Hash
	// Ended reports whether its Stop record is there. It is false, too, if that log
	// was to say that the one before it did not end, and does not: it was killed,
	// or failed, before it could.
	Ended bool
	// Last is the time of the last of them; zero if there is none.
	Last time.Time
	// Counted is since when operations that were only counted may be missing: what
	// its newest checkpoint says, else the time of the first record that is there.
	// If the log before it did not end and it does not say so, this is the one
	// before's, and so on.
	Counted time.Time
	// Torn is how many bytes of a torn last line were cut off.
	Torn int64
	// Damage names file and line of what is no record, or does not follow the one
	// before. Empty: all is well. Only the newest file is looked at, if it begins
	// as it should.
	Damage string
}

// recover finds out how far the newest log went, and cuts off what was torn.
func (d *Dir) recover() error {
	if len(d.logs) == 0 {
		return nil
	}
	newest := len(d.logs) - 1
	p, bad, err := d.replayLog(d.logs[newest], true)
	if err != nil {
		return err
	}
	d.previous = &Previous{
		Log: p.log, Size: p.frontier.Size(), Root: p.frontier.Root(), Ended: p.ended, Last: p.last, Counted: p.counted, Torn: p.torn,
	}
	if bad != nil {
		d.previous.Damage = bad.Error()
	}
	from, owed, err := d.owed(newest)
	if err != nil {
		return err
	}
	if owed {
		d.previous.Ended, d.previous.Counted = false, from
	}
	return nil
}

// replayLog reads the end of a log, up to what is damaged. With cut, it cuts off
// what was torn.
func (d *Dir) replayLog(l *files, cut bool) (*replay, *damage, error) {
	p, from, err := d.begin(l)
	for err == nil && from < len(l.all) {
		err = d.replay(p, l, from, cut)
		from++
	}
	bad, damaged := errors.AsType[*damage](err)
	if err != nil && !damaged {
		return nil, nil, err
	}
	return p, bad, nil
}

// begin finds the newest file that the log can be read from, without those
// before it: its first record is the log's, or has all that they leave.
func (d *Dir) begin(l *files) (_ *replay, from int, err error) {
	for from = len(l.all) - 1; from >= 0; from-- {
		f := l.all[from]
		line, whole, herr := d.head(f.name)
		if herr != nil {
			return nil, 0, herr
		}
		if !whole {
			err = errCutOff
			continue
		}
		p, trial := newReplay(l, f.first, line), newReplay(l, f.first, line)
		if err = trial.add(line); err == nil {
			return p, from, nil
		}
	}
	return newReplay(l, 0, nil), 0, &damage{d.path(l.all[0].name), 1, err}
}

// replay adds the records of one file. With cut, it cuts off what the last of
// them has after its last line feed.
func (d *Dir) replay(p *replay, l *files, i int, cut bool) error {
	f, last := l.all[i], i == len(l.all)-1
	good, err := d.walk(context.Background(), f.name, p.add)
	if cut && last && (errors.Is(err, errCutOff) || err == nil && good == 0) {
		p.torn = f.size - good
		return d.cut(l, good)
	}
	return err
}

// cut cuts the last file off after so many bytes. Without any, it removes it.
func (d *Dir) cut(l *files, size int64) error {
	last := len(l.all) - 1
	f := l.all[last]
	if size == 0 {
		l.all = l.all[:last]
		return d.remove(f.name)
	}
	out, err := d.root.OpenFile(f.name, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cutting off a torn line: %w", err)
	}
	if err = out.Truncate(size); err == nil {
		err = d.sync(out)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("cutting off a torn line: %w", err)
	}
	f.size = size
	return nil
}

// replay is what the records of a log come to.
type replay struct {
	chain
	key      note.Verifier // nil: it is not there any more
	frontier record.Frontier
	last     time.Time
	counted  time.Time
	ended    bool
	torn     int64
}

// newReplay returns what the records before head come to, which is the line of
// record first: nothing unless head says what. Whether that is true, add finds.
func newReplay(l *files, first int64, head []byte) *replay {
	p := &replay{chain: chainFrom(l.origin, first), key: l.key}
	if r, err := record.Parse(head); err == nil && first > 0 {
		p.frontier = frontierOf(r)
	}
	return p
}

// frontierOf returns the frontier in a record of kind Segment; else an empty one.
func frontierOf(r *record.Record) (none record.Frontier) {
	e, err := record.ParseEvent(r.Event)
	if err != nil || e.Kind != record.Segment || r.Class != record.Keys {
		return none
	}
	f, err := record.ParseFrontier(r.Seq, e.Frontier)
	if err != nil {
		return none
	}
	return f
}

// add adds the next record.
func (p *replay) add(line []byte) error {
	if p.frontier.Size() != p.next {
		return fmt.Errorf("it does not say what the %d records before it come to", p.next)
	}
	r, err := p.chain.add(line)
	if err != nil {
		return err
	}
	if r.Class == record.Keys && !r.Pruned() {
		if err := p.event(r.Event); err != nil {
			return err
		}
	}
	p.frontier.Add(r.Leaf)
	p.last = r.Time
	if p.counted.IsZero() {
		p.counted = r.Time
	}
	return nil
}

// event looks at an event of the log itself.
func (p *replay) event(data []byte) error {
	e, err := record.ParseEvent(data)
	if err != nil {
		return err
	}
	switch e.Kind {
	case record.Stop:
		p.ended = true
	case record.Segment, record.CheckpointMade:
		if !e.From.IsZero() {
			p.counted = e.From
		}
		return p.checkpoint(e.Note)
	default:
	}
	return nil
}

// checkpoint compares a checkpoint with the records before it.
func (p *replay) checkpoint(signed string) error {
	c, err := record.ParseCheckpoint(signed)
	if p.key != nil {
		c, err = record.OpenCheckpoint(signed, p.key)
	}
	if err != nil {
		return err
	}
	if c.Log != p.log || c.Size != p.frontier.Size() || c.Root != p.frontier.Root() {
		return errors.New("its checkpoint is not of the records before it")
	}
	return nil
}
