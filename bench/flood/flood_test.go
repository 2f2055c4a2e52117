package flood_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/bench/flood"
	"github.com/keysidecar/keysidecar/bench/load"
	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/process"
)

// TestMain runs the tests; Measure runs this binary again, to make calls.
func TestMain(m *testing.M) {
	if flood.IsCaller() {
		if err := flood.RunCaller(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	m.Run()
}

// Everything works, whatever the machine's figures are: the limit holds, nothing of the
// victim's fails.
func TestMeasure(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "keysidecar")
	if err := process.Build(t.Context(), binary); err != nil {
		t.Fatal(err)
	}
	for name, tcp := range map[string]bool{"usual": false, "TCP": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			measure(t, binary, tcp)
		})
	}
}

func measure(t *testing.T, binary string, tcp bool) {
	t.Helper()
	cfg := flood.Config{Calls: 50, Capacity: 200 * time.Millisecond, Binary: binary, TCP: tcp}
	res, err := flood.Measure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	limit := res.Capacity / 200
	for name, h := range map[string]flood.Half{"calm": res.Calm, "flood": res.Flood} {
		v, a := h.Victim, h.Attacker
		if v.Due == 0 || v.OK != v.Due || v.P99 <= 0 || v.P99 < v.P50 {
			t.Errorf("%s: victim %+v", name, v)
		}
		// Of each half, a tenth of a second's calls may be admitted at once.
		if most := limit*(a.Took.Seconds()+1.1) + 11; float64(a.OK) > most || a.Failed > 0 {
			t.Errorf("%s: limit %.1f, attacker %+v", name, limit, a)
		}
	}
	if a := res.Flood.Attacker; a.Due < 50*res.Calm.Attacker.Due || a.OK == 0 || a.Refused < a.OK {
		t.Errorf("the attacker keeps its limit: %+v", a)
	}
	if len(res.Ratios) != pairs.MinPairs || res.Median <= 0 || res.Sockets && (tcp || os.Geteuid() != 0) {
		t.Errorf("%+v", res)
	}
}

func TestMeasureRefuses(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for want, cfg := range map[string]flood.Config{"starting " + none: {Binary: none}, "need at least 11": {Pairs: 10, Binary: none}} {
		if _, err := flood.Measure(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestVerdict(t *testing.T) {
	ok, failed := load.Report{Due: 10, OK: 10}, load.Report{Due: 10, OK: 9, Failed: 1, Failure: "why"}
	quick := pairs.Result{Median: 1.1, Lo: 1.05, Hi: 1.15}
	slow := pairs.Result{Median: 2.1, Lo: 2.05, Hi: 2.15}
	wide := pairs.Result{Median: 1.1, Lo: 0.5, Hi: 1.5}
	for _, tt := range []struct {
		ratio       pairs.Result
		calm, flood load.Report
		want        pairs.Verdict
	}{
		{quick, ok, ok, pairs.Met},
		{slow, ok, ok, pairs.NotMet},
		{wide, ok, ok, pairs.NotMeasured},
		{quick, failed, ok, pairs.NotMet},
		{quick, ok, failed, pairs.NotMet},
		{wide, ok, failed, pairs.NotMet},
	} {
		res := flood.Result{Result: tt.ratio, Calm: flood.Half{Victim: tt.calm}, Flood: flood.Half{Victim: tt.flood}}
		if got := res.Verdict(); got != tt.want {
			t.Errorf("%v, calm %+v, flood %+v: %q, want %q", tt.ratio, tt.calm, tt.flood, got, tt.want)
		}
	}
}

func TestString(t *testing.T) {
	res := flood.Result{
		Ratios: []float64{1.5}, Sockets: true, Capacity: 10_000, PerCall: 40 * time.Microsecond, Each: time.Second,
		Calm: flood.Half{
			Victim: load.Report{Due: 500, OK: 500}, Attacker: load.Report{Due: 50, OK: 50, Took: time.Second},
			AllCPU: 55 * time.Millisecond, Length: time.Second, Offering: time.Second, Measured: time.Second,
		},
		Flood: flood.Half{
			Victim:   load.Report{Due: 500, OK: 499, Failed: 1, Failure: "boom"},
			Attacker: load.Report{Due: 5000, LeftOut: 950, OK: 50, Refused: 4000, Took: time.Second},
			// 549 calls that are served, and 4,000 at 25 us.
			AllCPU: 154900 * time.Microsecond, SidecarCPU: 150 * time.Millisecond, AttackerCPU: 300 * time.Millisecond,
			Length: time.Second, Offering: time.Second, Measured: time.Second,
		},
	}
	text := res.String()
	for _, want := range []string{
		"Unix socket", "capacity 10000 ", "limit 50.0", "499; 1 boom", "50; 4000; 0", "950",
		"40µs at capacity, 100µs beside the calm attacker, 25µs refused", "0.15; 0.00; 0.30", "[1.50]",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if empty := new(flood.Result).String(); !strings.Contains(empty, "TCP") {
		t.Error(empty)
	}
}
