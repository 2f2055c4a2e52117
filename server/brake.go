package server

import (
	"sync/atomic"
	"time"
)

// A caller far over its rate is read more slowly, so that its flood waits in
// its own sockets and not in our scheduler: refusing a call costs two thirds of
// answering one.
const (
	// refusalPause is for how long a refusal keeps its caller from being read:
	// a thousand refusals a second are free.
	refusalPause = time.Millisecond
	// brakeSlack is how far ahead of that a caller may be, brakeMost how far
	// behind it is kept at most.
	brakeSlack = 25 * time.Millisecond
	brakeMost  = time.Second
	// brakeRead is how much is read at once of a caller that is braked: some
	// calls, so that they do not come in heaps.
	brakeRead = 1 << 10
	// brakeFree is how much of each connection is read at once all the same, so
	// that a probe of the caller's user gets in.
	brakeFree = 1 << 10
)

// brake is one caller's, for all its connections.
type brake struct {
	// until is when the pauses for its refusals are over, in ns after the epoch
	// of the connections.
	until atomic.Int64
}

// press adds a pause.
func (b *brake) press(now time.Duration) {
	for {
		old := b.until.Load()
		next := min(max(time.Duration(old), now)+refusalPause, now+brakeMost)
		if b.until.CompareAndSwap(old, int64(next)) {
			return
		}
	}
}

// pause returns for how long nothing is read.
func (b *brake) pause(now time.Duration) time.Duration {
	return time.Duration(b.until.Load()) - now - brakeSlack
}

// slowDown is called for a call that was refused because of its caller's rate.
func (c *conn) slowDown() {
	if b := c.brake.Load(); b != nil {
		b.press(time.Since(c.all.epoch))
	}
}

// braked returns how much of b is to be read, after the pauses that the caller
// has earned; it returns at once when the connection is closed.
func (c *conn) braked(b []byte) []byte {
	brake := c.brake.Load()
	if brake == nil {
		return b
	}
	if c.read < brakeFree {
		return b[:min(len(b), brakeFree)]
	}
	for waited := false; ; waited = true {
		pause := brake.pause(time.Since(c.all.epoch))
		switch {
		case pause <= 0 && !waited:
			return b
		case pause <= 0:
			return b[:min(len(b), brakeRead)]
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-c.closed:
			timer.Stop()
			return b
		}
	}
}
