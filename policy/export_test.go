package policy

import "time"

// Latest is what Clock.At does with the readings of its two clocks.
func (c *Clock) Latest(wall, steady time.Time) time.Time { return c.latest(wall, steady) }
