package segments_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// A rewrite that finds no room is not taken for damage, and leaves no file.
func TestPruneThatCannotWrite(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	cfg := config(dir, a)
	cfg.Retention = segments.Retention{Data: day}
	d := openFast(t, cfg)
	write(t, d, a, append(a.start(""), a.call(1000)...), true)
	write(t, d, a, a.checkpoint(record.Segment), true)
	files := snapshot(t, dir)

	var all syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &all))
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 10_000, Max: all.Max}))
	done, err := d.Prune(context.Background(), epoch.Add(2*day))
	must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &all))

	if !errors.Is(err, syscall.EFBIG) || strings.Contains(err.Error(), "damaged") || done != (segments.Pruned{}) {
		t.Errorf("Prune: %+v, %v", done, err)
	}
	if diff := cmp.Diff(files, snapshot(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if done, err = d.Prune(context.Background(), epoch.Add(2*day)); err != nil || done.Events != 1000 {
		t.Errorf("Prune with room: %+v, %v", done, err)
	}
	must(t, d.Close())
}
