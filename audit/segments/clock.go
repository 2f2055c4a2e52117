package segments

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
)

const (
	// clockSlack is how far the clock may be set while a Dir is open.
	clockSlack = time.Hour
	// maxAway is for how long there may be no record before Prune doubts the clock.
	maxAway = 30 * 24 * time.Hour
	// settled is for how long sidecars must have run after that, until Prune
	// believes it: so long had the clock to be corrected, and somebody to look.
	settled = 24 * time.Hour
)

// checkClock returns why nothing is known to be over: the clock was set by more
// than an hour since Open.
func (d *Dir) checkClock() error {
	now := time.Now()
	set := now.Round(0).Sub(d.wall) - now.Sub(d.opened)
	if set.Abs() <= clockSlack {
		return nil
	}
	return fmt.Errorf("nothing is removed, because the clock was set by %v since the sidecar started "+
		"(or the machine slept): see that it is right, then restart the sidecar", set.Round(time.Second))
}

// checkAway returns why nothing is known to be over: going back from now, there
// are more than 30 days without a record before there are 24 hours in which a
// sidecar ran. Either none was there, or one was started with a wrong clock; a
// restart does not help that. Nobody knows how long a file took by any other
// clock, so that each counts as an hour, at most.
func (d *Dir) checkAway(ctx context.Context, now time.Time) error {
	ran := time.Since(d.opened) // by the monotonic clock
	at := now.Add(-ran)
	for _, f := range d.earlier() {
		if ran >= settled {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		first, last, err := d.times(f)
		if err != nil {
			return err
		}
		if last.IsZero() { // damaged: the time without a record is longer
			continue
		}
		if away := max(at.Sub(last), last.Sub(first)); away > maxAway {
			return fmt.Errorf("nothing is removed, because by the clock there was no record for %d days after %s: "+
				"no sidecar ran, or the clock is wrong; see that it is right: once sidecars have run for %v since, "+
				"of which %v are over, what is too old is removed", away/(24*time.Hour), d.path(f.name), settled, ran.Round(time.Minute))
		}
		ran += min(max(last.Sub(first), 0), fileAge)
		at = first
	}
	return nil
}

// earlier returns the files of the logs before, the newest first.
func (d *Dir) earlier() []*file {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*file
	for _, l := range d.logs[:len(d.logs)-1] {
		all = append(all, l.all...)
	}
	slices.Reverse(all)
	return all
}

// times returns the times of a file's first and last record, zero where that is
// none.
func (d *Dir) times(f *file) (first, last time.Time, err error) {
	line, whole, err := d.head(f.name)
	if err != nil {
		return first, last, err
	}
	r, err := record.Parse(line)
	if err != nil || !whole {
		return first, last, nil //nolint:nilerr // survey says where and why
	}
	last, err = d.lastTime(f)
	return r.Time, last, err
}
