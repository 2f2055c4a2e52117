package reader_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
)

// line returns record seq of a log, with its line feed.
func line(log string, seq int64) string {
	h := record.Header{Log: "keysidecar/t/" + log, Seq: seq, Time: time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC), Class: record.Data}
	text, _ := record.Append(nil, &h, []byte(`{"kind":"call"}`))
	return string(text)
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// read returns what Read delivers: file, line number and record, or what is wrong.
func read(t *testing.T, stdin string, paths ...string) []string {
	t.Helper()
	var all []string
	if err := reader.Read(paths, strings.NewReader(stdin), func(l reader.Line) error {
		text := fmt.Sprintf("%s:%d ", filepath.Base(l.Source), l.Number)
		switch {
		case (l.Err == nil) != (l.Record != nil):
			t.Errorf("%s has a record and an error, or neither", text)
		case l.Err == nil:
			text += fmt.Sprintf("%s %d", filepath.Base(l.Record.Log), l.Record.Seq)
		case errors.Is(l.Err, record.ErrMalformed):
			text += "malformed"
		}
		if l.Ordered {
			text += " ordered"
		}
		if l.Torn {
			text += " torn"
		}
		all = append(all, text)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "b.000000000000.jsonl", line("b", 0)+"\nother\n")
	write(t, dir, "a.1000000000000.jsonl", line("a", 1e12))
	write(t, dir, "a.000000000002.jsonl", line("a", 2)+line("a", 3)[:50])
	write(t, dir, "a.000000000000.jsonl", line("a", 0)+line("a", 1))
	write(t, dir, "a-b.000000000000.jsonl", strings.TrimSuffix(line("a-b", 0), "\n"))
	write(t, dir, "lock", "x\n")
	write(t, dir, ".a.000000000003.jsonl.tmp", "x\n")
	write(t, dir, "empty.jsonl", "")
	equal(t, read(t, "", dir),
		"a.000000000000.jsonl:1 a 0 ordered",
		"a.000000000000.jsonl:2 a 1 ordered",
		"a.000000000002.jsonl:1 a 2 ordered",
		"a.000000000002.jsonl:2 malformed ordered torn",
		"a.1000000000000.jsonl:1 a 1000000000000 ordered",
		"a-b.000000000000.jsonl:1 a-b 0 ordered torn",
		"b.000000000000.jsonl:1 b 0 ordered",
		"b.000000000000.jsonl:2 malformed ordered",
		"b.000000000000.jsonl:3 malformed ordered",
	)
}

func TestStreams(t *testing.T) {
	t.Parallel()
	stream := "{\"level\":\"INFO\"}\n\n" +
		line("a", 1) +
		"2026-11-22T09:30:00.123456789Z stdout F " + line("a", 0) +
		"2026-11-22T09:30:00.123456789+02:00 stdout F " + line("b", 0) +
		"2026-11-22T09:30:00.123456789Z stderr F hello\n" +
		"2026-11-22T09:30:00Z stdout F\n" +
		"x " + line("a", 2) +
		strings.TrimSuffix(line("a", 3), "\n") + " \n" +
		strings.Repeat("long", 10_000) + "\n" +
		line("a", 4)[:40]
	equal(t, read(t, stream, "-"),
		"-:3 a 1", "-:4 a 0", "-:5 b 0", "-:9 malformed", "-:11 malformed torn")
	file := write(t, t.TempDir(), "collected", stream)
	equal(t, read(t, line("c", 0), file, "-"),
		"collected:3 a 1", "collected:4 a 0", "collected:5 b 0", "collected:9 malformed", "collected:11 malformed torn", "-:1 c 0")
}

func TestLongLines(t *testing.T) {
	t.Parallel()
	for _, extra := range []int{0, 1, 400, 600, 100_000} {
		long := `{"log":"keysidecar/t/a"` + strings.Repeat("x", record.MaxLine+extra) + "\n"
		equal(t, read(t, line("a", 0)+long+line("a", 1)+long[:len(long)-1], "-"),
			"-:1 a 0", "-:2 malformed", "-:3 a 1", "-:4 malformed torn")
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	keep := func(reader.Line) error { return nil }
	if err := reader.Read([]string{none}, nil, keep); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such path: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "x.jsonl"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := reader.Read([]string{dir}, nil, keep); err == nil {
		t.Error("a directory for a file")
	}
	stop := errors.New("stop")
	calls := 0
	if err := reader.Read([]string{"-", none}, strings.NewReader(line("a", 0)+line("a", 1)), func(reader.Line) error {
		calls++
		return stop
	}); err != stop || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
	broken := brokenReader{strings.NewReader(line("a", 0) + "{")}
	calls = 0
	if err := reader.Read([]string{"-"}, broken, func(reader.Line) error { calls++; return nil }); !errors.Is(err, errBroken) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// A sidecar removes old files while they are read.
func TestRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		removed []string
		want    []string // nil: ErrChanged
	}{
		"of another log": {[]string{"b.000000000000.jsonl"}, []string{"a 0", "a 1", "b 1"}},
		"all":            {[]string{"a.000000000000.jsonl", "a.000000000001.jsonl", "b.000000000000.jsonl", "b.000000000001.jsonl"}, nil},
		"of this log":    {[]string{"a.000000000001.jsonl"}, nil},
	} {
		dir := t.TempDir()
		for _, log := range []string{"a", "b"} {
			for seq := range int64(2) {
				write(t, dir, fmt.Sprintf("%s.%012d.jsonl", log, seq), line(log, seq))
			}
		}
		var got []string
		err := reader.Read([]string{dir}, nil, func(l reader.Line) error {
			if len(got) == 0 {
				for _, file := range test.removed {
					if err := os.Remove(filepath.Join(dir, file)); err != nil {
						t.Fatal(err)
					}
				}
			}
			got = append(got, fmt.Sprintf("%s %d", filepath.Base(l.Record.Log), l.Record.Seq))
			return nil
		})
		if test.want == nil {
			if !errors.Is(err, reader.ErrChanged) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		} else if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

var errBroken = errors.New("broken")

// brokenReader breaks where another would end.
type brokenReader struct{ r *strings.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil {
		err = errBroken
	}
	return n, err
}

// FuzzReader: whatever a stream is, what comes out of it as records is in it, and
// a directory leaves out nothing.
func FuzzReader(f *testing.F) {
	f.Add([]byte(line("a", 0) + line("a", 1)))
	f.Add([]byte("2026-11-22T09:30:00.1Z stdout F " + line("a", 0)))
	f.Add([]byte(strings.Repeat("x", record.MaxLine+600) + "\n" + line("a", 0)))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		records := 0
		check := func(l reader.Line) error {
			if (l.Err == nil) != (l.Record != nil) || len(l.Text) > record.MaxLine+512 || !bytes.Contains(data, l.Text) {
				t.Fatalf("%+v", l)
			}
			if bytes.ContainsRune(l.Text, '\n') {
				t.Fatalf("a line feed in %q", l.Text)
			}
			if l.Record != nil {
				records++
			}
			return nil
		}
		if err := reader.Read([]string{"-"}, bytes.NewReader(data), check); err != nil {
			t.Fatal(err)
		}
		lines := 0
		if err := os.WriteFile(filepath.Join(dir, "a.jsonl"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		records = 0
		if err := reader.Read([]string{dir}, nil, func(l reader.Line) error { lines++; return check(l) }); err != nil {
			t.Fatal(err)
		}
		want := bytes.Count(data, []byte{'\n'})
		if len(data) > 0 && data[len(data)-1] != '\n' {
			want++
		}
		if lines != want {
			t.Fatalf("%d lines of %d", lines, want)
		}
	})
}
