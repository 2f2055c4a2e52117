package sidecar_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
)

// sharing returns a sidecar's files in which tenants, lines without their KEK,
// share one.
func (s *site) sharing(tenants ...string) settings {
	set := settings{keks: []string{s.kek("shared", "shared", "A256KW")}}
	for _, line := range tenants {
		set.tenants = append(set.tenants, "{"+line+", kek: shared}")
	}
	return set
}

// only is a policy.yaml that lets this user seal and unseal for a tenant, and
// change what the sidecar does.
func only(tenant string) string {
	return strings.Replace(admitMe(), `["*"], verbs: [seal`, `["`+tenant+`"], verbs: [seal`, 1)
}

// A pair of files lets the user seal for one tenant, and suspends the other.
// Of two tenants, old and new files together would let it seal for the one
// that is suspended: TENANT_SUSPENDED is the answer of a mixture.
type pair struct{ policy, tenants string }

func (s *site) pairs() []pair {
	return []pair{
		{only("aa*"), s.sharing("id: aa", "id: bb, state: suspended").directory()},
		{only("bb*"), s.sharing("id: aa, state: suspended", "id: bb").directory()},
	}
}

// readers seal for aa and bb until stop is called, which wants that no answer
// was that of a mixture. count returns how often there was each.
func (n *node) readers(t *testing.T) (count func() map[string]int, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	var mu sync.Mutex
	answers := make(map[string]int)
	for _, tenant := range []string{"aa", "bb", "aa", "bb"} {
		group.Go(func() {
			for ctx.Err() == nil {
				got := n.try(t.Context(), tenant)
				mu.Lock()
				answers[tenant+" "+got]++
				mu.Unlock()
			}
		})
	}
	count = func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(answers)
	}
	return count, func() {
		cancel()
		group.Wait()
		got := count()
		t.Logf("answers: %v", got)
		for _, pure := range []string{"aa OK", "aa PERMISSION_DENIED", "bb OK", "bb PERMISSION_DENIED"} {
			if got[pure] == 0 {
				t.Errorf("never: %s", pure)
			}
			delete(got, pure)
		}
		if len(got) > 0 {
			t.Errorf("answers of a mixture of old and new: %v", got)
		}
	}
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

const reloads = 200

func TestReloadSwapsFilesTogether(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	pairs, set := site.pairs(), site.sharing("id: aa", "id: bb, state: suspended")
	set.policy, set.config = pairs[0].policy, "reload_interval: 0s"
	n := site.start(t, set)
	count, stop := n.readers(t)
	for i := range reloads {
		p := pairs[(i+1)%2]
		n.put(t, "policy.yaml", p.policy)
		n.load(t, "tenants.yaml", p.tenants)
		seen := total(count())
		await(t, "calls after a reload", func() bool { return total(count()) > seen+4 })
	}
	stop()
}

// mount makes the files of a sidecar links to those of a directory that is
// changed at once, as Kubernetes mounts a ConfigMap: it returns how to change
// it. The first change is made before it returns.
func mount(t *testing.T, dir string, first pair) (swap func(pair)) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	at, nth := time.Now().Add(-time.Hour), 0
	swap = func(p pair) {
		nth++
		version := fmt.Sprint("..version", nth)
		must(os.Mkdir(filepath.Join(dir, version), 0o700))
		for name, text := range map[string]string{"policy.yaml": p.policy, "tenants.yaml": p.tenants} {
			file := filepath.Join(dir, version, name)
			must(os.WriteFile(file, []byte(text), 0o600))
			must(os.Chtimes(file, at, at)) // nothing but the file itself tells them apart
		}
		must(os.Symlink(version, filepath.Join(dir, "..new")))
		must(os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
	}
	swap(first)
	for _, name := range []string{"policy.yaml", "tenants.yaml"} {
		must(os.Remove(filepath.Join(dir, name)))
		must(os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	return swap
}

// Files that change while they are read are not read in part old, in part new.
func TestReloadWhileFilesAreSwapped(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	pairs, set := site.pairs(), site.sharing("id: aa", "id: bb, state: suspended")
	set.policy, set.config = pairs[0].policy, "reload_interval: 0s"
	n := site.start(t, set)
	swap := mount(t, n.dir, pairs[0])
	count, stop := n.readers(t)
	var swaps, done, changed atomic.Int64
	var group sync.WaitGroup
	group.Go(func() {
		for i := 1; done.Load() < reloads; i++ {
			swap(pairs[i%2])
			swaps.Add(1)
			// Somewhere in the next reload but one: the next one finds no change.
			for next := min(done.Load()+2, reloads); done.Load() < next; {
				<-time.After(100 * time.Microsecond)
			}
		}
	})
	for range reloads {
		if _, err := n.Reload(t.Context()); err == nil {
			seen := total(count())
			await(t, "a call", func() bool { return total(count()) > seen })
		} else if changed.Add(1); !strings.Contains(err.Error(), "a file changed while the files were read") {
			t.Error(err)
		}
		done.Add(1)
	}
	group.Wait()
	if _, err := n.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	seen := total(count())
	await(t, "calls", func() bool { return total(count()) > seen+4 })
	stop()
	t.Logf("%d swaps during %d reloads, of which %d found that out", swaps.Load(), reloads, changed.Load())
}

// scrape returns a sample of the metrics.
func scrape(t *testing.T, address, sample string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := new(http.Client).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, sample+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// logged returns the problems of the last log line with that message.
func (n *node) logged(t *testing.T, message string) (level string, problems []string) {
	t.Helper()
	for line := range strings.Lines(n.log.String()) {
		var record struct {
			Level, Msg string
			Problems   []string
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		if record.Msg == message {
			level, problems = record.Level, record.Problems
		}
	}
	return level, problems
}

const refusedLine = "reload refused: the files read before stay in effect"

func TestBadFilesChangeNothing(t *testing.T) {
	site, metrics := newSite(t), freeAddress(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s\nmetrics: {listen: '" + metrics + "'}"
	n := site.start(t, set)
	operator := n.operator(t)
	good := map[string]string{"tenants.yaml": set.directory(), "policy.yaml": admitMe()}
	suspended := site.sharing("id: aa, state: suspended").directory()
	refusals := 0
	for name, bad := range map[string]struct{ tenants, policy, problem string }{
		"tenants":                    {strings.Replace(set.directory(), "kek: shared", "kek: other", 1), only("aa"), "tenants.yaml:5:17: tenants[0].kek: "},
		"tenants not YAML":           {"{", only("aa"), "tenants.yaml"},
		"no tenants":                 {"", only("aa"), "tenants.yaml"},
		"policy":                     {suspended, strings.Replace(admitMe(), "unseal", "unsael", 1), "policy.yaml:4:49: rules[0].verbs[1]: "},
		"policy names absent tenant": {suspended, only("nobody"), "policy.yaml:4:29: rules[0].tenants[0]: no entry of tenants.yaml is about tenant \"nobody\""},
		"both":                       {"[]", "[]", "policy.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			n.put(t, "tenants.yaml", bad.tenants)
			n.put(t, "policy.yaml", bad.policy)
			reply, err := operator.Reload(t.Context())
			if err != nil || reply.OK || len(reply.Problems) == 0 {
				t.Fatalf("reload: %+v, %v", reply, err)
			}
			refusals++
			if !slices.ContainsFunc(reply.Problems, func(p string) bool { return strings.Contains(p, bad.problem) }) {
				t.Errorf("problems are %q, none is %q", reply.Problems, bad.problem)
			}
			if got := n.try(t.Context(), "aa"); got != "OK" {
				t.Errorf("under the old files: %s", got)
			}
			level, lines := n.logged(t, refusedLine)
			if diff := cmp.Diff(reply.Problems, lines); level != "ERROR" || diff != "" {
				t.Errorf("the log says %s (-reply +log):\n%s", level, diff)
			}
			status, err := operator.Status(t.Context())
			if diff := cmp.Diff(reply.Problems, status.FileProblems); err != nil || diff != "" {
				t.Errorf("status: %v (-reply +status):\n%s", err, diff)
			}
			if got := scrape(t, metrics, `keysidecar_reloads_total{result="failed"}`); got != fmt.Sprint(refusals) {
				t.Errorf("%s reloads failed, want %d", got, refusals)
			}
			loaded := status.FilesLoaded
			for name, text := range good {
				n.put(t, name, text)
			}
			if reply, err = operator.Reload(t.Context()); err != nil || !reply.OK || len(reply.Problems) > 0 {
				t.Errorf("with good files: %+v, %v", reply, err)
			}
			status, err = operator.Status(t.Context())
			if err != nil || len(status.FileProblems) > 0 || !status.FilesLoaded.After(loaded) {
				t.Errorf("with good files: %+v, %v", status, err)
			}
			if got := scrape(t, metrics, `keysidecar_reloads_total{result="ok"}`); got != fmt.Sprint(refusals) {
				t.Errorf("%s reloads worked, want %d", got, refusals)
			}
		})
	}
}

// DEKs of tenants that may not be served any more are wiped; those of a mint
// that was under way, soon after.
func TestReloadWipesDEKs(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	before := []string{"id: stays", "id: goes", "id: stops", "id: moves", "id: late"}
	set := site.sharing(before...)
	set.config = "reload_interval: 1h\naudit: {sink: none}" // see watch
	minting, gate := make(chan struct{}), make(chan struct{})
	set.Record = func(ctx context.Context, e dek.Event) error {
		if e.Tenant.String() != "late" || e.Kind != dek.Wrapped {
			return nil
		}
		close(minting)
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n := site.start(t, set)
	for _, tenant := range []string{"stays", "goes", "stops", "moves"} {
		n.seal(t, tenant, "data")
	}
	late := make(chan string)
	go func() { late <- n.try(t.Context(), "late") }()
	<-minting

	after := site.sharing("id: stays", "id: stops, state: suspended", "id: late, state: suspended", "id: moves, regions: [east]")
	after.keks = []string{strings.Replace(after.keks[0], "region: west", "region: east", 1)}
	n.put(t, "tenants.yaml", after.directory())
	synctest.Test(t, func(t *testing.T) {
		if _, err := n.Reload(t.Context()); err != nil {
			t.Error(err)
		}
		if stats := n.Stats(); stats.Cached != 1 || stats.Active != 1 {
			t.Errorf("%d DEKs are cached, %d active, want those of the tenant that stays", stats.Cached, stats.Active)
		}
		close(gate)
		if got := <-late; got != "OK" { // it was allowed when it began
			t.Errorf("the late call: %s", got)
		}
		ctx, stop := context.WithCancel(t.Context())
		go n.Watch(ctx)
		<-time.After(10 * time.Second) // of the bubble's time
		synctest.Wait()
		if stats := n.Stats(); stats.Cached != 1 || stats.Active != 1 || stats.Minted != 5 {
			t.Errorf("%d DEKs of %d minted are cached, %d active: that of the late mint was not wiped", stats.Cached, stats.Minted, stats.Active)
		}
		stop()
	})
	for tenant, want := range map[string]string{
		"stays": "OK", "goes": "UNKNOWN_TENANT", "stops": "TENANT_SUSPENDED", "late": "TENANT_SUSPENDED", "moves": "RESIDENCY",
	} {
		if got := n.try(t.Context(), tenant); got != want {
			t.Errorf("%s: %s, want %s", tenant, got, want)
		}
	}
}

// limitsOf gives this user a limit of its own.
func limitsOf(limits string) string {
	return strings.Replace(admitMe(), "{name: me,", "{name: me, "+limits+",", 1)
}

func TestReloadChangesLimits(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s"
	n := site.start(t, set)
	tight, wide := "rate: 0.01, burst: 1", "rate: 1000000, burst: 1000"
	files := map[string]struct{ tight, wide, usual string }{
		"policy.yaml": {limitsOf(tight), limitsOf(wide), admitMe()},
		"tenants.yaml": {
			site.sharing("id: aa, " + tight).directory(), site.sharing("id: aa, " + wide).directory(), set.directory(),
		},
	}
	for name, text := range files {
		if got := n.try(t.Context(), "aa"); got != "OK" {
			t.Errorf("before: %s", got)
		}
		n.load(t, name, text.tight)
		if got := n.try(t.Context(), "aa"); got != "OK" && got != "RATE_LIMITED" {
			t.Errorf("%s, first call of a burst of 1: %s", name, got)
		}
		if got := n.try(t.Context(), "aa"); got != "RATE_LIMITED" {
			t.Errorf("%s, over the rate: %s", name, got)
		}
		n.load(t, name, text.wide)
		await(t, name+": a token", func() bool { return n.try(t.Context(), "aa") == "OK" })
		for range 100 {
			if got := n.try(t.Context(), "aa"); got != "OK" {
				t.Fatalf("%s, under the wide limit: %s", name, got)
			}
		}
		n.load(t, name, text.usual)
	}
}

func TestReloadWarns(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa", "id: bb", "id: cc")
	set.config = "reload_interval: 0s"
	n := site.start(t, set)
	old, err := config.Load(filepath.Join(n.dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	n.put(t, "tenants.yaml", site.sharing("id: aa", "id: bb, state: suspended").directory())
	now, err := config.Reload(old)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range config.Check(old, now) {
		want = append(want, f.String())
	}
	operator := n.operator(t)
	reply, err := operator.Reload(t.Context())
	if diff := cmp.Diff(want, reply.Warnings); err != nil || !reply.OK || diff != "" || len(want) != 2 {
		t.Errorf("%+v, %v, want 2 warnings (-want +got):\n%s", reply, err, diff)
	}
	if reply, err = operator.Reload(t.Context()); err != nil || !reply.OK || len(reply.Warnings) > 0 {
		t.Errorf("without a change: %+v, %v", reply, err)
	}
}

// TestReloadRefusesWhatLosesData: a KEK's URL that a slip of the hand changes
// would make one ref mean two keys, and what is sealed until somebody notices
// would open no more.
func TestReloadRefusesWhatLosesData(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	site.createOctKEK(t, "other")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s"
	n := site.start(t, set)
	sealed := n.seal(t, "aa", "data").Bytes
	moved := set
	moved.keks = []string{strings.Replace(set.keks[0], "//shared.", "//other.", 1)}
	n.put(t, "tenants.yaml", moved.directory())
	operator := n.operator(t)
	reply, err := operator.Reload(t.Context())
	if err != nil || reply.OK || !strings.Contains(strings.Join(reply.Problems, "\n"), "kek-url-changed") {
		t.Errorf("another URL: %+v, %v, want it refused", reply, err)
	}
	n.mustOpen(t, "aa", n.seal(t, "aa", "more").Bytes, "more")
	n.put(t, "tenants.yaml", set.directory())
	if reply, err = operator.Reload(t.Context()); err != nil || !reply.OK {
		t.Errorf("the URL of before: %+v, %v", reply, err)
	}
	n.mustOpen(t, "aa", sealed, "data")
}
