// Package load calls a sidecar, at times that are fixed beforehand or as fast as it
// answers, and measures how long that takes.
//
// A call of an open loop is timed from the moment at which it was due, not from that at
// which it could be made: so whatever delays the caller itself counts too, and a sidecar
// that stops for a while cannot hide the calls that it kept from being made.
package load

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Order says what calls to make.
type Order struct {
	// Start is when the first call may be made, For how long calls are made.
	Start time.Time
	For   time.Duration
	// Rate is how many calls a second fall due, whatever happens to them. 0 makes a closed
	// loop: Outstanding callers, each of which makes one call after the other.
	Rate float64
	// Seed is of the gaps between calls, which are distributed exponentially, as those
	// of independent callers are. 0: all gaps are the same.
	Seed uint64
	// Outstanding is how many calls are under way at most. A call for which that leaves no
	// room when it is due is left out.
	Outstanding int
}

// Report says what became of the calls.
type Report struct {
	// Due is how many calls there were to be, LeftOut how many of them were not made.
	Due, LeftOut int
	// OK were answered, Refused got RATE_LIMITED, Failed is the rest, of which Failure is one.
	OK, Refused, Failed int
	Failure             string
	// P50 and P99 are quantiles of the time that calls took which were OK: at least that
	// part of them took no longer. Late is the 99 % quantile of the part of that before
	// the call was made, of all calls.
	P50, P99, Late time.Duration
	// Took is how long it took until the last call had ended.
	Took time.Duration
}

// Add adds the numbers of calls of o, and how long they took in all. It leaves the quantiles.
func (r *Report) Add(o Report) {
	r.Due += o.Due
	r.LeftOut += o.LeftOut
	r.OK += o.OK
	r.Refused += o.Refused
	r.Failed += o.Failed
	r.Failure = cmp.Or(r.Failure, o.Failure)
	r.Took += o.Took
}

// Do makes the calls, and returns when all of them have ended. It makes them on all of
// the connections in turn. It is not safe for concurrent use.
func (c *Caller) Do(ctx context.Context, o Order) (Report, error) {
	if o.Outstanding <= 0 || o.Rate < 0 || o.For <= 0 {
		return Report{}, fmt.Errorf("order of %v calls a second for %s, %d under way: nothing to do", o.Rate, o.For, o.Outstanding)
	}
	o.Start = time.Now().Add(time.Until(o.Start)) // from here on by a clock that nobody sets
	r := &run{caller: c}
	pause, err := newPause()
	if err != nil {
		return Report{}, err
	}
	defer pause.close()
	pause.until(o.Start)
	if o.Rate == 0 {
		r.closed(ctx, o)
	} else {
		r.open(ctx, o, pause)
	}
	report := r.report()
	report.Took = time.Since(o.Start)
	return report, nil
}

// run is the calls of one Order.
type run struct {
	caller       *Caller
	due, leftOut int

	mu      sync.Mutex
	took    []time.Duration // of calls that were OK
	late    []time.Duration
	refused int
	failed  int
	failure string
}

func (r *run) closed(ctx context.Context, o Order) {
	var group sync.WaitGroup
	var made atomic.Int64
	end := o.Start.Add(o.For)
	for i := range o.Outstanding {
		group.Go(func() {
			for now := o.Start; now.Before(end); {
				now = time.Now()
				r.call(ctx, i, now)
				made.Add(1)
			}
		})
	}
	group.Wait()
	r.due = int(made.Load())
}

// open makes calls when they are due. While there is no room for another, all that fall
// due are left out.
func (r *run) open(ctx context.Context, o Order, pause *pause) {
	var group sync.WaitGroup
	defer group.Wait()
	room := make(chan struct{}, o.Outstanding)
	all := schedule(o)
	r.due = len(all)
	for i := 0; i < len(all); i++ {
		pause.until(o.Start.Add(all[i]))
		select {
		case room <- struct{}{}:
		default:
			room <- struct{}{}
			next, _ := slices.BinarySearch(all, max(time.Since(o.Start), all[i]+1))
			r.leftOut += next - i
			if i = next; i == len(all) {
				return
			}
			pause.until(o.Start.Add(all[i]))
		}
		group.Go(func() {
			r.call(ctx, i, o.Start.Add(all[i]))
			<-room
		})
	}
}

// schedule returns when calls are due, from Start on.
func schedule(o Order) []time.Duration {
	random := rand.New(rand.NewPCG(o.Seed, 0))
	gap := float64(time.Second) / o.Rate
	all := make([]time.Duration, 0, int(o.For.Seconds()*o.Rate)+1)
	for at := 0.0; ; {
		next := gap
		if o.Seed != 0 {
			next *= random.ExpFloat64()
		}
		if at += next; at > float64(o.For) {
			return all
		}
		all = append(all, time.Duration(at))
	}
}

// call makes one call, on the i-th connection, and notes what became of it.
func (r *run) call(ctx context.Context, i int, due time.Time) {
	late := time.Since(due)
	err := r.caller.call(ctx, i)
	took := time.Since(due)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late = append(r.late, late)
	switch {
	case err == nil:
		r.took = append(r.took, took)
	case rateLimited(err):
		r.refused++
	default:
		r.failed++
		r.failure = err.Error()
	}
}

func (r *run) report() Report {
	slices.Sort(r.took)
	slices.Sort(r.late)
	return Report{
		Due: r.due, LeftOut: r.leftOut,
		OK: len(r.took), Refused: r.refused, Failed: r.failed, Failure: r.failure,
		P50: Quantile(r.took, 50), P99: Quantile(r.took, 99), Late: Quantile(r.late, 99),
	}
}

// Quantile returns the least of sorted times that so many per cent of them do not exceed, 0
// if there are none.
func Quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*percent+99)/100-1)]
}
