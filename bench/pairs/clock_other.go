//go:build !linux

package pairs

import "time"

var start = time.Now() //nolint:gochecknoglobals // a constant

// now returns the time since the program's start. Elsewhere there is no clock of the
// process's CPU time that is fine enough.
func now() time.Duration { return time.Since(start) }
