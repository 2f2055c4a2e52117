package tenant_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/tenant"
)

// noon is a time with a zone and a monotonic clock to lose.
var noon = time.Now().In(time.FixedZone("", 3600)).Add(-time.Hour)

// stateDir returns a new state directory.
func stateDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openSuspensions(t testing.TB, dir string) *tenant.Suspensions {
	t.Helper()
	s, err := tenant.OpenSuspensions(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func suspension(t testing.TB, id string) tenant.Suspension {
	t.Helper()
	return tenant.Suspension{Tenant: mustParse(t, id), By: "uid:10001/gid:20000", Reason: "ticket of " + id, At: noon}
}

func mustSuspend(t testing.TB, s *tenant.Suspensions, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.Suspend(suspension(t, id)); err != nil {
			t.Fatal(err)
		}
	}
}

// checkSuspended checks that s says that exactly these are suspended.
func checkSuspended(t testing.TB, s *tenant.Suspensions, ids ...string) {
	t.Helper()
	var got []string
	for _, x := range s.All() {
		got = append(got, x.Tenant.String())
		if one, ok := s.Get(x.Tenant); !ok || one != x {
			t.Errorf("Get(%s) = %v, %t, All says %v", x.Tenant, one, ok, x)
		}
	}
	if diff := cmp.Diff(ids, got); diff != "" {
		t.Errorf("suspended (-want +got):\n%s", diff)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSuspensionsSurviveRestart(t *testing.T) {
	dir := stateDir(t)
	s := openSuspensions(t, dir)
	checkSuspended(t, s)
	mustSuspend(t, s, "b", "a", "c")
	if was, err := s.Resume(mustParse(t, "a")); !was || err != nil {
		t.Fatalf("Resume = %t, %v", was, err)
	}
	odd := tenant.Suspension{
		Tenant: mustParse(t, "z:1_2.x-y"), By: `"\<&>`, Reason: "", At: time.Date(9999, 12, 31, 23, 59, 59, 100, time.UTC)}
	if err := s.Suspend(odd); err != nil {
		t.Fatal(err)
	}
	want := s.All()
	checkSuspended(t, s, "b", "c", "z:1_2.x-y")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openSuspensions(t, dir)
	if diff := cmp.Diff(want, again.All(), cmp.Comparer(func(a, b tenant.Suspension) bool { return a == b })); diff != "" {
		t.Errorf("after reopening (-want +got):\n%s", diff)
	}
	if x, _ := again.Get(odd.Tenant); x != odd {
		t.Errorf("Get = %v, want %v", x, odd)
	}
	if x, _ := again.Get(mustParse(t, "b")); !x.At.Equal(noon) || x.At.Location() != time.UTC {
		t.Errorf("at %v, want %v in UTC", x.At, noon)
	}
}

func TestSuspensionsFile(t *testing.T) {
	dir := stateDir(t)
	s := openSuspensions(t, dir)
	path := filepath.Join(dir, "suspensions.json")
	if got := read(t, path); got != "{\"version\":1,\"suspensions\":[\n]}\n" {
		t.Errorf("file before the first suspension %q", got)
	}
	x := suspension(t, "b")
	x.At, x.Reason = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "INC-7 <é>"
	if err := s.Suspend(x); err != nil {
		t.Fatal(err)
	}
	y := x
	y.Tenant, y.Reason = mustParse(t, "a"), ""
	if err := s.Suspend(y); err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"suspensions":[
{"tenant":"a","by":"uid:10001/gid:20000","reason":"","at":"2026-01-02T03:04:05Z"},
{"tenant":"b","by":"uid:10001/gid:20000","reason":"INC-7 <é>","at":"2026-01-02T03:04:05Z"}
]}
`
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if diff := cmp.Diff([]string{"suspensions.json", "suspensions.lock"}, names(t, dir)); diff != "" {
		t.Errorf("after it (-want +got):\n%s", diff)
	}
	for _, x := range s.All() {
		if _, err := s.Resume(x.Tenant); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, path); got != "{\"version\":1,\"suspensions\":[\n]}\n" {
		t.Errorf("empty file %q", got)
	}
}

func TestSuspendAgainKeepsTheFirst(t *testing.T) {
	s := openSuspensions(t, stateDir(t))
	mustSuspend(t, s, "a")
	first, _ := s.Get(mustParse(t, "a"))
	s.SetSync(func(*os.File) error { return errors.New("written") })
	second := suspension(t, "a")
	second.By, second.At = "somebody else", noon.Add(time.Minute)
	if err := s.Suspend(second); err != nil {
		t.Error(err)
	}
	if x, _ := s.Get(second.Tenant); x != first {
		t.Errorf("Get = %v, want %v", x, first)
	}
	if was, err := s.Resume(mustParse(t, "b")); was || err != nil {
		t.Errorf("Resume of an active tenant = %t, %v", was, err)
	}
	if was, err := s.Resume(tenant.ID{}); was || err != nil {
		t.Errorf("Resume of the zero ID = %t, %v", was, err)
	}
}

func TestSuspendRefuses(t *testing.T) {
	dir := stateDir(t)
	s := openSuspensions(t, dir)
	for _, tt := range []struct {
		name   string
		change func(*tenant.Suspension)
		want   string
	}{
		{"nobody", func(x *tenant.Suspension) { x.Tenant = tenant.ID{} }, "tenant ID is not"},
		{"no by", func(x *tenant.Suspension) { x.By = "" }, "by \"\" is not"},
		{"long by", func(x *tenant.Suspension) { x.By = strings.Repeat("b", 257) }, "is not 1 to 256"},
		{"escape in by", func(x *tenant.Suspension) { x.By = "\x1b[2J" }, "printable"},
		{"long reason", func(x *tenant.Suspension) { x.Reason = strings.Repeat("é", 128) + "r" }, "is not up to 256"},
		{"line feed", func(x *tenant.Suspension) { x.Reason = "a\nb" }, "printable"},
		{"bidi override", func(x *tenant.Suspension) { x.Reason = "a\u202eb" }, "printable"},
		{"line separator", func(x *tenant.Suspension) { x.Reason = "a\u2028b" }, "printable"},
		{"not UTF-8", func(x *tenant.Suspension) { x.Reason = "a\xffb" }, "printable"},
		{"no time", func(x *tenant.Suspension) { x.At = time.Time{} }, "1970"},
		{"late", func(x *tenant.Suspension) { x.At = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "9999"},
		{"late in UTC", func(x *tenant.Suspension) { x.At = time.Date(9999, 12, 31, 23, 30, 0, 0, time.FixedZone("", -3600)) }, "9999"},
	} {
		x := suspension(t, "a")
		tt.change(&x)
		if err := s.Suspend(x); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Suspend = %v, want ...%s...", tt.name, err, tt.want)
		}
	}
	checkSuspended(t, s)
	longest := suspension(t, strings.Repeat("a", tenant.MaxID))
	longest.By, longest.Reason = strings.Repeat("\u00e9", 128), strings.Repeat("\\", 256)
	if err := s.Suspend(longest); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkSuspended(t, openSuspensions(t, dir), longest.Tenant.String())
}

func TestNoState(t *testing.T) {
	closed := openSuspensions(t, stateDir(t))
	mustSuspend(t, closed, "a")
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*tenant.Suspensions{"nil": nil, "zero": {}, "closed": closed} {
		for _, id := range []string{"a", "b"} {
			if err := s.Suspend(suspension(t, id)); !errors.Is(err, tenant.ErrNoState) {
				t.Errorf("%s: Suspend(%s) = %v", name, id, err)
			}
			if was, err := s.Resume(mustParse(t, id)); was || !errors.Is(err, tenant.ErrNoState) {
				t.Errorf("%s: Resume(%s) = %t, %v", name, id, was, err)
			}
		}
		if s == closed {
			checkSuspended(t, s, "a")
		} else {
			checkSuspended(t, s)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: Close again: %v", name, err)
		}
	}
	if s, err := tenant.OpenSuspensions(""); s != nil || !errors.Is(err, tenant.ErrNoState) {
		t.Errorf(`OpenSuspensions("") = %v, %v`, s, err)
	}
}

func TestGetDoesNotAllocate(t *testing.T) {
	s := openSuspensions(t, stateDir(t))
	mustSuspend(t, s, "a")
	var none *tenant.Suspensions
	a, b := mustParse(t, "a"), mustParse(t, "b")
	if allocs := testing.AllocsPerRun(100, func() {
		s.Get(a)
		s.Get(b)
		none.Get(a)
	}); allocs != 0 {
		t.Errorf("Get allocates %v times", allocs)
	}
}

// TestGetDoesNotWait: Get and All answer while a change is being written.
func TestGetDoesNotWait(t *testing.T) {
	s := openSuspensions(t, stateDir(t))
	syncs := 0
	s.SetSync(func(f *os.File) error {
		syncs++
		checkSuspended(t, s) // not in effect: neither the file nor its name is durable
		return f.Sync()
	})
	mustSuspend(t, s, "a")
	checkSuspended(t, s, "a")
	if syncs != 2 {
		t.Errorf("%d syncs, want one of the file and one of the directory", syncs)
	}
	s.SetSync(func(f *os.File) error {
		checkSuspended(t, s, "a")
		return f.Sync()
	})
	if was, err := s.Resume(mustParse(t, "a")); !was || err != nil {
		t.Errorf("Resume = %t, %v", was, err)
	}
	checkSuspended(t, s)
}

func TestConcurrentSuspensions(t *testing.T) {
	dir := stateDir(t)
	s := openSuspensions(t, dir)
	s.SetSync(func(*os.File) error { return nil })
	mustSuspend(t, s, "always")
	var want []string
	var wg sync.WaitGroup
	for i := range 8 {
		id := fmt.Sprintf("c-%d", i)
		if i%2 == 0 {
			want = append(want, id)
		}
		wg.Go(func() {
			for n := range 11 {
				err := s.Suspend(suspension(t, id))
				was := true
				if err == nil && (n < 10 || i%2 == 1) {
					was, err = s.Resume(mustParse(t, id))
				}
				if _, ok := s.Get(mustParse(t, "always")); !ok || !was || err != nil {
					t.Errorf("%s: %t, %t, %v", id, ok, was, err)
				}
			}
		})
	}
	wg.Wait()
	want = append([]string{"always"}, want...)
	checkSuspended(t, s, want...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkSuspended(t, openSuspensions(t, dir), want...)
}

// TestSuspensionsAreAMap compares random changes and restarts with a map.
func TestSuspensionsAreAMap(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		s := openSuspensions(t, dir)
		s.SetSync(func(*os.File) error { return nil })
		model := map[string]string{}
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			x := suspension(t, rapid.SampledFrom([]string{"a", "b", "C", "a.b", "zz"}).Draw(r, "tenant"))
			id := x.Tenant.String()
			_, suspended := model[id]
			switch rapid.IntRange(0, 4).Draw(r, "what") {
			case 0, 1:
				x.Reason = rapid.StringMatching(`[ -~é世]{0,60}`).Draw(r, "reason")
				if err := s.Suspend(x); err != nil {
					r.Fatalf("Suspend(%v): %v", x, err)
				}
				if !suspended {
					model[id] = x.Reason
				}
			case 2, 3:
				if was, err := s.Resume(x.Tenant); was != suspended || err != nil {
					r.Fatalf("Resume(%s) = %t, %v", id, was, err)
				}
				delete(model, id)
			default:
				if err := s.Close(); err != nil {
					r.Fatal(err)
				}
				s = openSuspensions(t, dir)
				s.SetSync(func(*os.File) error { return nil })
			}
			got := map[string]string{}
			for _, x := range s.All() {
				got[x.Tenant.String()] = x.Reason
			}
			if diff := cmp.Diff(model, got); diff != "" {
				r.Fatalf("suspended (-want +got):\n%s", diff)
			}
		}
		if err := s.Close(); err != nil {
			r.Fatal(err)
		}
	})
}
