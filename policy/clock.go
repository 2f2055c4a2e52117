package policy

import (
	"sync/atomic"
	"time"
)

// Clock tells the time by which grants end: a wall clock that never goes back.
// One that is set forward takes it along, one that is set back does not: a grant
// that has ended stays ended. So after a wall clock was set far ahead by mistake,
// grants end that much early until the process starts again.
//
// It is made by NewClock, safe for concurrent use, and does not allocate.
type Clock struct {
	start time.Time
	ahead atomic.Int64 // ns that the wall clock was ahead of steady time, at most
}

// NewClock returns a Clock that trusts the wall clock of now.
func NewClock() *Clock { return &Clock{start: time.Now()} }

// At returns the time at now, a result of time.Now: what the wall clock says, or
// would say had nobody set it back since it was furthest ahead. Whatever At has
// returned for one moment, it never returns less for the same or a later one.
func (c *Clock) At(now time.Time) time.Time {
	return c.latest(now.Round(0), c.start.Round(0).Add(now.Sub(c.start)))
}

// latest is At, given what the wall clock says, and what it would say had nobody
// set it since the start. It stores something only when the wall clock is further
// ahead than ever.
func (c *Clock) latest(wall, steady time.Time) time.Time {
	ahead := int64(wall.Sub(steady))
	for {
		most := c.ahead.Load()
		if ahead <= most {
			return steady.Add(time.Duration(most))
		}
		if c.ahead.CompareAndSwap(most, ahead) {
			return steady.Add(time.Duration(ahead))
		}
	}
}
