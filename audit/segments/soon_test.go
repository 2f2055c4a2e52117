package segments_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/audit/segments"
)

// TestWriteSoon shows what is synced when, and that what was written stays when
// that fails.
func TestWriteSoon(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	var synced []string
	var fail error
	d, err := segments.OpenWith(config(dir, a), func(f *os.File) error {
		if fail == nil {
			synced = append(synced, filepath.Base(f.Name()))
		}
		return fail
	})
	must(t, err)
	syncs := func(want int, when string) {
		t.Helper()
		n := 0
		for _, name := range synced {
			if strings.HasSuffix(name, ".jsonl") {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: %d syncs of files, want %d", when, n, want)
		}
		synced = nil
	}
	must(t, d.Write(0, a.start(""), true))
	syncs(1, "after Write")
	must(t, d.Sync())
	syncs(0, "after Sync with nothing to sync")
	for range 3 {
		seq := a.size()
		must(t, d.WriteSoon(seq, a.call(2)))
	}
	syncs(0, "after WriteSoon")
	fail = errors.New("disk gone")
	if err := d.Sync(); !errors.Is(err, fail) {
		t.Errorf("Sync returned %v", err)
	}
	fail = nil
	must(t, d.Sync())
	must(t, d.Sync())
	syncs(1, "after Sync")
	seq := a.size()
	must(t, d.WriteSoon(seq, a.call(1)))
	seq = a.size()
	must(t, d.Write(seq, a.call(1), false))
	must(t, d.Sync())
	syncs(1, "after WriteSoon and Write")
	seq = a.size()
	must(t, d.WriteSoon(seq, a.call(1)))
	seq = a.size()
	must(t, d.Write(seq, a.checkpoint("segment"), true))
	syncs(2, "after a file was begun: the old one, the new one")
	seq = a.size()
	must(t, d.WriteSoon(seq, a.call(1)))
	must(t, os.Rename(dir, dir+"-away"))
	if err := d.Sync(); err == nil {
		t.Error("Sync does not see that the directory is gone")
	}
	must(t, os.Rename(dir+"-away", dir))
	must(t, d.Sync())
	must(t, d.Close())
	p, _ := reopen(t, dir)
	if p.Size != a.size() || p.Damage != "" || p.Root != a.frontier.Root() {
		t.Errorf("of %d records %d are there: %+v", a.size(), p.Size, p)
	}
	if err := d.WriteSoon(p.Size, a.call(1)); err == nil {
		t.Error("written after Close")
	}
}
