package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// interval is how often files are looked at, in the time of a bubble.
const interval = 10 * time.Minute

// A watched is a sidecar whose files are watched in a bubble, and called from
// outside it.
type watched struct {
	*node
	t        *testing.T
	ask, got chan string
}

// seal seals for a tenant, and returns the reason of what it got.
func (w *watched) seal(tenant string) string {
	w.ask <- tenant
	return <-w.got
}

// pass lets so many intervals pass.
func (w *watched) pass(intervals float64) {
	<-time.After(time.Duration(intervals * float64(interval)))
	synctest.Wait()
}

// loads wants that files were read so often, since the start: with success,
// and without.
func (w *watched) loads(when string, want, wantRefused int) {
	w.t.Helper()
	log := w.log.String()
	got, gotRefused := strings.Count(log, `"msg":"reloaded"`), strings.Count(log, refusedLine)
	if got != want || gotRefused != wantRefused {
		w.t.Errorf("%s: files were read %d times, refused %d times, want %d and %d", when, got, gotRefused, want, wantRefused)
	}
}

// watch runs test in a bubble in which the files of a sidecar are watched: all
// that it does in an interval of the bubble's time is to look at them.
func watch(t *testing.T, every string, set settings, site *site, test func(*testing.T, *watched)) {
	t.Helper()
	// A log of its own would wait outside the bubble, for what is in it.
	set.config += "\naudit: {sink: none}\nreload_interval: " + every
	w := &watched{node: site.start(t, set), ask: make(chan string), got: make(chan string)}
	go func() {
		for tenant := range w.ask {
			w.got <- w.try(context.Background(), tenant)
		}
	}()
	defer close(w.ask)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go w.Watch(ctx)
		w.pass(3)
		w.loads("before any change", 0, 0)
		test(t, w)
	})
}

func TestWatch(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	pairs, set := site.pairs(), site.sharing("id: aa", "id: bb, state: suspended")
	set.policy = pairs[0].policy
	watch(t, "10m", set, site, func(t *testing.T, w *watched) {
		w.put(t, "policy.yaml", pairs[1].policy)
		w.pass(3)
		w.loads("a changed file", 1, 0)
		w.put(t, "tenants.yaml", pairs[1].tenants)
		w.pass(3)
		w.loads("the other one", 2, 0)
		w.put(t, "tenants.yaml", "{")
		w.pass(30)
		w.loads("a bad file, which is read once", 2, 1)
		w.put(t, "tenants.yaml", pairs[1].tenants)
		w.pass(3)
		w.loads("a good file", 3, 1)
		if err := os.Remove(filepath.Join(w.dir, "policy.yaml")); err != nil {
			t.Fatal(err)
		}
		w.pass(30)
		w.loads("no file", 3, 2)
		if got := w.seal("bb"); got != "OK" {
			t.Errorf("without the file: %s", got)
		}
		w.put(t, "policy.yaml", pairs[1].policy)
		w.pass(3)
		w.loads("the file again", 4, 2)
		w.load(t, "policy.yaml", only("*"))
		w.pass(30)
		w.loads("an operator's reload, after which there is nothing to do", 5, 2)
	})
}

// A directory that is swapped is seen, even if the files differ in nothing but
// in being others.
func TestWatchMountedFiles(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	pairs, set := site.pairs(), site.sharing("id: aa", "id: bb, state: suspended")
	set.policy = pairs[0].policy
	watch(t, "10m", set, site, func(t *testing.T, w *watched) {
		swap := mount(t, w.dir, pairs[0])
		w.pass(3)
		for i := range 4 {
			w.loads("a swap", 1+i, 0)
			if aa, bb := w.seal("aa"), w.seal("bb"); (aa == "OK") != (i%2 == 0) || (bb == "OK") != (i%2 == 1) {
				t.Errorf("swap %d: aa gets %s, bb %s", i, aa, bb)
			}
			swap(pairs[(i+1)%2])
			w.pass(3)
		}
	})
}

// A file that is written slowly is read when it is whole.
func TestWatchSlowWriter(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa", "id: bb")
	whole := site.sharing("id: aa, state: suspended", "id: bb", "id: cc").directory()
	watch(t, "10m", set, site, func(t *testing.T, w *watched) {
		f, err := os.Create(filepath.Join(w.dir, "tenants.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for line := range strings.Lines(whole) {
			if _, err := f.WriteString(line); err != nil {
				t.Fatal(err)
			}
			w.pass(0.9)
			w.loads("half a file", 0, 0)
			if aa, bb := w.seal("aa"), w.seal("bb"); aa != "OK" || bb != "OK" {
				t.Errorf("after %q: aa gets %s, bb %s", line, aa, bb)
			}
		}
		w.pass(3)
		w.loads("the whole file", 1, 0)
		if aa, bb, cc := w.seal("aa"), w.seal("bb"), w.seal("cc"); aa != "TENANT_SUSPENDED" || bb != "OK" || cc != "OK" {
			t.Errorf("with the whole file: aa gets %s, bb %s, cc %s", aa, bb, cc)
		}
	})
}

// What was wrong and does not show in a file's state is tried again, and told
// once.
func TestWatchRetries(t *testing.T) {
	site, metrics := newSite(t), freeAddress(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "metrics: {listen: '" + metrics + "'}"
	good := only("aa")
	watch(t, "10s", set, site, func(t *testing.T, w *watched) {
		name, written := filepath.Join(w.dir, "policy.yaml"), time.Now()
		write := func(old, text string) { // in place, so that it is as it was but for the content
			text = strings.Replace(good, old, text, 1)
			if err := errors.Join(os.WriteFile(name, []byte(text), 0o600), os.Chtimes(name, written, written)); err != nil {
				t.Fatal(err)
			}
		}
		write("unseal", "unsael")
		w.pass(1)
		w.loads("a bad file", 0, 1)
		w.pass(3)
		w.loads("the same problem", 0, 1)
		write("unseal", "nuseal")
		w.pass(1)
		w.loads("another problem", 0, 2)
		for i := range 30 {
			written = time.Now()
			write("unseal", fmt.Sprintf("unse%02d", i))
			<-time.After(5 * time.Second)
		}
		w.loads("a file that is being written", 0, 2)
		write("unseal", "nuseal")
		w.pass(1)
		w.loads("a file that was written", 0, 3)
		_, err := w.Reload(t.Context())
		w.loads("the same problem, for an operator", 0, 4)
		if err == nil {
			t.Error("it did not fail")
		}
		write("", "")
		<-time.After(70 * time.Second)
		synctest.Wait()
		w.loads("a good file", 1, 4)
		w.pass(10)
		w.loads("nothing to do", 1, 4)
	})
	failed, err := strconv.Atoi(scrape(t, metrics, `keysidecar_reloads_total{result="failed"}`))
	if err != nil || failed < 55 || failed > 62 {
		t.Errorf("%d reloads failed, %v: want one a minute, 60", failed, err)
	}
}

func TestWatchOff(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	watch(t, "0s", site.sharing("id: aa"), site, func(t *testing.T, w *watched) {
		w.put(t, "policy.yaml", only("nobody"))
		w.put(t, "tenants.yaml", "{")
		w.pass(10)
		w.loads("nobody looks", 0, 0)
	})
}

// A running sidecar watches its files.
func TestRunWatches(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	pairs, set := site.pairs(), site.sharing("id: aa", "id: bb, state: suspended")
	set.policy, set.config = pairs[0].policy, "reload_interval: 50ms"
	n := site.start(t, set)
	swap := mount(t, n.dir, pairs[0])
	for i := range 4 {
		start := time.Now()
		swap(pairs[i%2])
		await(t, "the files are read", func() bool {
			aa, bb := n.try(t.Context(), "aa"), n.try(t.Context(), "bb")
			return (aa == "OK") == (i%2 == 0) && (bb == "OK") == (i%2 == 1)
		})
		t.Logf("swapped files were in effect after %v", time.Since(start).Round(time.Millisecond))
	}
	n.put(t, "policy.yaml", "{")
	await(t, "a refusal", func() bool { return strings.Contains(n.log.String(), refusedLine) })
}
