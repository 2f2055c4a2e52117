package load

import "time"

// Schedule returns when the calls of an Order are due.
func Schedule(o Order) []time.Duration { return schedule(o) }
