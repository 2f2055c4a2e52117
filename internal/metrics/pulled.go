package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/dek"
)

// pulled collects figures that other packages keep. All of one scrape come from
// one snapshot.
type pulled struct {
	cfg                        Config
	figures                    []figure
	loads, mints, level, inUse *prometheus.Desc
	open, turnedAway, bytes    *prometheus.Desc
	records, failing           *prometheus.Desc
	used, most                 *prometheus.Desc
}

var _ prometheus.Collector = (*pulled)(nil)

// figure is a metric that is read from a snapshot.
type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(dek.Stats) float64
}

func counter(name, help string, read func(dek.Stats) uint64) figure {
	return figure{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue,
		func(s dek.Stats) float64 { return float64(read(s)) }}
}

func gauge(name, help string, read func(dek.Stats) int) figure {
	return figure{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue,
		func(s dek.Stats) float64 { return float64(read(s)) }}
}

func newPulled(cfg Config) *pulled {
	byLabel := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{label}, nil)
	}
	return &pulled{
		cfg:     cfg,
		figures: figures(),
		loads:   byLabel(nameCacheLoads, "Unwraps by how they ended.", labelResult),
		mints:   byLabel(nameMints, "Mints of DEKs by how they ended.", labelResult),
		level: byLabel(nameMemoryLevel,
			"Always 1; the label says how unwrapped DEKs are kept: heap, locked or memfd_secret.", labelLevel),
		open:       byLabel(nameConnections, "Connections that are open.", labelDoor),
		turnedAway: byLabel(nameTurnedAway, "Connections closed at once because of a limit or their address.", labelDoor),
		bytes:      prometheus.NewDesc(nameBytes, "Bytes that calls in flight hold or may need.", nil, nil),
		records:    prometheus.NewDesc(nameAuditRecords, "Records in the audit log that is being written.", nil, nil),
		failing: prometheus.NewDesc(nameAuditFailing,
			"For how long nothing could be written to the audit log; 0 if it can be.", nil, nil),
		used:  prometheus.NewDesc(nameAuditBytes, "Bytes that the audit log's directory uses; 0 for another sink.", nil, nil),
		most:  prometheus.NewDesc(nameAuditMost, "Bytes that it may use: audit.max_bytes.", nil, nil),
		inUse: prometheus.NewDesc(nameMemoryInUse, "Slots of protected memory that hold a key.", nil, nil),
	}
}

func figures() []figure {
	return []figure{
		gauge(nameActive, "DEKs that new data is sealed with.", func(s dek.Stats) int { return s.Active }),
		gauge(nameCached, "DEKs that are unwrapped in memory.", func(s dek.Stats) int { return s.Cached }),
		counter(nameCacheHits, "Operations that found their DEK unwrapped.",
			func(s dek.Stats) uint64 { return s.Keys.Hits }),
		counter(nameCacheMisses, "Operations that did not.", func(s dek.Stats) uint64 { return s.Keys.Misses }),
		counter(nameCacheNegative, "Misses answered by a failure that is still remembered.",
			func(s dek.Stats) uint64 { return s.Keys.NegativeHits }),
		counter(nameCacheEvicted, "DEKs that made room for others.", func(s dek.Stats) uint64 { return s.Keys.Evictions }),
		gauge(nameCacheInFlight, "Unwraps under way.", func(s dek.Stats) int { return s.Keys.InFlight }),
	}
}

// Describe sends the descriptors of every metric that Collect may send.
func (p *pulled) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range p.figures {
		ch <- f.desc
	}
	for _, d := range []*prometheus.Desc{
		p.loads, p.mints, p.level, p.inUse, p.open, p.turnedAway, p.bytes, p.records, p.failing, p.used, p.most,
	} {
		ch <- d
	}
}

// Collect takes a snapshot and sends it.
func (p *pulled) Collect(ch chan<- prometheus.Metric) {
	if p.cfg.DEKs != nil {
		p.collectDEKs(ch, p.cfg.DEKs())
	}
	p.collectDoors(ch)
	if p.cfg.Audit != nil {
		p.collectAudit(ch, p.cfg.Audit())
	}
	if p.cfg.Slab != nil {
		ch <- prometheus.MustNewConstMetric(p.level, prometheus.GaugeValue, 1, p.cfg.Slab.Level().String())
		ch <- prometheus.MustNewConstMetric(p.inUse, prometheus.GaugeValue, float64(p.cfg.Slab.InUse()))
	}
}

func (p *pulled) collectAudit(ch chan<- prometheus.Metric, s audit.Stats) {
	failing := 0.0
	if !s.Failing.IsZero() {
		failing = max(0, time.Since(s.Failing).Seconds())
	}
	ch <- prometheus.MustNewConstMetric(p.records, prometheus.GaugeValue, float64(s.Records))
	ch <- prometheus.MustNewConstMetric(p.failing, prometheus.GaugeValue, failing)
	ch <- prometheus.MustNewConstMetric(p.used, prometheus.GaugeValue, float64(s.Bytes))
	ch <- prometheus.MustNewConstMetric(p.most, prometheus.GaugeValue, float64(s.MaxBytes))
}

func (p *pulled) collectDoors(ch chan<- prometheus.Metric) {
	if p.cfg.Bytes != nil {
		ch <- prometheus.MustNewConstMetric(p.bytes, prometheus.GaugeValue, float64(p.cfg.Bytes()))
	}
	if p.cfg.Doors == nil {
		return
	}
	for _, d := range p.cfg.Doors() {
		ch <- prometheus.MustNewConstMetric(p.open, prometheus.GaugeValue, float64(d.Open), d.Name)
		ch <- prometheus.MustNewConstMetric(p.turnedAway, prometheus.CounterValue, float64(d.Refused), d.Name)
	}
}

func (p *pulled) collectDEKs(ch chan<- prometheus.Metric, s dek.Stats) {
	for _, f := range p.figures {
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.read(s))
	}
	byResult := func(d *prometheus.Desc, ok, failed uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(ok), "ok")
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(failed), "failed")
	}
	byResult(p.loads, s.Keys.Loads-min(s.Keys.LoadErrors, s.Keys.Loads), s.Keys.LoadErrors)
	byResult(p.mints, s.Minted, s.MintsFailed)
}
