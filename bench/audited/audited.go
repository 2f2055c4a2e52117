// Package audited measures what the audit log costs: the CPU time of a sidecar that keeps one
// beside that of one that keeps none, and how many events a second a log takes beside how many
// Seals a sidecar does.
//
// The sidecars are processes of `keysidecar serve` with an embedded Key Vault; they differ in
// the section "audit" only. One at a time is called, through its Unix socket. Of two processes
// that do the same, one may be a few per cent quicker than the other for as long as they live:
// so they are started anew after every few pairs.
package audited

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/process"
)

// How the sidecars are called, and the log.
const (
	callers     = 64 // each makes one call after the other
	connections = 8  // of all callers
	size        = 64 // bytes of what is sealed
	perStart    = 4  // pairs that are measured of sidecars before they are started anew
)

// Claim is what is measured, and what is to come of it.
type Claim struct {
	// Name names the subject and its base.
	Name string
	// Bar is the greatest ratio allowed or, if Least, the least.
	Bar   float64
	Least bool
	// Missed is a ratio that is known to be over Bar, and that it may not go
	// beyond: docs/evidence.md says so, and why. Zero: Bar is met.
	Missed float64

	measured func(*site) (subject, base half)
}

// half measures one half of a pair: it returns the time of one operation, in seconds.
type half func(context.Context, time.Duration) (float64, error)

// Claims returns all claims that can be measured here: another process's CPU time is known on
// Linux only.
func Claims() []Claim {
	events := Claim{"audit events/s, group fsync / Seals/s", 5, true, 0, func(s *site) (half, half) { return s.events, s.none.rate }}
	if !process.HasCPU {
		return []Claim{events}
	}
	return []Claim{
		{"Seal CPU, audit aggregate / none", 1.05, false, 0, func(s *site) (half, half) { return s.aggregate.cpu, s.none.cpu }},
		{"Seal CPU, audit full / none", 1.15, false, 1.4, func(s *site) (half, half) { return s.full.cpu, s.none.cpu }},
		events,
	}
}

// Config says how long to measure.
type Config struct {
	// Binary is the path of the program keysidecar. Required.
	Binary string
	// Claims are those of Claims that are measured.
	Claims []Claim
	// Pairs is the number of pairs; 0 means pairs.MinPairs. Where that is too few to say
	// anything, More are added.
	Pairs, More int
	// Half is how long each half of a pair takes; 0 means half a second.
	Half time.Duration
}

// Result is what Measure found about a Claim.
type Result struct {
	Claim Claim
	// Result has the ratio, and the times of one operation: CPU time of a Seal or, of events
	// and the Seals beside them, time elapsed.
	pairs.Result
	// Ratios are those of the pairs, in their order.
	Ratios []float64
}

// KnownMiss is the verdict on a bar that is known to be missed, by no more than that.
const KnownMiss pairs.Verdict = "not met, as is known"

// KnownMiss reports whether the bar is missed as is known.
func (r *Result) KnownMiss(slack float64) bool {
	return r.Claim.Missed > 0 && r.Against(r.Claim.Bar*slack) == pairs.NotMet && r.Against(r.Claim.Missed*slack) == pairs.Met
}

// Verdict says whether the bar is met, which may be missed by the factor slack.
func (r *Result) Verdict(slack float64) pairs.Verdict {
	if r.KnownMiss(slack) {
		return KnownMiss
	}
	if r.Claim.Least {
		return r.AgainstLeast(r.Claim.Bar / slack)
	}
	return r.Against(r.Claim.Bar * slack)
}

// Measure measures the claims. The note says how the log of events was written, if that was
// measured.
func Measure(ctx context.Context, cfg Config) (results []Result, note string, err error) {
	cfg.Pairs = cmp.Or(cfg.Pairs, pairs.MinPairs)
	cfg.Half = cmp.Or(cfg.Half, time.Second/2)
	if cfg.Pairs < pairs.MinPairs {
		return nil, "", fmt.Errorf("%d pairs: need at least %d", cfg.Pairs, pairs.MinPairs)
	}
	s, err := newSite(cfg.Binary)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	runs := make([]*run, len(cfg.Claims))
	for i, claim := range cfg.Claims {
		runs[i] = &run{claim: claim}
	}
	if err := s.measure(ctx, runs, cfg.Pairs, cfg.Half); err != nil {
		return nil, "", err
	}
	wide := slices.DeleteFunc(slices.Clone(runs), func(r *run) bool {
		res, err := r.result()
		return err == nil && !res.Wide()
	})
	if err := s.measure(ctx, wide, cfg.More, cfg.Half); err != nil {
		return nil, "", err
	}
	for _, r := range runs {
		res, err := r.result()
		if err != nil {
			return nil, "", fmt.Errorf("measuring %s: %w", r.claim.Name, err)
		}
		results = append(results, *res)
	}
	return results, s.note(), nil
}

// measure measures n further pairs of each claim.
func (s *site) measure(ctx context.Context, runs []*run, n int, length time.Duration) error {
	for ; n > 0 && len(runs) > 0; n -= perStart {
		if err := s.measureStart(ctx, runs, min(n, perStart), length); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) measureStart(ctx context.Context, runs []*run, n int, length time.Duration) (err error) {
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	for _, r := range runs {
		subject, base := r.claim.measured(s)
		// The first of anything takes longer.
		if err := new(run).pair(ctx, subject, base, length); err != nil {
			return fmt.Errorf("measuring %s: %w", r.claim.Name, err)
		}
		for range n {
			if err := r.pair(ctx, subject, base, length); err != nil {
				return fmt.Errorf("measuring %s: %w", r.claim.Name, err)
			}
		}
	}
	return nil
}

// run is the pairs of a claim: times of one operation, in seconds.
type run struct {
	claim         Claim
	subject, base []float64
}

// pair measures one further pair, in the order opposite to that of the one before.
func (r *run) pair(ctx context.Context, subject, base half, length time.Duration) (err error) {
	var s, b float64
	if len(r.base)%2 == 0 {
		if s, err = subject(ctx, length); err == nil {
			b, err = base(ctx, length)
		}
	} else {
		if b, err = base(ctx, length); err == nil {
			s, err = subject(ctx, length)
		}
	}
	r.subject, r.base = append(r.subject, s), append(r.base, b)
	return err
}

func (r *run) result() (*Result, error) {
	res := &Result{Claim: r.claim, Ratios: make([]float64, len(r.base))}
	for i := range res.Ratios {
		res.Ratios[i] = r.subject[i] / r.base[i]
		if r.claim.Least { // of rates
			res.Ratios[i] = 1 / res.Ratios[i]
		}
	}
	var err error
	res.Subject, res.Base = median(r.subject), median(r.base)
	res.Median, res.Lo, res.Hi, err = pairs.Median(res.Ratios)
	return res, err
}

func median(times []float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return time.Duration(sorted[len(sorted)/2] * float64(time.Second))
}
