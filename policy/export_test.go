package policy

import "time"

// Later is what Clock.At does with the readings of its two clocks.
func Later(wall, steady time.Time) time.Time { return later(wall, steady) }
