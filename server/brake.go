package server

import (
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/internal/limit"
)

// A caller far over its rate is read more slowly, so that its flood waits in
// its own sockets and not in our scheduler: refusing a call costs two thirds of
// answering one.
const (
	// refusalPause is for how long a refusal keeps its caller from being read.
	refusalPause = 10 * time.Millisecond
	// brakeSlack is how much of that is forgiven a caller that was not refused
	// for as long.
	brakeSlack = 100 * time.Millisecond
	// brakeLeast and brakeMost are how long a caller is not read at most, by how
	// soon its limit has given back a full burst: so it gets all that is its.
	brakeLeast = 10 * time.Millisecond
	brakeMost  = 250 * time.Millisecond
	// brakeAfter is how long after the last refusal the caller's connections
	// still take turns of brakeTurn, and read brakeRead bytes: a few calls, which
	// are refused, if they are, before the next turn.
	brakeAfter = 100 * time.Millisecond
	brakeTurn  = time.Millisecond
	brakeRead  = 4 << 10
	// brakeFree is how much of each connection is read at once all the same, so
	// that a probe of the caller's user gets in.
	brakeFree = 1 << 10
)

// brake is one caller's, for all its connections.
type brake struct {
	turn chan struct{} // holds one while a connection has its turn

	mu    sync.Mutex
	until time.Duration // when the pauses for its refusals are over, after the epoch
	slow  time.Duration // until when the connections take turns
}

func newBrake() *brake { return &brake{turn: make(chan struct{}, 1)} }

// press adds a pause for a call refused under l.
func (b *brake) press(now time.Duration, l limit.Limit) {
	most := brakeMost
	if l.Rate > 0 && l.Burst > 0 {
		most = min(most, max(brakeLeast, time.Duration(float64(l.Burst)/l.Rate*float64(time.Second))))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until = max(b.until, now-brakeSlack)
	if b.until < now+most {
		b.until += refusalPause
	}
	if b.until > now {
		b.slow = b.until + brakeAfter
	}
}

// pause returns for how long nothing is read, and whether connections take turns.
func (b *brake) pause(now time.Duration) (pause time.Duration, slow bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until - now, b.slow > now
}

// pressed reports whether the brake still does anything.
func (b *brake) pressed(now time.Duration) bool {
	pause, slow := b.pause(now)
	return slow || pause > 0
}

// slowDown is called for a call that was refused because of its caller's rate.
func (c *conn) slowDown(l limit.Limit) {
	if b := c.brake.Load(); b != nil {
		b.press(time.Since(c.all.epoch), l)
	}
}

// braked returns how much of b is to be read, when it is this connection's turn;
// it returns at once when the connection is closed.
func (c *conn) braked(b []byte) []byte {
	brake := c.brake.Load()
	if brake == nil {
		return b
	}
	if c.read < brakeFree {
		return b[:min(len(b), brakeFree)]
	}
	if _, slow := brake.pause(time.Since(c.all.epoch)); !slow {
		return b
	}
	select {
	case brake.turn <- struct{}{}:
	case <-c.closed:
		return b
	}
	defer time.AfterFunc(brakeTurn, func() { <-brake.turn })
	for {
		pause, _ := brake.pause(time.Since(c.all.epoch))
		if pause <= 0 {
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
