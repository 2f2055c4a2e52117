package sidecar_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// What calls have in common that are counted together.
type alike struct{ caller, tenant, verb, result string }

// What they come to.
type sum struct{ count, bytes int64 }

// sums are those of calls.
type sums map[alike]sum

func (s sums) add(a alike, count, bytes int64) {
	s[a] = sum{s[a].count + count, s[a].bytes + bytes}
}

// denied returns s with denials put together whatever the tenant, who is not
// told where they are counted.
func (s sums) denied() sums {
	out := make(sums)
	for a, n := range s {
		if slices.Contains(denials(), a.result) {
			a.tenant = ""
		}
		out.add(a, n.count, n.bytes)
	}
	return out
}

// summed returns what the records of a log say of calls, however they say it.
func summed(all []logged) sums {
	s := make(sums)
	for _, l := range all {
		switch l.Kind {
		case record.Call, record.Denied:
			s.add(alike{l.Caller, l.Tenant, l.Verb, l.Result}, 1, l.Bytes)
		case record.Calls, record.ManyDenied:
			s.add(alike{l.Caller, l.Tenant, l.Verb, l.Result}, l.Count, l.Bytes)
		default:
		}
	}
	return s
}

// A crowd calls a sidecar from many goroutines, and knows how often.
type crowd struct {
	mu   sync.Mutex
	made sums
}

// call makes a call and counts it by what came of it.
func (c *crowd) call(caller, tenant, verb string, bytes int, call func() error) {
	got := reasonOf(call())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made.add(alike{caller, tenant, verb, got}, 1, int64(bytes))
}

// worker makes calls of all kinds until stop says so.
func (c *crowd) worker(t *testing.T, caller string, rpc keysidecarv1.SealServiceClient, sealed map[string][]byte, stop func() bool) {
	tenants := []string{"plain", "listed", "other", "nobody"}
	for i := 0; !stop(); i++ {
		tenant := tenants[i%len(tenants)]
		data := []byte(strings.Repeat("x", i%50))
		c.call(caller, tenant, "seal", len(data), func() error {
			_, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: data})
			return err
		})
		bundle := sealed[tenant]
		if i%7 == 0 {
			bundle = sealed["plain"]
		}
		c.call(caller, tenant, "unseal", len(bundle), func() error {
			_, err := rpc.Unseal(t.Context(), &keysidecarv1.UnsealRequest{Tenant: tenant, Sealed: bundle})
			return err
		})
	}
}

// Rows that are written while calls are made leave none out, and count none
// twice.
func TestAuditCounts(t *testing.T) {
	site, p := newSite(t), newPKI(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: plain", "id: listed, audit: full", "id: other")
	set.policy = callersPolicy(batch)
	set.secure(t, p, "", "")
	dir := set.auditTo(t, "interval: 1s, checkpoint_interval: 100ms, denials_per_minute: 100")
	n := site.start(t, set)
	c := &crowd{made: make(sums)}
	sealed := make(map[string][]byte)
	for _, tenant := range []string{"plain", "listed", "other"} {
		c.call("me", tenant, "seal", 4, func() error {
			r, err := n.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: []byte("data")})
			sealed[tenant] = r.GetSealed()
			return err
		})
	}
	end := time.Now().Add(2500 * time.Millisecond)
	over := func() bool { return time.Now().After(end) }
	var group sync.WaitGroup
	for i := range 6 {
		caller, rpc := "me", keysidecarv1.NewSealServiceClient(n.connect(t))
		if i%3 == 2 {
			caller, rpc = "caller-0", keysidecarv1.NewSealServiceClient(n.secured(t, p.trusting(p.callers.issue(t, batch))))
		}
		group.Go(func() { c.worker(t, caller, rpc, sealed, over) })
	}
	group.Wait()
	n.end(t)
	all := logIn(t, dir)
	if diff := gocmp.Diff(c.made.denied(), summed(all).denied(), gocmp.AllowUnexported(sum{}, alike{})); diff != "" {
		t.Errorf("calls (-made +recorded):\n%s", diff)
	}
	if n := intervals(t, all); n < 3 {
		t.Errorf("rows of %d intervals, want 3 or more", n)
	}
	verified(t, nil, verify.Config{}, dir)
	for _, want := range []alike{
		{"me", "plain", "seal", "OK"}, {"caller-0", "other", "unseal", "OK"}, {"me", "listed", "unseal", "AUTHENTICATION_FAILED"},
		{"caller-0", "nobody", "seal", "UNKNOWN_TENANT"},
	} {
		if c.made[want].count < 10 {
			t.Errorf("%d calls were %v", c.made[want].count, want)
		}
	}
	t.Logf("%d kinds of calls: %v", len(c.made), c.made)
}

// intervals wants that each interval of counted calls begins where the one
// before ended, and returns how many there are.
func intervals(t *testing.T, all []logged) int {
	t.Helper()
	type span struct{ from, to time.Time }
	var spans []span
	for _, l := range all {
		if l.Kind == record.Calls || l.Kind == record.ManyDenied {
			spans = append(spans, span{l.From, l.To})
		}
	}
	spans = slices.Compact(spans)
	for i := range spans[1:] {
		if !spans[i+1].from.Equal(spans[i].to) {
			t.Errorf("counted until %s, and then from %s", spans[i].to, spans[i+1].from)
		}
	}
	if !slices.IsSortedFunc(spans, func(a, b span) int { return cmp.Compare(a.from.UnixNano(), b.from.UnixNano()) }) {
		t.Errorf("intervals are %v", spans)
	}
	return len(spans)
}

// What is counted beyond audit.rows keeps its number.
func TestAuditCountsWithoutRows(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing(`prefix: "t-"`)
	dir := set.auditTo(t, "rows: 16")
	n := site.start(t, set)
	const calls = 100
	for i := range calls {
		if got := n.try(t.Context(), fmt.Sprintf("t-%d", i)); got != "OK" {
			t.Fatal(got)
		}
	}
	n.end(t)
	s, rows := summed(logIn(t, dir)), 0
	var count, bytes int64
	for _, n := range s {
		rows, count, bytes = rows+1, count+n.count, bytes+n.bytes
	}
	rest := s[alike{caller: "me", verb: "seal", result: "OK"}]
	if count != calls || bytes != 4*calls || rest.count < 10 || int64(rows-1)+rest.count != calls {
		t.Errorf("%d rows of %d calls and %d bytes, of which %d have no tenant", rows, count, bytes, rest.count)
	}
}

// A flood of denials of one caller ends in counts; another's are recorded one
// by one.
func TestAuditFloodOfDenials(t *testing.T) {
	const most, flood, others = 5, 60, 4
	site, p := newSite(t), newPKI(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: plain", "id: other")
	set.policy = strings.Replace(callersPolicy(batch), "tenants: ['*']", "tenants: [plain]", 1)
	set.secure(t, p, "", "")
	dir := set.auditTo(t, fmt.Sprintf("denials_per_minute: %d", most))
	n := site.start(t, set)
	other := keysidecarv1.NewSealServiceClient(n.secured(t, p.trusting(p.callers.issue(t, batch))))
	operator := n.operator(t)
	for i := range flood {
		if got := n.try(t.Context(), "nobody"); got != "UNKNOWN_TENANT" {
			t.Errorf("flood: %s", got)
		}
		if i%(flood/others) == 0 {
			if got := try(t.Context(), other, "other"); got != "PERMISSION_DENIED" {
				t.Errorf("the other one: %s", got)
			}
		}
	}
	// An operator's are counted with the same user's.
	if _, err := operator.Evict(t.Context(), "/"); client.ReasonOf(err) != "INVALID_TENANT" {
		t.Errorf("operator: %v", err)
	}
	n.end(t)
	single, counted := make(map[string]int), make(map[string]int64)
	for _, l := range logIn(t, dir) {
		switch l.Kind {
		case record.Denied:
			single[l.Caller+" "+l.Result]++
		case record.ManyDenied:
			counted[l.Caller+" "+l.Result] += l.Count
		default:
		}
	}
	// The flood takes less time than the next one of its own would.
	if diff := gocmp.Diff(map[string]int{"me UNKNOWN_TENANT": most, "caller-0 PERMISSION_DENIED": others}, single); diff != "" {
		t.Errorf("records of one denial (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff(map[string]int64{"me UNKNOWN_TENANT": flood - most, "me INVALID_TENANT": 1}, counted); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// Nothing in a log does anything to a terminal.
func TestAuditIsPrintable(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: plain, audit: full")
	set.config = "reload_interval: 0s"
	dir := set.auditTo(t, "context: [row]")
	n := site.start(t, set)
	operator := n.operator(t)
	nasty := "\x00\x07\b\t\n\v\f\r\x1b[31m\x1b]0;title\x07\x7f\u0085\u009b31m\u2028\u202e\ufeff\U000e0001\"\\</script>"
	value := nasty + strings.Repeat("\x01", 200)
	if _, err := n.client.Seal(t.Context(), "plain", []byte(nasty), map[string]string{"row": value}); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{nasty, "plain\n", "\x1b[2J"} {
		_, err := n.client.Seal(t.Context(), tenant, nil, nil)
		_, evicted := operator.Evict(t.Context(), tenant)
		if client.ReasonOf(err) != "INVALID_TENANT" || client.ReasonOf(evicted) != "INVALID_TENANT" {
			t.Errorf("tenant %q: %v, %v", tenant, err, evicted)
		}
	}
	if _, err := operator.Suspend(t.Context(), "plain", nasty); client.ReasonOf(err) != "INVALID_REQUEST" {
		t.Errorf("suspending because of %q: %v", nasty, err)
	}
	const printable = "\u00e9\u4e16\U0001f512 \"quoted\" \\ </script>"
	if _, err := operator.Suspend(t.Context(), "plain", printable); err != nil {
		t.Error(err)
	}
	n.put(t, "policy.yaml", fmt.Sprintf("%q: 1", nasty))
	if _, err := n.Reload(t.Context()); err == nil {
		t.Error("a bad policy.yaml is taken")
	}
	n.end(t)
	events := make(map[record.Kind]logged)
	for _, l := range logIn(t, dir) {
		events[l.Kind] = l
		raw, err := os.ReadFile(l.source)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(raw, func(c byte) bool { return c != '\n' && (c < ' ' || c > '~') }); i >= 0 {
			t.Fatalf("byte %#x at %d: %q", raw[i], i, raw[max(0, i-100):i+1])
		}
	}
	if got := events[record.Call].Context["row"]; got != value {
		t.Errorf("context is %q, want %q", got, value)
	}
	if got := events[record.Admin].Detail; got != printable {
		t.Errorf("reason is %q, want %q", got, printable)
	}
	if got := events[record.Reload].Detail; !strings.Contains(got, "policy.yaml") {
		t.Errorf("refused file: %q", got)
	}
	verified(t, nil, verify.Config{}, dir)
}
