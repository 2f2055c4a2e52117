//go:build !linux

package load

import "time"

// pause waits with Go's own timers.
type pause struct{}

func newPause() (*pause, error) { return &pause{}, nil }

func (*pause) close() {}

// until returns at the time at, or at once if that has passed.
func (*pause) until(at time.Time) { <-time.After(time.Until(at)) }
