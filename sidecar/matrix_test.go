package sidecar_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/keysidecar/keysidecar/kek/devvault"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// The verbs, as the rules of policy.yaml name them.
func verbs() []string {
	return []string{"seal", "unseal", "admin.status", "admin.reload", "admin.evict", "admin.policy", "admin.tenants", "admin.suspend"}
}

// The tenants of the matrix, by their states.
const (
	active    = "t-active"
	paused    = "t-paused"    // suspended by tenants.yaml
	halted    = "t-halted"    // suspended by SuspendTenant
	elsewhere = "t-elsewhere" // resident in another region
	absent    = "t-absent"    // in no rule of tenants.yaml
	misfit    = "t-x_y"       // not what the template of its KEK takes
	illFormed = "t-/"         // not a tenant ID
	sidecarIs = ""            // not a tenant: the call is about all of them
)

func tenantStates() []string {
	return []string{active, paused, halted, elsewhere, absent, misfit, illFormed}
}

// A row is a way to call a method.
type row struct {
	verb string
	// request asks about a tenant, or about all if that is sidecarIs.
	request func(tenant string) proto.Message
	// about are what it can be about.
	about []string
	// allowed is what a caller gets that may call it.
	allowed map[string]string
	// undo is the method that takes the call back, for these tenants.
	undo   string
	undoes []string
}

// rows has the ways to call each method.
func rows(sealed []byte) map[string][]row {
	data := map[string]string{
		active: "OK", paused: "TENANT_SUSPENDED", halted: "TENANT_SUSPENDED", elsewhere: "RESIDENCY",
		absent: "UNKNOWN_TENANT", misfit: "INVALID_TENANT",
	}
	suspended := map[string]string{
		active: "OK", paused: "OK", halted: "OK", elsewhere: "OK", absent: "UNKNOWN_TENANT", misfit: "INVALID_TENANT",
	}
	// What a tenant that left tenants.yaml left behind can be done away with.
	gone := map[string]string{active: "OK", paused: "OK", halted: "OK", elsewhere: "OK", absent: "OK", misfit: "OK"}
	whole := func(verb string, m proto.Message) row {
		return row{verb: verb, request: func(string) proto.Message { return m }, about: []string{sidecarIs}, allowed: map[string]string{sidecarIs: "OK"}}
	}
	suspend := func(id string) proto.Message { return &keysidecarv1.SuspendTenantRequest{Tenant: id, Reason: "matrix"} }
	resume := func(id string) proto.Message { return &keysidecarv1.ResumeTenantRequest{Tenant: id} }
	return map[string][]row{
		"SealService.Seal": {{verb: "seal", about: tenantStates(), allowed: data, request: func(id string) proto.Message {
			return &keysidecarv1.SealRequest{Tenant: id, Plaintext: []byte("data")}
		}}},
		"SealService.Unseal": {{verb: "unseal", about: tenantStates(), allowed: data, request: func(id string) proto.Message {
			return &keysidecarv1.UnsealRequest{Tenant: id, Sealed: sealed}
		}}},
		"AdminService.GetStatus":   {whole("admin.status", &keysidecarv1.GetStatusRequest{})},
		"AdminService.Reload":      {whole("admin.reload", &keysidecarv1.ReloadRequest{})},
		"AdminService.GetPolicy":   {whole("admin.policy", &keysidecarv1.GetPolicyRequest{})},
		"AdminService.ListTenants": {whole("admin.tenants", &keysidecarv1.ListTenantsRequest{})},
		"AdminService.Evict": {
			whole("admin.evict", &keysidecarv1.EvictRequest{All: true}),
			{verb: "admin.evict", about: tenantStates(), allowed: gone, request: func(id string) proto.Message {
				return &keysidecarv1.EvictRequest{Tenant: id}
			}},
		},
		"AdminService.SuspendTenant": {{verb: "admin.suspend", about: tenantStates(), allowed: suspended, request: suspend,
			undo: "AdminService.ResumeTenant", undoes: []string{active, paused, elsewhere}}},
		"AdminService.ResumeTenant": {{verb: "admin.suspend", about: tenantStates(), allowed: gone, request: resume,
			undo: "AdminService.SuspendTenant", undoes: []string{halted}}},
	}
}

// methods are all methods of the API.
func methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	all := make(map[string]protoreflect.MethodDescriptor)
	protoregistry.GlobalFiles.RangeFilesByPackage("keysidecar.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				all[string(service.Name())+"."+string(m.Name())] = m
			}
		}
		return true
	})
	return all
}

// A kind of caller, and what it is granted.
type kind struct {
	name string
	// callers are entries of policy.yaml, and who is granted: one of them, or "*".
	callers, who string
	// is says that this test, as it calls, is who.
	is      bool
	tenants []string
	end     time.Time
}

// ordinary says whether "*" and a group mean this user too.
func ordinary(uid int) bool { return uid != 0 && uid != 65534 }

// peers are the kinds of callers on a Unix socket, of which this process is
// one user.
func peers(now time.Time) []kind {
	uid, gid := os.Geteuid(), os.Getegid()
	user := fmt.Sprintf("{name: caller, uid: %d}", uid)
	both := fmt.Sprintf("uid: %d, gid: %d}", uid, gid)
	all, exact := []string{"*"}, []string{active, paused, halted, elsewhere}
	kinds := []kind{
		{name: "user", callers: user, who: "caller", is: true, tenants: all},
		{name: "user and group", callers: "{name: caller, " + both, who: "caller", is: true, tenants: exact},
		{name: "group", callers: fmt.Sprintf("{name: caller, gid: %d}", gid), who: "caller", is: ordinary(uid), tenants: all},
		{name: "user of another group", callers: fmt.Sprintf("{name: caller, uid: %d, gid: %d}", uid, gid+1), who: "caller", tenants: all},
		{name: "everybody", callers: user, who: "*", is: ordinary(uid), tenants: all},
		{name: "everybody, not listed", callers: "", who: "*", is: ordinary(uid), tenants: exact},
		{name: "not named", callers: fmt.Sprintf("{name: caller, uid: %d}", uid+1), who: "caller", tenants: all},
		{name: "named more closely", callers: user + ", {name: closer, " + both, who: "caller", tenants: all},
		{name: "expired grant", callers: user, who: "caller", is: true, tenants: all, end: now.Add(-time.Second)},
		{name: "grant that ends", callers: user, who: "caller", is: true, tenants: all, end: now.Add(time.Hour)},
		{name: "grant for another tenant", callers: user, who: "caller", is: true, tenants: []string{"another"}},
		{name: "grant for a prefix", callers: user, who: "caller", is: true, tenants: []string{"t-a*", "t-x*"}},
	}
	// A group that may be any is not a caller's.
	return slices.DeleteFunc(kinds, func(k kind) bool { return k.name == "group" && gid == 65534 })
}

// certified are the kinds of callers with a certificate of that name.
func certified(key, name, other string) []kind {
	entry := func(name string) string { return fmt.Sprintf("{name: caller, %s: '%s'}", key, name) }
	return []kind{
		{name: key, callers: entry(name), who: "caller", is: true, tenants: []string{"*"}},
		{name: key + " of another", callers: entry(other), who: "caller", tenants: []string{"*"}},
		{name: key + ", everybody", callers: "", who: "*", is: true, tenants: []string{"*"}},
	}
}

// may is the rules of policy.yaml, as they are written: whether the caller may
// do what verb says, when only these verbs are granted.
func (k *kind) may(granted []string, verb, tenant string, now time.Time) bool {
	if !k.is || !slices.Contains(granted, verb) || !k.end.IsZero() && !now.Before(k.end) {
		return false
	}
	for _, pattern := range k.tenants {
		switch prefix, starred := strings.CutSuffix(pattern, "*"); {
		case pattern == "*",
			tenant != sidecarIs && pattern == tenant,
			tenant != sidecarIs && starred && strings.HasPrefix(tenant, prefix):
			return true
		}
	}
	return false
}

// mayAny is whether the caller may do what verb says for some tenant.
func (k *kind) mayAny(granted []string, verb string, now time.Time) bool {
	return k.is && slices.Contains(granted, verb) && (k.end.IsZero() || now.Before(k.end)) && len(k.tenants) > 0
}

// refusal is what is said about a rule that grants the kind a verb that cannot
// be granted to it: "" if it can.
func (k *kind) refusal(verb string) string {
	switch {
	case k.who == "*" && strings.HasPrefix(verb, "admin."):
		return verb + ` cannot be granted to "*"`
	case !slices.Contains(k.tenants, "*") && slices.Contains([]string{"admin.status", "admin.reload", "admin.policy", "admin.tenants"}, verb):
		return verb + ` needs tenants "*"`
	}
	return ""
}

// policy is a policy.yaml that grants the verbs to the kind. Somebody else may
// do everything.
func (k *kind) policy(granted []string) string {
	text := fmt.Sprintf("apiVersion: keysidecar/v1\ncallers: [{name: somebody, uid: 4294967294}, %s]\nrules:\n"+
		"- {callers: [somebody], tenants: ['*'], verbs: [%s]}\n", k.callers, strings.Join(verbs(), ", "))
	if len(granted) == 0 {
		return text
	}
	more := ""
	if !k.end.IsZero() {
		more = fmt.Sprintf(", not_after: %s, ticket: INC-1", k.end.Format(time.RFC3339Nano))
	}
	if k.who == "*" && slices.Contains(k.tenants, "*") && (slices.Contains(granted, "seal") || slices.Contains(granted, "unseal")) {
		more = ", acknowledge: grants-everything"
	}
	return text + fmt.Sprintf("- {callers: ['%s'], tenants: ['%s'], verbs: [%s]%s}\n",
		k.who, strings.Join(k.tenants, "', '"), strings.Join(granted, ", "), more)
}

// A matrix is a sidecar that is called in every way.
type matrix struct {
	*node
	t       *testing.T
	site    *site
	methods map[string]protoreflect.MethodDescriptor
	rows    map[string][]row
	doors   map[string]*grpc.ClientConn // by service
	// answers are what has been answered, by reason.
	answers map[string]map[string]bool
	cells   int
	denied  int
}

// answer is all that a caller gets but for the request id.
func (m *matrix) answer(err error, header, trailer metadata.MD) string {
	st := proto.CloneOf(status.Convert(err).Proto())
	id := ""
	for i, d := range st.GetDetails() {
		var info errdetails.ErrorInfo
		if !d.MessageIs(&info) {
			continue
		}
		if err := d.UnmarshalTo(&info); err != nil {
			m.t.Fatal(err)
		}
		id = info.GetMetadata()["request_id"]
		info.Metadata["request_id"] = ""
		detail, err := anypb.New(&info)
		if err != nil {
			m.t.Fatal(err)
		}
		st.Details[i] = detail
	}
	if got := strings.Join(trailer["request_id"], ", "); got != id || id == "" {
		m.t.Errorf("request id is %q, and %q in the trailer", id, got)
	}
	trailer = trailer.Copy()
	trailer.Delete("request_id")
	trailer.Delete("grpc-status-details-bin") // st
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(st)
	if err != nil {
		m.t.Fatal(err)
	}
	return fmt.Sprintf("%q %v %v", raw, header, trailer)
}

// call calls a method, and returns the reason of what it got.
func (m *matrix) call(name string, request proto.Message) string {
	method := m.methods[name]
	response := dynamicpb.NewMessage(method.Output())
	full := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	var header, trailer metadata.MD
	err := m.doors[string(method.Parent().Name())].Invoke(m.t.Context(), full, request, response, grpc.Header(&header), grpc.Trailer(&trailer))
	reason := reasonOf(err)
	if err != nil && reason != "Unimplemented" {
		if m.answers[reason] == nil {
			m.answers[reason] = make(map[string]bool)
		}
		m.answers[reason][m.answer(err, header, trailer)] = true
	}
	return reason
}

// cell makes a call, and wants what the rules say. Who is refused has cost
// nothing but the look at the rules.
func (m *matrix) cell(k *kind, granted []string, name string, r row, tenant string) {
	want := r.allowed[tenant]
	switch {
	case m.doors["AdminService"] == m.doors["SealService"] && strings.HasPrefix(name, "AdminService"):
		want = "Unimplemented"
	case !k.mayAny(granted, r.verb, time.Now()): // known before the message is read
		want = "PERMISSION_DENIED"
		m.denied++
	case tenant == illFormed:
		want = "INVALID_TENANT"
	case !k.may(granted, r.verb, tenant, time.Now()):
		want = "PERMISSION_DENIED"
		m.denied++
	}
	asked, keys := m.site.asked(), m.Stats().Keys
	got := m.call(name, r.request(tenant))
	if got != want {
		m.t.Errorf("%s, granted %v: %s about %q: %s, want %s", k.name, granted, name, tenant, got, want)
	}
	if got != "OK" {
		if diff := cmp.Diff(asked, m.site.asked()); diff != "" {
			m.t.Errorf("%s: %s about %q: Key Vault was asked:\n%s", k.name, name, tenant, diff)
		}
		if diff := cmp.Diff(keys, m.Stats().Keys); diff != "" {
			m.t.Errorf("%s: %s about %q: the cache was asked:\n%s", k.name, name, tenant, diff)
		}
	} else if slices.Contains(r.undoes, tenant) {
		if got := m.call(r.undo, m.rows[r.undo][0].request(tenant)); got != "OK" {
			m.t.Errorf("%s: %s of %q: %s", k.name, r.undo, tenant, got)
		}
	}
	m.cells++
}

// all makes every call that there is, with every verb granted alone, with none
// and with all that can be.
func (m *matrix) all(k kind) {
	sets := [][]string{nil, slices.DeleteFunc(verbs(), func(v string) bool { return k.refusal(v) != "" })}
	for _, v := range verbs() {
		sets = append(sets, []string{v})
	}
	for _, granted := range sets {
		m.put(m.t, "policy.yaml", k.policy(granted))
		_, err := m.Reload(m.t.Context())
		if len(granted) == 1 && k.refusal(granted[0]) != "" {
			if err == nil || !strings.Contains(err.Error(), k.refusal(granted[0])) {
				m.t.Errorf("%s, granted %v: %v", k.name, granted, err)
			}
			continue
		}
		if err != nil {
			m.t.Fatalf("%s, granted %v: %v", k.name, granted, err)
		}
		for _, name := range slices.Sorted(maps.Keys(m.methods)) {
			for _, r := range m.rows[name] {
				for _, tenant := range r.about {
					m.cell(&k, granted, name, r, tenant)
				}
			}
		}
	}
}

// matrixTenants has a tenant in every state.
func matrixTenants(s *site) settings {
	return settings{
		keks: []string{
			s.kek("shared", "shared", "A256KW"), s.kek("own", "{tenant}", "A256KW"),
			strings.Replace(s.kek("east", "east", "A256KW"), "region: west", "region: east", 1),
		},
		tenants: []string{
			"{id: another, kek: shared}", "{id: " + active + ", kek: shared}", "{id: " + paused + ", kek: shared, state: suspended}",
			"{id: " + halted + ", kek: shared}", "{id: " + elsewhere + ", kek: east, regions: [east]}", "{prefix: t-x, kek: own}",
		},
		// What is looked at changes nothing.
		config: "reload_interval: 0s",
	}
}

// createOctKEK makes a KEK that is quick.
func (s *site) createOctKEK(t *testing.T, vault string) {
	t.Helper()
	if _, err := s.CreateKey(vault, kekName, devvault.KeySpec{Type: "oct-HSM"}); err != nil {
		t.Fatal(err)
	}
}

// newMatrix starts the sidecar, and suspends who is to be suspended.
func newMatrix(t *testing.T, s *site, p *pki, trustDomain string) *matrix {
	t.Helper()
	set := matrixTenants(s)
	set.secure(t, p, trustDomain, "")
	m := &matrix{node: s.start(t, set), t: t, site: s, methods: methods(t), answers: make(map[string]map[string]bool)}
	m.rows = rows(m.seal(t, active, "data").Bytes)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(m.methods)), slices.Sorted(maps.Keys(m.rows))); diff != "" {
		t.Fatalf("the matrix lacks methods, or has some that are not there (-API +matrix):\n%s", diff)
	}
	if _, err := m.operator(t).Suspend(t.Context(), halted, "matrix"); err != nil {
		t.Fatal(err)
	}
	return m
}

// through makes the calls of kinds come in by these doors.
func (m *matrix) through(data, admin *grpc.ClientConn, kinds []kind) {
	m.doors = map[string]*grpc.ClientConn{"SealService": data, "AdminService": admin}
	for _, k := range kinds {
		m.all(k)
	}
}

// minCells is how many cells there are at least: a row less is found.
const minCells = 5000

// TestMatrix calls every method, as every kind of caller, with every verb
// granted, for a tenant in every state.
func TestMatrix(t *testing.T) {
	site, p := newSite(t), newPKI(t)
	site.createOctKEK(t, "shared")
	cells, denied := 0, 0
	finish := func(m *matrix) {
		for _, reason := range slices.Sorted(maps.Keys(m.answers)) {
			if texts := m.answers[reason]; len(texts) != 1 {
				t.Errorf("%s is answered in %d ways: %s", reason, len(texts), strings.Join(slices.Collect(maps.Keys(texts)), "\n"))
			}
		}
		cells, denied = cells+m.cells, denied+m.denied
	}
	m := newMatrix(t, site, p, trustDomain)
	m.through(m.connect(t), connect(t, m.adminSocket), peers(time.Now()))
	over := m.secured(t, p.trusting(p.callers.issue(t, billing)))
	m.through(over, over, certified("spiffe", billing, billing+"/other"))
	finish(m)

	m = newMatrix(t, site, p, "")
	over = m.secured(t, p.trusting(p.callers.issue(t, batch)))
	m.through(over, over, certified("dns", batch, "other."+batch))
	finish(m)

	t.Logf("%d cells, %d of them denied", cells, denied)
	if cells < minCells || denied < cells/2 {
		t.Errorf("%d cells are fewer than %d, or too few of them are denied: %d", cells, minCells, denied)
	}
}

// Where a tenant's data may not be processed, no vault hears of it.
func TestResidencyBeforeKeyVault(t *testing.T) {
	site := newSite(t)
	set := matrixTenants(site)
	n := site.start(t, set)
	for _, err := range []error{
		n.call(t, &keysidecarv1.SealRequest{Tenant: elsewhere}),
		n.call(t, &keysidecarv1.UnsealRequest{Tenant: elsewhere}),
	} {
		if got := reasonOf(err); got != "RESIDENCY" {
			t.Errorf("%s, want RESIDENCY", got)
		}
	}
	if asked := site.asked(); len(asked) != 0 {
		t.Errorf("Key Vault was asked: %v", asked)
	}
}

// call makes a call for which there is nothing to get.
func (n *node) call(t *testing.T, request proto.Message) (err error) {
	t.Helper()
	switch request := request.(type) {
	case *keysidecarv1.SealRequest:
		_, err = n.rpc.Seal(t.Context(), request)
	case *keysidecarv1.UnsealRequest:
		_, err = n.rpc.Unseal(t.Context(), request)
	}
	return err
}
