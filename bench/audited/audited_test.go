package audited_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/bench/audited"
	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/process"
)

// Everything works, whatever the machine's figures are.
func TestMeasure(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "keysidecar")
	if err := process.Build(t.Context(), binary); err != nil {
		t.Fatal(err)
	}
	cfg := audited.Config{Binary: binary, Claims: audited.Claims(), More: 1, Half: 10 * time.Millisecond}
	results, note, err := audited.Measure(t.Context(), cfg)
	if err != nil || !strings.HasPrefix(note, "audit log: 64 goroutines, ") || strings.Contains(note, " 0 ") {
		t.Errorf("note %q, %v", note, err)
	}
	if len(results) != len(cfg.Claims) || len(results) == 0 {
		t.Errorf("%d results of %d claims", len(results), len(cfg.Claims))
	}
	for i, r := range results {
		n := pairs.MinPairs
		if len(r.Ratios) > n {
			n++ // More
		}
		if len(r.Ratios) != n || r.Lo <= 0 || r.Lo > r.Median || r.Hi < r.Median || r.Subject <= 0 || r.Base <= 0 ||
			r.Claim.Name != cfg.Claims[i].Name {
			t.Errorf("%s: %v, %v / %v, of %v", r.Claim.Name, r.Result, r.Subject, r.Base, r.Ratios)
		}
		// Events are quicker than Seals, and the ratio is that of their rates.
		if r.Claim.Least && (r.Median <= 1 || r.Subject >= r.Base) {
			t.Errorf("%s: %v, %v / %v", r.Claim.Name, r.Result, r.Subject, r.Base)
		}
	}
}

func TestMeasureRefuses(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for want, cfg := range map[string]audited.Config{
		"starting " + none: {Binary: none, Claims: audited.Claims()}, "need at least 11": {Pairs: 10, Binary: none},
	} {
		if _, _, err := audited.Measure(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestVerdict(t *testing.T) {
	most, least := audited.Claim{Bar: 1.15}, audited.Claim{Bar: 5, Least: true}
	for _, tt := range []struct {
		claim       audited.Claim
		median      float64
		slack       float64
		want        pairs.Verdict
		wantWithout pairs.Verdict // slack
	}{
		{most, 1.1, 1.1, pairs.Met, pairs.Met},
		{most, 1.25, 1.1, pairs.Met, pairs.NotMet},
		{most, 1.4, 1.1, pairs.NotMet, pairs.NotMet},
		{least, 5.5, 1.1, pairs.Met, pairs.Met},
		{least, 4.6, 1.1, pairs.Met, pairs.NotMet},
		{least, 4, 1.1, pairs.NotMet, pairs.NotMet},
	} {
		r := audited.Result{Claim: tt.claim, Result: pairs.Result{Lo: tt.median * 0.99, Median: tt.median, Hi: tt.median * 1.01}}
		if got, without := r.Verdict(tt.slack), r.Verdict(1); got != tt.want || without != tt.wantWithout {
			t.Errorf("%v against %+v: %q, without slack %q, want %q, %q", r.Result, tt.claim, got, without, tt.want, tt.wantWithout)
		}
	}
}

// TestKnownMiss shows that a bar is known to be missed only up to a bound.
func TestKnownMiss(t *testing.T) {
	claim := audited.Claim{Bar: 1.15, Missed: 1.4}
	for _, test := range []struct {
		lo, median, hi float64
		want           pairs.Verdict
	}{
		{1.10, 1.14, 1.18, pairs.Met}, {1.20, 1.25, 1.30, audited.KnownMiss}, {1.45, 1.50, 1.55, pairs.NotMet},
		{1.0, 1.3, 1.6, pairs.NotMeasured},
	} {
		r := audited.Result{Claim: claim, Result: pairs.Result{Lo: test.lo, Median: test.median, Hi: test.hi}}
		if got := r.Verdict(1); got != test.want {
			t.Errorf("%v: %s, want %s", test, got, test.want)
		}
	}
	claim.Missed = 0
	r := audited.Result{Claim: claim, Result: pairs.Result{Lo: 1.20, Median: 1.25, Hi: 1.30}}
	if got := r.Verdict(1); got != pairs.NotMet {
		t.Errorf("without a known miss: %s", got)
	}
}
