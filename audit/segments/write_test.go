package segments_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

func TestWrite(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	cfg := config(dir, a)
	cfg.SegmentBytes = 1000
	d := open(t, cfg)
	if _, ok := d.Previous(); ok || d.Full() || d.Bytes() != 0 {
		t.Errorf("an empty directory: Previous %v, Full %v, Bytes %d", ok, d.Full(), d.Bytes())
	}
	first := a.start("")
	write(t, d, a, first, true)
	for !d.Full() {
		lines := a.call(2)
		first = append(first, lines...)
		write(t, d, a, lines, false)
	}
	if len(first) < 1000 || len(first) > 2000 {
		t.Errorf("full with %d bytes, of 1000", len(first))
	}
	second := append(a.checkpoint(record.Segment), a.call(1)...)
	write(t, d, a, second, true)
	if d.Full() {
		t.Error("full as soon as it was begun")
	}
	want := map[string]string{a.file(0): string(first), a.file(a.size() - 2): string(second)}
	if diff := cmp.Diff(want, snapshot(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if d.Bytes() != int64(len(first)+len(second)) {
		t.Errorf("Bytes = %d", d.Bytes())
	}
	for name := range want {
		info, err := os.Lstat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	must(t, d.Close())
	p, ok := reopen(t, dir)
	last := a.previous(a.size())
	last.Last = a.at.Add(-a.step)
	if diff := cmp.Diff(last, p); diff != "" || !ok {
		t.Errorf("Previous (-want +got):\n%s", diff)
	}
}

func TestFullByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, a := newDir(t), newAuthor(t, "a", epoch)
		d := open(t, config(dir, a))
		<-time.After(2 * time.Hour) // of the bubble's time
		write(t, d, a, a.start(""), true)
		if d.Full() {
			t.Error("full at once")
		}
		<-time.After(time.Hour - 1) // of the bubble's time
		if d.Full() {
			t.Error("full before it is an hour old")
		}
		<-time.After(1) // of the bubble's time
		if !d.Full() {
			t.Error("not full when it is an hour old")
		}
		write(t, d, a, a.checkpoint(record.Segment), true)
		if d.Full() {
			t.Error("the next one is full at once")
		}
		must(t, d.Close())
	})
}

func TestFailedWriteChangesNothing(t *testing.T) {
	name := newAuthor(t, "a", epoch).file(0)
	for _, tt := range []struct {
		name    string
		breakIt func(t *testing.T, d *segments.Dir, dir string)
		repair  func(t *testing.T, d *segments.Dir, dir string)
		want    string
		path    string // where the directory is while it is broken
		differs bool   // the files are not as before until the next Write
	}{
		{name: "fsync", breakIt: func(_ *testing.T, d *segments.Dir, _ string) { d.SetSync(failing(1, 1)) },
			want: "writing "},
		{name: "a part was written", breakIt: func(_ *testing.T, d *segments.Dir, _ string) {
			d.SetSync(func(f *os.File) error {
				d.SetSync((*os.File).Sync)
				if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > 100 {
					return errors.Join(f.Truncate(info.Size()-100), errors.New("disk full"))
				}
				return errors.New("not a file")
			})
		}, want: "disk full"},
		{name: "fsync of what is cut back too", breakIt: func(_ *testing.T, d *segments.Dir, _ string) { d.SetSync(failing(1, 4)) },
			repair: func(_ *testing.T, d *segments.Dir, _ string) { d.SetSync((*os.File).Sync) },
			want:   "taking that back: ", differs: true},
		{name: "the file is closed", breakIt: func(t *testing.T, d *segments.Dir, dir string) {
			f, err := os.Open(filepath.Join(dir, name))
			must(t, err, f.Close(), d.SetFile(f).Close())
		}, want: "file already closed"},
		{name: "the file is read-only", breakIt: func(t *testing.T, d *segments.Dir, dir string) {
			f, err := os.Open(filepath.Join(dir, name))
			must(t, err, d.SetFile(f).Close())
		}, want: "bad file descriptor"},
		{name: "the directory is away", breakIt: func(t *testing.T, _ *segments.Dir, dir string) { must(t, os.Rename(dir, dir+"x")) },
			repair: func(t *testing.T, _ *segments.Dir, dir string) { must(t, os.Rename(dir+"x", dir)) },
			want:   "checking audit directory", path: "x"},
		{name: "the directory is another", breakIt: func(t *testing.T, _ *segments.Dir, dir string) {
			must(t, os.Rename(dir, dir+"x"), os.Mkdir(dir, 0o700))
		}, repair: func(t *testing.T, _ *segments.Dir, dir string) {
			must(t, os.Remove(dir), os.Rename(dir+"x", dir))
		}, want: "was replaced by another", path: "x"},
		{name: "the lock is away", breakIt: func(t *testing.T, _ *segments.Dir, dir string) {
			must(t, os.Rename(filepath.Join(dir, "audit.lock"), dir+".lock"))
		}, repair: func(t *testing.T, _ *segments.Dir, dir string) {
			must(t, os.Rename(dir+".lock", filepath.Join(dir, "audit.lock")))
		}, want: "audit.lock was removed or replaced, so that another sidecar may use the directory"},
		{name: "the file is away", breakIt: func(t *testing.T, _ *segments.Dir, dir string) {
			must(t, os.Rename(filepath.Join(dir, name), dir+".kept"))
		}, repair: func(t *testing.T, _ *segments.Dir, dir string) {
			must(t, os.Rename(dir+".kept", filepath.Join(dir, name)))
		}, want: name + " was removed or replaced: put back", differs: true},
		{name: "the file is longer", breakIt: func(t *testing.T, _ *segments.Dir, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteString("more")
			must(t, err, f.Close())
		}, repair: func(t *testing.T, _ *segments.Dir, dir string) {
			info, err := os.Stat(filepath.Join(dir, name))
			must(t, err, os.Truncate(filepath.Join(dir, name), info.Size()-4))
		}, want: " were written: put back", differs: true},
	} {
		for _, begin := range []bool{false, true} {
			t.Run(map[bool]string{false: "append/", true: "begin/"}[begin]+tt.name, func(t *testing.T) {
				if begin && strings.Contains(tt.name, "the file is ") && tt.path == "" && tt.repair == nil {
					checkBrokenFileDoesNotMatter(t, tt.breakIt)
					return
				}
				dir, a := newDir(t), newAuthor(t, "a", epoch)
				d := open(t, config(dir, a))
				write(t, d, a, append(a.start(""), a.call(3)...), true)
				before, bytes, size := snapshot(t, dir), d.Bytes(), a.size()
				lines := append(a.checkpoint(record.Segment), a.call(3)...)
				tt.breakIt(t, d, dir)
				err := d.Write(size, lines, begin)
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("Write: %v, want ...%s...", err, tt.want)
				}
				if diff := cmp.Diff(before, snapshot(t, dir+tt.path)); diff != "" && !tt.differs || d.Bytes() != bytes {
					t.Errorf("Bytes %d, were %d; files (-before +after):\n%s", d.Bytes(), bytes, diff)
				}
				if tt.repair != nil {
					tt.repair(t, d, dir)
				}
				// Not the same lines: these must not be mixed with those.
				a2 := *a
				a2.frontier, a2.prev, a2.leaves = record.Frontier{}, record.Link{}, nil
				for _, leaf := range a.leaves[:size] {
					a2.frontier.Add(leaf)
				}
				a2.prev, a2.leaves = record.LinkTo(a.leaves[size-1]), a.leaves[:size:size]
				shorter := a2.checkpoint(record.Segment)
				write(t, d, &a2, shorter, begin)
				want := map[string]string{name: before[name] + string(shorter)}
				if begin {
					want = map[string]string{name: before[name], a.file(size): string(shorter)}
				}
				if diff := cmp.Diff(want, snapshot(t, dir)); diff != "" || d.Bytes() != bytes+int64(len(shorter)) {
					t.Errorf("Bytes %d; files after the next Write (-want +got):\n%s", d.Bytes(), diff)
				}
				must(t, d.Close())
				if p, _ := reopen(t, dir); p.Size != size+1 || p.Root != a2.frontier.Root() || p.Damage != "" || p.Torn != 0 {
					t.Errorf("Previous = %+v", p)
				}
			})
		}
	}
}

// checkBrokenFileDoesNotMatter checks that a new file can be begun whatever
// became of the descriptor of the old one.
func checkBrokenFileDoesNotMatter(t *testing.T, breakIt func(*testing.T, *segments.Dir, string)) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	write(t, d, a, a.start(""), true)
	breakIt(t, d, dir)
	write(t, d, a, a.checkpoint(record.Segment), true)
	write(t, d, a, a.call(1), false)
	must(t, d.Close())
	if p, _ := reopen(t, dir); p.Size != 3 || p.Damage != "" {
		t.Errorf("Previous = %+v", p)
	}
}

// What was written is never made longer again with nothing.
func TestFileBecameShorter(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	write(t, d, a, a.start(""), true)
	before := snapshot(t, dir)
	d.SetSync(func(f *os.File) error {
		d.SetSync((*os.File).Sync)
		return errors.Join(f.Truncate(10), errors.New("disk full"))
	})
	line := a.call(1)
	for range 2 {
		if err := d.Write(1, line, false); err == nil || !strings.Contains(err.Error(), "it has 10 bytes only: put back what was written") {
			t.Errorf("Write: %v", err)
		}
	}
	path := filepath.Join(dir, a.file(0))
	must(t, os.WriteFile(path, []byte(before[a.file(0)]+"x"), 0o600), d.Write(1, line, false), d.Close())
	if diff := cmp.Diff(map[string]string{a.file(0): before[a.file(0)] + string(line)}, snapshot(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// A file that was begun is removed when any step of beginning it fails, and when
// even that fails, before the next one is begun.
func TestFailedBegin(t *testing.T) {
	for first := 1; first <= 4; first++ {
		for last := first; last <= first+2; last++ {
			dir, a := newDir(t), newAuthor(t, "a", epoch)
			d := open(t, config(dir, a))
			lines := append(a.start(""), a.call(1)...)
			d.SetSync(failing(first, last))
			failed := 0
			for d.Write(0, lines, true) != nil {
				if failed++; failed > 10 {
					t.Fatalf("fsync fails from %d to %d: it never works again", first, last)
				}
				if d.Bytes() != 0 || d.Full() {
					t.Errorf("fsync fails from %d to %d: Bytes = %d, Full = %v", first, last, d.Bytes(), d.Full())
				}
			}
			if first <= 2 && failed == 0 {
				t.Errorf("fsync fails from %d to %d, and Write does not", first, last)
			}
			if diff := cmp.Diff(map[string]string{a.file(0): string(lines)}, snapshot(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			must(t, d.Close())
		}
	}
}

func TestWriteRefusesWhatDoesNotFollow(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	line := a.start("")
	for _, tt := range []struct {
		name  string
		seq   int64
		lines []byte
		begin bool
	}{
		{"no file was begun", 0, line, false},
		{"another number", 1, line, true},
		{"no lines", 0, nil, true},
		{"half a line", 0, line[:len(line)-1], true},
	} {
		if err := d.Write(tt.seq, tt.lines, tt.begin); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
	must(t, d.Write(0, line, true))
	if err := d.Write(0, line, false); err == nil || !strings.Contains(err.Error(), "record 0 cannot follow 1 records") {
		t.Errorf("the same again: %v", err)
	}
	if diff := cmp.Diff(map[string]string{a.file(0): string(line)}, snapshot(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	must(t, d.Close())
	if err := d.Write(1, a.call(1), false); err == nil || !strings.Contains(err.Error(), "is closed") {
		t.Errorf("Write after Close: %v", err)
	}
}

func TestMaxBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, before := newDir(t), newAuthor(t, "before", epoch)
		d := open(t, config(dir, before))
		old := append(before.start(""), before.call(5)...)
		write(t, d, before, old, true)
		must(t, d.Close())

		a := newAuthor(t, "a", epoch.Add(time.Hour))
		cfg := config(dir, a)
		start, rest := a.start(""), a.call(3)
		cfg.MaxBytes = int64(len(old) + len(start) + len(rest) - 1)
		d = open(t, cfg)
		must(t, d.Write(0, start, true))
		files := snapshot(t, dir)
		want := "move the oldest files away, " + filepath.Join(dir, before.file(0)) + " first, which needs no restart; " +
			"or raise audit.max_bytes, or shorten audit.retention, and restart the sidecar"
		refused := func(begin bool) {
			t.Helper()
			if err := d.Write(1, rest, begin); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Write over MaxBytes, begin %v: %v", begin, err)
			}
		}
		for _, begin := range []bool{false, true} {
			refused(begin)
			if diff := cmp.Diff(files, snapshot(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		}
		if used, most := d.Room(); used != d.Bytes() || most != cfg.MaxBytes {
			t.Errorf("Room = %d, %d", used, most)
		}
		must(t, os.Remove(filepath.Join(dir, before.file(0))))
		<-time.After(time.Second - 1)
		refused(false) // it was looked less than a second ago
		<-time.After(1)
		must(t, d.Write(1, rest, false))
		size := int64(len(start) + len(rest))
		if used, most := d.Room(); d.Bytes() != size || used != size || most != cfg.MaxBytes {
			t.Errorf("Bytes = %d, Room = %d, %d, want %d", d.Bytes(), used, most, size)
		}
		<-time.After(time.Second)
		more := bytes.Repeat(rest, 10)
		want = fmt.Sprintf("over max_bytes %d: raise audit.max_bytes", cfg.MaxBytes)
		if err := d.Write(4, more, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Write over MaxBytes, with one file: %v", err)
		}
		must(t, d.Close())
	})
}

func TestCloseTwice(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	write(t, d, a, a.start(""), true)
	must(t, d.Close())
	next := open(t, config(dir, newAuthor(t, "b", epoch)))
	must(t, d.Close(), d.Close())
	if _, err := segments.Open(config(dir, newAuthor(t, "c", epoch))); err == nil {
		t.Error("a second Close unlocked another's directory")
	}
	must(t, next.Close())
}

// A disk that hangs keeps Write, but not Close, and then nobody else gets the
// directory before Write has ended.
func TestCloseDuringWrite(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	write(t, d, a, a.start(""), true)
	reached, release := make(chan struct{}), make(chan struct{})
	d.SetSync(func(f *os.File) error {
		close(reached)
		<-release
		return f.Sync()
	})
	var wg sync.WaitGroup
	var err error
	line := a.call(1)
	wg.Go(func() { err = d.Write(1, line, false) })
	<-reached
	must(t, d.Close())
	next := config(dir, newAuthor(t, "next", epoch))
	if _, err := segments.Open(next); err == nil {
		t.Error("Open while Write goes on: no error")
	}
	close(release)
	wg.Wait()
	must(t, err)
	if p, _ := reopen(t, dir); p.Size != 2 {
		t.Errorf("Previous = %+v", p)
	}
}

func TestLogInDirectory(t *testing.T) {
	dir := newDir(t)
	var before string
	for range 3 {
		origin := audit.NewOrigin("test", time.Now())
		d := open(t, segments.Config{Path: dir, Log: origin, SegmentBytes: 2000, Logger: config(dir, newAuthor(t, "x", epoch)).Logger})
		p, ok := d.Previous()
		if ok != (before != "") || p.Log != before || ok && (!p.Ended || p.Damage != "" || p.Torn != 0) {
			t.Fatalf("Previous = %+v, %v, want ended log %s", p, ok, before)
		}
		l, err := audit.New(audit.Config{Log: origin, Sink: d, Logger: config(dir, newAuthor(t, "x", epoch)).Logger},
			&record.Event{Kind: record.Start, Log: p.Log, Size: p.Size})
		must(t, err)
		for range 20 {
			must(t, l.Append(context.Background(), record.Denials, &record.Event{Kind: record.Denied, Verb: "seal"}))
		}
		must(t, l.Close(context.Background()))
		before = origin
	}
	if n := len(snapshot(t, dir)); n < 9 {
		t.Errorf("%d files of three logs, each of which has several", n)
	}
}
