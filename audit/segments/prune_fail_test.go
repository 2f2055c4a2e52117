package segments_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// diskFull is an fsync that fails for every file that is rewritten.
func diskFull(f *os.File) error {
	if strings.HasPrefix(filepath.Base(f.Name()), "audit-pruned-") {
		return &os.PathError{Op: "sync", Path: f.Name(), Err: syscall.ENOSPC}
	}
	return nil
}

// On a full disk nothing can be rewritten; what is over as a whole still goes,
// and first, so that there is room again.
func TestPruneOnAFullDisk(t *testing.T) {
	dir, a, b, d := twoLogs(t, segments.Retention{Keys: 5 * day, Denials: day, Data: day})
	d.SetSync(diskFull)
	before := d.Bytes()
	// Both files of a are over; b's first has to be rewritten.
	done, err := d.Prune(context.Background(), epoch.Add(6*day+time.Hour))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), b.file(0)) || strings.Contains(err.Error(), a.file(0)) {
		t.Errorf("Prune: %v", err)
	}
	if diff := cmp.Diff([]string{b.file(0), b.file(4)}, names(snapshot(t, dir))); diff != "" || done.Files != 2 || done.Events != 0 {
		t.Errorf("%+v, files (-want +got):\n%s", done, diff)
	}
	if done.Bytes != before-d.Bytes() || !done.Oldest.Equal(epoch) || !done.Newest.Equal(a.timeOf(a.size()-1)) {
		t.Errorf("%+v", done)
	}
	d.SetSync((*os.File).Sync)
	if done, err = d.Prune(context.Background(), epoch.Add(6*day+time.Hour)); err != nil || done.Events != 2 {
		t.Errorf("Prune with room: %+v, %v", done, err)
	}
}

// A file that is over as a whole is not rewritten before it goes, and one file
// that cannot be rewritten does not keep the others.
func TestPruneGoesOnAfterAnError(t *testing.T) {
	dir, a, b, d := twoLogs(t, segments.Retention{Denials: day, Data: day})
	rewritten := 0
	d.SetSync(func(f *os.File) error {
		if rewritten += strings.Count(f.Name(), "audit-pruned-"); rewritten == 1 {
			return diskFull(f)
		}
		return nil
	})
	done, err := d.Prune(context.Background(), epoch.Add(10*day))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), a.file(0)) || done.Events != 4 {
		t.Errorf("Prune: %+v, %v", done, err)
	}
	all := snapshot(t, dir)
	events := func(name string) int { return strings.Count(all[name], `"event":`) }
	if len(all) != 4 || events(a.file(0)) != 4 || events(b.file(0)) != 2 {
		t.Errorf("files = %v", names(all))
	}

	_, _, _, d = twoLogs(t, segments.Retention{Keys: day, Denials: day, Data: day})
	rewritten = 1
	d.SetSync(func(f *os.File) error {
		rewritten += strings.Count(f.Name(), "audit-pruned-")
		return nil
	})
	if done, err = d.Prune(context.Background(), epoch.Add(100*day)); err != nil || done.Files != 3 || rewritten != 1 {
		t.Errorf("Prune: %+v, %v, %d files were rewritten", done, err, rewritten-1)
	}
}

// Of very many errors there are some.
func TestPruneReturnsFewErrors(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	cfg := config(dir, a)
	cfg.Retention = segments.Retention{Data: day}
	d := openFast(t, cfg)
	write(t, d, a, append(a.start(""), a.call(1)...), true)
	for range 15 {
		write(t, d, a, append(a.checkpoint(record.Segment), a.call(1)...), true)
	}
	d.SetSync(diskFull)
	_, err := d.Prune(context.Background(), epoch.Add(2*day))
	if err == nil || strings.Count(err.Error(), "rewriting ") != 10 || !strings.HasSuffix(err.Error(), "and 5 other files") {
		t.Errorf("Prune: %v", err)
	}
	must(t, d.Close())
}

// countdown is a context that ends after so many looks at it.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// Wherever Prune is stopped, the files are whole, what was done is in Pruned,
// and no temporary file is left.
func TestPruneStops(t *testing.T) {
	dir, a, b, d := twoLogs(t, segments.Retention{Keys: 50 * day, Denials: day, Data: day})
	d.SetSync(func(*os.File) error { return nil })
	all := snapshot(t, dir)
	must(t, d.Close())
	stops, some := 0, 0
	for left := 0; ; left++ {
		refill(t, dir, all)
		cfg := config(dir, newAuthor(t, "c", epoch.Add(4*day)))
		cfg.Retention = segments.Retention{Keys: 5*day + 2*time.Hour, Denials: day, Data: day}
		d := openFast(t, cfg)
		before := d.Bytes()
		done, err := d.Prune(&countdown{context.Background(), left}, epoch.Add(6*day))
		if before-d.Bytes() != done.Bytes || (done.Bytes == 0) != done.Oldest.IsZero() {
			t.Errorf("stopped after %d looks: %+v, of %d bytes %d are left", left, done, before, d.Bytes())
		}
		must(t, d.Close())
		checkFiles(t, dir, a, b)
		if err == nil {
			if done.Files != 1 || done.Events != 6 {
				t.Errorf("Prune: %+v", done)
			}
			break
		}
		stops++
		if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "damaged") {
			t.Fatalf("stopped after %d looks: %v", left, err)
		}
		if done.Bytes > 0 {
			some++
		}
	}
	// Each line of each file is a place, twice where it is rewritten.
	if stops < 40 || some < 20 {
		t.Errorf("%d stops, %d after something was removed", stops, some)
	}
}

func TestPrunedTimes(t *testing.T) {
	for _, tt := range []struct {
		name           string
		retention      segments.Retention
		at             time.Duration
		oldest, newest time.Duration // since the epoch
	}{
		{"events", segments.Retention{Denials: day}, 50 * day, 2 * time.Minute, 2*day + 2*time.Minute},
		{"two classes", segments.Retention{Denials: day, Data: day}, 50 * day, 2 * time.Minute, 2*day + 3*time.Minute},
		{"a file", segments.Retention{Keys: day, Denials: day, Data: day}, day + 3*time.Minute + 1, 0, 3 * time.Minute},
		{"files", segments.Retention{Keys: day, Denials: day, Data: day}, 50 * day, 0, 2*day + 3*time.Minute},
	} {
		_, _, _, d := twoLogs(t, tt.retention)
		done, err := d.Prune(context.Background(), epoch.Add(tt.at))
		if err != nil || !done.Oldest.Equal(epoch.Add(tt.oldest)) || !done.Newest.Equal(epoch.Add(tt.newest)) {
			t.Errorf("%s: Prune: %+v, %v", tt.name, done, err)
		}
	}
}
