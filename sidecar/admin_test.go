package sidecar_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sidecar"
)

// tryUnseal unseals for a tenant, once, and returns the reason of what it got.
func (n *node) tryUnseal(t *testing.T, tenant string, sealed []byte) string {
	t.Helper()
	_, err := n.rpc.Unseal(t.Context(), &keysidecarv1.UnsealRequest{Tenant: tenant, Sealed: sealed})
	return reasonOf(err)
}

func TestStatus(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa", "id: bb", "id: cc")
	set.keks = append(set.keks, site.kek("another", "another", "A256KW"))
	set.config, set.Options = "reload_interval: 0s", sidecar.Options{Version: "v1.2.3", Memory: 400 << 20}
	before := time.Now()
	n := site.start(t, set)
	operator := n.operator(t)
	n.seal(t, "aa", "data")
	n.seal(t, "bb", "data")
	if _, err := operator.Suspend(t.Context(), "cc", ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := try(t.Context(), keysidecarv1.NewSealServiceClient(n.connect(t)), "nobody"); got != "UNKNOWN_TENANT" {
			t.Errorf("a further connection: %s", got)
		}
	}
	got, err := operator.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Started.Before(before) || got.FilesLoaded.Before(before) || time.Since(got.Started) < 0 || got.KeyMemory == "" {
		t.Errorf("status is %+v", got)
	}
	want := client.Status{
		Version: "v1.2.3", Started: got.Started, FilesLoaded: got.FilesLoaded, Region: "west", KeyMemory: got.KeyMemory,
		DEKsCached: 2, DEKsActive: 2, DEKsLimit: 1000, BytesInFlight: got.BytesInFlight, BytesLimit: 100 << 20,
		PolicyRules: 2, TenantRules: 3, KEKs: 2, TenantsSuspended: 1,
		Listeners: []client.Listener{
			// The node's client, and two more.
			{Name: "unix", Address: n.socket, Connections: 3}, {Name: "admin", Address: n.adminSocket, Connections: 1},
		},
		AuditLog: got.AuditLog, AuditKey: got.AuditKey, AuditRecords: got.AuditRecords,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(got.AuditKey, got.AuditLog+"+") || !strings.HasPrefix(got.AuditLog, "keysidecar/") || got.AuditRecords < 9 {
		t.Errorf("audit log %q with key %q has %d records, and 2 DEKs were minted", got.AuditLog, got.AuditKey, got.AuditRecords)
	}
	if got.BytesInFlight != 0 {
		t.Errorf("%d bytes in flight: an operator's call takes none of the callers' room", got.BytesInFlight)
	}
}

func TestRefusedConnectionsAreCounted(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s"
	set.limits = ", connections_per_caller: 3"
	n := site.start(t, set)
	for range 3 {
		if got := try(t.Context(), keysidecarv1.NewSealServiceClient(n.connect(t)), "aa"); got != "OK" {
			t.Errorf("connection within the limit: %s", got)
		}
	}
	if got := try(t.Context(), keysidecarv1.NewSealServiceClient(n.connect(t)), "aa"); got != "Unavailable" {
		t.Errorf("connection over the limit: %s", got)
	}
	status, err := n.operator(t).Status(t.Context())
	if err != nil || status.Listeners[0].Connections != 3 || status.Listeners[0].Refused == 0 || status.Listeners[1].Refused != 0 {
		t.Errorf("%+v, %v", status.Listeners, err)
	}
}

func TestPolicyIsShown(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa", `prefix: "eu-"`)
	ended, ends := time.Now().Add(-time.Minute).Truncate(time.Second).UTC(), time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	set.policy = strings.Replace(admitMe(), "}]\n", fmt.Sprintf(`}, {name: pair, uid: %d, gid: 20000}, {name: group, gid: 20001}, `, os.Geteuid()+1)+
		`{name: web, spiffe: 'spiffe://example.org/web'}, {name: batch, dns: batch.internal}]`+"\n", 1) +
		fmt.Sprintf("- {callers: [pair], tenants: [aa], verbs: [unseal], not_after: %s, ticket: INC-1}\n", ended.Format(time.RFC3339)) +
		fmt.Sprintf("- {callers: [group, web], tenants: [aa, 'eu-*'], verbs: [seal], not_after: %s, ticket: INC-2}\n", ends.Format(time.RFC3339)) +
		"- {callers: ['*'], tenants: [aa], verbs: [seal]}\n"
	n := site.start(t, set)
	got, err := n.operator(t).Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := client.Policy{
		Path: filepath.Join(n.dir, "policy.yaml"), Loaded: got.Loaded,
		Callers: []client.PolicyCaller{
			{Name: "me", Identity: fmt.Sprint("uid:", os.Geteuid())}, {Name: "pair", Identity: fmt.Sprintf("uid:%d/gid:20000", os.Geteuid()+1)},
			{Name: "group", Identity: "gid:20001"}, {Name: "web", Identity: "spiffe://example.org/web"}, {Name: "batch", Identity: "dns:batch.internal"},
		},
		Rules: []client.PolicyRule{
			{Callers: []string{"me"}, Tenants: []string{"*"}, Verbs: verbs()[:2]},
			{Callers: []string{"me"}, Tenants: []string{"*"}, Verbs: verbs()[2:]},
			{Callers: []string{"pair"}, Tenants: []string{"aa"}, Verbs: []string{"unseal"}, NotAfter: ended, Ticket: "INC-1", Expired: true},
			{Callers: []string{"group", "web"}, Tenants: []string{"aa", "eu-*"}, Verbs: []string{"seal"}, NotAfter: ends, Ticket: "INC-2"},
			{Callers: []string{"*"}, Tenants: []string{"aa"}, Verbs: []string{"seal"}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" || got.Loaded.IsZero() {
		t.Errorf("policy, loaded %v (-want +got):\n%s", got.Loaded, diff)
	}
}

func TestEvict(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	n := site.start(t, site.sharing("id: aa", "id: bb", "id: cc"))
	operator := n.operator(t)
	sealed := make(map[string][]byte)
	for _, tenant := range []string{"aa", "bb", "cc"} {
		sealed[tenant] = n.seal(t, tenant, "data").Bytes
	}
	unwraps := func() int64 { return site.Counters().Key("shared", kekName).Unwraps }
	before := unwraps()
	if deks, err := operator.Evict(t.Context(), "aa"); deks != 1 || err != nil || n.Stats().Cached != 2 {
		t.Errorf("one tenant: %d DEKs, %v, %d left", deks, err, n.Stats().Cached)
	}
	for tenant := range sealed {
		n.mustOpen(t, tenant, sealed[tenant], "data")
	}
	if got := unwraps() - before; got != 1 {
		t.Errorf("%d unwraps, want that of the tenant that was evicted", got)
	}
	if deks, err := operator.EvictAll(t.Context()); deks != 3 || err != nil || n.Stats().Cached != 0 || n.Stats().Active != 0 {
		t.Errorf("all: %d DEKs, %v, %d left", deks, err, n.Stats().Cached)
	}
	n.mustOpen(t, "bb", sealed["bb"], "data")
	if got := unwraps() - before; got != 2 {
		t.Errorf("%d unwraps, want one more", got)
	}
	rpc := keysidecarv1.NewAdminServiceClient(connect(t, n.adminSocket))
	for name, req := range map[string]*keysidecarv1.EvictRequest{"nothing": {}, "both": {All: true, Tenant: "bb"}} {
		if _, err := rpc.Evict(t.Context(), req); reasonOf(err) != "INVALID_REQUEST" || n.Stats().Cached != 1 {
			t.Errorf("%s: %v, %d DEKs left", name, err, n.Stats().Cached)
		}
	}
	n.load(t, "policy.yaml",
		strings.Replace(admitMe(), "admin.evict, ", "", 1)+"- {callers: [me], tenants: [aa], verbs: [admin.evict]}\n")
	for name, req := range map[string]*keysidecarv1.EvictRequest{"nothing": {}, "both": {All: true, Tenant: "bb"}} {
		if _, err := rpc.Evict(t.Context(), req); reasonOf(err) != "PERMISSION_DENIED" {
			t.Errorf("%s, by who may evict one tenant: %v", name, err)
		}
	}
}

// all lists the tenants.
func all(t *testing.T, a *client.Admin) []client.Tenant {
	t.Helper()
	var out []client.Tenant
	for tenant, err := range a.Tenants(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, tenant)
	}
	return out
}

func TestListTenants(t *testing.T) {
	site := newSite(t)
	var lines []string
	want := []client.Tenant{
		{Prefix: "eu-*", KEK: "shared", AlsoOpens: []string{"old"}, Regions: []string{"west"}, State: "active"},
		{ID: "slow", KEK: "shared", State: "suspended"},
	}
	for i := range 2500 {
		id := fmt.Sprintf("tenant-%04d", i)
		lines = append(lines, "id: "+id)
		want = append(want, client.Tenant{ID: id, KEK: "shared", State: "active"})
	}
	set := site.sharing(append([]string{"prefix: eu-, also_opens: [old], regions: [west]", "id: slow, state: suspended"}, lines...)...)
	set.keks = append(set.keks, strings.Replace(site.kek("old", "old", "A256KW"), "ref:", "retired: true, ref:", 1))
	n := site.start(t, set)
	operator := n.operator(t)
	for _, id := range []string{"eu-b", "tenant-0007", "eu-a"} {
		if _, err := operator.Suspend(t.Context(), id, "for "+id); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	suspended := func(id string) client.Tenant {
		return client.Tenant{ID: id, State: "suspended", Suspension: &client.Suspension{By: "me", Reason: "for " + id, At: now}}
	}
	want[2+7] = suspended("tenant-0007")
	want[2+7].KEK = "shared"
	want = append(want, suspended("eu-a"), suspended("eu-b"))
	got := all(t, operator)
	for i := range got {
		if s := got[i].Suspension; s != nil && now.Sub(s.At) < time.Minute {
			s.At = now
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tenants (-want +got):\n%s", diff)
	}

	rpc := keysidecarv1.NewAdminServiceClient(connect(t, n.adminSocket))
	req := &keysidecarv1.ListTenantsRequest{PageSize: 999}
	var sizes []int
	for {
		page, err := rpc.ListTenants(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(page.GetTenants()))
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if diff := cmp.Diff([]int{999, 999, 506}, sizes); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	if page, err := rpc.ListTenants(t.Context(), &keysidecarv1.ListTenantsRequest{PageSize: 1 << 31}); err != nil || len(page.GetTenants()) != 1000 {
		t.Errorf("a huge page: %d tenants, %v", len(page.GetTenants()), err)
	}
	for _, token := range []string{"-1", "2505", "x", "99999999999999999999"} {
		if _, err := rpc.ListTenants(t.Context(), &keysidecarv1.ListTenantsRequest{PageToken: token}); codeOf(err) != codes.InvalidArgument {
			t.Errorf("page token %q: %v", token, err)
		}
	}
}

// Neither service is to be had by the other's door.
func TestDoorsAreApart(t *testing.T) {
	site, p := newSite(t), newPKI(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: acme")
	set.policy = callersPolicy(billing)
	set.secure(t, p, trustDomain, "")
	n := site.start(t, set)
	tcp := n.secured(t, p.trusting(p.callers.issue(t, billing)))
	if got := tryOver(t, tcp); got != "OK" {
		t.Errorf("Seal over TCP: %s", got)
	}
	_, overUnix := keysidecarv1.NewAdminServiceClient(n.connect(t)).GetStatus(t.Context(), &keysidecarv1.GetStatusRequest{})
	_, overTCP := keysidecarv1.NewAdminServiceClient(tcp).GetStatus(t.Context(), &keysidecarv1.GetStatusRequest{})
	for name, got := range map[string]string{
		"Seal by the admin socket": tryOver(t, connect(t, n.adminSocket)), "GetStatus by the data socket": reasonOf(overUnix),
		"GetStatus by TCP": reasonOf(overTCP),
	} {
		if got != "Unimplemented" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestSuspend(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	n := site.start(t, site.sharing("id: aa", "id: bb", `prefix: "eu-"`))
	operator := n.operator(t)
	sealed := make(map[string][]byte)
	for _, tenant := range []string{"aa", "bb", "eu-a", "eu-b"} {
		sealed[tenant] = n.seal(t, tenant, "data").Bytes
	}
	// want asks what each tenant gets, over the connection that was there before.
	want := func(when string, reasons map[string]string) {
		t.Helper()
		for tenant, reason := range reasons {
			if seal, unseal := n.try(t.Context(), tenant), n.tryUnseal(t, tenant, sealed[tenant]); seal != reason || unseal != reason {
				t.Errorf("%s, %s: Seal %s, Unseal %s, want %s", when, tenant, seal, unseal, reason)
			}
		}
	}
	refused := map[string]string{"aa": "TENANT_SUSPENDED", "bb": "OK", "eu-a": "TENANT_SUSPENDED", "eu-b": "OK"}
	for _, tenant := range []string{"aa", "eu-a"} {
		cached, before := n.Stats().Cached, time.Now()
		got, err := operator.Suspend(t.Context(), tenant, "INC-1: a leak")
		if s := got.Tenant.Suspension; err != nil || s == nil || s.By != "me" || s.Reason != "INC-1: a leak" || s.At.Before(before) ||
			got.Tenant.ID != tenant || got.Tenant.KEK != "shared" || got.Tenant.State != "suspended" || got.DEKs != 1 {
			t.Errorf("suspending %s: %+v, %v", tenant, got, err)
		}
		if got := n.Stats().Cached; got != cached-1 {
			t.Errorf("%d DEKs cached after %s was suspended, %d before", got, tenant, cached)
		}
		again, err := operator.Suspend(t.Context(), tenant, "again")
		if diff := cmp.Diff(got.Tenant, again.Tenant); err != nil || diff != "" || again.DEKs != 0 {
			t.Errorf("suspending %s again: %v, %d DEKs, (-first +again):\n%s", tenant, err, again.DEKs, diff)
		}
	}
	want("suspended", refused)

	n = n.again(t)
	want("after a restart", refused)
	operator = n.operator(t)
	for _, tenant := range []string{"aa", "eu-a"} {
		got, err := operator.Resume(t.Context(), tenant)
		if diff := cmp.Diff(client.Resumed{Tenant: client.Tenant{ID: tenant, KEK: "shared", State: "active"}, WasSuspended: true}, got); err != nil || diff != "" {
			t.Errorf("resuming %s: %v (-want +got):\n%s", tenant, err, diff)
		}
		if got, err = operator.Resume(t.Context(), tenant); err != nil || got.WasSuspended || got.Tenant.State != "active" {
			t.Errorf("resuming %s again: %+v, %v", tenant, got, err)
		}
	}
	served := map[string]string{"aa": "OK", "bb": "OK", "eu-a": "OK", "eu-b": "OK"}
	want("resumed", served)
	n = n.again(t)
	want("resumed, after a restart", served)
	if log := n.log.String(); strings.Contains(log, "TENANT_SUSPENDED") {
		t.Errorf("log: %s", log)
	}
}

// What tenants.yaml suspends, nobody resumes here.
func TestResumeOfFileSuspension(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa, state: suspended", "id: bb")
	n := site.start(t, set)
	operator := n.operator(t)
	got, err := operator.Resume(t.Context(), "aa")
	if err != nil || got.WasSuspended || got.Tenant.State != "suspended" || got.Tenant.Suspension != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := operator.Suspend(t.Context(), "aa", "twice"); err != nil {
		t.Error(err)
	}
	got, err = operator.Resume(t.Context(), "aa")
	if err != nil || !got.WasSuspended || got.Tenant.State != "suspended" || got.Tenant.Suspension != nil || n.try(t.Context(), "aa") != "TENANT_SUSPENDED" {
		t.Errorf("%+v, %v, Seal %s", got, err, n.try(t.Context(), "aa"))
	}
	// A tenant that is gone is still resumed, and said to be gone.
	if _, err := operator.Suspend(t.Context(), "bb", ""); err != nil {
		t.Error(err)
	}
	n.load(t, "tenants.yaml", site.sharing("id: aa").directory())
	got, err = operator.Resume(t.Context(), "bb")
	if err != nil || !got.WasSuspended || got.Tenant.State != "unknown" {
		t.Errorf("%+v, %v", got, err)
	}
	n.load(t, "tenants.yaml", site.sharing("id: aa, state: suspended", "id: bb").directory())
	if got := n.try(t.Context(), "bb"); got != "OK" {
		t.Errorf("back again: %s", got)
	}
}

// What would not survive a restart is not done.
func TestSuspendWithoutState(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.stateless = true
	n := site.start(t, set)
	operator := n.operator(t)
	n.seal(t, "aa", "data")
	_, err := operator.Suspend(t.Context(), "aa", "")
	_, resumed := operator.Resume(t.Context(), "aa")
	if client.ReasonOf(err) != "STATE_UNAVAILABLE" || client.ReasonOf(resumed) != "STATE_UNAVAILABLE" {
		t.Errorf("without state_dir: %v, %v", err, resumed)
	}
	if got := n.try(t.Context(), "aa"); got != "OK" || n.Stats().Cached != 1 {
		t.Errorf("nothing has changed, but Seal gets %s, and %d DEKs are cached", got, n.Stats().Cached)
	}
}

// A suspension that was acknowledged survives kill -9, and so does its end.
func TestSuspensionSurvivesKill(t *testing.T) {
	c := newCrash(t)
	operator, err := client.DialAdmin(filepath.Join(c.dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { operator.Close() })
	rpc := keysidecarv1.NewSealServiceClient(connect(t, c.socket()))
	for i, tenant := range []string{"acme", "globex", "acme", "globex"} {
		p := c.openSidecar(t, "", 0)
		await(t, "a connection", func() bool { _, err := operator.Status(t.Context()); return err == nil })
		want := "OK"
		if i >= 2 {
			want = "TENANT_SUSPENDED"
		}
		await(t, want+" for "+tenant, func() bool { return try(t.Context(), rpc, tenant) == want })
		if i < 2 {
			_, err = operator.Suspend(t.Context(), tenant, "killed at once")
		} else {
			_, err = operator.Resume(t.Context(), tenant)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.kill(t)
	}
	p := c.openSidecar(t, "", 0)
	for _, tenant := range []string{"acme", "globex"} {
		await(t, "OK for "+tenant, func() bool { return try(t.Context(), rpc, tenant) == "OK" })
	}
	p.leave(t)
	c.vault.leave(t)
}
