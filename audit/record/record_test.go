package record_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/audit/record"
)

func at() time.Time { return time.Date(2026, 11, 22, 9, 30, 0, 123456000, time.UTC) }

func header() record.Header {
	return record.Header{Log: "keysidecar/t/a", Seq: 7, Time: at(), Class: record.Keys, Prev: record.Link{1, 2, 3}}
}

func TestLine(t *testing.T) {
	t.Parallel()
	h := header()
	line, leaf := record.Append([]byte("before "), &h, []byte(`{"kind":"alive"}`))
	const head = `{"log":"keysidecar/t/a","seq":7,"time":"2026-11-22T09:30:00.123456Z","class":"keys","prev":"AQIDAAAAAAAA",` +
		`"sha256":"S9KRiiKw+RfNVdkTFFRvzNJuKfhjQuXxeJ5rXqLSOA8="`
	sum := sha256.Sum256([]byte(`{"kind":"alive"}`))
	if h.Sum != sum {
		t.Errorf("sum %x", h.Sum)
	}
	want := "before " + strings.Replace(head, "S9KRiiKw+RfNVdkTFFRvzNJuKfhjQuXxeJ5rXqLSOA8=", tlog.Hash(sum).String(), 1)
	if string(line) != want+`,"event":{"kind":"alive"}}`+"\n" {
		t.Errorf("%s\n%s", line, want)
	}
	if leaf != tlog.RecordHash([]byte(strings.TrimPrefix(want, "before ")+"}")) {
		t.Error("the leaf is not the line without its event")
	}
	r, err := record.Parse(bytes.TrimSuffix(bytes.TrimPrefix(line, []byte("before ")), []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&record.Record{Header: h, Leaf: leaf, Event: []byte(`{"kind":"alive"}`)}, r); diff != "" {
		t.Error(diff)
	}
	r.Event[3]++
	if r.Intact() || r.Pruned() {
		t.Error("a changed event is intact")
	}
}

func TestMalformedLines(t *testing.T) {
	t.Parallel()
	h := header()
	line, _ := record.Append(nil, &h, []byte(`{"kind":"alive"}`))
	good := strings.TrimSuffix(string(line), "\n")
	pruned := strings.TrimSuffix(string(h.AppendPruned(nil)), "\n")
	for _, ok := range []string{good, pruned} {
		if _, err := record.Parse([]byte(ok)); err != nil {
			t.Fatalf("%s: %v", ok, err)
		}
	}
	replace := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("no %s in %s", from, good)
		}
		return strings.Replace(good, from, to, 1)
	}
	for name, bad := range map[string]string{
		"empty":            "",
		"line feed":        good + "\n",
		"brace missing":    good[:len(good)-1],
		"no event":         strings.TrimSuffix(pruned, "}"),
		"space":            replace(`,"seq"`, `, "seq"`),
		"case":             replace(`"seq"`, `"Seq"`),
		"another key":      replace(`,"seq"`, `,"x":1,"seq"`),
		"key twice":        replace(`,"seq":7`, `,"seq":7,"seq":7`),
		"order":            replace(`"seq":7,"time":"2026-11-22T09:30:00.123456Z"`, `"time":"2026-11-22T09:30:00.123456Z","seq":7`),
		"number":           replace(`"seq":7`, `"seq":07`),
		"exponent":         replace(`"seq":7`, `"seq":7e0`),
		"negative":         replace(`"seq":7`, `"seq":-7`),
		"large":            replace(`"seq":7`, `"seq":9223372036854775808`),
		"time":             replace(`.123456Z`, `.12345Z`),
		"time zone":        replace(`.123456Z`, `.123456+01:00`),
		"comma":            replace(`.123456Z`, `,123456Z`),
		"February":         replace(`-11-22T`, `-02-30T`),
		"class":            replace(`"keys"`, `"key"`),
		"base64":           replace(`AQIDAAAAAAAA`, `AQIDAAAAAA==`),
		"base64 line feed": replace(`AQIDAAAAAAAA`, `AQID\nAAAAAAAA`),
		"long hash":        replace(`AQIDAAAAAAAA`, strings.Repeat(`AQIDAAAAAAAA`, 9)),
		"short hash":       replace(`AQIDAAAAAAAA`, `AQID`),
		"hash not closed":  strings.TrimSuffix(pruned, `"}`) + "}",
		"origin":           replace(`keysidecar/t/a`, `keysidecar/t a`),
		"escaped origin":   replace(`keysidecar/t/a`, `keysidecar\/t/a`),
		"no origin":        replace(`keysidecar/t/a`, ``),
		"long origin":      replace(`keysidecar/t/a`, strings.Repeat("a", 129)),
		"event a number":   replace(`{"kind":"alive"}`, `1`),
		"too long":         replace(`alive`, strings.Repeat("a", record.MaxLine)),
	} {
		if r, err := record.Parse([]byte(bad)); !errors.Is(err, record.ErrMalformed) || r != nil {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestClasses(t *testing.T) {
	t.Parallel()
	for _, class := range []record.Class{record.Keys, record.Denials, record.Data} {
		if got, err := record.ParseClass(class.String()); err != nil || got != class {
			t.Errorf("%v, %v", got, err)
		}
	}
	for _, name := range []string{"", "class(0)", "Keys"} {
		if got, err := record.ParseClass(name); err == nil {
			t.Errorf("%q is %v", name, got)
		}
	}
}

// valid is what an event keeps of a string.
func valid(s string) string {
	var b strings.Builder
	for _, r := range s { // a byte that is not UTF-8 becomes U+FFFD
		b.WriteRune(r)
	}
	return b.String()
}

func anyText() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.String(),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		rapid.SampledFrom([]string{
			"\x00\x1b[31m\x7f\u0080\u009b", "a\"b\\c\n\r\t", "\xed\xa0\x80", "\xed\xb0\x80\xff", "\U0001f511\U0010ffff", "\u2028\u202e", "</script>",
		}),
	)
}

func anyTime() *rapid.Generator[time.Time] {
	return rapid.Map(rapid.Int64Range(0, 4e15), func(us int64) time.Time {
		if us == 0 {
			return time.Time{}
		}
		return time.UnixMicro(us).UTC()
	})
}

func anyEvent(t *rapid.T) record.Event {
	text := func(name string) string { return anyText().Draw(t, name) }
	object := rapid.MapOfN(rapid.String(), anyText(), 0, 3) // different keys stay different
	return record.Event{
		Kind:   record.Kind(rapid.StringN(1, 10, -1).Draw(t, "kind")),
		Caller: text("caller"), Identity: text("identity"), PID: rapid.Int32().Draw(t, "pid"), Tenant: text("tenant"), Verb: text("verb"),
		Result: text("result"), Request: text("request"), Bytes: rapid.Int64().Draw(t, "bytes"), DEK: text("dek"), KEK: text("kek"),
		KEKVersion: text("kek version"), Region: text("region"), Step: text("step"), Context: object.Draw(t, "context"),
		InputBytes: rapid.Int64().Draw(t, "input"), InputSHA256: text("input hash"), Count: rapid.Int64().Draw(t, "count"),
		From: anyTime().Draw(t, "from"), To: anyTime().Draw(t, "to"), Did: text("did"), Detail: text("detail"), Version: text("version"),
		Key: text("key"), Files: object.Draw(t, "files"), Log: text("log"), Size: rapid.Int64().Draw(t, "size"), Root: text("root"),
		Frontier: rapid.SliceOfN(anyText(), 0, 3).Draw(t, "frontier"), Note: text("note"),
	}
}

func TestEventsRoundTrip(t *testing.T) {
	t.Parallel()
	toValid := cmp.Options{
		cmpopts.EquateEmpty(),
		cmp.Comparer(func(a, b string) bool { return valid(a) == valid(b) }),
	}
	rapid.Check(t, func(t *rapid.T) {
		e := anyEvent(t)
		text := e.Append([]byte("x"))
		if text = text[1:]; !printable(text) {
			t.Fatalf("not printable: %q", text)
		}
		got, err := record.ParseEvent(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&e, got, toValid); diff != "" {
			t.Fatal(diff)
		}
		if again := got.Append(nil); !bytes.Equal(again, text) {
			t.Fatalf("%s\n%s", text, again)
		}
		if copied := e; !bytes.Equal(copied.Append(nil), text) {
			t.Fatal("the same event is written in two ways")
		}
	})
}

func printable(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Every field of Event is written: one that Append forgets does not come back.
func TestEveryFieldIsWritten(t *testing.T) {
	t.Parallel()
	m := map[string]string{"a": "1", "b": "2"}
	e := record.Event{
		Kind: "k", Caller: "1", Identity: "2", PID: 3, Tenant: "4", Verb: "5", Result: "6", Request: "7", Bytes: 8, DEK: "9", KEK: "10",
		KEKVersion: "11", Region: "12", Step: "13", Context: m, InputBytes: 14, InputSHA256: "15", Count: 16, From: at(), To: at().Add(1e9),
		Did: "17", Detail: "18", Version: "19", Key: "20", Files: maps.Clone(m), Log: "21", Size: 22, Root: "23", Frontier: []string{"24", "25"}, Note: "26",
	}
	got, err := record.ParseEvent(e.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&e, got); diff != "" {
		t.Error(diff)
	}
	if _, err := record.ParseEvent([]byte(`{"caller":"x"}`)); !errors.Is(err, record.ErrMalformed) {
		t.Errorf("without a kind: %v", err)
	}
	if text := string((&record.Event{Kind: record.Alive}).Append(nil)); text != `{"kind":"alive"}` {
		t.Error(text)
	}
}

func TestHeadersRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := record.Header{
			Log: rapid.StringMatching(`[A-Za-z0-9._/-]{1,128}`).Draw(t, "log"), Seq: rapid.Int64Min(0).Draw(t, "seq"),
			Time: anyTime().Draw(t, "time"), Class: record.Class(rapid.IntRange(1, 3).Draw(t, "class")),
			Prev: record.Link(rapid.SliceOfN(rapid.Byte(), 9, 9).Draw(t, "prev")),
		}
		e := &record.Event{Kind: record.Call, Detail: anyText().Draw(t, "detail")}
		line, leaf := record.Append(nil, &h, e.Append(nil))
		if !printable(line[:len(line)-1]) || line[len(line)-1] != '\n' || !utf8.Valid(line) {
			t.Fatalf("%q", line)
		}
		r, err := record.Parse(line[:len(line)-1])
		if err != nil || r.Header != h || r.Leaf != leaf || !r.Intact() {
			t.Fatalf("%+v, %v", r, err)
		}
		pruned, err := record.Parse(bytes.TrimSuffix(r.AppendPruned(nil), []byte("\n")))
		if err != nil || !pruned.Pruned() || !pruned.Intact() || pruned.Leaf != leaf || pruned.Header != h {
			t.Fatalf("%+v, %v", pruned, err)
		}
	})
}

func TestFrontier(t *testing.T) {
	t.Parallel()
	var f record.Frontier
	var stored []tlog.Hash
	hashes := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var all []tlog.Hash
		for _, i := range indexes {
			all = append(all, stored[i])
		}
		return all, nil
	})
	for n := range int64(301) {
		want, err := tlog.TreeHash(n, hashes)
		if err != nil {
			t.Fatal(err)
		}
		nodes := f.Nodes()
		again, err := record.NewFrontier(f.Size(), nodes)
		if err != nil {
			t.Fatal(err)
		}
		leaf := tlog.RecordHash([]byte{byte(n), byte(n >> 8)})
		for what, f := range map[string]*record.Frontier{"frontier": &f, "resumed": &again} {
			if f.Size() != n || f.Root() != want {
				t.Fatalf("%s of %d has root %v, want %v", what, n, f.Root(), want)
			}
		}
		other := f.Clone()
		other.Add(tlog.Hash{})
		f.Add(leaf)
		again.Add(leaf)
		if again, err := record.NewFrontier(n, nodes); err != nil || again.Root() != want {
			t.Fatalf("of %d: adding to the resumed one changed what it was made of: %v", n, err)
		}
		if f.Root() != again.Root() || f.Root() == other.Root() {
			t.Fatalf("of %d: resumed is another, or the clone is not", n+1)
		}
		more, err := tlog.StoredHashesForRecordHash(n, leaf, hashes)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
	}
	for _, size := range []int64{-1, 0, 2, 5, 8} {
		if _, err := record.NewFrontier(size, make([]tlog.Hash, 3)); err == nil {
			t.Errorf("a tree of %d has 3 subtrees", size)
		}
	}
}

func FuzzParse(f *testing.F) {
	h := header()
	line, _ := record.Append(nil, &h, []byte(`{"kind":"alive"}`))
	f.Add(bytes.TrimSuffix(line, []byte("\n")))
	f.Add(bytes.TrimSuffix(h.AppendPruned(nil), []byte("\n")))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := record.Parse(line)
		if err != nil {
			if r != nil || !errors.Is(err, record.ErrMalformed) {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		again, head := r.AppendPruned(nil), *r
		if pruned, err := record.Parse(bytes.TrimSuffix(again, []byte("\n"))); err != nil || pruned.Leaf != r.Leaf {
			t.Fatalf("%+v, %v", pruned, err)
		}
		if !r.Pruned() {
			var leaf tlog.Hash
			if again, leaf = record.Append(nil, &head.Header, r.Event); r.Intact() && leaf != r.Leaf {
				t.Fatal("another leaf")
			}
		}
		if r.Intact() && !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), line) {
			t.Fatalf("%q\n%q", line, again)
		}
	})
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"kind":"call","context":{"a":"\u0000"},"from":"2026-11-22T09:30:00.123456Z"}`))
	f.Add((&record.Event{Kind: record.Segment, Note: "a\n", Frontier: []string{"x"}, PID: -1}).Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := record.ParseEvent(data)
		if err != nil {
			if e != nil {
				t.Fatal("an event and an error")
			}
			return
		}
		text := e.Append(nil)
		if !printable(text) {
			t.Fatalf("%q", text)
		}
		again, err := record.ParseEvent(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if twice := again.Append(nil); !bytes.Equal(twice, text) {
			t.Fatalf("%s\n%s", text, twice)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	h := header()
	line, _ := record.Append(nil, &h, []byte(`{"kind":"call","caller":"payments","tenant":"acme","verb":"seal","result":"OK","bytes":512}`))
	line = bytes.TrimSuffix(line, []byte("\n"))
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := record.Parse(line); err != nil {
			b.Fatal(err)
		}
	}
}
