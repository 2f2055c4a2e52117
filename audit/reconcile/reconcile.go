package reconcile

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

const (
	// DefaultTolerance is how long Key Vault takes at most to log a request, by
	// its documentation; clocks are closer together than that.
	DefaultTolerance = 10 * time.Minute
	// MaxTolerance is the largest Tolerance.
	MaxTolerance = 24 * time.Hour
	// maxNamed is how many of the unreadable lines are named.
	maxNamed = 10
	// maxFailures is how many different failures are told apart.
	maxFailures = 1000
)

// Config says what to compare.
type Config struct {
	// Tolerance is how far apart the times of a record and of its request may
	// be. Zero means DefaultTolerance.
	Tolerance time.Duration
	// From and To bound what is judged. Zero means no bound. What lies up to
	// Tolerance outside is still looked at, to find the other half of a pair. A
	// side that begins later than From, or ends before To, by more than Tolerance
	// leaves the comparison undecided.
	From, To time.Time
	// Identities are the sidecars' own: application IDs, object IDs or user
	// names. If there are any, a use by somebody else has no record, whatever
	// the logs say.
	Identities []string
	// Keys are URLs, https://HOST or https://HOST/keys/NAME, of keys that are
	// KEKs even if no record names a version of them. A key of which a record
	// names a version is one in any case, with all its versions.
	Keys []string
}

// Reconciler takes audit logs and vault logs, in any order, and compares them.
// It is not safe for concurrent use.
type Reconciler struct {
	cfg        Config
	identities map[string]bool
	keks       map[string]string // version to logical name
	strings    map[string]string // each that is kept often, once
	logs       map[string]*logState
	records    []keyEvent
	uses       []use
	others     map[counted]int64
	failed     map[Failure]int64
	report     Report
}

// keyEvent is a record of a request to a vault.
type keyEvent struct {
	at        int64 // Unix microseconds
	seq       int64
	log       *logState
	version   string
	operation string
}

// use is a successful use of a key.
type use struct {
	at int64 // Unix microseconds
	*Entry
}

// counted are requests that are only counted.
type counted struct{ key, operation string }

// logState is what is known of one audit log.
type logState struct {
	name  string
	last  time.Time // of its records
	ended bool
}

// New returns a Reconciler.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Tolerance == 0 {
		cfg.Tolerance = DefaultTolerance
	}
	if cfg.Tolerance < 0 || cfg.Tolerance > MaxTolerance {
		return nil, fmt.Errorf("tolerance is %s, not between 0 and %s", cfg.Tolerance, MaxTolerance)
	}
	if !cfg.From.IsZero() && !cfg.To.IsZero() && !cfg.From.Before(cfg.To) {
		return nil, fmt.Errorf("there is no time from %s to %s", cfg.From.Format(time.RFC3339), cfg.To.Format(time.RFC3339))
	}
	r := &Reconciler{
		cfg: cfg, identities: make(map[string]bool), keks: make(map[string]string), strings: make(map[string]string),
		logs: make(map[string]*logState), others: make(map[counted]int64), failed: make(map[Failure]int64),
	}
	for _, id := range cfg.Identities {
		if id == "" {
			return nil, errors.New("an identity is empty")
		}
		r.identities[strings.ToLower(clean(id))] = true
	}
	r.cfg.Keys = slices.Clone(cfg.Keys)
	for i, k := range r.cfg.Keys {
		k = strings.TrimSuffix(strings.ToLower(k), "/")
		host, isHTTPS := strings.CutPrefix(k, "https://")
		if key, version := ParseKeyURL(k); key != k && (!isHTTPS || !consists(host, 253, hostName)) || version != "" {
			return nil, fmt.Errorf("key %q is not like https://HOST or https://HOST/keys/NAME", cfg.Keys[i])
		}
		r.cfg.Keys[i] = k
	}
	return r, nil
}

// AuditLine takes a line of an audit log, as package reader reads them. It
// verifies nothing: audit verify does. It returns no error.
func (r *Reconciler) AuditLine(l reader.Line) error {
	switch {
	case l.Err == nil:
		r.record(l)
	case l.Torn:
		r.report.Audit.Torn++ // a log that is being written, or was when its sidecar was killed
	default:
		r.unreadable(l.Source, l.Number, l.Err)
	}
	return nil
}

// record takes a line that is a record.
func (r *Reconciler) record(l reader.Line) {
	rec := l.Record
	log := r.logs[rec.Log]
	if log == nil {
		log = &logState{name: rec.Log, last: rec.Time}
		r.logs[rec.Log] = log
	}
	log.last = later(log.last, rec.Time)
	r.report.Audit.Span.add(rec.Time)
	if rec.Class != record.Keys {
		return
	}
	if rec.Pruned() {
		r.report.Audit.Pruned.add(rec.Time)
		return
	}
	e, err := record.ParseEvent(rec.Event)
	switch {
	case err != nil:
		r.unreadable(l.Source, l.Number, err)
	case !rec.Intact():
		r.unreadable(l.Source, l.Number, errors.New("its event is not the one that the record is about"))
	default:
		r.event(log, rec, e)
	}
}

// event takes an event of class Keys.
func (r *Reconciler) event(log *logState, rec *record.Record, e *record.Event) {
	operation, version := "", clean(strings.ToLower(e.KEKVersion))
	switch e.Kind {
	case record.Stop:
		log.ended = true
	case record.Unaccounted:
		r.report.Audit.Unaccounted = append(r.report.Audit.Unaccounted, Span{From: e.From, To: e.To})
	case record.Lost:
		r.report.Audit.Lost += e.Count
	case record.Certified:
		name, _ := record.SignerOf(e.Note)
		_, version = ParseKeyURL(name)
		operation = keySign
	case record.KeyStep:
		operation = operationOf(e.Step)
	}
	if version == "" {
		return
	}
	version = r.once(version)
	if r.keks[version] == "" {
		r.keks[version] = clean(e.KEK)
	}
	switch {
	case operation == "":
	case !r.within(rec.Time, r.cfg.Tolerance):
		r.report.Outside.Records++
	default:
		r.records = append(r.records, keyEvent{
			at: rec.Time.UnixMicro(), seq: rec.Seq, log: log, version: version, operation: operation,
		})
	}
}

// The operations of Key Vault that a sidecar uses a key with.
const (
	keyWrap   = "KeyWrap"
	keyUnwrap = "KeyUnwrap"
	keySign   = "KeySign"
)

// uses are the operations that do something with a key that only who has it can
// do.
func uses() []string {
	return []string{keyWrap, keyUnwrap, keySign, "KeyEncrypt", "KeyDecrypt", "KeyRelease"}
}

// operationOf returns the request that a step in a key's life takes; empty for a
// step that takes none.
func operationOf(step string) string {
	switch step {
	case "wrapped":
		return keyWrap
	case "proved", "unwrapped", "rejected", "renewed":
		return keyUnwrap
	}
	return ""
}

// isUse reports whether an operation, as operationName writes it, is one of uses.
func isUse(operation string) bool { return slices.Contains(uses(), operation) }

// operationName returns the name of an operation as it is compared: Azure's names
// are not always in the same case.
func operationName(s string) string {
	s = strings.TrimSpace(s)
	for _, known := range uses() {
		if strings.EqualFold(s, known) {
			return known
		}
	}
	return clean(s)
}

// VaultLog takes a vault log, which name names in what is reported. It returns
// the error of in.
func (r *Reconciler) VaultLog(name string, in io.Reader) error {
	err := ParseVaultLog(in, func(e *Entry, err error) error {
		if bad, isBad := errors.AsType[*unreadable](err); isBad {
			r.unreadable(name, bad.line, errors.New(bad.why))
			return nil
		}
		r.entry(e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading vault log %s: %w", name, err)
	}
	return nil
}

// entry takes an entry of a vault log.
func (r *Reconciler) entry(e *Entry) {
	r.report.Vault.Span.add(e.Time)
	switch {
	case e.OK && isUse(e.Operation):
		r.use(e)
	case !r.within(e.Time, 0):
	case isUse(e.Operation):
		f := Failure{Operation: e.Operation, Status: e.Status, IP: e.IP, Who: e.Who}
		if _, known := r.failed[f]; !known && len(r.failed) >= maxFailures {
			f.IP, f.Who = "others", Who{}
		}
		r.failed[f]++
	case e.OK && e.Key != "":
		r.others[counted{e.Key, e.Operation}]++
	}
}

// use takes a successful use of a key.
func (r *Reconciler) use(e *Entry) {
	if !r.within(e.Time, r.cfg.Tolerance) {
		r.report.Outside.Uses++
		return
	}
	e.Status = "" // it is one of success, and how it is written differs between exports
	for _, s := range []*string{&e.Operation, &e.Key, &e.Version, &e.IP, &e.Who.App, &e.Who.Object, &e.Who.User} {
		*s = r.once(*s)
	}
	r.uses = append(r.uses, use{e.Time.UnixMicro(), e})
}

// within reports whether t lies between From and To, or no further outside.
func (r *Reconciler) within(t time.Time, further time.Duration) bool {
	return (r.cfg.From.IsZero() || !t.Before(r.cfg.From.Add(-further))) &&
		(r.cfg.To.IsZero() || !t.After(r.cfg.To.Add(further)))
}

// once returns s, each time the same one.
func (r *Reconciler) once(s string) string {
	known, ok := r.strings[s]
	if !ok {
		known = strings.Clone(s)
		r.strings[known] = known
	}
	return known
}

// unreadable counts a line that could not be read, and names the first ones.
func (r *Reconciler) unreadable(source string, line int, why error) {
	u := &r.report.Unreadable
	if u.Count++; len(u.First) < maxNamed {
		u.First = append(u.First, fmt.Sprintf("%s:%d: %s", clean(source), line, clean(why.Error())))
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
