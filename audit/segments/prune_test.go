package segments_test

import (
	"bytes"
	stdcmp "cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

const (
	day   = 24 * time.Hour
	never = 1_000_000 * time.Hour
)

// kept are the kinds that stay as long as their file.
func kept() []record.Kind {
	return []record.Kind{record.Start, record.Stop, record.Segment, record.CheckpointMade, record.Certified, record.Unaccounted}
}

// eventsOf returns the kinds of the events in a file; "-" where one was removed.
// It fails unless the leaves are those of the log, from record first.
func eventsOf(t tb, text string, leaves []tlog.Hash, first int64) []string {
	t.Helper()
	var kinds []string
	for line := range strings.Lines(text) {
		r, err := record.Parse([]byte(strings.TrimSuffix(line, "\n")))
		must(t, err)
		if r.Seq != first || r.Leaf != leaves[first] || !r.Intact() {
			t.Fatalf("record %d is not record %d that was written", r.Seq, first)
		}
		first++
		if r.Pruned() {
			kinds = append(kinds, "-")
			continue
		}
		e, err := record.ParseEvent(r.Event)
		must(t, err)
		kinds = append(kinds, string(e.Kind))
	}
	return kinds
}

// mixed appends one record of each class, of kind key, denied, call.
func (a *author) mixed() []byte {
	lines := a.add(record.Keys, &record.Event{Kind: record.KeyStep, Step: "mint"})
	lines = append(lines, a.add(record.Denials, &record.Event{Kind: record.Denied, Verb: "seal"})...)
	return append(lines, a.call(1)...)
}

// twoLogs writes two logs, of two files each, a day apart, and returns the
// directory open, with the second being written.
func twoLogs(t testing.TB, retention segments.Retention) (dir string, a, b *author, d *segments.Dir) {
	t.Helper()
	dir, a = newDir(t), newAuthor(t, "a", epoch)
	a.step = time.Minute
	d = open(t, config(dir, a))
	write(t, d, a, append(a.start(""), a.mixed()...), true)
	a.at = epoch.Add(day)
	write(t, d, a, append(a.checkpoint(record.Segment), a.mixed()...), true)
	lines := a.add(record.Keys, &record.Event{Kind: record.Certified})
	lines = append(lines, a.add(record.Keys, &record.Event{Kind: record.Unaccounted})...)
	lines = append(lines, a.stop()...)
	write(t, d, a, append(lines, a.checkpoint(record.CheckpointMade)...), false)
	must(t, d.Close())

	b = newAuthor(t, "b", epoch.Add(2*day))
	b.step = time.Minute
	cfg := config(dir, b)
	cfg.Retention = retention
	d = open(t, cfg)
	t.Cleanup(func() { d.Close() })
	write(t, d, b, append(b.start(a.origin), b.mixed()...), true)
	b.at = epoch.Add(3 * day)
	write(t, d, b, append(b.checkpoint(record.Segment), b.mixed()...), true)
	d.Age(day) // so long a Dir doubts that much time has gone by
	return dir, a, b, d
}

func TestPrune(t *testing.T) {
	full := map[string]string{
		"a0": "start key denied call", "a4": "segment key denied call certified unaccounted stop checkpoint",
		"b0": "start key denied call", "b4": "segment key denied call",
	}
	with := func(changes map[string]string) map[string]string {
		all := maps.Clone(full)
		for name, kinds := range changes {
			all[name] = kinds
			if kinds == "" {
				delete(all, name)
			}
		}
		return all
	}
	data := segments.Retention{Data: 10 * day}
	all := segments.Retention{Keys: 30 * day, Denials: 20 * day, Data: 10 * day}
	same := segments.Retention{Keys: 10 * day, Denials: 10 * day, Data: 10 * day}
	for _, tt := range []struct {
		name      string
		retention segments.Retention
		at        time.Duration
		want      map[string]string
		done      segments.Pruned // without Bytes
	}{
		{"everything for ever", segments.Retention{}, 1000 * day, full, segments.Pruned{}},
		{"not yet", data, 10*day + 3*time.Minute, full, segments.Pruned{}},
		// Data is over after 10 days, but the file is looked at by its last record.
		{"one file", data, 10*day + 3*time.Minute + 1, with(map[string]string{"a0": "start key denied -"}), segments.Pruned{Events: 1}},
		{"the newest record counts", data, 11*day + 3*time.Minute, with(map[string]string{"a0": "start key denied -"}), segments.Pruned{Events: 1}},
		{"all but the one that is written", data, 1000 * day, with(map[string]string{
			"a0": "start key denied -", "a4": "segment key denied - certified unaccounted stop checkpoint", "b0": "start key denied -",
		}), segments.Pruned{Events: 3}},
		{"not older yet", all, 20*day + 2*time.Minute, with(map[string]string{
			"a0": "start key denied -", "a4": "segment key denied - certified unaccounted stop checkpoint", "b0": "start key denied -",
		}), segments.Pruned{Events: 3}},
		{"denials too", all, 20*day + time.Hour, with(map[string]string{
			"a0": "start key - -", "a4": "segment key denied - certified unaccounted stop checkpoint", "b0": "start key denied -",
		}), segments.Pruned{Events: 4}},
		{"keys too: then the file goes", all, 30*day + time.Hour, with(map[string]string{
			"a0": "", "a4": "segment key - - certified unaccounted stop checkpoint", "b0": "start key - -",
		}), segments.Pruned{Files: 1, Events: 4}},
		{"the whole log", all, 31*day + time.Hour, with(map[string]string{"a0": "", "a4": "", "b0": "start key - -"}),
			segments.Pruned{Files: 2, Events: 2}},
		{"all but the one that is written goes", same, 1000 * day, with(map[string]string{"a0": "", "a4": "", "b0": ""}),
			segments.Pruned{Files: 3}},
		{"only keys", segments.Retention{Keys: day}, 1000 * day, with(map[string]string{
			"a0": "start - denied call", "a4": "segment - denied call certified unaccounted stop checkpoint", "b0": "start - denied call",
		}), segments.Pruned{Events: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, a, b, d := twoLogs(t, tt.retention)
			before := d.Bytes()
			done, err := d.Prune(context.Background(), epoch.Add(tt.at))
			must(t, err)
			got, size := make(map[string]string), int64(0)
			for name, text := range snapshot(t, dir) {
				who, from := a, int64(0)
				if name[0] == 'b' {
					who = b
				}
				if strings.Contains(name, "4.jsonl") {
					from = 4
				}
				got[fmt.Sprintf("%c%d", name[0], from)] = strings.Join(eventsOf(t, text, who.leaves, from), " ")
				size += int64(len(text))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if d.Bytes() != size || done.Bytes != before-size {
				t.Errorf("Bytes = %d, of %d before; the files have %d; %d pruned", d.Bytes(), before, size, done.Bytes)
			}
			done.Bytes, done.Oldest, done.Newest = 0, time.Time{}, time.Time{} // see TestPrunedTimes
			// A file that goes at once may have lost its events before.
			if tt.done.Files > 0 {
				done.Events, tt.done.Events = 0, 0
			}
			if diff := cmp.Diff(tt.done, done); diff != "" {
				t.Errorf("Pruned (-want +got):\n%s", diff)
			}
			if again, err := d.Prune(context.Background(), epoch.Add(tt.at)); err != nil || again != (segments.Pruned{}) {
				t.Errorf("Prune again = %+v, %v", again, err)
			}
			write(t, d, b, b.stop(), false)
			must(t, d.Close())
			if p, _ := reopen(t, dir); p.Size != b.size() || p.Root != b.frontier.Root() || p.Damage != "" || !p.Ended {
				t.Errorf("Previous = %+v", p)
			}
		})
	}
}

// Time goes by, and each Prune does what is due, whatever it planned before.
func TestPruneFromDayToDay(t *testing.T) {
	dir, _, _, d := twoLogs(t, segments.Retention{Keys: 5 * day, Denials: 3 * day, Data: day})
	var files, events []int
	for at := range 12 {
		_, err := d.Prune(context.Background(), epoch.Add(time.Duration(at)*day+time.Hour))
		must(t, err)
		all := snapshot(t, dir)
		left := 0
		for _, text := range all {
			left += strings.Count(text, `"event":`)
		}
		files, events = append(files, len(all)), append(events, left)
	}
	if diff := cmp.Diff([]int{4, 4, 4, 4, 4, 3, 2, 1, 1, 1, 1, 1}, files); diff != "" {
		t.Errorf("files by day (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{20, 19, 18, 16, 15, 12, 6, 4, 4, 4, 4, 4}, events); diff != "" {
		t.Errorf("events by day (-want +got):\n%s", diff)
	}
}

// A file is not read before something can be over.
func TestPruneReadsWhatIsDue(t *testing.T) {
	dir, a, _, d := twoLogs(t, segments.Retention{Keys: 30 * day, Denials: 10 * day, Data: 5 * day})
	for _, tt := range []struct {
		first, second time.Duration // of Prune
		reads         bool          // the second time
	}{{3 * day, 4 * day, false}, {4 * day, 6 * day, true}, {6 * day, 9 * day, false}, {9 * day, 11 * day, true}, {11 * day, 29 * day, false}} {
		_, err := d.Prune(context.Background(), epoch.Add(tt.first))
		must(t, err)
		path := filepath.Join(dir, a.file(0))
		raw, err := os.ReadFile(path)
		must(t, err, os.WriteFile(path, append([]byte("x"), raw...), 0o600))
		if _, err = d.Prune(context.Background(), epoch.Add(tt.second)); (err != nil) != tt.reads {
			t.Errorf("Prune after %v, then %v: %v", tt.first, tt.second, err)
		}
		must(t, os.WriteFile(path, raw, 0o600))
	}
}

func TestPruneKeepsTimeAndMode(t *testing.T) {
	dir, a, _, d := twoLogs(t, segments.Retention{Data: day})
	path := filepath.Join(dir, a.file(0))
	old := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	must(t, os.Chtimes(path, old, old))
	done, err := d.Prune(context.Background(), epoch.Add(100*day))
	must(t, err)
	info, err := os.Lstat(path)
	must(t, err)
	if !info.ModTime().Equal(old) || info.Mode() != 0o600 || done.Events != 3 {
		t.Errorf("mode %v, changed %v, %+v", info.Mode(), info.ModTime(), done)
	}
}

func TestPruneAndTheClock(t *testing.T) {
	for _, tt := range []struct {
		set time.Duration
		ok  bool
	}{{2 * time.Hour, false}, {-2 * time.Hour, false}, {time.Hour + time.Minute, false}, {59 * time.Minute, true}, {-59 * time.Minute, true}} {
		dir, _, _, d := twoLogs(t, segments.Retention{Keys: day, Denials: day, Data: day})
		before := snapshot(t, dir)
		d.SetClock(tt.set)
		done, err := d.Prune(context.Background(), epoch.Add(100*day))
		if ok := err == nil; ok != tt.ok || !ok && !strings.Contains(err.Error(), "the clock was set by "+tt.set.String()) {
			t.Errorf("clock set by %v: %v", tt.set, err)
		}
		if unchanged := cmp.Equal(before, snapshot(t, dir)); unchanged == tt.ok || (done == segments.Pruned{}) == tt.ok {
			t.Errorf("clock set by %v: pruned %+v", tt.set, done)
		}
	}
}

// What is damaged stays, and what comes after it is not removed as a whole.
func TestPruneLeavesDamage(t *testing.T) {
	for name, change := range map[string]func(string) string{
		"a line":   func(s string) string { return strings.Replace(s, "{", "[", 1) },
		"an event": func(s string) string { return strings.Replace(s, "mint", "moon", 1) },
		"a line gone": func(s string) string {
			return s[:strings.Index(s, "\n")+1] + s[strings.LastIndex(s[:len(s)-1], "\n")+1:]
		},
		"a torn line": func(s string) string { return s[:len(s)-1] },
		"the end":     func(s string) string { return s + "x\n" },
		"all of it":   func(string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			dir, a, b, d := twoLogs(t, segments.Retention{Keys: day, Denials: day, Data: day})
			path := filepath.Join(dir, a.file(4))
			raw, err := os.ReadFile(path)
			must(t, err)
			damaged := change(string(raw))
			must(t, d.Close(), os.WriteFile(path, []byte(damaged), 0o600))
			cfg := config(dir, newAuthor(t, "c", epoch.Add(4*day)))
			cfg.Retention = segments.Retention{Keys: day, Denials: day, Data: day}
			d = open(t, cfg)
			d.Age(day)
			done, err := d.Prune(context.Background(), epoch.Add(100*day))
			if err == nil || !strings.Contains(err.Error(), path+", line ") || strings.Contains(err.Error(), "line 0") ||
				!strings.Contains(err.Error(), ": 1 files are damaged and stay as they are") {
				t.Errorf("Prune: %v", err)
			}
			all := snapshot(t, dir)
			if all[a.file(4)] != damaged {
				t.Error("the damaged file was changed")
			}
			if _, ok := all[a.file(0)]; ok || len(all) != 3 || done.Files != 1 {
				t.Errorf("files = %v, %+v", names(all), done)
			}
			if diff := cmp.Diff([]string{"start", "-", "-", "-"}, eventsOf(t, all[b.file(0)], b.leaves, 0)); diff != "" {
				t.Errorf("events after the damaged file (-want +got):\n%s", diff)
			}
			must(t, d.Close())
		})
	}
}

// Prune that cannot write leaves the files as they were, and the next one does
// what it could not.
func TestPruneFails(t *testing.T) {
	for fail := 1; fail <= 12; fail++ {
		dir, a, b, d := twoLogs(t, segments.Retention{Keys: 50 * day, Denials: day, Data: day})
		d.SetSync(failing(fail, fail))
		_, err := d.Prune(context.Background(), epoch.Add(10*day))
		if fail <= 6 && (err == nil || !strings.Contains(err.Error(), "no fsync today")) {
			t.Errorf("fsync %d fails: Prune: %v", fail, err)
		}
		for name, text := range snapshot(t, dir) {
			who, from := a, int64(0)
			if name[0] == 'b' {
				who = b
			}
			if strings.Contains(name, "4.jsonl") {
				from = 4
			}
			eventsOf(t, text, who.leaves, from)
		}
		_, err = d.Prune(context.Background(), epoch.Add(10*day))
		must(t, err)
		left := 0
		for _, text := range snapshot(t, dir) {
			left += strings.Count(text, `"event":`)
			if int64(len(text)) > d.Bytes() {
				t.Errorf("Bytes = %d", d.Bytes())
			}
		}
		if left != 2+6+2+4 {
			t.Errorf("fsync %d failed: %d events are left", fail, left)
		}
	}
}

// A copy of the directory at any fsync of Prune is one after a crash.
func TestCrashAtEveryPrune(t *testing.T) {
	dir, a, b, d := twoLogs(t, segments.Retention{Keys: 20 * day, Denials: 5 * day, Data: day})
	copies := 0
	check := func() {
		copies++
		dir := restore(t, snapshot(t, dir))
		p, _ := reopen(t, dir)
		if p.Log != b.origin || p.Root != b.frontier.Root() || p.Damage != "" || p.Torn != 0 {
			t.Errorf("Previous = %+v", p)
		}
		checkFiles(t, dir, a, b)
	}
	d.SetSync(func(f *os.File) error {
		check()
		defer check()
		return f.Sync()
	})
	for _, at := range []time.Duration{3 * day, 5 * day, 8 * day, 30 * day} {
		_, err := d.Prune(context.Background(), epoch.Add(at))
		must(t, err)
		check()
	}
	if all := snapshot(t, dir); len(all) != 1 || copies < 20 {
		t.Errorf("files = %v after %d copies", names(all), copies)
	}
}

// checkFiles checks that what is left of logs, the oldest first, is in one
// piece, up to the end.
func checkFiles(t tb, dir string, logs ...*author) {
	t.Helper()
	all := snapshot(t, dir)
	older := false // there is one
	for _, a := range logs {
		next := int64(0)
		if !older {
			next = -1 // any
		}
		for first := range a.size() {
			text, ok := all[a.file(first)]
			if !ok {
				continue
			}
			if next >= 0 && first != next {
				t.Fatalf("%s goes on with record %d, not %d", a.origin, first, next)
			}
			eventsOf(t, text, a.leaves, first)
			next = first + int64(strings.Count(text, "\n"))
			delete(all, a.file(first))
		}
		if next >= 0 && next != a.size() {
			t.Fatalf("%s ends with record %d of %d", a.origin, next, a.size())
		}
		older = older || next >= 0
	}
	if len(all) > 0 {
		t.Fatalf("other files: %v", names(all))
	}
}

// Whatever is written, begun, pruned, restarted: the leaves are those that were
// written, and an event is away only if its time was over.
func TestLeavesStayTheSame(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := newDir(t)
		days := rapid.SampledFrom([]time.Duration{0, day, 3 * day, 10 * day})
		retention := segments.Retention{Keys: days.Draw(rt, "keys"), Denials: days.Draw(rt, "denials"), Data: days.Draw(rt, "data")}
		now := epoch
		var logs []*author
		var d *segments.Dir
		restart := func() {
			before := ""
			if d != nil {
				must(rt, d.Close())
				before = logs[len(logs)-1].origin
			}
			a := newAuthor(rt, fmt.Sprintf("log-%d", len(logs)), now)
			logs = append(logs, a)
			cfg := config(dir, a)
			cfg.Retention = retention
			d = openFast(rt, cfg)
			d.Age(day)
			if p, _ := d.Previous(); p.Log != before || before != "" && p.Root != logs[len(logs)-2].frontier.Root() {
				rt.Fatalf("Previous = %+v, want %s", p, before)
			}
			write(rt, d, a, a.start(before), true)
		}
		restart()
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			a := logs[len(logs)-1]
			a.at = now
			switch rapid.SampledFrom([]string{"mixed", "call", "checkpoint", "segment", "restart", "prune", "prune"}).Draw(rt, "step") {
			case "mixed":
				write(rt, d, a, a.mixed(), false)
			case "call":
				write(rt, d, a, a.call(rapid.IntRange(1, 3).Draw(rt, "n")), false)
			case "checkpoint":
				write(rt, d, a, a.checkpoint(record.CheckpointMade), false)
			case "segment":
				write(rt, d, a, append(a.checkpoint(record.Segment), a.mixed()...), true)
			case "restart":
				restart()
			case "prune":
				_, err := d.Prune(context.Background(), now)
				must(rt, err)
				checkRetention(rt, dir, logs, retention, now)
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 48).Draw(rt, "hours")) * time.Hour)
		}
		must(rt, d.Close())
		checkFiles(rt, dir, logs...)
	})
}

// checkRetention checks that what is there had to stay, or its file could not
// go, and that what is not there was over.
func checkRetention(t tb, dir string, logs []*author, keep segments.Retention, now time.Time) {
	t.Helper()
	over := func(class record.Class, at time.Time) bool {
		d := map[record.Class]time.Duration{record.Keys: keep.Keys, record.Denials: keep.Denials, record.Data: keep.Data}[class]
		return d > 0 && now.Sub(at) > d
	}
	all := snapshot(t, dir)
	checkFiles(t, dir, logs...)
	last := logs[len(logs)-1]
	for name, text := range all {
		newest := make(map[record.Class]time.Time)
		var records []*record.Record
		for line := range strings.Lines(text) {
			r, err := record.Parse([]byte(strings.TrimSuffix(line, "\n")))
			must(t, err)
			newest[r.Class] = r.Time
			records = append(records, r)
		}
		// The file is looked at by its last record.
		least := min(stdcmp.Or(keep.Keys, never), stdcmp.Or(keep.Denials, never), stdcmp.Or(keep.Data, never))
		looked := now.Sub(records[len(records)-1].Time) > least
		written := strings.HasPrefix(name, last.id()+".") && records[len(records)-1].Seq == last.size()-1
		for _, r := range records {
			if r.Pruned() && (written || !over(r.Class, r.Time)) {
				t.Fatalf("record %d of %s was pruned too early", r.Seq, r.Log)
			}
			if r.Pruned() || written || !looked || !over(r.Class, newest[r.Class]) {
				continue
			}
			e, err := record.ParseEvent(r.Event)
			must(t, err)
			stays := false
			for _, kind := range kept() {
				stays = stays || e.Kind == kind
			}
			if !stays {
				t.Fatalf("record %d of %s was not pruned", r.Seq, r.Log)
			}
		}
	}
}

func TestPruneBesideWrite(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	cfg := config(dir, a)
	cfg.SegmentBytes, cfg.Retention = 2000, segments.Retention{Keys: day, Denials: 1, Data: 1}
	d := open(t, cfg)
	write(t, d, a, a.start(""), true)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if _, err := d.Prune(context.Background(), epoch.Add(time.Hour*20)); err != nil {
						t.Error(err)
						return
					}
					d.Bytes()
				}
			}
		})
	}
	for range 300 {
		var lines []byte
		begin := d.Full()
		if begin {
			lines = a.checkpoint(record.Segment)
		}
		write(t, d, a, append(lines, a.mixed()...), begin)
	}
	close(done)
	wg.Wait()
	must(t, d.Close())
	checkFiles(t, dir, a)
	if p, _ := reopen(t, dir); p.Root != a.frontier.Root() {
		t.Errorf("Previous = %+v", p)
	}
	pruned := 0
	for _, text := range snapshot(t, dir) {
		pruned += bytes.Count([]byte(text), []byte("\n")) - strings.Count(text, `"event":`)
	}
	if pruned < 100 {
		t.Errorf("%d events were pruned", pruned)
	}
}

// Files that somebody else removed are no error.
func TestPruneWithoutAFile(t *testing.T) {
	dir, a, _, d := twoLogs(t, segments.Retention{Keys: day, Denials: day, Data: day})
	must(t, os.Remove(filepath.Join(dir, a.file(0))))
	done, err := d.Prune(context.Background(), epoch.Add(100*day))
	if err != nil || done.Files != 2 {
		t.Errorf("Prune = %+v, %v", done, err)
	}
	must(t, d.Close())
	if _, err := d.Prune(context.Background(), epoch.Add(100*day)); err == nil || !strings.Contains(err.Error(), "is closed") {
		t.Errorf("Prune after Close: %v", err)
	}
	_, err = os.Lstat(filepath.Join(dir, a.file(4)))
	if err == nil {
		t.Error("the second file is there")
	} else if !strings.Contains(err.Error(), fs.ErrNotExist.Error()) && !os.IsNotExist(err) {
		t.Error(err)
	}
}
