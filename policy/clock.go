package policy

import "time"

// Clock tells the time by which grants end. It is the wall clock, but one that
// is set back does not take it back: a grant that has ended stays ended. One
// that is set forward ends grants early. The zero Clock is not usable.
type Clock struct{ start time.Time }

// NewClock returns a Clock that trusts the wall clock of now.
func NewClock() Clock { return Clock{time.Now()} }

// At returns the later of what the wall clock says at now, a result of
// time.Now, and what it said when the Clock was made plus what has passed since
// by the monotonic clock.
func (c Clock) At(now time.Time) time.Time { return later(now, c.start.Round(0).Add(now.Sub(c.start))) }

// later compares what two clocks say.
func later(wall, steady time.Time) time.Time {
	wall = wall.Round(0)
	if steady.After(wall) {
		return steady
	}
	return wall
}
