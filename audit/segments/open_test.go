package segments_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

func TestOpenRefuses(t *testing.T) {
	a := newAuthor(t, "a", epoch)
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, cfg *segments.Config)
		want   string
	}{
		{"no logger", func(_ *testing.T, cfg *segments.Config) { cfg.Logger = nil }, "are required"},
		{"no path", func(_ *testing.T, cfg *segments.Config) { cfg.Path = "" }, "are required"},
		{"a relative path", func(t *testing.T, cfg *segments.Config) {
			t.Chdir(filepath.Dir(cfg.Path))
			cfg.Path = filepath.Base(cfg.Path)
		}, "are required"},
		{"no log", func(_ *testing.T, cfg *segments.Config) { cfg.Log = "" }, "log origin has 0 bytes"},
		{"a log with a line feed", func(_ *testing.T, cfg *segments.Config) { cfg.Log = "a\nb" }, "log origin"},
		{"a log without a name", func(_ *testing.T, cfg *segments.Config) { cfg.Log = "keysidecar/a/" }, "ends with a slash"},
		{"a negative size", func(_ *testing.T, cfg *segments.Config) { cfg.SegmentBytes = -1 }, "negative"},
		{"another negative size", func(_ *testing.T, cfg *segments.Config) { cfg.MaxBytes = -1 }, "negative"},
		{"a negative retention", func(_ *testing.T, cfg *segments.Config) { cfg.Retention.Denials = -time.Hour }, "negative"},
		{"no directory", func(_ *testing.T, cfg *segments.Config) { cfg.Path += "x" }, "which has to exist"},
		{"a file", func(t *testing.T, cfg *segments.Config) {
			cfg.Path += "x"
			must(t, os.WriteFile(cfg.Path, nil, 0o600))
		}, "not a directory"},
		{"a symbolic link", func(t *testing.T, cfg *segments.Config) {
			must(t, os.Symlink(cfg.Path, cfg.Path+"x"))
			cfg.Path += "x"
		}, "symbolic link"},
		{"a symbolic link with a slash", func(t *testing.T, cfg *segments.Config) {
			must(t, os.Symlink(cfg.Path, cfg.Path+"x"))
			cfg.Path += "x/"
		}, "symbolic link"},
		{"others can write", func(t *testing.T, cfg *segments.Config) { must(t, os.Chmod(cfg.Path, 0o702)) }, "mode 0702: chmod go-w it"},
		{"the group can write", func(t *testing.T, cfg *segments.Config) { must(t, os.Chmod(cfg.Path, 0o770)) }, "mode 0770: chmod go-w it"},
		{"a file that others can write", func(t *testing.T, cfg *segments.Config) {
			path := filepath.Join(cfg.Path, a.file(0))
			must(t, os.WriteFile(path, a.start(""), 0o600), os.Chmod(path, 0o620))
		}, "mode 0620: chmod go-w it"},
		{"a lock that others can write", func(t *testing.T, cfg *segments.Config) {
			path := filepath.Join(cfg.Path, "audit.lock")
			must(t, os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o620))
		}, "mode 0620: chmod go-w it"},
		{"a lock that is a link", func(t *testing.T, cfg *segments.Config) {
			must(t, os.Symlink("elsewhere", filepath.Join(cfg.Path, "audit.lock")))
		}, "is not a regular file: remove it"},
		{"the log is there already", func(t *testing.T, cfg *segments.Config) {
			must(t, os.WriteFile(filepath.Join(cfg.Path, "next.000000000005.jsonl"), nil, 0o600))
		}, "next.000000000005.jsonl is there already"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(newDir(t), newAuthor(t, "next", epoch))
			dir := cfg.Path
			tt.change(t, &cfg)
			d, err := segments.Open(cfg)
			if err == nil || d != nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("Open: %v, want ...%s...", err, tt.want)
			}
			// Nothing is locked, or changed so that it does not work.
			must(t, os.RemoveAll(dir), os.Mkdir(dir, 0o700))
			must(t, open(t, config(dir, newAuthor(t, "next", epoch))).Close())
		})
	}
}

func TestOwner(t *testing.T) {
	info, err := os.Stat(newDir(t))
	must(t, err)
	if err := segments.CheckOwner(info, os.Geteuid()); err != nil {
		t.Errorf("our own: %v", err)
	}
	err = segments.CheckOwner(info, os.Geteuid()+1)
	if os.Geteuid() == 0 { // root may do all anyway
		must(t, err)
	} else if err == nil || !strings.Contains(err.Error(), "chown it to user") {
		t.Errorf("another's: %v", err)
	}
}

func TestOpenTwice(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	d := open(t, config(dir, a))
	write(t, d, a, a.start(""), true)
	must(t, os.WriteFile(filepath.Join(dir, "audit-pruned-X.tmp"), nil, 0o600))
	before := snapshot(t, dir)
	second, err := segments.Open(config(dir, newAuthor(t, "b", epoch)))
	if second != nil || err == nil || !strings.Contains(err.Error(), "another sidecar uses the directory: give each its own") {
		t.Errorf("Open: %v", err)
	}
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	write(t, d, a, a.call(1), false)
	must(t, d.Close())
	if p, _ := reopen(t, dir); p.Size != 2 {
		t.Errorf("Previous = %+v", p)
	}
}

// Whatever is in a file: Open works, cuts off nothing that has a line feed,
// says the same the second time, and what is written then is there.
func FuzzOpen(f *testing.F) {
	a := newAuthor(f, "a", epoch)
	first := append(a.start(""), a.mixed()...)
	second := append(a.checkpoint(record.Segment), a.mixed()...)
	second = append(second, a.stop()...)
	for i, text := range [][]byte{first, second, {}, []byte("{"), []byte(`{"log":"`), []byte("\n"), second[:len(second)-5], append(second, first...)} {
		f.Add(text, int64(i%3*2))
	}
	f.Fuzz(func(t *testing.T, text []byte, from int64) {
		if from < 0 || from > 1e15 {
			return
		}
		all := map[string]string{a.file(0): string(first), a.file(from): string(text)}
		dir := restore(t, all)
		p, ok := reopen(t, dir)
		left := snapshot(t, dir)[a.file(from)]
		if ok && p.Torn > 0 {
			if int64(len(text)-len(left)) != p.Torn || !strings.HasPrefix(string(text), left) || strings.Contains(string(text[len(left):]), "\n") {
				t.Errorf("%d bytes of %d were cut off", p.Torn, len(text))
			}
		} else if ok && left != string(text) {
			t.Errorf("the file was changed: %+v", p)
		}
		if most := int64(strings.Count(left, "\n") + 4); p.Size > from+most {
			t.Errorf("%d records: %+v", most, p)
		}
		again, _ := reopen(t, dir)
		if p.Torn = 0; ok && !cmp.Equal(p, again) {
			t.Errorf("Previous the second time (-want +got):\n%s", cmp.Diff(p, again))
		}
		b := newAuthor(t, "b", epoch.Add(1000*day))
		cfg := config(dir, b)
		cfg.Retention = segments.Retention{Data: 1}
		d := openFast(t, cfg)
		write(t, d, b, b.start(p.Log), true)
		_, _ = d.Prune(context.Background(), epoch.Add(2000*day)) // it may be damaged
		must(t, d.Close())
		if got := snapshot(t, dir)[b.file(0)]; !strings.Contains(got, `"kind":"start"`) {
			t.Errorf("the next log is %q", got)
		}
	})
}
