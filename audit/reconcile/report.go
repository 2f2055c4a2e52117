package reconcile

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Verdict is what a comparison came to.
type Verdict string

// The verdicts.
const (
	// Match: every use of a KEK is recorded, and every record has its use.
	Match Verdict = "match"
	// Differ: some have not, or something could not be read.
	Differ Verdict = "differ"
	// Undecided: all match but for uses so near to an end of the audit logs, or so
	// far outside of them, that their records may lie there; or the logs do not
	// cover what is to be judged. More of the logs decides.
	Undecided Verdict = "undecided"
	// Nothing: there was nothing to compare.
	Nothing Verdict = "nothing"
)

// Span is from when to when. Both are zero if there is nothing.
type Span struct {
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

// IsZero reports whether there is nothing.
func (s Span) IsZero() bool { return s.From.IsZero() }

func (s *Span) add(t time.Time) {
	if s.IsZero() {
		s.From, s.To = t, t
		return
	}
	s.From, s.To = earlier(s.From, t), later(s.To, t)
}

// contains reports whether t lies in s; its ends do.
func (s Span) contains(t time.Time) bool { return !s.IsZero() && !t.Before(s.From) && !t.After(s.To) }

// Counted is how many, and from when to when.
type Counted struct {
	Count int64 `json:"count"`
	Span
}

func (c *Counted) add(t time.Time) {
	c.Count++
	c.Span.add(t)
}

// Report is what a comparison found. All texts are printable ASCII.
type Report struct {
	Verdict Verdict `json:"verdict"`
	// Judged is the time that both sides cover, within Config.From and To. Uses that
	// cannot be a sidecar's are judged also outside of what the audit logs cover.
	Judged Span `json:"judged"`
	// Audit and Vault are what was given.
	Audit AuditSide `json:"audit"`
	Vault VaultSide `json:"vault"`
	// Rows are the sums, by KEK, version and operation.
	Rows []Row `json:"rows"`
	// Unrecorded are the uses of KEKs within Config.From and To that no sidecar has
	// recorded; Undecided are those whose record may lie outside the audit logs.
	Unrecorded []Unrecorded `json:"unrecorded"`
	Undecided  []Unrecorded `json:"undecided"`
	// Failed are requests to use a key that Key Vault refused, whatever the key,
	// by who and why. After 1,000 different ones the rest is from "others".
	Failed []Failure `json:"failed"`
	// Management are other successful requests about KEKs, such as KeyGet or KeyBackup.
	Management []KeyCount `json:"management,omitempty"`
	// OtherKeys are the uses of keys that are no KEKs, as far as is known.
	OtherKeys []KeyCount `json:"other_keys,omitempty"`
	// Outside are how many lie outside what is judged: records of key events, and
	// uses of any key.
	Outside struct {
		Records int64 `json:"records"`
		Uses    int64 `json:"uses"`
	} `json:"outside"`
	// Unreadable are lines that could not be read, and which ones, at most 10.
	Unreadable struct {
		Count int64    `json:"count"`
		First []string `json:"first,omitempty"`
	} `json:"unreadable"`
}

// AuditSide describes the audit logs.
type AuditSide struct {
	Span
	// Short says that Span does not cover Config.From to To.
	Short bool `json:"short,omitempty"`
	// Logs are those that end without a stop before what is judged does: what
	// that sidecar did later is not there. Total is the number of all logs.
	Logs  []OpenLog `json:"open_logs,omitempty"`
	Total int       `json:"logs"`
	// Duplicates are records that were there before, Torn last lines that are cut off.
	Duplicates int64 `json:"duplicates"`
	Torn       int64 `json:"torn"`
	// Pruned are records of keys whose events retention has removed: uses of that
	// time may look as if they had no record.
	Pruned Counted `json:"pruned,omitzero"`
	// Unaccounted are the times of which a log says that they may be missing in
	// it, Lost is how many records it says could not be written.
	Unaccounted []Span `json:"unaccounted,omitempty"`
	Lost        int64  `json:"lost"`
}

// OpenLog is an audit log without an end.
type OpenLog struct {
	Log  string    `json:"log"`
	Last time.Time `json:"last"`
}

// VaultSide describes the vault logs.
type VaultSide struct {
	Span
	// Short says that Span does not cover Config.From to To.
	Short bool `json:"short,omitempty"`
	// Duplicates are uses that were there before: same time, request id, key and
	// caller.
	Duplicates int64 `json:"duplicates"`
}

// Row is one operation with one version of a KEK.
type Row struct {
	// KEK is its logical name, Version the version, Keys are its URLs: more than one if
	// it was restored into another vault.
	KEK       string   `json:"kek,omitempty"`
	Version   string   `json:"kek_version,omitempty"`
	Keys      []string `json:"keys,omitempty"`
	Operation string   `json:"operation"`
	// Both is how many are in both logs, Unrecorded only in the vault's.
	Both       int64 `json:"both"`
	Unrecorded int64 `json:"unrecorded"`
	// Missing are records without a use in the vault log. MissingAtEnd are those so
	// near to an end of the vault log that their use may lie outside.
	Missing      Counted `json:"missing,omitzero"`
	MissingAtEnd Counted `json:"missing_at_end,omitzero"`
	// Undecided is how many of Report.Undecided there are.
	Undecided int64 `json:"undecided"`
}

// Unrecorded is a use of a KEK without a record.
type Unrecorded struct {
	Time      time.Time `json:"time"`
	Operation string    `json:"operation"`
	KEK       string    `json:"kek,omitempty"`
	Version   string    `json:"kek_version,omitempty"`
	Key       string    `json:"key"`
	IP        string    `json:"caller_ip,omitempty"`
	Who       Who       `json:"identity"`
	// Correlation is the request id that Key Vault answered with.
	Correlation string `json:"correlation_id,omitempty"`
	// Stranger says that it was none of Config.Identities.
	Stranger bool `json:"stranger,omitempty"`
	// Unaccounted says that it lies in one of AuditSide.Unaccounted.
	Unaccounted bool `json:"unaccounted,omitempty"`
}

// Failure is what is alike in requests that failed, and how many they were.
type Failure struct {
	Operation string `json:"operation"`
	Status    string `json:"status"`
	IP        string `json:"caller_ip,omitempty"`
	Who       Who    `json:"identity"`
	Count     int64  `json:"count"`
}

// KeyCount is how many requests for a key there were.
type KeyCount struct {
	Key       string `json:"key"`
	Operation string `json:"operation"`
	Count     int64  `json:"count"`
}

// Report compares what was taken. It is called once, at the end.
func (r *Reconciler) Report() *Report {
	rep := &r.report
	rep.Rows, rep.Unrecorded, rep.Undecided, rep.Failed = []Row{}, []Unrecorded{}, []Unrecorded{}, []Failure{}
	r.dropDuplicates()
	r.setJudged()
	r.describeLogs()
	keks := r.findKEKs()
	r.compareAll(keks)
	r.listOthers(keks)
	rep.Verdict = r.verdict(len(keks) > 0)
	return rep
}

func (r *Reconciler) verdict(keys bool) Verdict {
	rep := &r.report
	missing := slices.ContainsFunc(rep.Rows, func(row Row) bool { return row.Missing.Count > 0 })
	switch {
	case len(rep.Unrecorded) > 0 || missing || rep.Unreadable.Count > 0:
		return Differ
	case rep.Judged.IsZero() || !keys && len(rep.Rows) == 0:
		return Nothing
	case len(rep.Undecided) > 0 || rep.Audit.Short || rep.Vault.Short:
		return Undecided
	}
	return Match
}

// dropDuplicates leaves of each record and each use one. Collectors, and exports
// of logs, deliver at least once. A use is the same if all of it is: a correlation
// id alone proves nothing, since the documentation says that a caller may choose it.
func (r *Reconciler) dropDuplicates() {
	slices.SortFunc(r.records, func(a, b keyEvent) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.log.name, b.log.name), cmp.Compare(a.seq, b.seq),
			cmp.Compare(a.version, b.version), cmp.Compare(a.operation, b.operation))
	})
	before := len(r.records)
	r.records = slices.Compact(r.records)
	r.report.Audit.Duplicates = int64(before - len(r.records))
	slices.SortFunc(r.uses, func(a, b use) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Correlation, b.Correlation), cmp.Compare(a.Key, b.Key),
			cmp.Compare(a.Version, b.Version), cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.IP, b.IP),
			cmp.Compare(a.Who.App, b.Who.App), cmp.Compare(a.Who.Object, b.Who.Object), cmp.Compare(a.Who.User, b.Who.User))
	})
	before = len(r.uses)
	r.uses = slices.CompactFunc(r.uses, func(a, b use) bool { return a.Correlation != "" && *a.Entry == *b.Entry })
	r.report.Vault.Duplicates = int64(before - len(r.uses))
}

// setJudged finds the time that both sides cover.
func (r *Reconciler) setJudged() {
	a, v := r.report.Audit.Span, r.report.Vault.Span
	r.report.Audit.Short, r.report.Vault.Short = r.isShort(a), r.isShort(v)
	if a.IsZero() || v.IsZero() {
		return
	}
	s := Span{From: later(a.From, v.From), To: earlier(a.To, v.To)}
	if !r.cfg.From.IsZero() {
		s.From = later(s.From, r.cfg.From)
	}
	if !r.cfg.To.IsZero() {
		s.To = earlier(s.To, r.cfg.To)
	}
	if !s.To.Before(s.From) {
		r.report.Judged = s
	}
}

// isShort reports whether s leaves out some of From to To.
func (r *Reconciler) isShort(s Span) bool {
	from, to := r.cfg.From, r.cfg.To
	return !from.IsZero() && s.From.After(from.Add(r.cfg.Tolerance)) || !to.IsZero() && s.To.Before(to.Add(-r.cfg.Tolerance))
}

// describeLogs finds the logs that end too early.
func (r *Reconciler) describeLogs() {
	a := &r.report.Audit
	a.Total = len(r.logs)
	for _, log := range r.logs {
		if !log.ended && log.last.Before(r.report.Judged.To) {
			a.Logs = append(a.Logs, OpenLog{Log: log.name, Last: log.last})
		}
	}
	slices.SortFunc(a.Logs, func(x, y OpenLog) int { return strings.Compare(x.Log, y.Log) })
	slices.SortFunc(a.Unaccounted, func(x, y Span) int { return cmp.Or(x.From.Compare(y.From), x.To.Compare(y.To)) })
	a.Unaccounted = slices.Compact(a.Unaccounted)
}

// findKEKs returns the URLs of keys that are KEKs.
func (r *Reconciler) findKEKs() map[string]bool {
	keks := make(map[string]bool)
	for i := range r.uses {
		u := &r.uses[i]
		if _, known := r.keks[u.Version]; known || r.isConfigured(u.Key) {
			keks[u.Key] = true
		}
	}
	for c := range r.others {
		if r.isConfigured(c.key) {
			keks[c.key] = true
		}
	}
	for _, key := range r.cfg.Keys {
		keks[key] = true
	}
	return keks
}

// isConfigured reports whether Config.Keys has a key, or its host.
func (r *Reconciler) isConfigured(key string) bool {
	return slices.ContainsFunc(r.cfg.Keys, func(k string) bool { return key == k || strings.HasPrefix(key, k+"/keys/") })
}

// group are the records of, and the requests for, one operation with one version.
type group struct {
	version, operation string
}

// compareAll fills in Rows, Unrecorded and Undecided.
func (r *Reconciler) compareAll(keks map[string]bool) {
	records, uses := make(map[group][]int), make(map[group][]int)
	var groups []group
	note := func(in map[group][]int, g group, i int) {
		if len(records[g]) == 0 && len(uses[g]) == 0 {
			groups = append(groups, g)
		}
		in[g] = append(in[g], i)
	}
	for i := range r.records {
		note(records, group{r.records[i].version, r.records[i].operation}, i)
	}
	for i := range r.uses {
		if keks[r.uses[i].Key] {
			note(uses, group{r.uses[i].Version, r.uses[i].Operation}, i)
		}
	}
	slices.SortFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(r.keks[a.version], r.keks[b.version]), cmp.Compare(a.version, b.version),
			cmp.Compare(a.operation, b.operation))
	})
	for _, g := range groups {
		row := Row{KEK: r.keks[g.version], Version: g.version, Operation: g.operation}
		r.compare(&row, records[g], uses[g])
		if row.Both+row.Unrecorded+row.Undecided+row.Missing.Count+row.MissingAtEnd.Count > 0 {
			r.report.Rows = append(r.report.Rows, row)
		}
	}
	byTime := func(a, b Unrecorded) int { return a.Time.Compare(b.Time) }
	slices.SortStableFunc(r.report.Unrecorded, byTime)
	slices.SortStableFunc(r.report.Undecided, byTime)
}

// compare matches the records and uses of a row.
func (r *Reconciler) compare(row *Row, records, uses []int) {
	rep := &r.report
	recordTimes, useTimes := make([]int64, len(records)), make([]int64, 0, len(uses))
	for i, at := range records {
		recordTimes[i] = r.records[at].at
	}
	own := make([]int, 0, len(uses))
	for _, i := range uses {
		u := &r.uses[i]
		if !slices.Contains(row.Keys, u.Key) {
			row.Keys = append(row.Keys, u.Key)
		}
		if len(r.identities) > 0 && !u.Who.is(r.identities) {
			r.addUnrecorded(row, u, true)
			continue
		}
		own, useTimes = append(own, i), append(useTimes, u.at)
	}
	slices.Sort(row.Keys)
	taken := make([]bool, len(records))
	for i, of := range match(recordTimes, useTimes, r.cfg.Tolerance.Microseconds()) {
		u := &r.uses[own[i]]
		if of == unmatched {
			r.addUnrecorded(row, u, false)
			continue
		}
		taken[of] = true
		if rep.Judged.contains(u.Time) || rep.Judged.contains(time.UnixMicro(recordTimes[of])) {
			row.Both++
			continue
		}
		rep.Outside.Records++
		rep.Outside.Uses++
	}
	for i, at := range recordTimes {
		if !taken[i] {
			r.addMissing(row, time.UnixMicro(at).UTC())
		}
	}
}

// addUnrecorded takes a use without a record.
func (r *Reconciler) addUnrecorded(row *Row, u *use, stranger bool) {
	rep := &r.report
	if !r.within(u.Time, 0) {
		rep.Outside.Uses++
		return
	}
	found := Unrecorded{
		Time: u.Time, Operation: u.Operation, KEK: row.KEK, Version: u.Version, Key: u.Key, IP: u.IP, Who: u.Who,
		Correlation: u.Correlation, Stranger: stranger,
		Unaccounted: slices.ContainsFunc(rep.Audit.Unaccounted, func(s Span) bool { return s.contains(u.Time) }),
	}
	if !stranger && operable(u.Operation) && r.nearEnd(rep.Audit.Span, u.Time) {
		row.Undecided++
		rep.Undecided = append(rep.Undecided, found)
		return
	}
	row.Unrecorded++
	rep.Unrecorded = append(rep.Unrecorded, found)
}

// operable reports whether a sidecar ever does it.
func operable(operation string) bool {
	return operation == keyWrap || operation == keyUnwrap || operation == keySign
}

// addMissing takes a record without a use.
func (r *Reconciler) addMissing(row *Row, at time.Time) {
	switch {
	case !r.report.Judged.contains(at):
		r.report.Outside.Records++
	case r.nearEnd(r.report.Vault.Span, at):
		row.MissingAtEnd.add(at)
	default:
		row.Missing.add(at)
	}
}

// nearEnd reports whether the other half of a pair may lie outside of s.
func (r *Reconciler) nearEnd(s Span, t time.Time) bool {
	return t.Add(-r.cfg.Tolerance).Before(s.From) || t.Add(r.cfg.Tolerance).After(s.To)
}

// listOthers fills in Failed, Management and OtherKeys.
func (r *Reconciler) listOthers(keks map[string]bool) {
	for f, n := range r.failed {
		f.Count = n
		r.report.Failed = append(r.report.Failed, f)
	}
	slices.SortFunc(r.report.Failed, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Status, b.Status),
			cmp.Compare(a.IP, b.IP), cmp.Compare(a.Who.String(), b.Who.String()))
	})
	other := make(map[counted]int64)
	for i := range r.uses {
		if u := &r.uses[i]; !keks[u.Key] {
			other[counted{u.Key, u.Operation}]++
		}
	}
	r.report.OtherKeys = keyCounts(other, nil)
	r.report.Management = keyCounts(r.others, keks)
}

// keyCounts sorts counts, of these keys if there are any.
func keyCounts(all map[counted]int64, keys map[string]bool) (sorted []KeyCount) {
	for c, n := range all {
		if keys == nil || keys[c.key] {
			sorted = append(sorted, KeyCount{Key: c.key, Operation: c.operation, Count: n})
		}
	}
	slices.SortFunc(sorted, func(a, b KeyCount) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operation, b.Operation))
	})
	return sorted
}
