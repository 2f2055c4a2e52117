//go:build !linux

package dek

import "time"

// timeAsleep returns 0: the wall clock has to do.
func timeAsleep() time.Duration { return 0 }
