// Package lease decides for how long what a KEK unwrapped may be used since that
// KEK last said yes. It asks nobody, and has no clock of its own: docs/design.md,
// section 5, has the table of states.
package lease

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// State is the standing of a KEK version.
type State uint8

// The states.
const (
	// Unproven serves nothing: the KEK has not said yes yet, or not for too long.
	Unproven State = iota
	// Fresh serves.
	Fresh
	// Renewing serves, and asks the KEK again.
	Renewing
	// Suspect serves until the lease ends: the KEK refused in a way that may be
	// a mistake.
	Suspect
	// Grace serves for as long as the tenant tolerates: nobody answers.
	Grace
	// Fenced serves nothing: the KEK's owner said no, or the grace is over.
	Fenced
)

var stateNames = [...]string{"unproven", "fresh", "renewing", "suspect", "grace", "fenced"}

// String returns the state in a word.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Instant is a moment by two clocks.
type Instant struct {
	// Boot is the time since the machine started, including suspension
	// (CLOCK_BOOTTIME).
	Boot time.Duration
	// Wall is the time of day, which people and NTP set.
	Wall time.Duration
}

// Since returns how long ago then was: the longer of what both clocks say. A wall
// clock that was set back says nothing.
func (now Instant) Since(then Instant) time.Duration {
	return max(now.Boot-then.Boot, now.Wall-then.Wall)
}

// Config are the times of all leases of a process.
type Config struct {
	// Lease is for how long one yes is good.
	Lease time.Duration
	// Random returns a number in [0, 1). Nil means math/rand/v2.
	Random func() float64
}

// The waits between attempts; each doubles from the first to the second.
const (
	renewFirst, renewMost       = 2 * time.Second, 15 * time.Second
	graceFirst, graceMost       = 5 * time.Second, 30 * time.Second
	unprovenFirst, unprovenMost = 5 * time.Second, 60 * time.Second
	fencedFirst, fencedMost     = 15 * time.Second, 60 * time.Second
	// wipeAfter is how long after the fence slots are kept for a yes.
	wipeAfter = 60 * time.Second
)

// suspectWaits are the waits before the attempts of a suspect lease. A refusal of
// the last fences.
var suspectWaits = [...]time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second}

// Verdict is what may be done now with what a lease is for.
type Verdict uint8

// The verdicts.
const (
	// Serve: it may be used.
	Serve Verdict = iota
	// ServeAndAsk: it may be used, and the KEK should be asked soon.
	ServeAndAsk
	// Ask: it may be used once the KEK has said yes.
	Ask
	// Refuse: it may not be used.
	Refuse
)

// view is a lease as it is between two events. It never changes.
type view struct {
	state  State
	since  Instant // of the state
	proved Instant // start of the last request that was answered yes
	askAt  time.Duration
	cause  error // why not Fresh
	tries  int   // without a yes, in this state
}

// Lease is the standing of one KEK version, for one credential. It is safe for
// concurrent use; Check is one atomic load.
type Lease struct {
	cfg *Config
	now atomic.Pointer[view]

	mu     sync.Mutex
	asking bool
}

// New returns an unproven lease.
func New(cfg *Config) *Lease {
	l := &Lease{cfg: cfg}
	l.now.Store(&view{})
	return l
}

// Standing is a lease as it is now, for metrics and status.
type Standing struct {
	// State is the state, since Since.
	State State
	Since Instant
	// Proved is the start of the last request that was answered yes.
	Proved Instant
	// Cause is why it is not Fresh.
	Cause error
}

// Standing returns the lease as it is now.
func (l *Lease) Standing() Standing {
	v := l.now.Load()
	return Standing{v.state, v.since, v.proved, v.cause}
}

// Check says what may be done at now for a tenant that tolerates an outage of
// length grace. The error is why not, or why not for long.
func (l *Lease) Check(now Instant, grace time.Duration) (Verdict, error) {
	v := l.now.Load()
	age := now.Since(v.proved)
	within := age < l.cfg.Lease
	switch v.state {
	case Fresh:
		switch {
		case !within:
			return Ask, nil
		case now.Boot >= v.askAt:
			return ServeAndAsk, nil
		}
		return Serve, nil
	case Renewing:
		if within {
			return Serve, v.cause
		}
		if v.cause == nil { // the answer is on its way
			return Ask, nil
		}
		return l.inGrace(v, age, grace)
	case Grace:
		return l.inGrace(v, age, grace)
	case Suspect:
		if within {
			return Serve, v.cause
		}
		return Refuse, v.cause
	case Unproven:
		if v.cause != nil && now.Boot < v.askAt {
			return Refuse, v.cause
		}
		return Ask, v.cause
	}
	return Refuse, v.cause
}

func (l *Lease) inGrace(v *view, age, grace time.Duration) (Verdict, error) {
	if age < l.cfg.Lease+grace {
		return Serve, v.cause
	}
	return Refuse, &GraceOverError{Grace: grace, Cause: v.cause}
}

// GraceOverError says that the KEK has not answered for longer than a tenant
// tolerates.
type GraceOverError struct {
	// Grace is how long the tenant does.
	Grace time.Duration
	// Cause is why there is no answer.
	Cause error
}

// Error says so in one line.
func (e *GraceOverError) Error() string {
	return fmt.Sprintf("no answer for longer than the lease and outage_grace %s: %v", e.Grace, e.Cause)
}

// Unwrap returns the cause.
func (e *GraceOverError) Unwrap() error { return e.Cause }

// Begin reports whether the caller is the one to ask the KEK now: nobody else
// does. Who begins tells what came of it, by one of Yes, No, Maybe and Silence.
func (l *Lease) Begin(now Instant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asking {
		return false
	}
	l.asking = true
	if v := *l.now.Load(); v.state == Fresh {
		v.state, v.since, v.tries, v.cause = Renewing, now, 0, nil
		l.now.Store(&v)
	}
	return true
}

// end ends what Begin began, and returns a copy of the view to change.
func (l *Lease) end() view {
	l.asking = false
	return *l.now.Load()
}

// Yes tells that the KEK, in a request that was sent at start, unwrapped what it
// should. A request that was sent before a refusal does not undo it.
func (l *Lease) Yes(start Instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.end()
	refused := v.state == Suspect || v.state == Fenced
	if refused && start.Boot < v.since.Boot || start.Boot < v.proved.Boot && v.state != Unproven {
		return
	}
	between := 0.5 + 0.25*l.random()
	l.now.Store(&view{
		state: Fresh, since: start, proved: start,
		askAt: start.Boot + time.Duration(between*float64(l.cfg.Lease)),
	})
}

// No tells that the KEK's owner refuses: the version is disabled or gone.
func (l *Lease) No(now Instant, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.end()
	if v.state == Fenced {
		l.again(&v, now, cause, fencedFirst, fencedMost)
		return
	}
	l.enter(v, Fenced, now, cause, fencedFirst)
}

// Maybe tells of a refusal that may be a mistake, or may not have reached all of
// the vault yet: of the credential.
func (l *Lease) Maybe(now Instant, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.end()
	switch {
	case v.state == Fenced:
		l.again(&v, now, cause, fencedFirst, fencedMost)
	case v.state == Unproven:
		l.again(&v, now, cause, unprovenFirst, unprovenMost)
	case v.state == Suspect && v.tries == len(suspectWaits):
		l.enter(v, Fenced, now, cause, fencedFirst)
	case v.state == Suspect:
		v.cause, v.askAt = cause, now.Boot+suspectWaits[v.tries]
		v.tries++
		l.now.Store(&v)
	default:
		l.enter(v, Suspect, now, cause, suspectWaits[0])
	}
}

// Doubt tells that somebody else than who began to ask was refused, in the way of
// Maybe. It does not count as an attempt; the first one is made soon.
func (l *Lease) Doubt(now Instant, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := *l.now.Load(); v.state == Fresh || v.state == Renewing || v.state == Grace {
		l.enter(v, Suspect, now, cause, suspectWaits[0])
	}
}

// Silence tells that there was no answer that can be believed.
func (l *Lease) Silence(now Instant, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.end()
	switch {
	case v.state == Fenced:
		l.again(&v, now, v.cause, fencedFirst, fencedMost) // a refusal stays one
	case v.state == Suspect:
		v.askAt = now.Boot + renewFirst
		l.now.Store(&v)
	case v.state == Unproven:
		v.cause, v.askAt = cause, now.Boot // the next who needs it asks
		l.now.Store(&v)
	case v.state == Grace:
		l.again(&v, now, cause, graceFirst, graceMost)
	case now.Since(v.proved) >= l.cfg.Lease:
		l.enter(v, Grace, now, cause, graceFirst)
	default:
		l.again(&v, now, cause, renewFirst, renewMost)
	}
}

// Forget makes a fenced lease unproven: nothing that was unwrapped under it is
// kept any more.
func (l *Lease) Forget(now Instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := *l.now.Load(); v.state == Fenced {
		l.now.Store(&view{state: Unproven, since: now, cause: v.cause, askAt: now.Boot + unprovenFirst})
	}
}

// Next returns when the KEK should be asked though nobody uses the lease; false
// if that can wait until somebody does.
func (l *Lease) Next() (at time.Duration, ok bool) {
	v := l.now.Load()
	switch v.state {
	case Renewing, Suspect, Grace, Fenced:
		return v.askAt, true
	}
	return 0, false
}

// WipeAt returns when what was unwrapped under a fenced lease has to go.
func (l *Lease) WipeAt() (at time.Duration, ok bool) {
	v := l.now.Load()
	return v.since.Boot + wipeAfter, v.state == Fenced
}

// enter enters a state, with the first attempt after wait.
func (l *Lease) enter(v view, s State, now Instant, cause error, wait time.Duration) {
	v.state, v.since, v.cause, v.tries, v.askAt = s, now, cause, 1, now.Boot+wait
	l.now.Store(&v)
}

// again stays, with another attempt after a wait that doubles from first to most.
func (l *Lease) again(v *view, now Instant, cause error, first, most time.Duration) {
	wait := min(first<<min(v.tries, 8), most)
	v.cause, v.askAt = cause, now.Boot+wait
	v.tries++
	l.now.Store(v)
}

func (l *Lease) random() float64 {
	if l.cfg.Random != nil {
		return l.cfg.Random()
	}
	return rand.Float64()
}
