package pairs

import (
	"time"

	"golang.org/x/sys/unix"
)

// now returns the CPU time that the process has used, all threads of the garbage collector
// included. Unlike the wall clock it stands still while other processes have the CPU.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		panic("pairs: internal error: reading CPU time: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
