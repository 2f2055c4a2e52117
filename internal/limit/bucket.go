package limit

import (
	"math"
	"time"
)

const (
	second = float64(time.Second)
	// What a token costs is kept between these, in nanoseconds, so that no
	// Rate is out of reach of the arithmetic: 10^18 per second, and one in 146
	// years, which is less than the longest Duration.
	leastCost = 1e-9
	mostCost  = float64(1 << 62)
	// exactBurst is the largest Burst of which no part is lost by rounding.
	exactBurst = 1 << 26
)

// bucket is a token bucket. It counts not tokens but the nanoseconds in which
// they come: credit. So time is added as it is, and nothing is rounded but the
// cost of a token, once. The zero bucket is full.
type bucket struct {
	rate  float64 // in force, as burst is; 0 in the zero bucket
	burst int
	cost  float64 // of a token
	full  float64

	at     time.Duration // when credit was right
	credit float64       // what is over full does not count
}

// take takes a token at the time now, or returns when one will be there; l has
// a Rate. Being refused changes nothing, however often.
func (b *bucket) take(now time.Duration, l Limit) (wait time.Duration, ok bool) {
	if l.Rate != b.rate || l.Burst != b.burst {
		b.apply(now, l)
	}
	credit := b.creditAt(now)
	if credit >= b.cost {
		b.at, b.credit = now, credit-b.cost
		return 0, true
	}
	wait = time.Duration(b.cost - credit)
	if b.creditAt(now+wait) < b.cost {
		wait++ // a part of a nanosecond is missing
	}
	return wait, false
}

func (b *bucket) creditAt(now time.Duration) float64 {
	return min(b.full, b.credit+float64(now-b.at))
}

// isFull reports whether nobody would notice if b were the zero bucket: not
// before there is another Limit.
func (b *bucket) isFull(now time.Duration) bool { return b.creditAt(now) >= b.full }

// apply puts l in force from now on. The tokens that are left stay, as far as
// there is room for them.
func (b *bucket) apply(now time.Duration, l Limit) {
	cost, full := costs(l)
	credit := full
	if b.rate > 0 {
		credit = b.creditAt(now) * (cost / b.cost)
	}
	*b = bucket{rate: l.Rate, burst: l.Burst, cost: cost, full: full, at: now, credit: credit}
}

// costs returns what a token costs under l, and a full bucket.
func costs(l Limit) (cost, full float64) {
	cost = min(mostCost, max(leastCost, second/l.Rate))
	burst := float64(l.Burst)
	if l.Burst == 0 {
		burst = math.Ceil(l.Rate)
	}
	full = burst * cost
	if burst < exactBurst {
		// The digits that a full bucket has no room for would be lost with
		// each token. The conversion keeps the compiler from fusing this.
		cost = float64(full+cost) - full
		full = burst * cost
	}
	return cost, full
}
