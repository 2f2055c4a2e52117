package segments_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// example writes a log of three files that has ended. Last is the file that was
// written last.
func example(t testing.TB) (dir string, a *author, last string) {
	t.Helper()
	dir, a = newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	write(t, d, a, append(a.start(""), a.call(2)...), true)
	write(t, d, a, append(a.checkpoint(record.Segment), a.call(3)...), true)
	last = a.file(a.size())
	write(t, d, a, append(a.checkpoint(record.Segment), a.call(1)...), true)
	write(t, d, a, a.checkpoint(record.CheckpointMade), false)
	write(t, d, a, append(a.stop(), a.checkpoint(record.CheckpointMade)...), false)
	must(t, d.Close())
	return dir, a, last
}

// timeOf returns the time of record seq, by its author's clock.
func (a *author) timeOf(seq int64) time.Time { return a.at.Add(-time.Duration(a.size()-seq) * a.step) }

// Wherever the newest file was cut off, the records that are whole are there.
func TestOpenAfterCutAnywhere(t *testing.T) {
	dir, a, last := example(t)
	files := snapshot(t, dir)
	text := files[last]
	for _, front := range []bool{true, false} {
		if !front { // the files before were removed: what Segment says must do
			files = map[string]string{last: text}
		}
		before := int64(7)
		for cut := range len(text) + 1 {
			if !front && !strings.Contains(text[:cut], "\n") {
				continue // then it is no log: see TestOtherFilesAreLeftAlone
			}
			files[last] = text[:cut]
			refill(t, dir, files)
			p, ok := reopen(t, dir)
			whole := text[:strings.LastIndexByte(text[:cut], '\n')+1]
			want := a.previous(before + int64(strings.Count(whole, "\n")))
			want.Last = a.timeOf(want.Size - 1)
			want.Ended = want.Size >= a.size()-1
			want.Torn = int64(cut - len(whole))
			if diff := cmp.Diff(want, p); diff != "" || !ok {
				t.Fatalf("cut at %d, with files before: %v: Previous (-want +got):\n%s", cut, front, diff)
			}
			files[last] = whole
			if whole == "" {
				delete(files, last)
			}
			if diff := cmp.Diff(files, snapshot(t, dir)); diff != "" {
				t.Fatalf("cut at %d: files (-want +got):\n%s", cut, diff)
			}
			want.Torn = 0
			if cut%16 > 0 { // once in a while: opening takes its time
				continue
			}
			if p, _ := reopen(t, dir); !cmp.Equal(want, p) {
				t.Fatalf("cut at %d: Previous the second time (-want +got):\n%s", cut, cmp.Diff(want, p))
			}
		}
	}
}

// A log whose first record was never whole is none, and the one before counts.
func TestOpenAfterCutStart(t *testing.T) {
	dir, a, _ := example(t)
	files := snapshot(t, dir)
	b := newAuthor(t, "b", a.at)
	text := string(b.start(a.origin))
	for cut := range len(text) + 1 {
		refill(t, dir, files)
		must(t, os.WriteFile(filepath.Join(dir, b.file(0)), []byte(text[:cut]), 0o600))
		p, _ := reopen(t, dir)
		want, kept := a, files
		if cut == len(text) {
			want, kept = b, snapshot(t, dir)
		}
		if p.Log != want.origin || p.Size != want.size() || p.Torn != 0 || p.Damage != "" {
			t.Fatalf("cut at %d: Previous = %+v", cut, p)
		}
		if diff := cmp.Diff(kept, snapshot(t, dir)); diff != "" {
			t.Fatalf("cut at %d: files (-want +got):\n%s", cut, diff)
		}
	}
}

// Whatever byte is another: it is found, what came before counts, and nothing
// is cut off but a last line that has no line feed.
func TestOpenFindsEveryByteChanged(t *testing.T) {
	dir, a, last := example(t)
	files := snapshot(t, dir)
	text := files[last]
	for at := range len(text) - 1 {
		changed := []byte(text)
		changed[at] ^= 0x01
		files[last] = string(changed)
		refill(t, dir, files)
		p, _ := reopen(t, dir)
		line := int64(strings.Count(text[:at], "\n"))
		want := a.previous(7 + line)
		want.Last, want.Ended = a.timeOf(want.Size-1), want.Size >= a.size()-1
		want.Damage = p.Damage
		switch {
		case !provenAlone(text, at): // but by the record after it
			if p.Damage == "" && line != 4 || p.Size > want.Size+1 {
				t.Fatalf("byte %d of line %d, %q: Previous = %+v", at, line, text[at], p)
			}
			want.Size, want.Root, want.Last, want.Ended = p.Size, p.Root, p.Last, p.Ended
		case !strings.HasPrefix(p.Damage, filepath.Join(dir, last)+fmt.Sprintf(", line %d: ", line+1)):
			t.Fatalf("byte %d of line %d, %q: Previous = %+v", at, line, text[at], p)
		}
		if diff := cmp.Diff(want, p); diff != "" {
			t.Fatalf("byte %d of line %d: %s: Previous (-want +got):\n%s", at, line, p.Damage, diff)
		}
		if diff := cmp.Diff(files, snapshot(t, dir)); diff != "" {
			t.Fatalf("byte %d: files (-want +got):\n%s", at, diff)
		}
	}
}

// provenAlone reports whether byte at is no part of a record's time, nor of the
// first record's link to the file before.
func provenAlone(text string, at int) bool {
	begin := strings.LastIndexByte(text[:at], '\n') + 1
	for _, key := range []string{`"time":"`, `"prev":"`} {
		from := begin + strings.Index(text[begin:], key) + len(key)
		if at >= from && at < from+strings.IndexByte(text[from:], '"') && (key != `"prev":"` || begin == 0) {
			return false
		}
	}
	return true
}

func TestOpenNamesDamage(t *testing.T) {
	const first, second, third = ".000000000000.jsonl", ".000000000003.jsonl", ".000000000007.jsonl"
	replace := func(all map[string]string, name string, line int, text string) {
		lines := strings.SplitAfter(all["a"+name], "\n")
		lines[line-1] = text
		all["a"+name] = strings.Join(lines, "")
	}
	lineOf := func(all map[string]string, name string, line int) string {
		return strings.SplitAfter(all["a"+name], "\n")[line-1]
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, a *author, all map[string]string)
		size   int64
		want   string
	}{
		{"no record", func(_ *testing.T, _ *author, all map[string]string) { replace(all, third, 2, "hello\n") },
			8, third + ", line 2: not a line of an audit log"},
		{"an empty line", func(_ *testing.T, _ *author, all map[string]string) { all["a"+third] += "\n" },
			12, third + ", line 6: not a line"},
		{"a line is gone", func(_ *testing.T, _ *author, all map[string]string) { replace(all, third, 2, "") },
			8, third + ", line 2: it is record 9, not 8"},
		{"a line is there twice", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 2, strings.Repeat(lineOf(all, third, 2), 2))
		}, 9, third + ", line 3: it is record 8, not 9"},
		{"another record", func(_ *testing.T, a *author, all map[string]string) {
			b := *a
			b.frontier, b.leaves = record.Frontier{}, nil
			for _, leaf := range a.leaves[:8] {
				b.frontier.Add(leaf)
			}
			b.prev = record.LinkTo(a.leaves[6])
			replace(all, third, 2, string(b.call(1)))
		}, 8, third + ", line 2: it does not link to the record before it"},
		{"a record of another log", func(t *testing.T, _ *author, all map[string]string) {
			replace(all, third, 2, string(newAuthor(t, "b", epoch).start("")))
		}, 8, third + ", line 2: it is a record of log keysidecar/test/b"},
		{"an event", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 2, strings.Replace(lineOf(all, third, 2), "seal", "open", 1))
		}, 8, third + ", line 2: its event is not the one that was written"},
		{"a long line", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 2, strings.Repeat("x", 100_000)+"\n")
		}, 8, third + ", line 2: not a line of an audit log: longer than 8192 bytes"},
		{"a long line without an end", func(_ *testing.T, _ *author, all map[string]string) {
			all["a"+third] += strings.Repeat("x", 10_000)
		}, 12, third + ", line 6: not a line of an audit log: longer than 8192 bytes"},
		{"a checkpoint of other records", func(_ *testing.T, a *author, all map[string]string) {
			b := *a
			b.frontier = record.Frontier{}
			for range a.size() {
				b.frontier.Add(a.leaves[0])
			}
			all["a"+third] += string(b.checkpoint(record.CheckpointMade))
		}, 12, third + ", line 6: its checkpoint is not of the records before it"},
		{"a checkpoint of fewer records", func(_ *testing.T, a *author, all map[string]string) {
			r, err := record.Parse([]byte(strings.TrimSuffix(lineOf(all, third, 5), "\n")))
			must(t, err)
			e, err := record.ParseEvent(r.Event)
			must(t, err)
			all["a"+third] += string(a.add(record.Keys, e))
		}, 12, third + ", line 6: its checkpoint is not of the records before it"},
		{"the segment's event", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 1, strings.Replace(lineOf(all, third, 1), `"frontier":["`, `"frontier":["A`, 1))
		}, 7, third + ", line 1: its event is not the one"},
		{"a segment without event", func(t *testing.T, _ *author, all map[string]string) {
			r, err := record.Parse([]byte(strings.TrimSuffix(lineOf(all, third, 1), "\n")))
			must(t, err)
			replace(all, third, 1, string(r.AppendPruned(nil)))
		}, 12, ""},
		{"what looks like a segment", func(_ *testing.T, a *author, all map[string]string) {
			b := *a
			b.frontier = record.Frontier{}
			for _, leaf := range a.leaves[:7] {
				b.frontier.Add(leaf)
			}
			b.prev = record.LinkTo(a.leaves[6])
			e := &record.Event{Kind: record.Segment} // in data, nobody looks at it
			for range b.frontier.Nodes() {
				e.Frontier = append(e.Frontier, strings.Repeat("A", 43)+"=")
			}
			all["a"+third] = string(b.add(record.Data, e))
			a.leaves = append(a.leaves[:7:7], b.leaves[len(b.leaves)-1])
		}, 8, ""},
		{"the file before is cut off", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 1, "hello\n")
			all["a"+second] = strings.TrimSuffix(all["a"+second], "\n")
		}, 6, second + ", line 4: the line is cut off"},
		{"the file before lacks its last line", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 1, "hello\n")
			replace(all, second, 4, "")
		}, 6, third + ", line 1: not a line of an audit log"},
		{"a file is gone", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 1, "hello\n")
			delete(all, "a"+second)
		}, 3, third + ", line 1: not a line"},
		{"nothing to begin with", func(_ *testing.T, _ *author, all map[string]string) {
			replace(all, third, 1, "hello\n")
			replace(all, second, 1, strings.Replace(lineOf(all, second, 1), `"frontier":["`, `"frontier":["A`, 1))
			delete(all, "a"+first)
		}, 0, second + ", line 1: "},
		{"a file before the last is gone", func(_ *testing.T, _ *author, all map[string]string) { delete(all, "a"+second) }, 12, ""},
		{"another key's segment", func(t *testing.T, a *author, all map[string]string) {
			b := *newAuthor(t, "a", epoch)
			var err error
			b.signer, _, err = record.NewKey(b.origin)
			must(t, err)
			for _, leaf := range a.leaves[:7] {
				b.frontier.Add(leaf)
			}
			b.prev = record.LinkTo(a.leaves[6])
			all["a"+third] = string(append(b.checkpoint(record.Segment), b.call(3)...))
		}, 7, third + ", line 1: not a signed checkpoint of this log"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, a, _ := example(t)
			all := snapshot(t, dir)
			tt.change(t, a, all)
			dir = restore(t, all)
			p, _ := reopen(t, dir)
			if tt.want != "" {
				tt.want = filepath.Join(dir, "a") + tt.want
			}
			if p.Log != a.origin || p.Size != tt.size || !strings.HasPrefix(p.Damage, tt.want) || (p.Damage == "") != (tt.want == "") {
				t.Errorf("Previous = %+v\nwant size %d, damage %s", p, tt.size, tt.want)
			}
			if want := a.previous(tt.size); p.Root != want.Root {
				t.Errorf("Root = %v, want that of the first %d records", p.Root, tt.size)
			}
			if diff := cmp.Diff(all, snapshot(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// The log before is the one that started last; also where the clock says
// otherwise, if it names the one before.
func TestPreviousIsTheNewest(t *testing.T) {
	type entry struct {
		id, before string
		at         int  // hours
		segment    bool // its beginning was removed
	}
	for _, tt := range []struct {
		name string
		logs []entry
		want string
	}{
		{"by time", []entry{{"a", "", 2, false}, {"b", "", 3, false}, {"c", "", 1, false}}, "b"},
		{"by name", []entry{{"b", "", 1, false}, {"a", "", 1, false}}, "b"},
		{"clock set back", []entry{{"a", "", 3, false}, {"b", "a", 1, false}}, "b"},
		{"clock set back later", []entry{{"a", "", 5, false}, {"b", "a", 1, false}, {"c", "b", 2, false}}, "c"},
		{"clock set back, then forth", []entry{{"a", "", 5, false}, {"b", "a", 1, false}, {"c", "b", 6, false}}, "c"},
		{"in a circle", []entry{{"a", "b", 1, false}, {"b", "a", 2, false}}, "a"},
		{"the oldest lost its beginning", []entry{{"a", "", 1, true}, {"b", "a", 2, false}}, "b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := make(map[string]string)
			for _, e := range tt.logs {
				a := newAuthor(t, e.id, epoch.Add(time.Duration(e.at)*time.Hour))
				before := ""
				if e.before != "" {
					before = "keysidecar/test/" + e.before
				}
				all[a.file(0)] = string(a.start(before))
				if e.segment {
					delete(all, a.file(0))
					all[a.file(1)] = string(a.checkpoint(record.Segment))
				}
			}
			if p, _ := reopen(t, restore(t, all)); p.Log != "keysidecar/test/"+tt.want {
				t.Errorf("Previous = %+v, want %s", p, tt.want)
			}
		})
	}
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	dir, a, last := example(t)
	all := snapshot(t, dir)
	b := newAuthor(t, "b", epoch.Add(time.Hour))
	line := string(b.start(""))
	maps.Copy(all, map[string]string{
		"notes.txt": "x", "b.1.jsonl": line, "b.000000000001.jsonl": line, "c.000000000000.jsonl": line, "b.0000000000000.jsonl": line,
		"d.000000000000.jsonl": "", "e.000000000005.jsonl": "", "f.000000000000.jsonl": "hello", "g.000000000000.jsonl": "hello\n",
		".000000000000.jsonl": line, "b.-00000000001.jsonl": line, "audit-pruned-X.tmp": "x", "audit-X.tmp": "x",
		"h.000000000000.jsonl": line[:20] + strings.Repeat("x", 10_000),
	})
	dir = restore(t, all)
	must(t, os.Mkdir(filepath.Join(dir, "lost+found"), 0o700),
		os.Symlink(a.file(0), filepath.Join(dir, "b.000000000000.jsonl")))
	var log bytes.Buffer
	cfg := config(dir, newAuthor(t, "next", epoch))
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	d := open(t, cfg)
	if p, _ := d.Previous(); p.Log != a.origin || p.Size != a.size() || p.Damage != "" {
		t.Errorf("Previous = %+v", p)
	}
	delete(all, "d.000000000000.jsonl") // a log that was begun
	delete(all, "audit-pruned-X.tmp")
	var known int64
	for name, text := range all {
		if strings.HasPrefix(name, "a.") {
			known += int64(len(text))
		} else if name < "f" && name[0] != 'h' && !strings.Contains(log.String(), name) {
			t.Errorf("%s is not named: %s", name, log.String())
		}
	}
	if d.Bytes() != known {
		t.Errorf("Bytes = %d, want %d", d.Bytes(), known)
	}
	for _, name := range []string{a.file(0), last} {
		if strings.Contains(log.String(), name) {
			t.Errorf("%s is named: %s", name, log.String())
		}
	}
	if !strings.Contains(log.String(), "left alone") || !strings.Contains(log.String(), "count=13") {
		t.Errorf("the warning: %s", log.String())
	}
	must(t, d.Close(), os.Remove(filepath.Join(dir, "lost+found")), os.Remove(filepath.Join(dir, "b.000000000000.jsonl")))
	if diff := cmp.Diff(names(all), names(snapshot(t, dir))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// A directory that is copied at any fsync, before or after, is one after a
// crash: what a Write has returned is in it.
func TestCrashAtEveryWrite(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	acknowledged := int64(0)
	copies := 0
	check := func() {
		copies++
		dir := restore(t, snapshot(t, dir))
		p, ok := reopen(t, dir)
		if ok != (p.Size > 0) || p.Damage != "" || p.Size < acknowledged || p.Size > a.size() {
			t.Errorf("after %d records were acknowledged: Previous = %+v, %v", acknowledged, p, ok)
		}
		if want := a.previous(p.Size); ok && p.Root != want.Root {
			t.Errorf("Root = %v, want that of %d records", p.Root, p.Size)
		}
		if all := snapshot(t, dir); slices.ContainsFunc(names(all), func(n string) bool { return strings.HasSuffix(n, ".tmp") }) {
			t.Errorf("files = %v", names(all))
		}
	}
	d.SetSync(func(f *os.File) error {
		check()
		defer check()
		return f.Sync()
	})
	for i := range 12 {
		lines := []byte(nil)
		switch {
		case i == 0:
			lines = a.start("")
		case i%4 == 0:
			lines = a.checkpoint(record.Segment)
		}
		write(t, d, a, append(lines, a.call(2)...), i%4 == 0)
		acknowledged = a.size()
		check()
	}
	must(t, d.Close())
	if copies < 3*12 {
		t.Errorf("%d copies", copies)
	}
}

// What is cut off stays cut off, or Open fails.
func TestOpenFailsWithoutFsync(t *testing.T) {
	dir, _, last := example(t)
	all := snapshot(t, dir)
	for name, text := range map[string]string{"a torn line": all[last] + "{", "a torn file": "{"} {
		all[last] = text
		dir := restore(t, all)
		cfg := config(dir, newAuthor(t, "next", epoch))
		if _, err := segments.OpenWith(cfg, failing(1, 1)); err == nil || !strings.Contains(err.Error(), "no fsync today") {
			t.Errorf("%s: Open: %v", name, err)
		}
		if p, _ := reopen(t, dir); p.Damage != "" {
			t.Errorf("%s: Previous = %+v", name, p)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir, a := newDir(b), newAuthor(b, "a", epoch)
	d := open(b, config(dir, a))
	write(b, d, a, a.start(""), true)
	for d.Bytes() < 16<<20 {
		write(b, d, a, a.call(1000), false)
	}
	must(b, d.Close())
	b.SetBytes(d.Bytes())
	for b.Loop() {
		if p, _ := reopen(b, dir); p.Size != a.size() {
			b.Fatal(fmt.Sprint(p))
		}
	}
}

// TestCounted shows since when what was only counted may be missing: since the
// newest checkpoint says so, else since the log began.
func TestCounted(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	text := append(a.start(""), a.call(3)...)
	counted := func() time.Time {
		must(t, os.WriteFile(filepath.Join(dir, a.file(0)), text, 0o600))
		d := open(t, config(dir, newAuthor(t, "b", epoch)))
		p, _ := d.Previous()
		must(t, d.Close())
		return p.Counted
	}
	if got := counted(); !got.Equal(a.timeOf(0)) {
		t.Errorf("without a checkpoint: %v, want %v", got, a.timeOf(0))
	}
	since := a.at.Add(-time.Minute)
	signed, err := record.Checkpoint{Log: a.origin, Size: a.size(), Root: a.frontier.Root()}.Sign(a.signer)
	must(t, err)
	text = append(text, a.add(record.Keys, &record.Event{Kind: record.CheckpointMade, Note: signed, From: since})...)
	text = append(text, a.call(3)...)
	if got := counted(); !got.Equal(since) {
		t.Errorf("with a checkpoint: %v, want %v", got, since)
	}
}
