package dek

import (
	"time"

	"golang.org/x/sys/unix"
)

// timeAsleep returns for how long the machine has slept since it started: by how
// much CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC (clock_gettime(2)).
func timeAsleep() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0 // then the wall clock has to do
	}
	return time.Duration(boot.Nano() - mono.Nano()).Truncate(time.Millisecond)
}
