package segments

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

// owed reports whether log i lacks the record that one before it did not end:
// its writer was killed, or failed, after it wrote that the log begins. Then it
// returns since when operations may be missing.
//
// A log that ended may owe that itself, so that it goes back as far as logs name
// the one before and that is there. Of those that ended it reads the end only.
func (d *Dir) owed(i int) (from time.Time, owed bool, err error) {
	l := d.logs[i]
	before := slices.IndexFunc(d.logs[:i], func(o *files) bool { return o.origin == l.before })
	if before < 0 {
		return from, false, nil
	}
	ended, err := d.ended(d.logs[before])
	if err != nil {
		return from, false, err
	}
	from, owed, err = d.owed(before)
	if err != nil || ended && !owed {
		return from, false, err
	}
	if told, err := d.tells(l); err != nil || told {
		return from, false, err
	}
	if owed {
		return from, true, nil
	}
	p, _, err := d.replayLog(d.logs[before], false)
	if err != nil {
		return from, false, err
	}
	if p.counted.IsZero() { // all of it is damaged
		return d.logs[before].start, true, nil
	}
	return p.counted, true, nil
}

// ended reports whether a log has its Stop record: only a checkpoint comes after
// it.
func (d *Dir) ended(l *files) (bool, error) {
	if len(l.all) == 0 {
		return false, nil
	}
	tail, err := d.tail(l.all[len(l.all)-1], 4*record.MaxLine)
	if err != nil {
		return false, err
	}
	for line := range bytes.Lines(tail) {
		if kindOf(bytes.TrimSuffix(line, []byte{'\n'})) == record.Stop {
			return true, nil
		}
	}
	return false, nil
}

// tells reports whether a log has a record that one before it did not end. It is
// among the first, if it is there.
func (d *Dir) tells(l *files) (told bool, err error) {
	errTold := errors.New("that is it")
	for _, f := range l.all {
		_, err := d.walk(context.Background(), f.name, func(line []byte) error {
			if kindOf(line) == record.Unaccounted {
				return errTold
			}
			return nil
		})
		if _, damaged := errors.AsType[*damage](err); err != nil && !damaged {
			return false, err
		}
		if errors.Is(err, errTold) {
			return true, nil
		}
	}
	return false, nil
}

// kindOf returns the kind of a record of class Keys, empty if the line is none.
func kindOf(line []byte) record.Kind {
	r, err := record.Parse(line)
	if err != nil || r.Class != record.Keys || r.Pruned() || !r.Intact() {
		return ""
	}
	e, err := record.ParseEvent(r.Event)
	if err != nil {
		return ""
	}
	return e.Kind
}
