// Package flood measures what one caller of a sidecar can do to another: how much longer the
// slowest calls of a victim take while an attacker offers far more calls than its limit
// admits. It is the state that lasts that is measured, not how the flood begins.
//
// The sidecar is `keysidecar serve` with an embedded Key Vault; victim and attacker are a
// process each. In one half of a pair the attacker offers exactly what its limit admits, in
// the other 100 times as much, so that the two differ in the calls that are refused. The
// victim makes the same calls in both, at times that are fixed beforehand.
package flood

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/bench/load"
	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/process"
)

// The claim: a victim that uses 5 % of what the sidecar can do, beside an attacker that may
// use 0.5 % and offers 100 times that.
const (
	Claim = "victim p99: attacker floods / keeps its limit"
	Bar   = 2

	victimPart = 0.05
	limitPart  = 0.005
	excess     = 100

	capacityCallers = 64
	connections     = 8                      // of the attacker, and of those callers
	outstanding     = 256                    // calls of the attacker that are under way at most
	patience        = 4096                   // and of the victim, which is never so many
	lead            = 100 * time.Millisecond // to tell all processes when to start
	before          = 300 * time.Millisecond // what the attacker begins before the victim
)

// Config says how long to measure.
type Config struct {
	// Pairs is the number of pairs; 0 means pairs.MinPairs. Where that is too few to say
	// anything, More are added.
	Pairs, More int
	// Calls is how many calls the victim makes in each half of a pair, about; 0 means 1,000,
	// of which the slowest 10 make the p99.
	Calls int
	// Capacity is how long it is measured what the sidecar can do; 0 means 3 s.
	Capacity time.Duration
	// Binary is the path of the program keysidecar. Required.
	Binary string
	// TCP lets the callers prove who they are with certificates, over TCP. Else they are
	// users of a Unix socket, if this process may give them users: as root, on Linux.
	TCP bool
}

// Result is what Measure found.
type Result struct {
	// Result has the ratio of the p99s, and their medians.
	pairs.Result
	// Ratios are those of the pairs, in their order.
	Ratios []float64
	// Sockets is whether the callers are users of a Unix socket, rather than certificates.
	Sockets bool
	// Capacity is how many calls a second the sidecar answered when as many were made as it
	// could take, PerCall how much CPU time each of them took it.
	Capacity float64
	PerCall  time.Duration
	// Each is how long each half took.
	Each time.Duration
	// Flood is the half with all that the attacker offers, Calm the one with what is
	// admitted of it.
	Flood, Calm Half
}

// Half is what became of the halves of one kind, all together.
type Half struct {
	// Victim and Attacker are the sums over all halves; quantiles are medians over them.
	Victim, Attacker load.Report
	// Length is how long the victim made calls in all, Offering how long the attacker did.
	Length, Offering time.Duration
	// SidecarCPU, VictimCPU and AttackerCPU are the CPU times of the processes in Measured.
	// AllCPU is the sidecar's until the last call had ended.
	Measured, SidecarCPU, VictimCPU, AttackerCPU, AllCPU time.Duration
}

// Measure finds out what the sidecar can do, sets the limit, and measures.
func Measure(ctx context.Context, cfg Config) (res *Result, err error) {
	cfg.Pairs = cmp.Or(cfg.Pairs, pairs.MinPairs)
	cfg.Calls = cmp.Or(cfg.Calls, 1000)
	cfg.Capacity = cmp.Or(cfg.Capacity, 3*time.Second)
	if cfg.Pairs < pairs.MinPairs {
		return nil, fmt.Errorf("%d pairs: need at least %d", cfg.Pairs, pairs.MinPairs)
	}
	s, err := newSite(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	res = &Result{Sockets: s.sockets}
	if err := s.measureCapacity(ctx, cfg.Capacity, res); err != nil {
		return nil, fmt.Errorf("measuring what the sidecar can do: %w", err)
	}
	res.Each = time.Duration(float64(cfg.Calls) / (victimPart * res.Capacity) * float64(time.Second))
	if err := s.measurePairs(ctx, cfg, res); err != nil {
		return nil, err
	}
	return res, nil
}

// measureCapacity has callers make calls as fast as they are answered.
func (s *site) measureCapacity(ctx context.Context, length time.Duration, res *Result) (err error) {
	sidecar, err := s.start(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sidecar.Stop()) }()
	k, err := s.startCaller(ctx, victim, connections)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.stop()) }()
	// The first calls do not count: they mint, and the first of anything takes longer.
	for _, o := range []load.Order{{For: length / 3}, {For: length}} {
		o.Start, o.Outstanding = time.Now().Add(lead), capacityCallers
		before := sidecar.CPU()
		r, err := k.Do(o)
		if err != nil {
			return err
		}
		if r.Failed+r.Refused > 0 || r.OK == 0 {
			return fmt.Errorf("%d calls answered, %d refused, %d failed: %s", r.OK, r.Refused, r.Failed, r.Failure)
		}
		res.Capacity = float64(r.OK) / r.Took.Seconds()
		res.PerCall = (sidecar.CPU() - before) / time.Duration(r.OK)
	}
	return nil
}

// field is a sidecar with its limit, and both callers.
type field struct {
	sidecar          *process.Process
	victim, attacker *caller
	capacity         float64
	length           time.Duration // of a half
	made             uint64        // pairs
	calm, flood      halves
}

func (s *site) measurePairs(ctx context.Context, cfg Config, res *Result) (err error) {
	f := &field{capacity: res.Capacity, length: res.Each}
	if f.sidecar, err = s.start(ctx, limitPart*res.Capacity); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.sidecar.Stop()) }()
	if f.victim, err = s.startCaller(ctx, victim, 1); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.victim.stop()) }()
	if f.attacker, err = s.startCaller(ctx, attacker, connections); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.attacker.stop()) }()
	var warm halves
	if err := errors.Join(f.half(&warm, 1, 1), f.half(&warm, excess, 1)); err != nil {
		return err
	}
	if err := f.pairs(cfg.Pairs, res); err != nil || !res.Wide() {
		return err
	}
	return f.pairs(cfg.More, res)
}

// pairs measures so many further pairs.
func (f *field) pairs(n int, res *Result) error {
	for range n {
		f.made++
		var err error
		seed := f.made + 1 // the victim's times are those of both halves
		if f.made%2 == 0 {
			err = errors.Join(f.half(&f.flood, excess, seed), f.half(&f.calm, 1, seed))
		} else {
			err = errors.Join(f.half(&f.calm, 1, seed), f.half(&f.flood, excess, seed))
		}
		if err != nil {
			return err
		}
	}
	return res.add(&f.calm, &f.flood)
}

// halves are halves of one kind.
type halves struct {
	Half
	p50s, p99s, lates []time.Duration
}

// half measures one half: the attacker offers so many times its limit.
func (f *field) half(h *halves, times float64, seed uint64) error {
	start := time.Now().Add(lead)
	attackerOrder := load.Order{
		Start: start, For: before + f.length, Rate: times * limitPart * f.capacity, Outstanding: outstanding,
	}
	victimOrder := load.Order{
		Start: start.Add(before), For: f.length, Rate: victimPart * f.capacity, Seed: seed, Outstanding: patience,
	}
	began := f.sidecar.CPU()
	type answer struct {
		report load.Report
		err    error
	}
	flooded := make(chan answer, 1)
	go func() {
		r, err := f.attacker.Do(attackerOrder)
		flooded <- answer{r, err}
	}()
	<-time.After(time.Until(start.Add(before / 2))) // the victim's process has to be told in time
	used := [...]time.Duration{f.sidecar.CPU(), f.victim.cpu(), f.attacker.cpu()}
	v, err := f.victim.Do(victimOrder)
	h.SidecarCPU += f.sidecar.CPU() - used[0]
	h.VictimCPU += f.victim.cpu() - used[1]
	h.AttackerCPU += f.attacker.cpu() - used[2]
	a := <-flooded
	if err := errors.Join(err, a.err); err != nil {
		return err
	}
	h.AllCPU += f.sidecar.CPU() - began
	h.Length += f.length
	h.Measured += before/2 + f.length
	h.Offering += before + f.length
	h.Victim.Add(v)
	h.Attacker.Add(a.report)
	h.p50s, h.p99s, h.lates = append(h.p50s, v.P50), append(h.p99s, v.P99), append(h.lates, v.Late)
	return nil
}

// end makes the medians.
func (h *halves) end() Half {
	h.Victim.P50, h.Victim.P99, h.Victim.Late = median(h.p50s), median(h.p99s), median(h.lates)
	return h.Half
}

func median(all []time.Duration) time.Duration {
	return load.Quantile(slices.Sorted(slices.Values(all)), 50)
}

// add makes the result.
func (res *Result) add(calm, flood *halves) (err error) {
	ratios := make([]float64, len(flood.p99s))
	for i := range ratios {
		ratios[i] = flood.p99s[i].Seconds() / calm.p99s[i].Seconds()
	}
	res.Calm, res.Flood = calm.end(), flood.end()
	res.Subject, res.Base = res.Flood.Victim.P99, res.Calm.Victim.P99
	res.Ratios = ratios
	res.Median, res.Lo, res.Hi, err = pairs.Median(ratios)
	return err
}
