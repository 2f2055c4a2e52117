package dek

import (
	"sync/atomic"
	"time"

	keklease "github.com/keysidecar/keysidecar/kek/lease"
)

// clock tells leases the time. Go's monotonic clock stops while the machine
// sleeps: for how long it did is read at every refresh, and until then the wall
// clock shows it.
type clock struct {
	start time.Time
	slept func() time.Duration // since the machine started
	since time.Duration        // slept at start
	extra atomic.Int64         // ns slept since start
}

func newClock(slept func() time.Duration) *clock {
	return &clock{start: time.Now(), slept: slept, since: slept()}
}

func (c *clock) refresh() { c.extra.Store(int64(c.slept() - c.since)) }

func (c *clock) now() keklease.Instant {
	now := time.Now()
	return keklease.Instant{
		Boot: now.Sub(c.start) + time.Duration(c.extra.Load()),
		Wall: time.Duration(now.UnixNano()),
	}
}
