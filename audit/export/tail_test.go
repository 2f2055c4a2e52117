package export_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/audit/export"
	"github.com/keysidecar/keysidecar/audit/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, dir, name string, lines ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// alive returns n records.
func alive(j *journal, n int) (lines []string) {
	for range n {
		lines = append(lines, j.line(record.Keys, &record.Event{Kind: record.Alive}))
	}
	return lines
}

// numbers returns which records were shown: "42" of a line, "== " of a log.
func numbers(text string) string {
	var got []string
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); words[0] == "==" || words[0] == "!!" {
			got = append(got, words[0])
		} else {
			got = append(got, words[1])
		}
	}
	return strings.Join(got, " ")
}

func TestLast(t *testing.T) {
	dir, j := t.TempDir(), &journal{origin: origin}
	write(t, dir, "20261122T093000Z-1a.000000000000.jsonl", alive(j, 5)...)
	write(t, dir, "20261122T093000Z-1a.000000000005.jsonl", alive(j, 1)...)
	write(t, dir, "20261122T093000Z-1a.000000000006.jsonl", alive(j, 2)...)
	other := write(t, dir, "20261123T093000Z-2b.000000000000.jsonl", alive(&journal{origin: "keysidecar/test/2"}, 2)...)
	write(t, dir, "20261124.tmp", "{")
	if err := os.Mkdir(filepath.Join(dir, "20261125.jsonl"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		last int
		want string
	}{
		"none":               {dir, 0, ""},
		"of the newest file": {dir, 1, "== 1"},
		"all of it":          {dir, 2, "== 0 1"},
		"of two logs":        {dir, 3, "== 7 == 0 1"},
		"of three files":     {dir, 5, "== 5 6 7 == 0 1"},
		"of four":            {dir, 6, "== 4 5 6 7 == 0 1"},
		"more than there is": {dir, 1 << 40, "== 0 1 2 3 4 5 6 7 == 0 1"},
		"of a file":          {other, 20, "== 0 1"},
		"of an empty log":    {t.TempDir(), 20, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := export.Tail(t.Context(), &out, export.TailConfig{Path: c.path, Last: c.last, Format: export.Text})
			if got := numbers(out.String()); err != nil || got != c.want {
				t.Errorf("shown is %q, %v, want %q:\n%s", got, err, c.want, out.String())
			}
		})
	}
}

// TestLastOfStream reads standard input.
func TestLastOfStream(t *testing.T) {
	in := strings.Join(alive(&journal{origin: origin}, 5), "")
	for _, c := range []struct {
		poll <-chan time.Time
		want string
	}{{nil, "== 3 4"}, {make(chan time.Time), "== 0 1 2 3 4"}} {
		var out strings.Builder
		err := export.Tail(t.Context(), &out, export.TailConfig{Path: "-", Stdin: strings.NewReader(in), Last: 2, Format: export.Text, Poll: c.poll})
		if got := numbers(out.String()); err != nil || got != c.want {
			t.Errorf("shown is %q, %v, want %q", got, err, c.want)
		}
	}
}

// TestText shows lines for people.
func TestText(t *testing.T) {
	j := &journal{origin: origin}
	checkpoint := origin + "\n12\n" + strings.Repeat("A", 43) + "=\n\n— x AAAA\n"
	denied := j.line(record.Denials, &record.Event{
		Kind: record.Denied, Caller: "web", Tenant: "acme", Verb: "seal", Result: "PERMISSION_DENIED",
		Detail: "a\x1b]0;x\x07 \u202e \u009b b", Context: map[string]string{"id": "4711"},
	})
	edited := strings.Replace(j.line(record.Data, &record.Event{Kind: record.Call}), "call", "kall", 1)
	lines := []string{
		denied, edited,
		pruned(t, j.line(record.Data, &record.Event{Kind: record.Call})),
		j.line(record.Keys, &record.Event{Kind: record.Segment, Note: checkpoint, Frontier: []string{"x"}}),
		j.line(record.Keys, &record.Event{Kind: record.Stop, Detail: strings.Repeat("é", 100), Count: 3, Note: "no checkpoint"}),
		j.raw(record.Data, []byte("{\"kind\":\"call\",\"detail\":\"\u009b\"}")),
		`{"log":"keysidecar/` + "\x1b[2J\"}\n",
	}
	want := "== " + origin + "\n" +
		`2026-11-22T09:30:00.000000Z 0 denied caller=web tenant=acme verb=seal result=PERMISSION_DENIED ` +
		`context="{\"id\":\"4711\"}" detail="a\x1b]0;x\a \u202e \u009b b"` + "\n" +
		"!! record 1: its event is not the one that was recorded\n" +
		"2026-11-22T09:32:00.000000Z 2 (event of class data, removed)\n" +
		"2026-11-22T09:33:00.000000Z 3 segment size=12\n" +
		`2026-11-22T09:34:00.000000Z 4 stop count=3 detail="` + strings.Repeat(`\u00e9`, 50) + `..." note="no checkpoint"` + "\n" +
		"!! record 5: its event has other characters than a sidecar writes\n" +
		"!! not a line of an audit log: it is not JSON\n"
	certificate := "keysidecar audit key\nk\n2026-11-22T09:30:00Z\n\n— https://v/keys/k/1 AAAA\n"
	lines = append(lines,
		j.line(record.Keys, &record.Event{Kind: record.Certified, Note: certificate}),
		j.line(record.Keys, &record.Event{Kind: record.Segment, Note: checkpoint, Certificate: certificate}))
	want += "2026-11-22T09:36:00.000000Z 6 certified signer=https://v/keys/k/1\n" +
		"2026-11-22T09:37:00.000000Z 7 segment size=12 certificate=https://v/keys/k/1\n"
	for _, last := range []int{9, 100} {
		var out strings.Builder
		path := write(t, t.TempDir(), "a.jsonl", lines...)
		if err := export.Tail(t.Context(), &out, export.TailConfig{Path: path, Last: last, Format: export.Text}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("shown (-want +got):\n%s", diff)
		}
		out.Reset()
		if err := export.Tail(t.Context(), &out, export.TailConfig{Path: path, Last: last, Format: export.JSONL}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(lines[0]+strings.Join(lines[2:5], "")+strings.Join(lines[7:], ""), out.String()); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	}
}

// follower runs a Tail that follows.
type follower struct {
	poll  chan time.Time
	lines chan string
}

func follow(t *testing.T, path string, last int) *follower {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	f := &follower{poll: make(chan time.Time), lines: make(chan string, 100)}
	go func() {
		w.CloseWithError(export.Tail(ctx, w, export.TailConfig{Path: path, Last: last, Format: export.Text, Poll: f.poll}))
	}()
	done := make(chan error, 1)
	go func() {
		scanner := bufio.NewScanner(r)
		for scanner.Scan() {
			f.lines <- scanner.Text()
		}
		close(f.lines)
		done <- scanner.Err()
	}()
	t.Cleanup(func() {
		stop()
		for line := range f.lines {
			t.Errorf("shown after all: %s", line)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// shows reads what is shown next.
func (f *follower) shows(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		line, ok := <-f.lines
		if !ok {
			t.Fatalf("nothing is shown, want %s", w)
		}
		if got := numbers(line); got != w {
			t.Fatalf("shown is %s, want %s: %s", got, w, line)
		}
	}
}

// look has it look for something new. It is idle when it takes the second.
func (f *follower) look() {
	f.poll <- time.Time{}
	f.poll <- time.Time{}
}

// TestFollow follows a log into new files, and into the next log.
func TestFollow(t *testing.T) {
	dir, j := t.TempDir(), &journal{origin: origin}
	first := write(t, dir, "20261122T093000Z-1a.000000000000.jsonl", alive(j, 3)...)
	f := follow(t, dir, 2)
	f.shows(t, "==", "1", "2")
	f.look()

	line := alive(j, 1)[0]
	appendTo(t, first, line[:50]) // half a line is none
	f.look()
	appendTo(t, first, line[50:])
	f.poll <- time.Time{}
	f.shows(t, "3")

	// The last lines of a file come before those of the next.
	appendTo(t, first, alive(j, 1)[0])
	second := write(t, dir, "20261122T093000Z-1a.000000000005.jsonl", alive(j, 2)...)
	f.poll <- time.Time{}
	f.shows(t, "4", "5", "6")

	// A sidecar was killed within a line, its successor has an earlier name, as
	// when the clock was set back; and the first files are removed.
	appendTo(t, second, alive(j, 1)[0][:99])
	third := write(t, dir, "20261121T093000Z-2b.000000000000.jsonl", alive(&journal{origin: "keysidecar/test/2"}, 1)...)
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	f.poll <- time.Time{}
	f.shows(t, "!!", "==", "0")

	if err := errors.Join(os.Remove(second), os.Remove(third)); err != nil {
		t.Fatal(err)
	}
	f.look()
}

// TestFollowTakenBack follows a file of which the end was cut off.
func TestFollowTakenBack(t *testing.T) {
	dir, j := t.TempDir(), &journal{origin: origin}
	lines := alive(j, 3)
	path := write(t, dir, "1.000000000000.jsonl", lines...)
	f := follow(t, dir, 10)
	f.shows(t, "==", "0", "1", "2")
	if err := os.Truncate(path, int64(len(lines[0]+lines[1]))); err != nil {
		t.Fatal(err)
	}
	f.look()
	appendTo(t, path, lines[2])
	f.poll <- time.Time{}
	f.shows(t, "2")
}

// remover removes a file when the first line is written.
type remover struct {
	name string
	out  strings.Builder
}

func (r *remover) Write(p []byte) (int, error) {
	_ = os.Remove(r.name)
	return r.out.Write(p)
}

// TestFollowRemoved meets a file that is removed before it is read.
func TestFollowRemoved(t *testing.T) {
	parent, j := t.TempDir(), &journal{origin: origin}
	dir, link, later := filepath.Join(parent, "log"), filepath.Join(parent, "link"), filepath.Join(parent, "later")
	err := errors.Join(os.Mkdir(later, 0o700), os.Symlink(t.TempDir(), dir), os.Symlink(later, link))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1.jsonl", "2.jsonl", "3.jsonl"} {
		write(t, later, name, alive(j, 1)...)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	poll, done := make(chan time.Time), make(chan error)
	out := remover{name: filepath.Join(dir, "2.jsonl")}
	go func() { done <- export.Tail(ctx, &out, export.TailConfig{Path: dir, Format: export.Text, Poll: poll}) }()
	poll <- time.Time{} // it waits: all three are there when it looks next
	if err := os.Rename(link, dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		poll <- time.Time{}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := numbers(out.out.String()); got != "== 0 2" {
		t.Errorf("shown is %q, want 0 and 2", got)
	}
}

// TestFollowOfNone begins with the next record of the newest file.
func TestFollowOfNone(t *testing.T) {
	dir, j := t.TempDir(), &journal{origin: origin}
	path := write(t, dir, "1.000000000000.jsonl", alive(j, 2)...)
	f := follow(t, dir, 0)
	f.look()
	appendTo(t, path, alive(j, 1)[0])
	f.poll <- time.Time{}
	f.shows(t, "==", "2")
}

// TestFollowFromNothing begins before there is a log.
func TestFollowFromNothing(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, dir, 0)
	f.look()
	write(t, dir, "1.000000000000.jsonl", alive(&journal{origin: origin}, 2)...)
	f.poll <- time.Time{}
	f.shows(t, "==", "0", "1")
}

func TestTailErrors(t *testing.T) {
	dir := t.TempDir()
	if err := export.Tail(t.Context(), io.Discard, export.TailConfig{Path: filepath.Join(dir, "none"), Format: export.Text}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that there is not: %v", err)
	}
	if err := export.Tail(t.Context(), io.Discard, export.TailConfig{Path: os.DevNull, Format: export.Text}); err == nil {
		t.Error("a device is followed")
	}
	broken := errors.New("broken")
	path := write(t, dir, "1.jsonl", alive(&journal{origin: origin}, 1)...)
	if err := export.Tail(t.Context(), failing{broken}, export.TailConfig{Path: path, Last: 1, Format: export.Text}); !errors.Is(err, broken) {
		t.Errorf("writing: %v", err)
	}
	if err := export.Tail(t.Context(), io.Discard, export.TailConfig{Path: "-", Stdin: failing{broken}, Format: export.Text}); !errors.Is(err, broken) {
		t.Errorf("reading: %v", err)
	}
}

// FuzzExport exports and shows anything: no output has a control character but
// the line feeds that end lines, JSON lines are lines of the input, and CSV has
// rows of one width.
func FuzzExport(f *testing.F) {
	f.Add([]byte(strings.Join(sample(), "")))
	f.Add([]byte(`{"log":"keysidecar/x","seq":0}` + "\n"))
	f.Add([]byte((&journal{origin: origin}).raw(record.Data, []byte("{\"kind\":\"call\",\"to\":\"2026-11-22T09:30:00Z\",\"tenant\":\"\\r=\u009b\"}"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := write(t, t.TempDir(), "a.jsonl", string(data))
		outputs := make(map[export.Format]*bytes.Buffer)
		for _, format := range []export.Format{export.JSONL, export.CSV} {
			outputs[format] = &bytes.Buffer{}
			if _, err := export.Export([]string{path}, nil, outputs[format], export.Config{Format: format}); err != nil {
				t.Fatal(err)
			}
		}
		outputs[export.Text] = &bytes.Buffer{}
		if err := export.Tail(t.Context(), outputs[export.Text], export.TailConfig{Path: path, Last: 100, Format: export.Text}); err != nil {
			t.Fatal(err)
		}
		for format, out := range outputs {
			for _, c := range out.Bytes() {
				if c < ' ' && c != '\n' && (c != '\r' || format != export.CSV) || c == 0x7f || c > 0x7f && format != export.CSV {
					t.Fatalf("%s has byte %#x:\n%q", format, c, out)
				}
			}
		}
		for line := range strings.Lines(outputs[export.JSONL].String()) {
			if !bytes.Contains(data, []byte(strings.TrimSuffix(line, "\n"))) {
				t.Fatalf("not in the input: %s", line)
			}
		}
		rows := readCSV(t, outputs[export.CSV].String())
		if want := 1 + bytes.Count(outputs[export.JSONL].Bytes(), []byte("\n")); len(rows) != want {
			t.Fatalf("%d rows, want %d", len(rows), want)
		}
	})
}

func ExampleTail() {
	line := (&journal{origin: "keysidecar/payments/1"}).line(record.Denials, &record.Event{
		Kind: record.Denied, Caller: "web", Tenant: "acme", Verb: "seal", Result: "PERMISSION_DENIED",
	})
	var out strings.Builder
	err := export.Tail(context.Background(), &out, export.TailConfig{Path: "-", Stdin: strings.NewReader(line), Last: 20, Format: export.Text})
	fmt.Print(out.String(), err)
	// Output:
	// == keysidecar/payments/1
	// 2026-11-22T09:30:00.000000Z 0 denied caller=web tenant=acme verb=seal result=PERMISSION_DENIED
	// <nil>
}
