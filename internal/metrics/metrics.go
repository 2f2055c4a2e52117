// Package metrics counts what a sidecar does and serves it to Prometheus. It
// holds every metric name of the program (names.go). Labels take few values, all
// known beforehand: never a tenant, a caller or a key.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
)

// Config says where figures that are kept elsewhere come from.
type Config struct {
	// Version is the program's version, for keysidecar_build_info. Empty means
	// "unknown".
	Version string
	// DEKs is asked at each scrape. Nil leaves its metrics out.
	DEKs func() dek.Stats
	// Slab is asked at each scrape. Nil leaves its metrics out.
	Slab *secret.Slab
	// Doors and Bytes are asked at each scrape, for the connections of every
	// listener and the bytes of calls in flight. Nil leaves their metrics out.
	Doors func() []Door
	Bytes func() int64
	// Audit is asked at each scrape. Nil leaves its metrics out.
	Audit func() audit.Stats
}

// Door has the connections of one listener.
type Door struct {
	// Name is the listener's: "unix", "tcp" or "admin".
	Name string
	// Open is how many are open, Refused how many were closed at once so far.
	Open    int
	Refused uint64
}

// Metrics has a registry of its own. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	grpc     *grpcprom.ServerMetrics

	// operations is indexed by verb and outcome, the other two by verb.
	operations [][]prometheus.Counter
	seconds    []prometheus.Observer
	bytes      []prometheus.Counter

	// refused is indexed by reason, reloads by whether the files were right.
	refused []prometheus.Counter
	reloads map[bool]prometheus.Counter

	vaultCalls   *prometheus.CounterVec
	vaultSeconds *prometheus.HistogramVec
}

// verbs are the values of label op for operations. An unknown verb counts as
// the first.
var verbs = [...]string{"other", policy.Seal: policy.Seal.String(), policy.Unseal: policy.Unseal.String()}

// vaultOps are the values of label op for vault calls. Another one counts as
// the first.
var vaultOps = [...]string{"other", "newest", "wrap", "unwrap", "get", "sign"}

// New returns Metrics whose series of operations all exist, at zero.
func New(cfg Config) (*Metrics, error) {
	m := &Metrics{registry: prometheus.NewRegistry(), grpc: grpcprom.NewServerMetrics()}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: nameBuild, Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{labelVersion: cmp.Or(cfg.Version, "unknown")},
	})
	build.Set(1)
	operations, seconds, bytes := m.newOperations()
	m.vaultCalls = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: nameVaultCalls, Help: "HTTP answers of Key Vault by operation and status; status none is no answer.",
	}, []string{labelOp, labelStatus})
	m.vaultSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: nameVaultSeconds, Help: "Duration of HTTP requests to Key Vault.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14), // 1 ms to 8 s
	}, []string{labelOp})
	for _, c := range []prometheus.Collector{
		build, operations, seconds, bytes, m.newRefused(), m.newReloads(), m.vaultCalls, m.vaultSeconds, m.grpc, newPulled(cfg),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := m.registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

// newOperations makes the metrics of operations, and a series for each verb
// and outcome, so that counting one takes no map.
func (m *Metrics) newOperations() (
	operations *prometheus.CounterVec, seconds *prometheus.HistogramVec, bytes *prometheus.CounterVec,
) {
	operations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: nameOperations, Help: "Operations by outcome: OK, or the reason that the caller got.",
	}, []string{labelOp, labelReason})
	seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: nameOperationSeconds, Help: "Duration of operations without gRPC.",
		Buckets: prometheus.ExponentialBuckets(5e-6, 2, 22), // 5 us to 10 s
	}, []string{labelOp})
	bytes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: nameOperationBytes, Help: "Size of the data in requests.",
	}, []string{labelOp})
	for _, verb := range verbs {
		var byOutcome []prometheus.Counter
		for _, o := range outcomes() {
			byOutcome = append(byOutcome, operations.WithLabelValues(verb, o))
		}
		m.operations = append(m.operations, byOutcome)
		m.seconds = append(m.seconds, seconds.WithLabelValues(verb))
		m.bytes = append(m.bytes, bytes.WithLabelValues(verb))
	}
	return operations, seconds, bytes
}

// newRefused makes a series for every reason: which of them a server gives is
// the server's business.
func (m *Metrics) newRefused() *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: nameRefused, Help: "Calls refused before their message was read, by the reason that the caller got.",
	}, []string{labelReason})
	m.refused = append(m.refused, v.WithLabelValues(sealer.OK.String()))
	for _, r := range sealer.Reasons() {
		m.refused = append(m.refused, v.WithLabelValues(r.String()))
	}
	return v
}

func (m *Metrics) newReloads() *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: nameReloads, Help: "Reloads of tenants.yaml, policy.yaml and certificates, by how they ended.",
	}, []string{labelResult})
	m.reloads = map[bool]prometheus.Counter{true: v.WithLabelValues("ok"), false: v.WithLabelValues("failed")}
	return v
}

// ObserveRefusal counts a call that got no further than the server. It is for
// server.Config.Refused.
func (m *Metrics) ObserveRefusal(r sealer.Reason) {
	if int(r) < len(m.refused) {
		m.refused[r].Inc()
	}
}

// ObserveReload counts a reload.
func (m *Metrics) ObserveReload(ok bool) { m.reloads[ok].Inc() }

// outcomes returns the values of label reason. Those of the sealer come first,
// each at its own number.
func outcomes() []string {
	names := []string{sealer.OK.String()}
	for _, r := range sealer.Reasons() {
		names = append(names, r.String())
	}
	return append(names, "INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED")
}

// outcome returns the index into outcomes of an operation's end, given how many
// there are.
func outcome(ev sealer.Event, n int) int {
	switch {
	case ev.Reason != sealer.OK && int(ev.Reason) < n-3:
		return int(ev.Reason)
	case ev.Reason == sealer.OK && ev.Err == nil:
		return int(sealer.OK)
	case errors.Is(ev.Err, context.DeadlineExceeded):
		return n - 2
	case errors.Is(ev.Err, context.Canceled):
		return n - 1
	}
	return n - 3
}

// Observe counts an operation. It is for sealer.Config.Observe.
func (m *Metrics) Observe(_ context.Context, ev sealer.Event) {
	v := int(ev.Verb)
	if v >= len(verbs) {
		v = 0
	}
	m.operations[v][outcome(ev, len(m.operations[v]))].Inc()
	m.seconds[v].Observe(ev.Duration.Seconds())
	m.bytes[v].Add(float64(ev.Bytes))
}

// ObserveVault counts a request to Key Vault: what it was for ("newest",
// "wrap", "unwrap"), the HTTP status, 0 if there was no answer, and how long it
// took.
func (m *Metrics) ObserveVault(op string, status int, d time.Duration) {
	op = known(op)
	code := "none"
	switch {
	case status >= 100 && status <= 599:
		code = strconv.Itoa(status)
	case status != 0:
		code = "other"
	}
	m.vaultCalls.WithLabelValues(op, code).Inc()
	m.vaultSeconds.WithLabelValues(op).Observe(d.Seconds())
}

func known(op string) string {
	for _, o := range vaultOps {
		if o == op {
			return o
		}
	}
	return vaultOps[0]
}

// Unary returns an interceptor that counts calls by method and code.
func (m *Metrics) Unary() grpc.UnaryServerInterceptor { return m.grpc.UnaryServerInterceptor() }

// Stream returns an interceptor that counts streams by method and code.
func (m *Metrics) Stream() grpc.StreamServerInterceptor { return m.grpc.StreamServerInterceptor() }

// Handler serves the metrics to Prometheus, to 4 scrapes at a time.
func (m *Metrics) Handler() http.Handler {
	return promhttp.InstrumentMetricHandler(m.registry, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
	}))
}
