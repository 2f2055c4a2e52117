package sidecar_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// A cramped is a sidecar that runs as a process, and whose log may be given no
// room.
type cramped struct {
	t        *testing.T
	site     *site
	dir      string
	logs     string
	web      string // of its metrics
	life     *life
	rpc      keysidecarv1.SealServiceClient
	operator *client.Admin

	made      sums            // what calls came to: recorded, or counted
	unwritten map[string]bool // request ids of calls that were refused for want of a record
	sealed    map[string][]byte
}

func newCramped(t *testing.T) *cramped {
	t.Helper()
	c := &cramped{
		t: t, site: newSite(t), dir: shortDir(t), web: freeAddress(t), made: make(sums), unwritten: make(map[string]bool), sealed: make(map[string][]byte),
	}
	c.site.createOctKEK(t, "shared")
	c.site.createOctKEK(t, "frozen")
	set := c.site.sharing("id: plain", "id: listed, audit: full", "id: new", "id: cold", "id: halted", "id: another")
	set.keks = append(set.keks, c.site.kek("frozen", "frozen", "A256KW"))
	set.tenants = append(set.tenants, "{id: iced-1, kek: frozen}", "{id: iced-2, kek: frozen}")
	set.policy = strings.Replace(admitMe(), "admin.policy, ", "", 1)
	set.config = "reload_interval: 0s\nmetrics: {listen: '" + c.web + "'}"
	c.logs = set.auditTo(t, "interval: 1s, checkpoint_interval: 100ms, write_timeout: 500ms")
	if _, err := set.write(c.dir, c.site.Addr(), c.site.CAFile(), c.site.TokenFile()); err != nil {
		t.Fatal(err)
	}
	c.life = user{}.begin(t, auditedProcess, c.dir, processDir+"="+c.dir)
	c.life.says(t, "ready")
	c.rpc = keysidecarv1.NewSealServiceClient(connect(t, filepath.Join(c.dir, "s.sock")))
	var err error
	if c.operator, err = client.DialAdmin(filepath.Join(c.dir, "admin.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.operator.Close() })
	return c
}

// room sets how many bytes more the log gets; none is no limit.
func (c *cramped) room(more int) {
	c.t.Helper()
	limit := uint64(unix.RLIM_INFINITY)
	if more > 0 {
		info, err := os.Stat(must(newestFile(c.logs)))
		if err != nil {
			c.t.Fatal(err)
		}
		limit = uint64(info.Size() + int64(more))
	}
	if err := unix.Prlimit(c.life.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: unix.RLIM_INFINITY}, nil); err != nil {
		c.t.Fatal(err)
	}
}

// note makes a call, which does not wait for the log for long, and returns what
// came of it. The log has to tell of it, if only by its count.
func (c *cramped) note(tenant, verb string, bytes int, call func(context.Context) error) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	begun := time.Now()
	err := call(ctx)
	if took := time.Since(begun); took > 2*time.Second {
		c.t.Errorf("%s for %s took %s", verb, tenant, took)
	}
	got := reasonOf(err)
	c.made.add(alike{"me", tenant, verb, got}, 1, int64(bytes))
	if got != "AUDIT_UNAVAILABLE" {
		return got
	}
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			c.unwritten[d.GetMetadata()["request_id"]] = true
		case *errdetails.RetryInfo:
			if d.GetRetryDelay().AsDuration() <= 0 {
				c.t.Errorf("%s for %s: to be repeated after %s", verb, tenant, d.GetRetryDelay())
			}
		}
	}
	return got
}

func (c *cramped) seal(tenant, want string) {
	c.t.Helper()
	got := c.note(tenant, "seal", 4, func(ctx context.Context) error {
		r, err := c.rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: []byte("data")})
		if err == nil {
			c.sealed[tenant] = r.GetSealed()
		}
		return err
	})
	if got != want {
		c.t.Errorf("Seal for %s: %s, want %s", tenant, got, want)
	}
}

func (c *cramped) open(tenant string) string {
	c.t.Helper()
	return c.note(tenant, "unseal", len(c.sealed[tenant]), func(ctx context.Context) error {
		_, err := c.rpc.Unseal(ctx, &keysidecarv1.UnsealRequest{Tenant: tenant, Sealed: c.sealed[tenant]})
		return err
	})
}

func (c *cramped) unseal(tenant, want string) {
	c.t.Helper()
	if got := c.open(tenant); got != want {
		c.t.Errorf("Unseal for %s: %s, want %s", tenant, got, want)
	}
}

// before makes calls while there is room.
func (c *cramped) before() {
	c.t.Helper()
	for _, tenant := range []string{"plain", "listed", "cold", "halted", "iced-1", "iced-2"} {
		c.seal(tenant, "OK")
		c.unseal(tenant, "OK")
	}
	c.seal("nobody", "UNKNOWN_TENANT")
	for _, tenant := range []string{"cold", "iced-2"} {
		if _, err := c.operator.Evict(c.t.Context(), tenant); err != nil {
			c.t.Fatal(err)
		}
	}
}

// without makes calls while there is no room: of those that are refused for want
// of a record, nothing happens.
func (c *cramped) without() {
	c.t.Helper()
	c.seal("nobody", "AUDIT_UNAVAILABLE")
	c.seal("listed", "AUDIT_UNAVAILABLE")
	c.unseal("listed", "AUDIT_UNAVAILABLE")
	// No DEK is minted, and none is kept.
	c.seal("new", "AUDIT_UNAVAILABLE")
	c.unseal("cold", "AUDIT_UNAVAILABLE")
	c.sparing()
	for range 20 {
		c.seal("plain", "OK")
		c.unseal("plain", "OK")
	}
	// What an operator does for safety is done; what is not, is not.
	got, err := c.operator.Suspend(c.t.Context(), "halted", "without a record")
	if err != nil || got.DEKs != 1 {
		c.t.Errorf("suspending: %+v, %v", got, err)
	}
	c.unseal("halted", "AUDIT_UNAVAILABLE") // and not the data
	if _, err := c.operator.Evict(c.t.Context(), "another"); err != nil {
		c.t.Errorf("evicting: %v", err)
	}
	c.refuses("resume", func(ctx context.Context) error { _, err := c.operator.Resume(ctx, "halted"); return err })
	c.refuses("reload", func(ctx context.Context) error { _, err := c.operator.Reload(ctx); return err })
	c.made.add(alike{"me", "", "admin.policy", "AUDIT_UNAVAILABLE"}, 1, 0)
	c.refuses("policy, for which there is no rule", func(ctx context.Context) error { _, err := c.operator.Policy(ctx); return err })
	c.refuses("a tenant that is none", func(ctx context.Context) error { _, err := c.operator.Evict(ctx, "/"); return err })
	// A KEK that is refused is out of use, also where its DEK was warm.
	if err := c.site.SetEnabled("frozen", kekName, "", false); err != nil {
		c.t.Fatal(err)
	}
	c.unseal("iced-1", "OK")
	await(c.t, "somebody may ask the vault", func() bool { return c.open("iced-2") == "KEK_DISABLED" })
	if got := c.open("iced-1"); got == "OK" {
		c.t.Error("a DEK is in use whose KEK was refused")
	}
}

// sparing wants that the vault is not asked for what could not be recorded, but
// for a trial each second.
func (c *cramped) sparing() {
	c.t.Helper()
	asked := func() int64 {
		k := c.site.Counters().Key("shared", kekName)
		return k.Wraps + k.Unwraps
	}
	before, begun := asked(), time.Now()
	for range 20 {
		c.unseal("cold", "AUDIT_UNAVAILABLE")
	}
	if n, most := asked()-before, 2+int64(time.Since(begun).Seconds()); n > most {
		c.t.Errorf("the vault was asked %d times, want %d at most", n, most)
	}
}

// refuses wants that an operator's call is refused.
func (c *cramped) refuses(what string, call func(context.Context) error) {
	c.t.Helper()
	if err := call(c.t.Context()); client.ReasonOf(err) != "AUDIT_UNAVAILABLE" {
		c.t.Errorf("%s: %v", what, err)
	}
}

// failing wants that status and metrics say that the log is, or is not, failing.
func (c *cramped) failing(want bool) {
	c.t.Helper()
	s, err := c.operator.Status(c.t.Context())
	seconds := scrape(c.t, c.web, "keysidecar_audit_failing_seconds")
	c.made.add(alike{"me", "", "admin.status", "OK"}, 1, 0)
	if err != nil || s.AuditFailingSince.IsZero() == want || (seconds == "0") == want || seconds == "" {
		c.t.Errorf("failing since %s, %v, for %q seconds, want %v", s.AuditFailingSince, err, seconds, want)
	}
	if s.AuditLog == "" || s.AuditKey == "" || s.AuditRecords == 0 {
		c.t.Errorf("status: %+v", s)
	}
}

// TestAuditOfFullDisk gives a log no more room, and room again, while its
// sidecar is called.
func TestAuditOfFullDisk(t *testing.T) {
	t.Parallel()
	const evictions = 1100
	c := newCramped(t)
	c.before()
	c.failing(false)
	c.room(100) // for a part of a line
	c.without()
	c.failing(true)
	for range evictions {
		if _, err := c.operator.Evict(t.Context(), "another"); err != nil {
			t.Fatal(err)
		}
	}
	after := time.Now().Add(1500 * time.Millisecond)
	await(t, "rows that cannot be written", func() bool { return time.Now().After(after) })
	c.unseal("plain", "OK")

	c.room(0)
	await(t, "the log is written again", func() bool {
		c.made.add(alike{"me", "", "admin.status", "OK"}, 1, 0)
		s, err := c.operator.Status(t.Context())
		return err == nil && s.AuditFailingSince.IsZero()
	})
	c.failing(false)
	c.seal("nobody", "UNKNOWN_TENANT")
	c.unseal("halted", "TENANT_SUSPENDED")
	c.seal("new", "OK")
	c.unseal("cold", "OK")
	c.seal("listed", "OK")
	c.life.leave(t)

	all := logIn(t, c.logs)
	if diff := gocmp.Diff(c.made, summed(all), gocmp.AllowUnexported(sum{}, alike{})); diff != "" {
		t.Errorf("calls (-made +recorded):\n%s", diff)
	}
	verified(t, nil, verify.Config{}, c.logs)
	c.afterwards(all, evictions)
}

// afterwards wants that what was not held up is recorded once, and what was
// refused is not.
func (c *cramped) afterwards(all []logged, evictions int) {
	c.t.Helper()
	did, requests := make(map[string]int), make(map[string]bool)
	var lost int64
	for _, l := range all {
		switch l.Kind {
		case record.Admin:
			did[fmt.Sprintf("%s %s %s", l.Did, l.Event.Tenant, l.Result)]++
		case record.KeyStep:
			did[strings.TrimSpace(l.Step+" "+l.Event.Tenant)]++
		case record.Lost:
			lost += l.Count
		default:
		}
		if requests[l.Request] && l.Request != "" || c.unwritten[l.Request] {
			c.t.Errorf("recorded twice, or not to be recorded: %s", l.raw)
		}
		requests[l.Request] = true
	}
	evicted := did["evict another OK"]
	if evicted+int(lost) != 1+evictions || evicted < 990 {
		c.t.Errorf("%d evictions recorded, %d lost of %d", evicted, lost, 1+evictions)
	}
	delete(did, "evict another OK")
	want := map[string]int{
		"suspend halted OK": 1, "evict cold OK": 1, "evict iced-2 OK": 1, "fenced": 1, "unwrapped cold": 1,
	}
	for _, tenant := range []string{"plain", "listed", "cold", "halted", "iced-1", "iced-2", "new"} {
		for _, step := range []string{"wrapped", "proved", "activated"} {
			want[step+" "+tenant] = 1
		}
	}
	if diff := gocmp.Diff(want, did); diff != "" {
		c.t.Errorf("keys and operators (-want +got):\n%s", diff)
	}
}
