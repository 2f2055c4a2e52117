package process

import (
	"time"

	"golang.org/x/sys/unix"
)

// HasCPU says whether CPU knows anything.
const HasCPU = true

// CPU returns the CPU time of all threads of a process, 0 if it has ended.
func CPU(pid int) time.Duration {
	// The kernel's clock of another process: see clock_getcpuclockid(3).
	clock := int32(^pid<<3 | 2) //nolint:gosec // a pid has 22 bits
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
