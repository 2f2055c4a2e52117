package pairs_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/bench/pairs"
)

// upTo returns 1 .. n in any order.
func upTo(n int) []float64 {
	samples := make([]float64, n)
	for i := range samples {
		samples[i] = float64(i + 1)
	}
	rand.Shuffle(n, func(i, j int) { samples[i], samples[j] = samples[j], samples[i] })
	return samples
}

// Ranks from tables of the sign test, 95 %, two-sided.
func TestMedianRanks(t *testing.T) {
	for _, tt := range []struct {
		n           int
		median      float64
		lower, high float64
	}{
		{11, 6, 2, 10},
		{12, 6.5, 3, 10},
		{15, 8, 4, 12},
		{20, 10.5, 6, 15},
		{25, 13, 8, 18},
		{41, 21, 14, 28},
		{100, 50.5, 40, 61},
	} {
		median, lo, hi, err := pairs.Median(upTo(tt.n))
		if err != nil || median != tt.median || lo != tt.lower || hi != tt.high {
			t.Errorf("%d samples: %v [%v, %v], %v, want %v [%v, %v]",
				tt.n, median, lo, hi, err, tt.median, tt.lower, tt.high)
		}
	}
}

func TestMedianKeepsSamples(t *testing.T) {
	samples := upTo(30)
	kept := slices.Clone(samples)
	if _, _, _, err := pairs.Median(samples); err != nil || !slices.Equal(samples, kept) {
		t.Errorf("samples changed, or %v", err)
	}
}

// The interval holds the true median as often as it says, for a skewed distribution.
func TestMedianCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const trials = 4000
	for _, n := range []int{11, 20, 41} {
		held := 0
		for range trials {
			samples := make([]float64, n)
			for i := range samples {
				samples[i] = 1 + rng.ExpFloat64()
			}
			_, lo, hi, err := pairs.Median(samples)
			if err != nil {
				t.Fatal(err)
			}
			if median := 1 + math.Ln2; lo <= median && median <= hi {
				held++
			}
		}
		if part := float64(held) / trials; part < 0.945 || part > 0.995 {
			t.Errorf("%d samples: the interval holds the median in %.1f %% of cases", n, 100*part)
		}
	}
}

func TestMedianRefuses(t *testing.T) {
	for _, bad := range [][]float64{
		nil,
		upTo(10),
		append(upTo(11), 0),
		append(upTo(11), -1),
		append(upTo(11), math.NaN()),
		append(upTo(11), math.Inf(1)),
	} {
		if median, lo, hi, err := pairs.Median(bad); err == nil || median != 0 || lo != 0 || hi != 0 {
			t.Errorf("Median(%v) = %v [%v, %v], %v", bad, median, lo, hi, err)
		}
	}
}

func TestAgainst(t *testing.T) {
	for _, tt := range []struct {
		lo, median, hi float64
		want           pairs.Verdict
	}{
		{1.10, 1.15, 1.20, pairs.Met},
		{1.25, 1.28, 1.30, pairs.Met},
		{1.29, 1.31, 1.35, pairs.Met},
		{1.31, 1.35, 1.40, pairs.NotMet},
		{1.40, 1.45, 1.50, pairs.NotMet},
		{0.95, 1.00, 1.11, pairs.NotMeasured},
		{0.89, 1.00, 1.05, pairs.NotMeasured},
		{1.00, 1.50, 2.00, pairs.NotMeasured},
	} {
		r := pairs.Result{Lo: tt.lo, Median: tt.median, Hi: tt.hi}
		if got := r.Against(1.3); got != tt.want {
			t.Errorf("%v against 1.3: %q, want %q", r, got, tt.want)
		}
	}
}

func TestAgainstLeast(t *testing.T) {
	for _, tt := range []struct {
		lo, median, hi float64
		want           pairs.Verdict
	}{
		{5.1, 5.3, 5.5, pairs.Met},
		{4.8, 5.1, 5.3, pairs.Met},
		{4.7, 4.9, 5.0, pairs.Met},
		{4.7, 4.8, 4.9, pairs.NotMet},
		{3.9, 4.0, 4.2, pairs.NotMet},
		{5.1, 6.0, 6.3, pairs.NotMeasured},
		{2.9, 3.0, 3.4, pairs.NotMeasured},
	} {
		r := pairs.Result{Lo: tt.lo, Median: tt.median, Hi: tt.hi}
		if got := r.AgainstLeast(5); got != tt.want {
			t.Errorf("%v against at least 5: %q, want %q", r, got, tt.want)
		}
	}
}

func TestMeasure(t *testing.T) {
	x := uint64(1)
	work := func(n int) func() {
		return func() {
			for range n {
				x = x*6364136223846793005 + 1442695040888963407
			}
		}
	}
	r, err := pairs.Measure(pairs.Config{Pairs: 15, Sample: 2 * time.Millisecond}, work(30_000), work(10_000))
	if err != nil {
		t.Fatal(err)
	}
	// Wide bounds: other tests keep the machine busy.
	if r.Median < 2 || r.Median > 4.5 || r.Lo > r.Median || r.Hi < r.Median || r.Subject <= r.Base {
		t.Errorf("three times the work: %v, %v beside %v", r, r.Subject, r.Base)
	}
}

// The order within a pair alternates, and both functions run in every pair.
func TestMeasureAlternates(t *testing.T) {
	var order []byte
	note := func(c byte) func() {
		return func() {
			if n := len(order); n == 0 || order[n-1] != c {
				order = append(order, c)
			}
			for start := time.Now(); time.Since(start) < 100*time.Microsecond; {
			}
		}
	}
	cfg := pairs.Config{Pairs: 12, Sample: 200 * time.Microsecond}
	if _, err := pairs.Measure(cfg, note('s'), note('b')); err != nil {
		t.Fatal(err)
	}
	// Calibration is s, b. Pairs are s b, b s, s b, ...: equal neighbours have merged.
	if got, want := string(order), "sb"+"sbsbsbsbsbsbs"; got != want {
		t.Errorf("order %q, want %q", got, want)
	}
}

func TestMeasureRefuses(t *testing.T) {
	for _, cfg := range []pairs.Config{{Pairs: 10}, {Pairs: -1}, {Sample: -1}} {
		if _, err := pairs.Measure(cfg, func() {}, func() {}); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
}

func TestAllocs(t *testing.T) {
	var sink []*int
	for want := range 4 {
		got := pairs.Allocs(func() {
			sink = sink[:0]
			for range want {
				sink = append(sink, new(int))
			}
		})
		if got != uint64(want) {
			t.Errorf("Allocs = %d, want %d", got, want)
		}
	}
}
