package pacing

import (
	"math"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

const (
	// startRate is where a process begins that does not know how many others
	// there are, in calls per second.
	startRate = 2
	// lowestRate bounds how slow 429s make it, so that it notices within seconds
	// when the vault has recovered.
	lowestRate = 0.1
	// growth of the rate, after a window without a 429.
	growth = 1.25
	// window is Azure's, and the time between two changes of the rate.
	window = 10 * time.Second
	// burstTime is how long an idle vault saves up calls, maxBurst how many.
	burstTime = 5 * time.Second
	maxBurst  = 10
	// jobShare is the part of the calls that jobs may be.
	jobShare = 0.2
	// maxPause bounds how long one Retry-After is believed.
	maxPause = 30 * time.Second
	// maxWait bounds times that are computed, so that all of them fit.
	maxWait = 24 * time.Hour
	// enough is a token, but for rounding.
	enough = 1 - 1e-9
)

// bucket is a token bucket: a call takes one. It may be in debt.
type bucket struct {
	tokens, burst float64
	rate          float64 // tokens per second
}

// set sets the rate, and how many tokens may be saved up: those of burstTime, at
// least one, and not more than most.
func (b *bucket) set(rate, most float64) {
	b.rate, b.burst = rate, min(most, max(1, rate*burstTime.Seconds()))
	b.tokens = min(b.tokens, b.burst)
}

func (b *bucket) fill(d time.Duration) { b.add(d.Seconds() * b.rate) }

func (b *bucket) add(tokens float64) { b.tokens = min(b.burst, b.tokens+tokens) }

// until returns when there have been n more tokens.
func (b *bucket) until(n int) time.Duration {
	missing := float64(n) - b.tokens
	if missing <= 1-enough {
		return 0
	}
	seconds := min(missing/b.rate, maxWait.Seconds())
	return time.Duration(math.Ceil(seconds * float64(time.Second)))
}

// vault is what is known of one vault, and who waits for it. Pacer.mu guards it.
type vault struct {
	p    *Pacer
	name string

	all  bucket    // for every call
	jobs bucket    // for jobs, besides
	at   time.Time // when the buckets were right; to come while all calls are stopped

	window time.Time // beginning of the time for which the next two are
	clean  bool      // there was an answer, and neither a 429 nor a Retry-After
	short  bool      // calls had to wait
	halved time.Time // zero: never

	queue   queue
	tickets []ticket    // of who was refused, by the time of that
	timer   *time.Timer // for the next turn; nil before the first
	armed   time.Time   // when timer fires, or did; zero: it was stopped
}

func newVault(p *Pacer, name string, now time.Time) *vault {
	v := &vault{p: p, name: name, at: now, window: now}
	v.all.tokens, v.jobs.tokens = maxBurst, maxBurst
	v.set(p.start)
	return v
}

func (v *vault) set(rate float64) {
	v.all.set(rate, maxBurst)
	v.jobs.set(rate*jobShare, maxBurst*jobShare)
}

// advance brings the vault to now. The rate grows at the end of a window, and at
// no other time; a window that nobody looked at had no traffic.
func (v *vault) advance(now time.Time) {
	if end := v.window.Add(window); !now.Before(end) {
		v.fill(end)
		if v.clean && v.short {
			v.set(min(v.all.rate*growth, v.p.highest))
		}
		v.window = end.Add(now.Sub(end).Truncate(window))
		v.clean, v.short = false, v.queue.n > 0
	}
	v.fill(now)
}

// fill adds the tokens that have come until t.
func (v *vault) fill(t time.Time) {
	if d := t.Sub(v.at); d > 0 {
		v.all.fill(d)
		v.jobs.fill(d)
		v.at = t
	}
}

// halve halves the rate, but not twice within a window.
func (v *vault) halve(now time.Time) {
	if v.halved.IsZero() || now.Sub(v.halved) >= window {
		v.set(max(v.all.rate/2, v.p.lowest))
		v.halved = now
	}
}

// pause stops all calls for d. What was saved up would come at once after it: it
// is lost, but for one call, less a random part of one. The next window begins
// when calls go on.
func (v *vault) pause(now time.Time, d time.Duration) {
	if !v.at.After(now) {
		v.all.tokens = min(v.all.tokens, 1) - v.p.cfg.Random()
	}
	if end := now.Add(min(max(d, 0), maxPause)); end.After(v.at) {
		v.at = end
	}
	v.window, v.clean, v.short = v.at, false, v.queue.n > 0
}

// atEase reports whether nobody would notice a call more if v were a new vault.
func (v *vault) atEase(now time.Time) bool {
	return !v.at.After(now) && v.all.rate >= v.p.start && v.all.tokens >= v.all.burst && v.jobs.tokens >= v.jobs.burst
}

// due returns when there have been all more tokens, and for a job as many as
// jobs. Call advance before.
func (v *vault) due(class kek.Priority, all, jobs int) time.Time {
	d := v.all.until(all)
	if class == kek.Job {
		d = max(d, v.jobs.until(jobs))
	}
	return v.at.Add(d)
}

// take takes the tokens for a call.
func (v *vault) take(class kek.Priority) {
	v.all.tokens--
	if class == kek.Job {
		v.jobs.tokens--
	}
	v.p.counts.Granted[class]++
}

// giveBack is for a call that is not made after all.
func (v *vault) giveBack(class kek.Priority) {
	v.all.add(1)
	if class == kek.Job {
		v.jobs.add(1)
	}
	v.p.counts.Granted[class]--
}
