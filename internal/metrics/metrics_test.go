package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/cache"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/internal/metrics"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
)

func newMetrics(t *testing.T, cfg metrics.Config) *metrics.Metrics {
	t.Helper()
	m, err := metrics.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// scrape returns the lines of m's page that begin with prefix and are not
// comments, buckets or zero.
func scrape(t *testing.T, m *metrics.Metrics, prefix string) []string {
	t.Helper()
	var lines []string
	for _, line := range page(t, m) {
		if strings.HasPrefix(line, prefix) && !strings.Contains(line, "_bucket{") && !strings.HasSuffix(line, " 0") {
			lines = append(lines, line)
		}
	}
	return lines
}

func page(t *testing.T, m *metrics.Metrics) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("scrape is answered with %d: %s", w.Code, w.Body)
	}
	return strings.Split(strings.TrimSpace(w.Body.String()), "\n")
}

func TestObserve(t *testing.T) {
	m := newMetrics(t, metrics.Config{})
	cause := errors.New("cause")
	for _, ev := range []sealer.Event{
		{Verb: policy.Seal, Bytes: 100, Duration: 2 * time.Second},
		{Verb: policy.Seal, Bytes: 11, Duration: time.Second},
		{Verb: policy.Unseal, Reason: sealer.KEKDisabled, Err: cause},
		{Verb: policy.Unseal, Reason: sealer.Draining, Err: cause},
		{Verb: policy.Unseal, Err: cause},
		{Verb: policy.Unseal, Err: fmt.Errorf("waiting: %w", context.Canceled)},
		{Verb: policy.Unseal, Err: fmt.Errorf("waiting: %w", context.DeadlineExceeded)},
		{Verb: policy.Unseal, Reason: 255, Err: cause},
		{Verb: policy.Unseal, Reason: sealer.Draining + 2, Err: cause},
		{Verb: 99},
	} {
		m.Observe(t.Context(), ev)
	}
	want := []string{
		`keysidecar_operation_bytes_total{op="seal"} 111`,
		`keysidecar_operation_seconds_sum{op="seal"} 3`,
		`keysidecar_operation_seconds_count{op="other"} 1`,
		`keysidecar_operation_seconds_count{op="seal"} 2`,
		`keysidecar_operation_seconds_count{op="unseal"} 7`,
		`keysidecar_operations_total{op="other",reason="OK"} 1`,
		`keysidecar_operations_total{op="seal",reason="OK"} 2`,
		`keysidecar_operations_total{op="unseal",reason="CANCELLED"} 1`,
		`keysidecar_operations_total{op="unseal",reason="DEADLINE_EXCEEDED"} 1`,
		`keysidecar_operations_total{op="unseal",reason="DRAINING"} 1`,
		`keysidecar_operations_total{op="unseal",reason="INTERNAL"} 3`,
		`keysidecar_operations_total{op="unseal",reason="KEK_DISABLED"} 1`,
	}
	got := scrape(t, m, "keysidecar_operation")
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// TestEveryOutcomeExists shows that rates work from the first event on, and
// that the buckets begin where operations do.
func TestEveryOutcomeExists(t *testing.T) {
	all := strings.Join(page(t, newMetrics(t, metrics.Config{})), "\n")
	for _, r := range sealer.Reasons() {
		if want := fmt.Sprintf("keysidecar_operations_total{op=\"unseal\",reason=%q} 0\n", r); !strings.Contains(all, want) {
			t.Errorf("no %s", want)
		}
	}
	for _, le := range []string{"5e-06", "+Inf"} {
		want := fmt.Sprintf("keysidecar_operation_seconds_bucket{op=\"seal\",le=%q} 0\n", le)
		if !strings.Contains(all, want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestObserveVault(t *testing.T) {
	m := newMetrics(t, metrics.Config{})
	m.ObserveVault("unwrap", 200, time.Second)
	m.ObserveVault("unwrap", 429, time.Second)
	m.ObserveVault("newest", 0, 3*time.Second)
	m.ObserveVault("wrap", 999, 0)
	m.ObserveVault("tenant-"+strings.Repeat("x", 99), -1, 0)
	want := []string{
		`keysidecar_vault_call_seconds_count{op="newest"} 1`,
		`keysidecar_vault_call_seconds_count{op="other"} 1`,
		`keysidecar_vault_call_seconds_count{op="unwrap"} 2`,
		`keysidecar_vault_call_seconds_count{op="wrap"} 1`,
		`keysidecar_vault_call_seconds_sum{op="newest"} 3`,
		`keysidecar_vault_call_seconds_sum{op="unwrap"} 2`,
		`keysidecar_vault_calls_total{op="newest",status="none"} 1`,
		`keysidecar_vault_calls_total{op="other",status="other"} 1`,
		`keysidecar_vault_calls_total{op="unwrap",status="200"} 1`,
		`keysidecar_vault_calls_total{op="unwrap",status="429"} 1`,
		`keysidecar_vault_calls_total{op="wrap",status="other"} 1`,
	}
	got := scrape(t, m, "keysidecar_vault")
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestPulled(t *testing.T) {
	slab, err := secret.New(secret.Config{Slots: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slab.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := slab.Put(&[32]byte{1}); err != nil {
		t.Fatal(err)
	}
	m := newMetrics(t, metrics.Config{Version: "v1.2.3", Slab: slab, DEKs: func() dek.Stats {
		return dek.Stats{
			Keys: cache.Stats{
				Hits: 10, Misses: 9, Loads: 8, LoadErrors: 3, NegativeHits: 7, Evictions: 6, Entries: 5, InFlight: 4,
			},
			Cached: 2, Active: 1, Minted: 11, MintsFailed: 12,
		}
	}, Doors: func() []metrics.Door {
		return []metrics.Door{{Name: "unix", Open: 3, Refused: 4}, {Name: "admin", Open: 1}}
	}, Bytes: func() int64 { return 4096 }})
	want := []string{
		`keysidecar_build_info{version="v1.2.3"} 1`,
		`keysidecar_bytes_in_flight 4096`,
		`keysidecar_connections{listener="admin"} 1`,
		`keysidecar_connections{listener="unix"} 3`,
		`keysidecar_connections_refused_total{listener="unix"} 4`,
		`keysidecar_dek_cache_evictions_total 6`,
		`keysidecar_dek_cache_hits_total 10`,
		`keysidecar_dek_cache_loads_in_flight 4`,
		`keysidecar_dek_cache_loads_total{result="failed"} 3`,
		`keysidecar_dek_cache_loads_total{result="ok"} 5`,
		`keysidecar_dek_cache_misses_total 9`,
		`keysidecar_dek_cache_negative_hits_total 7`,
		`keysidecar_dek_mints_total{result="failed"} 12`,
		`keysidecar_dek_mints_total{result="ok"} 11`,
		`keysidecar_deks_active 1`,
		`keysidecar_deks_cached 2`,
		fmt.Sprintf(`keysidecar_memory_level_info{level=%q} 1`, slab.Level()),
		`keysidecar_memory_slots_in_use 1`,
	}
	if diff := cmp.Diff(want, scrape(t, m, "keysidecar_")); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestInterceptors(t *testing.T) {
	m := newMetrics(t, metrics.Config{})
	info := &grpc.UnaryServerInfo{FullMethod: "/keysidecar.v1.SealService/Seal"}
	wantErr := status.Error(codes.NotFound, "")
	_, err := m.Unary()(t.Context(), nil, info, func(context.Context, any) (any, error) { return nil, wantErr })
	if !errors.Is(err, wantErr) {
		t.Errorf("interceptor returned %v", err)
	}
	want := `grpc_server_handled_total{grpc_code="NotFound",grpc_method="Seal",` +
		`grpc_service="keysidecar.v1.SealService",grpc_type="unary"} 1`
	if got := scrape(t, m, "grpc_server_handled"); len(got) != 1 || got[0] != want {
		t.Errorf("metrics are %q, want %q", got, want)
	}
	if m.Stream() == nil {
		t.Error("no interceptor for streams")
	}
}

// TestNames compares what is served with the names in names.go.
func TestNames(t *testing.T) {
	source, err := os.ReadFile("names.go")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`"keysidecar_[a-z_]+"`).FindAllString(string(source), -1)
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slab.Close() })
	m := newMetrics(t, metrics.Config{
		Slab: slab, DEKs: func() dek.Stats { return dek.Stats{} },
		Doors: func() []metrics.Door { return []metrics.Door{{Name: "unix"}} }, Bytes: func() int64 { return 0 },
		Audit: func() audit.Stats { return audit.Stats{} },
	})
	m.ObserveVault("wrap", 200, 0)
	var got []string
	for _, line := range page(t, m) {
		if f := strings.Fields(line); f[0] == "#" && f[1] == "TYPE" && strings.HasPrefix(f[2], "keysidecar_") {
			got = append(got, fmt.Sprintf("%q", f[2]))
		}
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-names.go +served):\n%s", diff)
	}
}

// TestAudit shows for how long the audit log has failed, and that it does not.
func TestAudit(t *testing.T) {
	stats := audit.Stats{Records: 12, Bytes: 13, MaxBytes: 14}
	m := newMetrics(t, metrics.Config{Audit: func() audit.Stats { return stats }})
	want := []string{"keysidecar_audit_bytes 13", "keysidecar_audit_max_bytes 14", "keysidecar_audit_records 12"} // what is 0 is left out
	if diff := cmp.Diff(want, scrape(t, m, "keysidecar_audit_")); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	stats.Failing = time.Now().Add(-time.Hour)
	got := scrape(t, m, "keysidecar_audit_failing")
	if len(got) != 1 || !strings.HasPrefix(got[0], "keysidecar_audit_failing_seconds 360") {
		t.Errorf("after an hour: %q", got)
	}
}

func TestRefusalsAndReloads(t *testing.T) {
	m := newMetrics(t, metrics.Config{})
	m.ObserveRefusal(sealer.RateLimited)
	m.ObserveRefusal(sealer.RateLimited)
	m.ObserveRefusal(sealer.Draining)
	m.ObserveRefusal(255)
	m.ObserveReload(true)
	m.ObserveReload(false)
	m.ObserveReload(false)
	want := []string{
		`keysidecar_calls_refused_total{reason="DRAINING"} 1`,
		`keysidecar_calls_refused_total{reason="RATE_LIMITED"} 2`,
	}
	if diff := cmp.Diff(want, scrape(t, m, "keysidecar_calls_refused")); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
	want = []string{`keysidecar_reloads_total{result="failed"} 2`, `keysidecar_reloads_total{result="ok"} 1`}
	if diff := cmp.Diff(want, scrape(t, m, "keysidecar_reloads")); diff != "" {
		t.Errorf("reloads (-want +got):\n%s", diff)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	m := newMetrics(t, metrics.Config{})
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { m.Observe(ctx, sealer.Event{Verb: policy.Seal}) }); n != 0 {
		t.Errorf("Observe allocates %v times", n)
	}
}
