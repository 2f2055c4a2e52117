package segments_test

import (
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// session is what one process writes. Each letter is a record: C call, K
// checkpoint, S segment, U unaccounted, u the same in data, E stop and
// checkpoint; the first, start, is always there. T is a torn line.
type session struct{ id, before, does string }

// play returns the files of a session.
func (s session) play(t tb, at time.Time) (*author, map[string]string) {
	a := newAuthor(t, s.id, at)
	before := ""
	if s.before != "" {
		before = "keysidecar/test/" + s.before
	}
	file := a.file(0)
	files := map[string]string{file: string(a.start(before))}
	for _, what := range s.does {
		var lines []byte
		switch what {
		case 'C':
			lines = a.call(1)
		case 'K':
			lines = a.checkpoint(record.CheckpointMade)
		case 'S':
			file = a.file(a.size())
			lines = a.checkpoint(record.Segment)
		case 'U':
			lines = a.add(record.Keys, &record.Event{Kind: record.Unaccounted})
		case 'u':
			lines = a.add(record.Data, &record.Event{Kind: record.Unaccounted})
		case 'E':
			lines = append(a.stop(), a.checkpoint(record.CheckpointMade)...)
		case 'T':
			torn := *a
			torn.frontier = a.frontier.Clone()
			lines = torn.add(record.Keys, &record.Event{Kind: record.Unaccounted})[:100]
		}
		files[file] += string(lines)
	}
	return a, files
}

// A process that dies before it has told that the one before did not end leaves
// that to the next.
func TestPreviousInheritsWhatIsOwed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		logs    []session
		ended   bool
		counted string // log whose first record it is the time of
	}{
		{"killed twice", []session{{"a", "", "CC"}, {"b", "a", ""}}, false, "a"},
		{"killed while it told", []session{{"a", "", "C"}, {"b", "a", "T"}}, false, "a"},
		{"killed after it told", []session{{"a", "", "C"}, {"b", "a", "U"}}, false, "b"},
		{"failed, and ended", []session{{"a", "", "C"}, {"b", "a", "E"}}, false, "a"},
		{"failed, and ended, with checkpoint", []session{{"a", "", "C"}, {"b", "a", "KE"}}, false, "a"},
		{"three times", []session{{"a", "", "C"}, {"b", "a", ""}, {"c", "b", ""}}, false, "a"},
		{"failed, then killed", []session{{"a", "", "C"}, {"b", "a", "E"}, {"c", "b", ""}}, false, "a"},
		{"failed twice", []session{{"a", "", "C"}, {"b", "a", "E"}, {"c", "b", "E"}}, false, "a"},
		{"told by the third", []session{{"a", "", "C"}, {"b", "a", ""}, {"c", "b", "UCE"}}, true, "c"},
		{"told by the third, then killed", []session{{"a", "", "C"}, {"b", "a", "E"}, {"c", "b", "UC"}, {"d", "c", ""}}, false, "c"},
		{"told by the second", []session{{"a", "", "C"}, {"b", "a", "UE"}, {"c", "b", "E"}}, true, "c"},
		{"the one before ended", []session{{"a", "", "CE"}, {"b", "a", ""}}, false, "b"},
		{"all ended", []session{{"a", "", "CE"}, {"b", "a", "CE"}, {"c", "b", "E"}}, true, "c"},
		{"the one before is gone", []session{{"b", "a", "E"}}, true, "b"},
		{"none was before", []session{{"a", "", "C"}, {"b", "", "E"}}, true, "b"},
		{"told after a checkpoint", []session{{"a", "", "C"}, {"b", "a", "KUE"}}, true, "b"},
		{"told in the second file", []session{{"a", "", "C"}, {"b", "a", "KSUCE"}}, true, "b"},
		{"told in the second of three files", []session{{"a", "", "C"}, {"b", "a", "SUSE"}}, true, "b"},
		{"never told, with calls", []session{{"a", "", "C"}, {"b", "a", "CSCE"}}, false, "a"},
		{"told by data", []session{{"a", "", "C"}, {"b", "a", "uE"}}, false, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := make(map[string]string)
			var last *author
			for i, s := range tt.logs {
				var files map[string]string
				last, files = s.play(t, epoch.Add(time.Duration(i)*time.Hour))
				maps.Copy(all, files)
			}
			dir := restore(t, all)
			want := firstOfLastFile(t, all, tt.counted)
			for again := range 2 { // Open changes nothing but what was torn
				p := previous(t, dir)
				if p.Ended != tt.ended || !p.Counted.Equal(want) || p.Damage != "" {
					t.Errorf("Open %d: Previous = %+v, want ended %v, counted %v", again, p, tt.ended, want)
				}
				if p.Log != last.origin || p.Size != last.size() || p.Root != last.frontier.Root() {
					t.Errorf("Previous = %+v, want %s", p, last.origin)
				}
			}
		})
	}
}

// firstOfLastFile returns the time of the first record of a log's last file.
func firstOfLastFile(t tb, all map[string]string, id string) time.Time {
	t.Helper()
	var last string
	for _, name := range names(all) {
		if strings.HasPrefix(name, id+".") {
			last = all[name]
		}
	}
	line, _, _ := strings.Cut(last, "\n")
	r, err := record.Parse([]byte(line))
	must(t, err)
	return r.Time
}

// previous opens the directory for a log nobody has.
func previous(t tb, dir string) segments.Previous {
	t.Helper()
	d := openFast(t, segments.Config{Path: dir, Log: "keysidecar/test/next", Logger: slog.New(slog.DiscardHandler)})
	p, _ := d.Previous()
	must(t, d.Close())
	return p
}

// What is owed begins where the log that did not end says that it does, as far
// as that can be read.
func TestWhatIsOwedBegins(t *testing.T) {
	a := newAuthor(t, "a", epoch)
	text := string(append(a.start(""), a.call(3)...))
	since := epoch.Add(-time.Minute)
	signed, err := record.Checkpoint{Log: a.origin, Size: a.size(), Root: a.frontier.Root()}.Sign(a.signer)
	must(t, err)
	text += string(a.add(record.Keys, &record.Event{Kind: record.CheckpointMade, Note: signed, From: since}))
	text += string(a.call(2))
	b := newAuthor(t, "b", epoch.Add(time.Hour))
	next := string(b.start(a.origin))
	for _, tt := range []struct {
		name, text string
		want       time.Time
	}{
		{"by its checkpoint", text, since},
		{"with a torn line", text[:len(text)-5], since},
		{"with no whole line at its end", text + strings.Repeat("x", 100_000), since},
		{"damaged before its checkpoint", strings.Replace(text, "seal", "open", 1), epoch},
		{"damaged in its first record", strings.Replace(text, `"kind":"start"`, `"kind":"stop!"`, 1), epoch},
	} {
		dir := restore(t, map[string]string{a.file(0): tt.text, b.file(0): next})
		all := snapshot(t, dir)
		if p := previous(t, dir); p.Ended || !p.Counted.Equal(tt.want) || p.Log != b.origin || p.Size != 1 || p.Torn != 0 {
			t.Errorf("%s: Previous = %+v, want counted %v", tt.name, p, tt.want)
		}
		if diff := cmp.Diff(all, snapshot(t, dir)); diff != "" {
			t.Errorf("%s: the log before was changed (-want +got):\n%s", tt.name, diff)
		}
	}
}
