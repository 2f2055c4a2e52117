package load

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pause waits with a thread of its own. Go's timers wake an idle process at full
// milliseconds only, which is longer than a call takes.
type pause struct {
	zero  time.Time     // a moment
	clock time.Duration // and the kernel's monotonic clock then
}

// newPause binds the goroutine to its thread, until close.
func newPause() (*pause, error) {
	runtime.LockOSThread()
	// Kernels wake a thread up to 50 us late, to wake several at once.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("setting timer slack: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return nil, fmt.Errorf("reading clock: %w", err)
	}
	return &pause{zero: time.Now(), clock: time.Duration(now.Nano())}, nil
}

func (*pause) close() { runtime.UnlockOSThread() }

// until returns at the time at, or at once if that has passed.
func (p *pause) until(at time.Time) {
	if time.Until(at) <= 0 {
		return
	}
	when := unix.NsecToTimespec(int64(p.clock + at.Sub(p.zero)))
	for {
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &when, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
