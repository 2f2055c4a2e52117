package reconcile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/reconcile"
	"github.com/keysidecar/keysidecar/audit/record"
)

const (
	version1 = "11111111111111111111111111111111"
	version2 = "22222222222222222222222222222222"
	version3 = "33333333333333333333333333333333"
	kekURL   = "https://kek.vault.azure.net/keys/tenants"
	signURL  = "https://sign.vault.azure.net/keys/audit"
	own      = "6f0e4e1c-91a5-4c0b-9c5e-6a6d3d3f2b11"
	other    = "04b07795-8ddb-461a-bbee-02f9e1bf7b46"
)

// noon is in the middle of what the tests are about.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// auditLog writes the lines of one audit log.
type auditLog struct {
	header record.Header
	lines  []string
}

func newAuditLog(id string) *auditLog {
	return &auditLog{header: record.Header{Log: "keysidecar/payments/" + id, Class: record.Keys}}
}

func (l *auditLog) add(at time.Time, e record.Event) {
	l.header.Time = at
	line, leaf := record.Append(nil, &l.header, e.Append(nil))
	l.lines = append(l.lines, string(line))
	l.header.Seq++
	l.header.Prev = record.LinkTo(leaf)
}

// step writes what a sidecar records after a request.
func (l *auditLog) step(at time.Time, step, version string) {
	l.add(at, record.Event{Kind: record.KeyStep, Step: step, Tenant: "acme", KEK: "eu", KEKVersion: version})
}

// day writes the first and the last record of a day.
func (l *auditLog) day() *auditLog {
	l.add(noon.Add(-12*time.Hour), record.Event{Kind: record.Start})
	l.add(noon.Add(12*time.Hour), record.Event{Kind: record.Stop})
	return l
}

// request is one in a vault log.
type request struct {
	at          time.Time
	operation   string
	id          string
	ip, app     string
	status      int
	correlation string
}

// lines returns it as each variant has it.
func (q request) lines() []string {
	at, claim := q.at.Format("2006-01-02T15:04:05.0000000Z"), map[string]any{"claim": map[string]any{"appid": q.app}}
	text, err := json.Marshal(claim)
	variants := []map[string]any{
		{
			"time": at, "category": "AuditEvent", "operationName": q.operation, "correlationId": q.correlation,
			"callerIpAddress": q.ip, "identity": claim, "resultType": "Success", "resultSignature": "?",
			"properties": map[string]any{"id": q.id, "httpStatusCode": q.status},
		}, {
			"TimeGenerated": at, "OperationName": q.operation, "CorrelationId": q.correlation, "CallerIpAddress": q.ip,
			"Identity": string(text), "ResultType": "Success", "Id": q.id, "HttpStatusCode": fmt.Sprint(q.status),
		}, {
			"TimeGenerated": at, "OperationName": q.operation, "CorrelationId": q.correlation, "CallerIPAddress": q.ip,
			"identity_claim_appid_g": q.app, "Category": "AuditEvent", "ResourceProvider": "MICROSOFT.KEYVAULT",
			"id_s": q.id, "httpStatusCode_d": float64(q.status),
		},
	}
	var lines []string
	for _, v := range variants {
		line, marshalErr := json.Marshal(v)
		if err = errors.Join(err, marshalErr); err != nil {
			panic("package: internal error: " + err.Error())
		}
		lines = append(lines, string(line)+"\n")
	}
	return lines
}

// line returns it as a resource log.
func (q request) line() string { return q.lines()[0] }

// unwrap returns a successful request.
func unwrap(at time.Time, correlation string) request {
	return request{
		at: at, operation: "KeyUnwrap", id: kekURL + "/" + version1, ip: "10.0.0.1", app: own, status: 200, correlation: correlation,
	}
}

// get returns requests at both ends of a day that are no uses.
func get() string {
	q := unwrap(noon.Add(-12*time.Hour), "first")
	q.operation = "KeyGet"
	first := q.line()
	q.at, q.correlation = noon.Add(12*time.Hour), "last"
	return first + q.line()
}

// compare reads both sides and returns the report.
func compare(t testing.TB, cfg reconcile.Config, audit, vault string) *reconcile.Report {
	t.Helper()
	r, err := reconcile.New(cfg)
	if err == nil {
		err = reader.Read([]string{"-"}, strings.NewReader(audit), r.AuditLine)
	}
	if err == nil {
		err = r.VaultLog("-", strings.NewReader(vault))
	}
	if err != nil {
		t.Fatal(err)
	}
	return r.Report()
}

// ids returns the correlation ids of uses.
func ids(uses []reconcile.Unrecorded) []string {
	out := []string{}
	for _, u := range uses {
		out = append(out, u.Correlation)
	}
	return out
}

// sums returns both, unrecorded, missing of all rows.
func sums(r *reconcile.Report) (both, unrecorded, missing int64) {
	for _, row := range r.Rows {
		both, unrecorded, missing = both+row.Both, unrecorded+row.Unrecorded, missing+row.Missing.Count
	}
	return both, unrecorded, missing
}

func TestMatchingLogs(t *testing.T) {
	log := newAuditLog("a").day()
	log.step(noon, "wrapped", version1)
	log.step(noon.Add(time.Second), "proved", version1)
	log.step(noon.Add(2*time.Second), "activated", version1)
	log.step(noon.Add(time.Hour), "unwrapped", version1)
	log.step(noon.Add(time.Hour), "unwrapped", version2)
	log.step(noon.Add(time.Hour), "fenced", version2)
	log.step(noon.Add(2*time.Hour), "renewed", version2)
	log.add(noon, record.Event{Kind: record.Certified, Note: "title\n\n— " + signURL + "/" + version3 + " AAAA\n"})
	var vault strings.Builder
	for i, q := range []request{
		{operation: "KeyWrap", id: kekURL + "/" + version1, at: noon},
		{operation: "KeyUnwrap", id: kekURL + "/" + version1, at: noon},
		{operation: "KeyUnwrap", id: kekURL + "/" + version1, at: noon.Add(time.Hour)},
		{operation: "KeyUnwrap", id: strings.ToUpper(kekURL[:5]) + kekURL[5:] + "/" + version2, at: noon.Add(time.Hour)},
		{operation: "keyunwrap", id: kekURL + "/" + version2, at: noon.Add(2 * time.Hour)},
		{operation: "KeySign", id: signURL + "/" + version3, at: noon},
	} {
		q.ip, q.app, q.status, q.correlation = "10.0.0.1", own, 200, fmt.Sprint(i)
		vault.WriteString(q.line())
	}
	vault.WriteString(request{operation: "KeyGet", id: "https://else.vault.azure.net/keys/k", at: noon, status: 200}.line())
	got := compare(t, reconcile.Config{Identities: []string{strings.ToUpper(own)}}, strings.Join(log.lines, ""), vault.String()+get())
	want := []reconcile.Row{
		{Version: version3, Keys: []string{signURL}, Operation: "KeySign", Both: 1},
		{KEK: "eu", Version: version1, Keys: []string{kekURL}, Operation: "KeyUnwrap", Both: 2},
		{KEK: "eu", Version: version1, Keys: []string{kekURL}, Operation: "KeyWrap", Both: 1},
		{KEK: "eu", Version: version2, Keys: []string{kekURL}, Operation: "KeyUnwrap", Both: 2},
	}
	if diff := cmp.Diff(want, got.Rows); diff != "" || got.Verdict != reconcile.Match {
		t.Errorf("verdict %s, rows differ (-want +got):\n%s", got.Verdict, diff)
	}
	day := reconcile.Span{From: noon.Add(-12 * time.Hour), To: noon.Add(12 * time.Hour)}
	if got.Judged != day || got.Audit.Span != day || got.Vault.Span != day || got.Audit.Total != 1 || got.Audit.Logs != nil {
		t.Errorf("judged %v of %+v and %+v", got.Judged, got.Audit, got.Vault)
	}
	if diff := cmp.Diff([]reconcile.KeyCount{{Key: kekURL, Operation: "KeyGet", Count: 2}}, got.Management); diff != "" {
		t.Errorf("management differs (-want +got):\n%s", diff)
	}
}

// TestDropped takes records and requests away: exactly those are reported.
func TestDropped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const tolerance = 10 * time.Minute
		n := rapid.IntRange(1, 30).Draw(t, "events")
		jitter := rapid.SampledFrom([]time.Duration{0, time.Second, tolerance}).Draw(t, "jitter")
		noRecord := rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, 5, rapid.ID[int]).Draw(t, "without a record")
		noRequest := rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, 5, rapid.ID[int]).Draw(t, "without a request")
		noRequest = slices.DeleteFunc(noRequest, func(i int) bool { return jitter == tolerance || slices.Contains(noRecord, i) })
		logs := []*auditLog{newAuditLog("a").day(), newAuditLog("b").day()}
		var vault []string
		var want []string
		for i := range n {
			at := noon.Add(time.Duration(i) * time.Minute)
			if !slices.Contains(noRecord, i) {
				skew := time.Duration(rapid.Int64Range(-int64(jitter), int64(jitter)).Draw(t, "skew")).Truncate(time.Microsecond)
				logs[i%2].step(at.Add(skew), "unwrapped", version1)
			} else {
				want = append(want, fmt.Sprint(i))
			}
			if !slices.Contains(noRequest, i) {
				vault = append(vault, rapid.SampledFrom(unwrap(at, fmt.Sprint(i)).lines()).Draw(t, "variant"))
			}
		}
		lines := slices.Concat(logs[0].lines, logs[1].lines)
		for range rapid.IntRange(0, 5).Draw(t, "duplicates") {
			lines = append(lines, rapid.SampledFrom(lines).Draw(t, "record twice"))
			if len(vault) > 0 {
				vault = append(vault, rapid.SampledFrom(vault).Draw(t, "request twice"))
			}
		}
		shuffle := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Shuffle
		shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		shuffle(len(vault), func(i, j int) { vault[i], vault[j] = vault[j], vault[i] })
		r, err := reconcile.New(reconcile.Config{Keys: []string{kekURL}})
		if err == nil {
			err = reader.Read([]string{"-"}, strings.NewReader(strings.Join(lines, "")), r.AuditLine)
		}
		if err == nil {
			err = r.VaultLog("-", strings.NewReader(strings.Join(vault, "")+get()))
		}
		if err != nil {
			t.Fatal(err)
		}
		got := r.Report()
		both, unrecorded, missing := sums(got)
		switch {
		case len(noRequest) > 0 && len(noRecord) > 0:
			// Within the tolerance one may stand for another: only how many more
			// there are of one than of the other is certain.
			if unrecorded-missing != int64(len(noRecord)-len(noRequest)) {
				t.Fatalf("%d unrecorded and %d missing, of %d and %d", unrecorded, missing, len(noRecord), len(noRequest))
			}
			return
		case unrecorded != int64(len(noRecord)) || missing != int64(len(noRequest)):
			t.Fatalf("%d unrecorded and %d missing, not %d and %d", unrecorded, missing, len(noRecord), len(noRequest))
		case both != int64(n-len(noRecord)-len(noRequest)):
			t.Fatalf("%d in both, of %d", both, n)
		case (got.Verdict == reconcile.Match) != (unrecorded+missing == 0):
			t.Fatalf("verdict is %s", got.Verdict)
		}
		found := ids(got.Unrecorded)
		slices.Sort(want)
		slices.Sort(found)
		if jitter < tolerance && !slices.Equal(want, found) {
			t.Fatalf("unrecorded are %q, not %q", found, want)
		}
	})
}

// TestUnrecorded are uses that are not a sidecar's, each in another way.
func TestUnrecorded(t *testing.T) {
	log := newAuditLog("a").day()
	log.step(noon, "unwrapped", version1)
	log.add(noon.Add(3*time.Hour), record.Event{Kind: record.Unaccounted, From: noon.Add(2 * time.Hour), To: noon.Add(3 * time.Hour)})
	late := noon.Add(2*time.Hour + time.Minute)
	for name, tt := range map[string]struct {
		change func(*request)
		cfg    reconcile.Config
		want   []string
	}{
		"one more":             {func(*request) {}, reconcile.Config{}, []string{"x"}},
		"another identity":     {func(q *request) { q.app = other }, reconcile.Config{Identities: []string{own}}, []string{"x"}},
		"decrypt":              {func(q *request) { q.operation = "KeyDecrypt" }, reconcile.Config{}, []string{"x"}},
		"encrypt":              {func(q *request) { q.operation = "KeyEncrypt" }, reconcile.Config{}, []string{"x"}},
		"release":              {func(q *request) { q.operation = "KeyRelease" }, reconcile.Config{}, []string{"x"}},
		"a version not known":  {func(q *request) { q.id = kekURL + "/" + version3 }, reconcile.Config{}, []string{"x"}},
		"no version":           {func(q *request) { q.id = kekURL }, reconcile.Config{}, []string{"x"}},
		"a key not known":      {func(q *request) { q.id = signURL }, reconcile.Config{}, []string{}},
		"a key of a named key": {func(q *request) { q.id = signURL }, reconcile.Config{Keys: []string{signURL + "/"}}, []string{"x"}},
		"a key of a vault":     {func(q *request) { q.id = signURL }, reconcile.Config{Keys: []string{"https://SIGN.vault.azure.net"}}, []string{"x"}},
		"refused":              {func(q *request) { q.status = 403 }, reconcile.Config{}, []string{}},
		"restored elsewhere":   {func(q *request) { q.id = signURL + "/" + version1 }, reconcile.Config{}, []string{"x"}},
		"before From":          {func(*request) {}, reconcile.Config{From: late.Add(time.Second)}, []string{}},
		"long before From":     {func(*request) {}, reconcile.Config{From: late.Add(time.Hour)}, []string{}},
		"after To":             {func(*request) {}, reconcile.Config{To: late.Add(-time.Second)}, []string{}},
		"within":               {func(*request) {}, reconcile.Config{From: late, To: late.Add(time.Second)}, []string{"x"}},
	} {
		t.Run(name, func(t *testing.T) {
			q := unwrap(late, "x")
			tt.change(&q)
			got := compare(t, tt.cfg, strings.Join(log.lines, ""), unwrap(noon, "ours").line()+q.line()+get())
			if diff := cmp.Diff(tt.want, ids(got.Unrecorded)); diff != "" {
				t.Fatalf("unrecorded differ (-want +got):\n%s", diff)
			}
			if (got.Verdict == reconcile.Differ) != (len(tt.want) > 0) {
				t.Errorf("verdict is %s", got.Verdict)
			}
			if others := len(got.OtherKeys) == 1 && got.OtherKeys[0].Key == signURL; others != (name == "a key not known") {
				t.Errorf("other keys are %+v", got.OtherKeys)
			}
			for _, u := range got.Unrecorded {
				if u.IP != q.ip || u.Who.App != q.app || u.Operation != q.operation || !u.Time.Equal(q.at) || !strings.HasPrefix(q.id, u.Key) {
					t.Errorf("reported as %+v", u)
				}
				if !u.Unaccounted || u.Stranger != (q.app == other) {
					t.Errorf("unaccounted %v, stranger %v", u.Unaccounted, u.Stranger)
				}
			}
		})
	}
}

// TestNotDuplicates: a correlation id alone does not make two uses one.
func TestNotDuplicates(t *testing.T) {
	log := newAuditLog("a").day()
	log.step(noon, "unwrapped", version1)
	for name, tt := range map[string]struct {
		change func(*request)
		want   int64
	}{
		"same":             {func(*request) {}, 0},
		"another time":     {func(q *request) { q.at = q.at.Add(time.Microsecond) }, 1},
		"another address":  {func(q *request) { q.ip = "10.0.0.2" }, 1},
		"another identity": {func(q *request) { q.app = other }, 1},
		"another key":      {func(q *request) { q.id = signURL + "/" + version1 }, 1},
		"no id":            {func(q *request) { q.correlation = "" }, 1},
	} {
		q := unwrap(noon, "x")
		tt.change(&q)
		got := compare(t, reconcile.Config{}, strings.Join(log.lines, ""), unwrap(noon, "x").line()+q.line()+get())
		if _, unrecorded, _ := sums(got); unrecorded != tt.want || got.Vault.Duplicates != 1-tt.want {
			t.Errorf("%s: %d unrecorded, %d duplicates", name, unrecorded, got.Vault.Duplicates)
		}
	}
	text := fmt.Sprintf(`{"time":%q,"operationName":"KeyUnwrap","resultSignature":"OK","correlationId":"x","callerIpAddress":"10.0.0.1",`+
		`"identity":{"claim":{"appid":%q}},"id":"%s/%s"}`, noon.Format(time.RFC3339), own, kekURL, version1)
	got := compare(t, reconcile.Config{}, strings.Join(log.lines, ""), unwrap(noon, "x").line()+text+get())
	if _, unrecorded, _ := sums(got); unrecorded != 0 || got.Vault.Duplicates != 1 {
		t.Errorf("status as text: %d unrecorded, %d duplicates", unrecorded, got.Vault.Duplicates)
	}
	q := unwrap(noon, "")
	got = compare(t, reconcile.Config{}, strings.Join(log.lines, ""), q.line()+q.line()+get())
	if _, unrecorded, _ := sums(got); unrecorded != 1 {
		t.Errorf("two uses without ids: %d unrecorded", unrecorded)
	}
}

// TestEnds: near an end of one side, the other half may lie outside of it.
func TestEnds(t *testing.T) {
	end := noon.Add(12 * time.Hour)
	log := newAuditLog("a").day()
	audit := strings.Join(log.lines, "")
	for name, tt := range map[string]struct {
		audit, vault string
		verdict      reconcile.Verdict
		row          reconcile.Row
		outside      [2]int64
	}{
		"use near the end": {
			audit, unwrap(end.Add(-9*time.Minute), "x").line(), reconcile.Undecided,
			reconcile.Row{Undecided: 1}, [2]int64{},
		},
		"use before that": {
			audit, unwrap(end.Add(-11*time.Minute), "x").line(), reconcile.Differ, reconcile.Row{Unrecorded: 1}, [2]int64{},
		},
		"use near the beginning": {
			audit, unwrap(end.Add(-24*time.Hour+time.Minute), "x").line(), reconcile.Undecided, reconcile.Row{Undecided: 1}, [2]int64{},
		},
		"use after the end": {
			audit, unwrap(end.Add(time.Minute), "x").line(), reconcile.Undecided, reconcile.Row{Undecided: 1}, [2]int64{},
		},
		"use long after the end": {
			audit, unwrap(end.Add(time.Hour), "x").line(), reconcile.Undecided, reconcile.Row{Undecided: 1}, [2]int64{},
		},
		"use long before the beginning": {
			audit, unwrap(end.Add(-25*time.Hour), "x").line(), reconcile.Undecided, reconcile.Row{Undecided: 1}, [2]int64{},
		},
		"pair across the end": {
			step(end.Add(-time.Second)), unwrap(end.Add(time.Second), "x").line(), reconcile.Match, reconcile.Row{Both: 1}, [2]int64{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := compare(t, reconcile.Config{Keys: []string{kekURL}}, audit+tt.audit, tt.vault+get())
			if got.Verdict != tt.verdict || [2]int64{got.Outside.Records, got.Outside.Uses} != tt.outside {
				t.Errorf("verdict is %s, outside %+v", got.Verdict, got.Outside)
			}
			var row reconcile.Row
			for _, r := range got.Rows {
				row = reconcile.Row{Both: r.Both, Unrecorded: r.Unrecorded, Undecided: r.Undecided}
			}
			if diff := cmp.Diff(tt.row, row); diff != "" {
				t.Errorf("row differs (-want +got):\n%s", diff)
			}
		})
	}
	got := compare(t, reconcile.Config{From: noon, To: noon.Add(time.Hour)},
		audit+step(noon.Add(-5*time.Minute))+step(noon.Add(time.Hour+5*time.Minute)),
		unwrap(noon.Add(time.Minute), "x").line()+unwrap(noon.Add(time.Hour-time.Minute), "y").line()+get())
	if both, _, _ := sums(got); got.Verdict != reconcile.Match || both != 2 {
		t.Errorf("pairs across From and To: verdict is %s, %d in both", got.Verdict, both)
	}
	log.step(end.Add(-time.Minute), "unwrapped", version1)
	log.step(noon, "unwrapped", version1)
	log.step(noon.Add(time.Minute), "unwrapped", version1)
	got = compare(t, reconcile.Config{}, strings.Join(log.lines, ""), get())
	want := []reconcile.Row{{
		KEK: "eu", Version: version1, Operation: "KeyUnwrap",
		Missing:      reconcile.Counted{Count: 2, Span: reconcile.Span{From: noon, To: noon.Add(time.Minute)}},
		MissingAtEnd: reconcile.Counted{Count: 1, Span: reconcile.Span{From: end.Add(-time.Minute), To: end.Add(-time.Minute)}},
	}}
	if diff := cmp.Diff(want, got.Rows); diff != "" || got.Verdict != reconcile.Differ {
		t.Errorf("verdict %s, rows differ (-want +got):\n%s", got.Verdict, diff)
	}
}

// TestBeyondTheAuditLogs: what cannot be a sidecar's is unrecorded also where the
// audit logs do not reach; what can be is not judged without them.
func TestBeyondTheAuditLogs(t *testing.T) {
	at := func(clock string) time.Time {
		day, err := time.Parse("2006-01-02 15:04", "2026-11-21 "+clock)
		if err != nil {
			t.Fatal(err)
		}
		return day
	}
	log := newAuditLog("a")
	log.add(at("09:00"), record.Event{Kind: record.Start})
	log.step(at("10:20"), "unwrapped", version1)
	log.add(at("10:40"), record.Event{Kind: record.Alive})
	for name, tt := range map[string]struct {
		change   func(*request)
		from, to string
		want     reconcile.Verdict
	}{
		"a stranger":                {func(q *request) { q.app = other }, "10:00", "12:30", reconcile.Differ},
		"a stranger, no bounds":     {func(q *request) { q.app = other }, "", "", reconcile.Differ},
		"an operation of strangers": {func(q *request) { q.operation = "keydecrypt" }, "", "", reconcile.Differ},
		"a sidecar":                 {func(*request) {}, "10:00", "12:30", reconcile.Undecided},
		"a sidecar, no bounds":      {func(*request) {}, "", "", reconcile.Undecided},
		"a stranger after To":       {func(q *request) { q.app = other }, "10:00", "10:45", reconcile.Match},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := reconcile.Config{Identities: []string{own}, Keys: []string{kekURL}}
			if tt.from != "" {
				cfg.From, cfg.To = at(tt.from), at(tt.to)
			}
			q := unwrap(at("11:40"), "x")
			tt.change(&q)
			last := unwrap(at("12:40"), "last")
			last.operation = "KeyGet"
			first := last
			first.at = at("09:30")
			got := compare(t, cfg, strings.Join(log.lines, ""), first.line()+unwrap(at("10:20"), "ours").line()+q.line()+last.line())
			if got.Verdict != tt.want {
				t.Errorf("verdict is %s, not %s: %+v, %+v", got.Verdict, tt.want, got.Unrecorded, got.Undecided)
			}
			if both, unrecorded, _ := sums(got); both != 1 || (unrecorded == 1) != (tt.want == reconcile.Differ) {
				t.Errorf("%d in both, %d unrecorded", both, unrecorded)
			}
		})
	}
}

// TestCoverage: what is asked for is judged as a whole, or it is said that it was
// not.
func TestCoverage(t *testing.T) {
	const day, tolerance = 12 * time.Hour, 10 * time.Minute
	audit := strings.Join(newAuditLog("a").day().lines, "")
	early, late := unwrap(noon.Add(-day-time.Hour), "a"), unwrap(noon.Add(day+time.Hour), "b")
	early.operation, late.operation = "KeyGet", "KeyGet"
	wide := early.line() + late.line()
	widest := newAuditLog("b")
	widest.add(noon.Add(-2*day), record.Event{Kind: record.Start})
	widest.add(noon.Add(2*day), record.Event{Kind: record.Stop})
	for name, tt := range map[string]struct {
		from, to            time.Duration // from noon
		audit, vault        string
		want                reconcile.Verdict
		shortAudit, shortKV bool
	}{
		"within":                {-day, day, audit, wide, reconcile.Match, false, false},
		"by the tolerance":      {-day - tolerance, day + tolerance, audit, wide, reconcile.Match, false, false},
		"audit begins too late": {-day - tolerance - 1, day, audit, wide, reconcile.Undecided, true, false},
		"audit ends too early":  {-day, day + tolerance + 1, audit, wide, reconcile.Undecided, true, false},
		"vault begins too late": {-day - 2*time.Hour, day, strings.Join(widest.lines, ""), wide, reconcile.Undecided, false, true},
		"vault ends too early":  {-day, day + 2*time.Hour, strings.Join(widest.lines, ""), wide, reconcile.Undecided, false, true},
		"a difference decides it": {
			-day, day + 2*time.Hour, audit, wide + unwrap(noon, "x").line(), reconcile.Differ, true, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := reconcile.Config{Keys: []string{kekURL}, From: noon.Add(tt.from), To: noon.Add(tt.to)}
			got := compare(t, cfg, tt.audit, tt.vault)
			if got.Verdict != tt.want || got.Audit.Short != tt.shortAudit || got.Vault.Short != tt.shortKV {
				t.Errorf("verdict is %s, audit logs short: %v, vault logs: %v", got.Verdict, got.Audit.Short, got.Vault.Short)
			}
			text := got.Text()
			for what, short := range map[string]bool{"audit": tt.shortAudit, "vault": tt.shortKV} {
				if strings.Contains(text, "\nnote         the "+what+" logs do not cover all that is to be judged\n") != short {
					t.Errorf("short %s logs: %v, and the text is\n%s", what, short, text)
				}
			}
			judged := fmt.Sprintf(" (judged: %s to %s)\n", got.Judged.From.Format(time.RFC3339), got.Judged.To.Format(time.RFC3339))
			if !strings.HasPrefix(text[strings.LastIndex(strings.TrimSuffix(text, "\n"), "\n")+1:], string(tt.want)) ||
				!strings.HasSuffix(text, judged) {
				t.Errorf("the text does not end with the verdict and what was judged:\n%s", text)
			}
		})
	}
}

// step returns a log with one record of an unwrapped key.
func step(at time.Time) string {
	log := newAuditLog("b")
	log.step(at, "unwrapped", version1)
	return strings.Join(log.lines, "")
}

func TestNothing(t *testing.T) {
	day := strings.Join(newAuditLog("a").day().lines, "")
	later := unwrap(noon.Add(100*time.Hour), "x").line()
	for name, tt := range map[string]struct {
		cfg          reconcile.Config
		audit, vault string
		want         reconcile.Verdict
	}{
		"no logs":          {reconcile.Config{}, "", get(), reconcile.Nothing},
		"no vault logs":    {reconcile.Config{}, day, "", reconcile.Nothing},
		"no KEK":           {reconcile.Config{}, day, get(), reconcile.Nothing},
		"another time":     {reconcile.Config{Keys: []string{kekURL}}, day, later, reconcile.Nothing},
		"outside From":     {reconcile.Config{From: noon.Add(48 * time.Hour)}, day + step(noon), get(), reconcile.Nothing},
		"a KEK that rests": {reconcile.Config{Keys: []string{kekURL}}, day, get(), reconcile.Match},
	} {
		if got := compare(t, tt.cfg, tt.audit, tt.vault); got.Verdict != tt.want {
			t.Errorf("%s: verdict is %s, not %s", name, got.Verdict, tt.want)
		}
	}
}

func TestFailures(t *testing.T) {
	var vault strings.Builder
	add := func(n int, status int, ip string) {
		for i := range n {
			q := unwrap(noon, fmt.Sprint(ip, i))
			q.status, q.ip = status, ip
			vault.WriteString(q.line())
		}
	}
	add(1, 403, "10.0.0.9")
	add(3, 429, "10.0.0.1")
	got := compare(t, reconcile.Config{}, step(noon), vault.String())
	want := []reconcile.Failure{
		{Operation: "KeyUnwrap", Status: "429", IP: "10.0.0.1", Who: reconcile.Who{App: own}, Count: 3},
		{Operation: "KeyUnwrap", Status: "403", IP: "10.0.0.9", Who: reconcile.Who{App: own}, Count: 1},
	}
	if diff := cmp.Diff(want, got.Failed); diff != "" {
		t.Errorf("failures differ (-want +got):\n%s", diff)
	}
	for i := range 2000 {
		add(1, 403, fmt.Sprintf("10.1.%d.%d", i/250, i%250))
	}
	got = compare(t, reconcile.Config{}, step(noon), vault.String())
	var total int64
	for _, f := range got.Failed {
		total += f.Count
	}
	if len(got.Failed) > 1001 || total != 2004 || got.Failed[0].IP != "others" {
		t.Errorf("%d rows of %d failures, the first %+v", len(got.Failed), total, got.Failed[0])
	}
}

// TestAuditSide tells what is wrong with the audit logs.
func TestAuditSide(t *testing.T) {
	log := newAuditLog("a").day()
	log.step(noon, "unwrapped", version1)
	log.add(noon, record.Event{Kind: record.Lost, Count: 7})
	pruned := log.header
	pruned.Time = noon.Add(-time.Hour)
	edited := strings.Replace(step(noon), "acme", "evil", 1)
	stopped := newAuditLog("d")
	stopped.add(noon, record.Event{Kind: record.Stop})
	audit := strings.Join(log.lines, "") + string(pruned.AppendPruned(nil)) + edited + log.lines[2] + stopped.lines[0] +
		`{"log":"keysidecar/x","seq":01}` + "\n" + `{"log":"keysidecar/payments/c","se`
	got := compare(t, reconcile.Config{}, audit, unwrap(noon, "x").line()+get()+"#\n")
	want := reconcile.AuditSide{
		Span: got.Audit.Span, Total: 3, Duplicates: 1, Torn: 1, Lost: 7,
		Logs:   []reconcile.OpenLog{{Log: "keysidecar/payments/b", Last: noon}},
		Pruned: reconcile.Counted{Count: 1, Span: reconcile.Span{From: pruned.Time, To: pruned.Time}},
	}
	if diff := cmp.Diff(want, got.Audit); diff != "" {
		t.Errorf("audit side differs (-want +got):\n%s", diff)
	}
	if got.Unreadable.Count != 3 || got.Verdict != reconcile.Differ || len(got.Unreadable.First) != 3 ||
		!strings.HasPrefix(got.Unreadable.First[0], "-:6: its event is not") ||
		!strings.HasPrefix(got.Unreadable.First[1], "-:9: not a line of an audit log") || got.Unreadable.First[2] != "-:4: not JSON" {
		t.Errorf("verdict %s, unreadable %d: %q", got.Verdict, got.Unreadable.Count, got.Unreadable.First)
	}
}

func TestUnreadableAreBounded(t *testing.T) {
	got := compare(t, reconcile.Config{}, step(noon), unwrap(noon, "x").line()+strings.Repeat("x\n", 100))
	if got.Unreadable.Count != 100 || len(got.Unreadable.First) != 10 || got.Unreadable.First[9] != "-:11: not JSON" {
		t.Errorf("%d unreadable, named %q", got.Unreadable.Count, got.Unreadable.First)
	}
}

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]reconcile.Config{
		"tolerance is -1s":                  {Tolerance: -time.Second},
		"tolerance is 24h0m1s":              {Tolerance: 24*time.Hour + time.Second},
		"there is no time":                  {From: noon, To: noon},
		"an identity is empty":              {Identities: []string{own, ""}},
		`key "https://v/keys/k/` + version1: {Keys: []string{"https://v/keys/k/" + version1}},
		`key "http://v"`:                    {Keys: []string{"http://v"}},
		`key "v"`:                           {Keys: []string{"v"}},
		`key "https://v/secrets/k"`:         {Keys: []string{"https://v/secrets/k"}},
		`key "https://"`:                    {Keys: []string{"https://"}},
	} {
		if _, err := reconcile.New(cfg); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVaultFiles(t *testing.T) {
	dir := t.TempDir()
	blob := filepath.Join(dir, "resourceId=", "y=2026", "m=11", "d=21", "h=12", "m=00", "PT1H.json")
	hidden := filepath.Join(dir, ".tmp", "x.json")
	for name, text := range map[string]string{
		blob: unwrap(noon, "x").line(), hidden: "hidden", filepath.Join(dir, ".x"): "hidden", filepath.Join(dir, "more"): get(),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]int64{dir: 2, blob: 0, "-": 1} {
		r, err := reconcile.New(reconcile.Config{Keys: []string{kekURL}})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.VaultFiles(path, strings.NewReader(strings.SplitAfter(get(), "\n")[0])); err != nil {
			t.Fatal(err)
		}
		got := r.Report()
		var n int64
		for _, k := range got.Management {
			n += k.Count
		}
		if n != want || got.Unreadable.Count != 0 {
			t.Errorf("%s: %d requests besides, not %d; unreadable %q", path, n, want, got.Unreadable.First)
		}
	}
	r, err := reconcile.New(reconcile.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "none"), t.TempDir()} {
		if err := r.VaultFiles(path, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
