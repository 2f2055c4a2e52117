package export_test

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/audit/export"
	"github.com/keysidecar/keysidecar/audit/record"
)

var began = time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC)

// journal writes the lines of one log. Its records are a minute apart.
type journal struct {
	origin string
	size   int64
	prev   record.Link
}

func (j *journal) line(class record.Class, e *record.Event) string {
	return j.raw(class, e.Append(nil))
}

func (j *journal) raw(class record.Class, event []byte) string {
	h := record.Header{Log: j.origin, Seq: j.size, Time: began.Add(time.Duration(j.size) * time.Minute), Class: class, Prev: j.prev}
	line, leaf := record.Append(nil, &h, event)
	j.size++
	j.prev = record.LinkTo(leaf)
	return string(line)
}

// pruned returns a line without its event.
func pruned(t *testing.T, line string) string {
	t.Helper()
	r, err := record.Parse([]byte(strings.TrimSuffix(line, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return string(r.AppendPruned(nil))
}

const origin = "keysidecar/test/20261122T093000Z-1a2b3c4d5e6f"

// sample has a record of each class.
func sample() []string {
	j := &journal{origin: origin}
	return []string{
		j.line(record.Keys, &record.Event{Kind: record.Start, Version: "v1"}),
		j.line(record.Keys, &record.Event{Kind: record.KeyStep, Tenant: "acme", Step: "mint"}),
		j.line(record.Denials, &record.Event{Kind: record.Denied, Caller: "web", Tenant: "acme", Verb: "seal", Result: "PERMISSION_DENIED"}),
		j.line(record.Data, &record.Event{
			Kind: record.Calls, Caller: "web", Tenant: "globex", Verb: "unseal", Result: "OK", Count: 7,
			From: began.Add(90 * time.Second), To: began.Add(3 * time.Minute),
		}),
		j.line(record.Data, &record.Event{Kind: record.Call, Caller: "batch", Tenant: "acme", Verb: "unseal", Result: "OK", Bytes: 5}),
	}
}

func exported(t *testing.T, format export.Format, f export.Filter, lines ...string) (string, export.Stats) {
	t.Helper()
	var out strings.Builder
	s, err := export.Export([]string{"-"}, strings.NewReader(strings.Join(lines, "")), &out, export.Config{Format: format, Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), s
}

// TestLinesAreKept exports a stream with other output between as the log has it.
func TestLinesAreKept(t *testing.T) {
	lines := sample()
	lines[2] = pruned(t, lines[2])
	noise := "level=INFO msg=started\n2026-11-22T09:30:00.1Z stdout F " + lines[0]
	got, s := exported(t, export.JSONL, export.Filter{}, append([]string{noise}, lines[1:]...)...)
	if diff := cmp.Diff(strings.Join(lines, ""), got); diff != "" {
		t.Errorf("lines changed (-want +got):\n%s", diff)
	}
	if want := (export.Stats{Records: 5, Written: 5}); s != want {
		t.Errorf("stats are %+v, want %+v", s, want)
	}
}

func TestFilters(t *testing.T) {
	at := func(m float64) time.Time { return began.Add(time.Duration(m * float64(time.Minute))) }
	lines := sample()
	lines = append(lines, pruned(t, (&journal{origin: origin, size: 5}).line(record.Data, &record.Event{Kind: record.Call, Tenant: "acme"})))
	for name, c := range map[string]struct {
		filter  export.Filter
		want    []int // numbers of records
		unknown int64
	}{
		"all":              {export.Filter{}, []int{0, 1, 2, 3, 4, 5}, 0},
		"tenant":           {export.Filter{Tenant: "acme"}, []int{1, 2, 4}, 1},
		"no such tenant":   {export.Filter{Tenant: "acm"}, nil, 1},
		"verb":             {export.Filter{Verb: "unseal"}, []int{3, 4}, 1},
		"caller":           {export.Filter{Caller: "web"}, []int{2, 3}, 1},
		"kind":             {export.Filter{Kind: record.Denied}, []int{2}, 1},
		"class":            {export.Filter{Class: record.Data}, []int{3, 4, 5}, 0},
		"class of others":  {export.Filter{Class: record.Keys, Tenant: "acme"}, []int{1}, 0},
		"several":          {export.Filter{Tenant: "acme", Verb: "unseal"}, []int{4}, 1},
		"from":             {export.Filter{From: at(3)}, []int{3, 4, 5}, 0},
		"just after":       {export.Filter{From: at(3.01)}, []int{4, 5}, 0},
		"to":               {export.Filter{To: at(1)}, []int{0}, 0},
		"just before":      {export.Filter{To: at(1.01)}, []int{0, 1}, 0},
		"an interval":      {export.Filter{From: at(2.1), To: at(2.9)}, []int{3}, 0},
		"before interval":  {export.Filter{From: at(1.2), To: at(1.5)}, nil, 0},
		"unknown and late": {export.Filter{Tenant: "acme", From: at(6)}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			for _, i := range c.want {
				want = append(want, lines[i])
			}
			got, s := exported(t, export.JSONL, c.filter, lines...)
			if diff := cmp.Diff(strings.Join(want, ""), got); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
			if stats := (export.Stats{Records: 6, Written: int64(len(want)), Unknown: c.unknown}); s != stats {
				t.Errorf("stats are %+v, want %+v", s, stats)
			}
		})
	}
}

// TestDamaged leaves out what was edited, and counts it. A last line that is torn
// is not damage.
func TestDamaged(t *testing.T) {
	lines := sample()
	edited := strings.Replace(lines[2], "PERMISSION_DENIED", "OK", 1)
	terminal := (&journal{origin: origin}).raw(record.Data, []byte("{\"kind\":\"call\",\"detail\":\"\u009b2J\"}"))
	for name, c := range map[string]struct {
		text  string
		want  string
		stats export.Stats
	}{
		"edited":    {lines[0] + edited + lines[3], lines[0] + lines[3], export.Stats{Records: 2, Written: 2, Damaged: 1, First: "-:2: its event is not the one that was recorded"}},
		"no record": {lines[0] + `{"log":"keysidecar/x"}` + "\n", lines[0], export.Stats{Records: 1, Written: 1, Damaged: 1, First: "-:2: not a line of an audit log"}},
		"no kind":   {(&journal{origin: origin}).raw(record.Data, []byte(`{"x":1}`)), "", export.Stats{Damaged: 1, First: "-:1: reading an event: "}},
		"escape":    {terminal, "", export.Stats{Damaged: 1, First: "-:1: its event has other characters than a sidecar writes"}},
		"torn":      {lines[0] + lines[1][:100], lines[0], export.Stats{Records: 1, Written: 1, Torn: 1}},
		"torn at the end of a line": {
			lines[0] + strings.TrimSuffix(lines[1], "\n"), lines[0] + lines[1], export.Stats{Records: 2, Written: 2},
		},
		"torn, edited": {strings.TrimSuffix(edited, "\n"), "", export.Stats{Damaged: 1, First: "-:1: its event"}},
		"two":          {edited + terminal, "", export.Stats{Damaged: 2, First: "-:1: "}},
	} {
		t.Run(name, func(t *testing.T) {
			got, s := exported(t, export.JSONL, export.Filter{}, c.text)
			if got != c.want {
				t.Errorf("exported\n%s, want\n%s", got, c.want)
			}
			if !strings.HasPrefix(s.First, c.stats.First) {
				t.Errorf("the first is %q, want %q", s.First, c.stats.First)
			}
			if s.First = c.stats.First; s != c.stats {
				t.Errorf("stats are %+v, want %+v", s, c.stats)
			}
		})
	}
}

// TestNameOfDamagedFile has a file whose name would clear a terminal.
func TestNameOfDamagedFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "\x1b[2J.jsonl"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := export.Export([]string{dir}, nil, io.Discard, export.Config{Format: export.JSONL})
	if err != nil || !strings.Contains(s.First, `\x1b[2J.jsonl":1: `) || strings.Contains(s.First, "\x1b") {
		t.Errorf("the first is %q, %v", s.First, err)
	}
}

func readCSV(t *testing.T, text string) [][]string {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return rows
}

// TestColumns has every field of an event in its column, by its name and in the
// order of the struct.
func TestColumns(t *testing.T) {
	var e record.Event
	want := map[string]string{"log": origin, "seq": "0", "time": "2026-11-22T09:30:00.000000Z", "class": "data"}
	names := []string{"log", "seq", "time", "class"}
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		names = append(names, name)
		switch f := v.Field(i).Addr().Interface().(type) {
		case *string:
			*f = "value of " + name
			want[name] = *f
		case *record.Kind:
			*f = record.Call
			want[name] = "call"
		case *int32:
			*f = int32(100 + i)
			want[name] = strconv.Itoa(100 + i)
		case *int64:
			*f = int64(100 + i)
			want[name] = strconv.Itoa(100 + i)
		case *time.Time:
			*f = began.Add(time.Duration(i) * time.Second)
			want[name] = f.Format("2006-01-02T15:04:05.000000Z")
		case *map[string]string:
			*f = map[string]string{"b": name, "a": `"`}
			want[name] = `{"a":"\"","b":"` + name + `"}`
		case *[]string:
			*f = []string{"1", "2"}
			want[name] = "1 2"
		default:
			t.Fatalf("field %s has a type that no column is for", name)
		}
	}
	text, s := exported(t, export.CSV, export.Filter{}, (&journal{origin: origin}).line(record.Data, &e))
	if s.Written != 1 || !strings.HasSuffix(text, "\r\n") {
		t.Fatalf("%+v, %q", s, text)
	}
	rows := readCSV(t, text)
	got := make(map[string]string)
	for i, name := range rows[0] {
		got[name] = rows[1][i]
	}
	if diff := cmp.Diff(names, rows[0]); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cells (-want +got):\n%s", diff)
	}
}

// TestEmptyCSV has a header, and the row of a removed event what is known.
func TestEmptyCSV(t *testing.T) {
	text, _ := exported(t, export.CSV, export.Filter{})
	if !strings.HasPrefix(text, "log,seq,time,class,kind,") || strings.Count(text, "\r\n") != 1 {
		t.Errorf("nothing is exported as %q", text)
	}
	text, _ = exported(t, export.CSV, export.Filter{}, pruned(t, sample()[0]))
	if row := readCSV(t, text)[1]; row[0] != origin || strings.Join(row[4:], "") != "" {
		t.Errorf("a removed event is %q", row)
	}
}

func TestCells(t *testing.T) {
	for value, want := range map[string]string{
		"=cmd|' /C calc'!A0":   "'=cmd|' /C calc'!A0",
		"+1":                   "'+1",
		"-1":                   "'-1",
		"@SUM(1)":              "'@SUM(1)",
		"\t=1":                 `'\u0009=1`,
		"\r=1":                 `'\u000d=1`,
		"\n=1":                 `'\n=1`,
		"＝1":                   "'＝1",
		"a=1":                  "a=1",
		" =1":                  " =1",
		`a,"b"`:                `a,"b"`,
		"CN=a;=cmd":            `CN=a\u003b=cmd`,
		`a;"=cmd"`:             `a\u003b"=cmd"`,
		`a\u003b`:              `a\\u003b`,
		"a\nb":                 `a\nb`,
		`a\nb`:                 `a\\nb`,
		"a\x00\x1b[2J\x7f\n":   `a\u0000\u001b[2J\u007f\n`,
		"caf\u00e9":            "caf\u00e9",
		"\u202egnp.exe\u009b1": `\u202egnp.exe\u009b1`,
		"\U000e0001":           `\udb40\udc01`,
	} {
		text, _ := exported(t, export.CSV, export.Filter{}, (&journal{origin: origin}).line(record.Data, &record.Event{Kind: record.Call, Tenant: value}))
		rows := readCSV(t, text)
		if got := rows[1][slices.Index(rows[0], "tenant")]; got != want {
			t.Errorf("%q is exported as %q, want %q", value, got, want)
		}
	}
}

// TestAnyCell gives events anything: no cell is a formula or has a character
// that is not shown, no row has another number of cells, and nothing is lost.
func TestAnyCell(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		values := rapid.SliceOfN(rapid.String(), 3, 3).Draw(rt, "values")
		e := &record.Event{Kind: record.Call, Detail: values[0], Context: map[string]string{values[1]: values[2]}}
		line := (&journal{origin: origin}).line(record.Data, e)
		var out strings.Builder
		if _, err := export.Export([]string{"-"}, strings.NewReader(line), &out, export.Config{Format: export.CSV}); err != nil {
			rt.Fatal(err)
		}
		rows, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
		if err != nil || len(rows) != 2 {
			rt.Fatalf("%d rows, %v", len(rows), err)
		}
		for i, cell := range rows[1] {
			if strings.ContainsFunc(cell, func(c rune) bool { return !unicode.IsPrint(c) }) {
				rt.Fatalf("%s is %q", rows[0][i], cell)
			}
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@") || strings.Contains(cell, ";") {
				rt.Fatalf("%s is a formula: %q", rows[0][i], cell)
			}
		}
		detail := strings.TrimPrefix(rows[1][slices.Index(rows[0], "detail")], "'")
		var got string
		quoted := `"` + strings.ReplaceAll(detail, `"`, `\"`) + `"`
		want := strings.TrimPrefix(strings.ToValidUTF8(values[0], "\ufffd"), "'")
		if err := json.Unmarshal([]byte(quoted), &got); err != nil || got != want {
			rt.Fatalf("detail is %q, which is %q, %v", detail, got, err)
		}
		var context map[string]string
		if err := json.Unmarshal([]byte(rows[1][slices.Index(rows[0], "context")]), &context); err != nil {
			rt.Fatalf("context: %v", err)
		}
		if diff := cmp.Diff(e.Context, context); diff != "" {
			rt.Fatalf("context (-want +got):\n%s", diff)
		}
	})
}

func TestParse(t *testing.T) {
	for s, want := range map[string]time.Time{
		"2026-11-22T10:30:00+01:00": began,
		"90m":                       began.Add(-90 * time.Minute),
		"24h ago":                   began.Add(-24 * time.Hour),
		"7d":                        began.AddDate(0, 0, -7),
		"0s":                        began,
	} {
		if got, err := export.ParseTime(s, began); err != nil || !got.Equal(want) {
			t.Errorf("time %q is %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "yesterday", "-1h", "-1d", "1.5d", "99999d", "2026-11-22", "5"} {
		if got, err := export.ParseTime(s, began); err == nil {
			t.Errorf("time %q is %v", s, got)
		}
	}
	if _, err := export.ParseFormat("text"); err == nil {
		t.Error("text is a format of export")
	}
	if _, err := export.ParseKind("denial"); err == nil || !strings.Contains(err.Error(), "denied, denials") {
		t.Errorf("kind denial: %v", err)
	}
}

// TestKinds has every kind that record declares.
func TestKinds(t *testing.T) {
	declared := make(map[string]bool)
	file, err := parser.ParseFile(token.NewFileSet(), "../record/event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && fmt.Sprint(spec.Type) == "Kind" {
			name, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			declared[name] = true
		}
		return true
	})
	if len(declared) == 0 {
		t.Fatal("record declares no kinds")
	}
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		if k, err := export.ParseKind(name); err != nil || string(k) != name {
			t.Errorf("kind %s: %q, %v", name, k, err)
		}
	}
}

// endless is n times the same lines.
type endless struct {
	lines string
	n     int
	rest  string
}

func (e *endless) Read(p []byte) (int, error) {
	if e.rest == "" {
		if e.n == 0 {
			return 0, io.EOF
		}
		e.n, e.rest = e.n-1, e.lines
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// heap counts what is in use after a garbage collection, every million bytes.
type heap struct{ written, at, most uint64 }

func (h *heap) Write(p []byte) (int, error) {
	if h.written += uint64(len(p)); h.written >= h.at {
		h.at += 1 << 20
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		h.most = max(h.most, m.HeapAlloc)
	}
	return len(p), nil
}

// TestMemory exports far more than may be held.
func TestMemory(t *testing.T) {
	lines := strings.Join(sample(), "")
	for _, format := range []export.Format{export.JSONL, export.CSV} {
		var out heap
		in := io.MultiReader(&endless{lines: lines, n: 4000}, &endless{lines: "{\"log\":\"keysidecar/", n: 200_000})
		var before runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s, err := export.Export([]string{"-"}, in, &out, export.Config{Format: format})
		if err != nil || s.Written != 20_000 || s.Torn != 1 {
			t.Fatalf("%+v, %v", s, err)
		}
		if out.written < 2<<20 || out.most > before.HeapAlloc+2<<20 {
			t.Errorf("%s: %d bytes written, heap went from %d to %d", format, out.written, before.HeapAlloc, out.most)
		}
	}
}

// TestErrors returns errors of reading and of writing.
func TestErrors(t *testing.T) {
	broken := errors.New("broken")
	in := io.MultiReader(strings.NewReader(sample()[0]), failing{broken})
	if s, err := export.Export([]string{"-"}, in, io.Discard, export.Config{Format: export.JSONL}); !errors.Is(err, broken) || s.Written != 1 {
		t.Errorf("reading: %+v, %v", s, err)
	}
	for _, format := range []export.Format{export.JSONL, export.CSV} {
		for _, n := range []int{1, 10_000} {
			_, err := export.Export([]string{"-"}, &endless{lines: sample()[0], n: n}, failing{broken}, export.Config{Format: format})
			if !errors.Is(err, broken) {
				t.Errorf("writing %d lines of %s: %v", n, format, err)
			}
		}
	}
}

// failing can neither be read nor written.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }
