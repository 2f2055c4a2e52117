// Package pairs measures how many times slower one function is than another, on a
// machine that does other things as well.
//
// The two run alternately in one process, in pairs whose order alternates too, so that
// what slows the machine down slows down both. What is compared is the process's CPU time
// on Linux, garbage collection included, and the time elapsed elsewhere. The result is the median of the pairs'
// ratios with a confidence interval that assumes nothing about how they are distributed.
// Absolute times are for orientation only: they do not carry over to another machine.
package pairs

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// MinPairs is the least number of pairs that is measured.
const MinPairs = 11

// Confidence is the least probability with which the interval of a Result contains the
// true median.
const Confidence = 0.95

// MaxSpread is how far an interval may reach from its median, as a part of it, before
// the measurement counts as none.
const MaxSpread = 0.10

// Config says how long to measure.
type Config struct {
	// Pairs is the number of pairs; zero means MinPairs, less is an error.
	Pairs int
	// Sample is about how long each function of a pair runs; zero means 20 ms. All pairs
	// take 2 * Pairs * Sample, and finding out how often to call takes a few samples.
	Sample time.Duration
}

// Result is what Measure found. Ratios are times of the subject over those of the base.
type Result struct {
	// Median is the median ratio, and Lo and Hi bound its 95 % confidence interval.
	Median, Lo, Hi float64
	// Subject and Base are median times of one call, in CPU time on Linux.
	Subject, Base time.Duration
}

// Wide reports whether the interval is too wide for the result to say anything.
func (r Result) Wide() bool {
	return r.Hi > r.Median*(1+MaxSpread) || r.Lo < r.Median*(1-MaxSpread)
}

// Verdict is what a Result says about a bar.
type Verdict string

// The verdicts. NotMeasured is neither success nor failure: the machine was too busy.
const (
	Met         Verdict = "met"
	NotMet      Verdict = "not met"
	NotMeasured Verdict = "not measured"
)

// Against compares r with the greatest ratio allowed. The bar is met when the interval
// reaches it: when the ratio is not known to be above.
func (r Result) Against(bar float64) Verdict {
	switch {
	case r.Wide():
		return NotMeasured
	case r.Lo <= bar:
		return Met
	default:
		return NotMet
	}
}

// AgainstLeast compares r with the least ratio wanted. The bar is met when the interval
// reaches it: when the ratio is not known to be below.
func (r Result) AgainstLeast(bar float64) Verdict {
	switch {
	case r.Wide():
		return NotMeasured
	case r.Hi >= bar:
		return Met
	default:
		return NotMet
	}
}

// String returns the ratio as "1.08 [1.05, 1.11]".
func (r Result) String() string { return fmt.Sprintf("%.2f [%.2f, %.2f]", r.Median, r.Lo, r.Hi) }

// Measure compares subject with base. Each is called many times and does the same work
// at every call.
func Measure(cfg Config, subject, base func()) (Result, error) {
	if cfg.Pairs == 0 {
		cfg.Pairs = MinPairs
	}
	if cfg.Sample == 0 {
		cfg.Sample = 20 * time.Millisecond
	}
	if cfg.Pairs < MinPairs || cfg.Sample < 0 {
		return Result{}, fmt.Errorf("%d pairs of %s: need at least %d", cfg.Pairs, cfg.Sample, MinPairs)
	}
	s := side{f: subject, calls: calls(subject, cfg.Sample)}
	b := side{f: base, calls: calls(base, cfg.Sample)}
	// Garbage of whatever came before is not to be collected in the first pair.
	runtime.GC()
	ratios := make([]float64, cfg.Pairs)
	for i := range ratios {
		if i%2 == 0 {
			s.run()
			b.run()
		} else {
			b.run()
			s.run()
		}
		ratios[i] = s.last() / b.last()
	}
	median, lo, hi, err := Median(ratios)
	return Result{
		Median: median, Lo: lo, Hi: hi,
		Subject: s.median(), Base: b.median(),
	}, err
}

// A side is one of the two functions and the times of one call of it, in seconds.
type side struct {
	f     func()
	calls int
	times []float64
}

func (s *side) run() { s.times = append(s.times, seconds(s.f, s.calls)/float64(s.calls)) }

func (s *side) last() float64 { return s.times[len(s.times)-1] }

func (s *side) median() time.Duration {
	return time.Duration(middle(slices.Sorted(slices.Values(s.times))) * float64(time.Second))
}

// calls returns how many calls of f take about the given time.
func calls(f func(), sample time.Duration) int {
	for n := 1; ; n *= 2 {
		took := seconds(f, n)
		if took >= sample.Seconds()/2 || n >= 1<<30 {
			return max(1, int(float64(n)*sample.Seconds()/max(took, 1e-9)))
		}
	}
}

func seconds(f func(), n int) float64 {
	start := now()
	for range n {
		f()
	}
	return (now() - start).Seconds()
}

// Median returns the median of the samples, in any order, and the narrowest interval
// between two of their order statistics that lie equally far from the ends and that
// contains the true median with at least 95 % confidence: ranks 2 and 10 of 11. It
// returns an error for fewer than MinPairs samples or one that is no positive number.
func Median(samples []float64) (median, lo, hi float64, err error) {
	if len(samples) < MinPairs {
		return 0, 0, 0, fmt.Errorf("%d samples: need at least %d", len(samples), MinPairs)
	}
	for _, s := range samples {
		if !(s > 0) || math.IsInf(s, 1) {
			return 0, 0, 0, errors.New("a sample is not a positive number: too short to be timed")
		}
	}
	sorted := slices.Sorted(slices.Values(samples))
	k := rank(len(sorted))
	return middle(sorted), sorted[k-1], sorted[len(sorted)-k], nil
}

// middle returns the median of sorted samples.
func middle(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// rank returns the greatest k for which the k-th smallest and the k-th largest of n
// samples enclose the median with the confidence wanted. A sample lies below the median
// with probability 1/2, so the median lies below the k-th smallest with probability
// P(X < k), X binomial (n, 1/2), and above the k-th largest with the same.
func rank(n int) int {
	outside, term := 0.0, math.Pow(0.5, float64(n)) // P(X < k), P(X = k)
	for k := 0; ; k++ {
		if outside += term; 2*outside > 1-Confidence {
			return k
		}
		term *= float64(n-k) / float64(k+1)
	}
}
