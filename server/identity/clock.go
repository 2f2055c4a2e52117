package identity

import (
	"sync/atomic"
	"time"
)

// clock tells a time that never goes back: what the wall clock says, or would
// say had nobody set it back. So what has expired stays expired, and a wall
// clock that is set ahead ends identities early. One that was set ahead by
// mistake has that effect until the process starts again.
//
// It is safe for concurrent use and does not allocate.
type clock struct {
	// read returns the wall clock, and the time since some moment by a clock
	// that nobody sets.
	read func() (wall time.Time, since time.Duration)
	// origin is the latest that the wall clock made that moment, in
	// microseconds since 1970. Suspending the machine moves it, too.
	origin atomic.Int64
}

// systemClock returns what reads this machine's clocks.
func systemClock() func() (time.Time, time.Duration) {
	start := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now, now.Sub(start)
	}
}

// now returns microseconds since 1970, which no year that a certificate can
// name overflows.
func (c *clock) now() int64 {
	wall, since := c.read()
	origin := wall.UnixMicro() - since.Microseconds()
	for {
		latest := c.origin.Load()
		if origin <= latest {
			return latest + since.Microseconds()
		}
		if c.origin.CompareAndSwap(latest, origin) {
			return origin + since.Microseconds()
		}
	}
}
