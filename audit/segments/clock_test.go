package segments_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

// A clock that says that no sidecar ran for a month is doubted until sidecars
// have run for a day, also across restarts.
func TestPruneDoubtsTheClock(t *testing.T) {
	const month = 30 * day
	hours := func(from time.Duration, n int) []time.Duration { // one file each
		var all []time.Duration
		for i := range n {
			all = append(all, from+time.Duration(i)*time.Hour)
		}
		return all
	}
	for _, tt := range []struct {
		name string
		logs [][]time.Duration // when each file was begun; by its records it takes 59 minutes, but for "long"
		now  time.Duration
		ran  time.Duration // since Open
		ok   bool
	}{
		{"soon", [][]time.Duration{{0}}, 2 * time.Hour, 0, true},
		{"just not a month", [][]time.Duration{{0}}, month + 59*time.Minute, 0, true},
		{"a month", [][]time.Duration{{0}}, month + time.Hour, 0, false},
		{"a month, of which it ran some", [][]time.Duration{{0}}, month + time.Hour, 2 * time.Hour, true},
		{"years", [][]time.Duration{{0}}, 1000 * day, 0, false},
		{"years, not a day ago", [][]time.Duration{{0}}, 1000 * day, day - time.Minute, false},
		{"years, a day ago", [][]time.Duration{{0}}, 1000 * day, day, true},
		{"years, and a restart", [][]time.Duration{{0}, {1000 * day}}, 1000*day + time.Hour, 0, false},
		{"years, and two restarts", [][]time.Duration{{0}, {1000 * day}, {1000*day + time.Hour}}, 1000*day + 2*time.Hour, 0, false},
		{"years, and most of a day", [][]time.Duration{{0}, hours(1000*day, 22)}, 1000*day + 23*time.Hour, time.Hour, false},
		{"years, and a day", [][]time.Duration{{0}, hours(1000*day, 24)}, 1000*day + 26*time.Hour, time.Hour, true},
		{"a month between files", [][]time.Duration{{0, 2 * month}}, 2*month + time.Hour, 0, false},
		{"now and then", [][]time.Duration{{0, 20 * day, 40 * day}, {60 * day}}, 80 * day, 0, true},
		// The clock was set while it was written.
		{"years, and 20 days long", [][]time.Duration{{0}, {1000 * day}}, 1020*day + time.Hour, 0, false},
		{"60 days long", [][]time.Duration{{0}}, 60*day + time.Hour, 0, false},
		{"set back", [][]time.Duration{{1000 * day}}, 2 * time.Hour, 0, true},
		{"set back before", [][]time.Duration{{1000 * day}, {0}}, 2 * time.Hour, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, before := newDir(t), ""
			for i, begun := range tt.logs {
				a := newAuthor(t, fmt.Sprintf("log-%d", i), epoch)
				a.step = 59 * time.Minute
				if strings.HasSuffix(tt.name, "long") {
					a.step = tt.now%(1000*day) - time.Hour
				}
				d := openFast(t, config(dir, a))
				for j, at := range begun {
					a.at = epoch.Add(at)
					if j == 0 {
						write(t, d, a, append(a.start(before), a.call(1)...), true)
					} else {
						write(t, d, a, append(a.checkpoint(record.Segment), a.call(1)...), true)
					}
				}
				must(t, d.Close())
				before = a.origin
			}
			cfg := config(dir, newAuthor(t, "now", epoch))
			cfg.Retention = segments.Retention{Keys: 1, Denials: 1, Data: 1}
			d := openFast(t, cfg)
			d.Age(tt.ran)
			files := snapshot(t, dir)
			done, err := d.Prune(context.Background(), epoch.Add(tt.now))
			if (err == nil) != tt.ok || !tt.ok && !strings.Contains(err.Error(), "there was no record for") {
				t.Errorf("Prune: %+v, %v", done, err)
			}
			if !tt.ok && (!cmp.Equal(files, snapshot(t, dir)) || done != (segments.Pruned{})) {
				t.Errorf("%+v was removed", done)
			}
			if tt.ok && !strings.HasPrefix(tt.name, "set back") && done.Files != len(files) {
				t.Errorf("Prune: %+v of %d files", done, len(files))
			}
			must(t, d.Close())
		})
	}
}

// Where nothing was before, there is nothing to compare with.
func TestPruneOfTheFirstLog(t *testing.T) {
	dir, a := newDir(t), newAuthor(t, "a", epoch)
	cfg := config(dir, a)
	cfg.Retention = segments.Retention{Keys: 1, Denials: 1, Data: 1}
	d := openFast(t, cfg)
	write(t, d, a, a.start(""), true)
	write(t, d, a, a.checkpoint(record.Segment), true)
	if done, err := d.Prune(context.Background(), epoch.Add(1000*day)); err != nil || done.Files != 1 {
		t.Errorf("Prune: %+v, %v", done, err)
	}
	must(t, d.Close())
}
