package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// sample returns a valid Config with a caller and a rule of every sort.
func sample() policy.Config {
	return policy.Config{
		Callers: []policy.CallerRule{
			{Name: "billing", UID: new(uint32(10001)), GID: new(uint32(20000)), Limits: tenant.Limits{Rate: 2.5, Burst: 10, Calls: 3}},
			{Name: "billing-any", UID: new(uint32(10001))},
			{Name: "batch", GID: new(uint32(20000))},
			{Name: "mesh", SPIFFE: "spiffe://example.org/ns/a/sa/mesh"},
			{Name: "cron", DNS: "cron.internal"},
			{Name: "root", UID: new(uint32(0))},
		},
		Rules: []policy.Rule{
			{Callers: []string{"billing", "mesh"}, Tenants: []string{"acme", "eu-*"}, Verbs: []string{"seal", "unseal"}},
			{Callers: []string{"batch"}, Tenants: []string{"*"}, Verbs: []string{"unseal"}},
			{Callers: []string{"*"}, Tenants: []string{"public", "pub-*"}, Verbs: []string{"seal"}},
			{Callers: []string{"root"}, Tenants: []string{"*"}, Verbs: []string{"admin.status", "admin.reload"}},
			{
				Callers: []string{"cron"}, Tenants: []string{"eu-west-*", "acme"}, Verbs: []string{"unseal"},
				NotAfter: noon.Add(time.Hour), Ticket: "INC-4711",
			},
			{Callers: []string{"cron"}, Tenants: []string{"eu-*"}, Verbs: []string{"seal", "admin.evict"}},
		},
	}
}

func mustNew(tb rapid.TB, cfg policy.Config) *policy.Policy {
	tb.Helper()
	p, err := policy.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func mustParse(tb rapid.TB, s string) tenant.ID {
	tb.Helper()
	id, err := tenant.Parse(s)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func mustCaller(tb testing.TB, s string) policy.Caller {
	tb.Helper()
	c, err := policy.ParseCaller(s)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// The callers of the tables.
const (
	billing = "uid:10001/gid:20000"
	mesh    = "spiffe://example.org/ns/a/sa/mesh"
	cron    = "dns:cron.internal"
)

func TestAllow(t *testing.T) {
	p := mustNew(t, sample())
	for _, tt := range []struct {
		caller, verb, tenant string
		want                 bool
	}{
		{billing, "seal", "acme", true},
		{billing, "unseal", "acme", true},
		{billing, "seal", "eu-1", true},
		{billing, "seal", "eu-west-1", true},
		{billing, "seal", "eu", false},
		{billing, "seal", "eu_1", false},
		{billing, "seal", "acm", false},
		{billing, "seal", "acme2", false},
		{billing, "seal", "Acme", false},
		{billing, "seal", "us-1", false},
		{billing, "admin.status", "acme", false},
		{billing, "seal", "public", true},
		{billing, "unseal", "public", false},
		{mesh, "unseal", "eu-1", true},
		{mesh + "2", "unseal", "eu-1", false},
		{mesh + "2", "seal", "pub-1", true},
		{"uid:10001", "seal", "acme", false},             // billing-any
		{"uid:10001/gid:20001", "seal", "acme", false},   // billing-any
		{"uid:10001/gid:20000", "unseal", "us-1", false}, // billing, not batch too
		{"uid:10002/gid:20000", "unseal", "us-1", true},  // batch
		{"uid:10002/gid:20000", "seal", "us-1", false},
		{"uid:10002/gid:20001", "unseal", "us-1", false},
		{"uid:10002/gid:20001", "seal", "public", true},
		{"uid:10002", "unseal", "us-1", false}, // its group is not known
		{"uid:10002", "seal", "pub-1", true},
		{"uid:0/gid:0", "admin.status", "acme", true},
		{"uid:0/gid:20000", "admin.reload", "acme", true},
		{"uid:0/gid:20000", "unseal", "acme", false},     // root, not batch
		{"uid:0/gid:0", "seal", "public", false},         // not in "*", though listed
		{"uid:65534/gid:20000", "unseal", "acme", false}, // not batch
		{"uid:65534/gid:1", "seal", "public", false},     // not in "*"
		{"uid:65533/gid:1", "seal", "public", true},
		{cron, "unseal", "eu-west-1", true},
		{cron, "unseal", "eu-1", false},
		{cron, "unseal", "acme", true},
		{cron, "unseal", "acme2", false},
		{cron, "seal", "eu-west-1", true},
		{cron, "admin.evict", "eu-1", true},
		{"dns:internal", "seal", "eu-1", false},
		{"dns:internal", "seal", "public", true},
	} {
		v, err := policy.ParseVerb(tt.verb)
		if err != nil {
			t.Fatal(err)
		}
		c, id := mustCaller(t, tt.caller), mustParse(t, tt.tenant)
		if got := p.Allow(c, v, id, noon); got != tt.want {
			t.Errorf("Allow(%s, %s, %s) = %v, want %v", tt.caller, tt.verb, tt.tenant, got, tt.want)
		}
		c.PID = 4711
		if got := p.Allow(c, v, id, noon); got != tt.want {
			t.Errorf("Allow(%s, %s, %s) = %v with a PID", tt.caller, tt.verb, tt.tenant, got)
		}
		if p.Allow(c, 0, id, noon) || p.Allow(c, 9, id, noon) || p.Allow(c, 255, id, noon) || p.Allow(c, v, tenant.ID{}, noon) {
			t.Errorf("%s may do what there is not", tt.caller)
		}
	}
}

func TestNobodyMayDoAnything(t *testing.T) {
	everything := policy.Config{
		Callers: []policy.CallerRule{{Name: "a", GID: new(uint32(0))}},
		Rules: []policy.Rule{
			{Callers: []string{"*"}, Tenants: []string{"*"}, Verbs: []string{"seal", "unseal"}, Acknowledge: policy.Acknowledgement},
			{Callers: []string{"a"}, Tenants: []string{"*"}, Verbs: []string{"seal", "unseal"}},
		},
	}
	acme := mustParse(t, "acme")
	for name, p := range map[string]*policy.Policy{"zero": {}, "empty": mustNew(t, policy.Config{}), "all": mustNew(t, everything)} {
		for _, c := range []policy.Caller{
			{},
			policy.PeerCaller(1<<32-1, 0, 0),
			{Name: "uid:1/gid:0", UID: 1, HasGID: true},                                       // no source
			{Name: "uid:1/gid:0", Source: 77, UID: 1, HasGID: true},                           // no known source
			{Name: "uid:4294967295/gid:0", Source: policy.Peer, UID: 1<<32 - 1, HasGID: true}, // no user
			policy.PeerCaller(0, 0, 1),
			policy.PeerCaller(65534, 0, 1),
		} {
			if p.Allow(c, policy.Seal, acme, noon) || p.AllowAll(c, policy.Seal, noon) || p.Explain(c, policy.Seal, acme, noon).Allowed {
				t.Errorf("%s policy: %+v may seal", name, c)
			}
		}
		c := policy.PeerCaller(1, 1, 1)
		if got, want := p.Allow(c, policy.Seal, acme, noon), name == "all"; got != want {
			t.Errorf("%s policy: Allow = %v, want %v", name, got, want)
		}
		if p.Allow(c, 0, acme, noon) || p.Allow(c, policy.Seal, tenant.ID{}, noon) || p.AllowAll(c, 0, noon) {
			t.Errorf("%s policy: allows what there is not", name)
		}
	}
}

func TestRootByItsName(t *testing.T) {
	cfg := policy.Config{
		Callers: []policy.CallerRule{
			{Name: "r", UID: new(uint32(0))},
			{Name: "n", UID: new(uint32(65534)), GID: new(uint32(65534))},
			{Name: "g", GID: new(uint32(7))},
		},
		Rules: []policy.Rule{{Callers: []string{"r", "n"}, Tenants: []string{"acme"}, Verbs: []string{"seal"}}},
	}
	p, acme := mustNew(t, cfg), mustParse(t, "acme")
	for caller, name := range map[string]string{
		"uid:0/gid:7": "r", "uid:0": "r", "uid:65534/gid:65534": "n",
		"uid:65534/gid:7": "", "uid:65534": "", "uid:1/gid:7": "g", "uid:1/gid:65534": "",
	} {
		c := mustCaller(t, caller)
		if got, want := p.Allow(c, policy.Seal, acme, noon), name == "r" || name == "n"; got != want {
			t.Errorf("Allow(%s) = %v, want %v", caller, got, want)
		}
		if name == "" {
			name = caller
		}
		if got, _ := p.Who(c); got != name {
			t.Errorf("Who(%s) = %s, want %s", caller, got, name)
		}
	}
}

func TestAllowUntil(t *testing.T) {
	end := noon.Add(time.Hour)
	cfg := sample()
	cfg.Rules[4].NotAfter = end.In(time.FixedZone("", 5*3600))
	p, c := mustNew(t, cfg), mustCaller(t, cron)
	for name, tt := range map[string]struct {
		now  time.Time
		want bool
	}{
		"long before":  {noon.AddDate(-100, 0, 0), true},
		"just before":  {end.Add(-1), true},
		"at the end":   {end, false},
		"just after":   {end.Add(1), false},
		"elsewhere":    {end.Add(-1).In(time.FixedZone("", -8*3600)), true},
		"no clock":     {time.Time{}, false},
		"after clocks": {end.AddDate(7000, 0, 0), false},
	} {
		for _, id := range []string{"acme", "eu-west-1"} {
			if got := p.Allow(c, policy.Unseal, mustParse(t, id), tt.now); got != tt.want {
				t.Errorf("%s: Allow(%s) = %v, want %v", name, id, got, tt.want)
			}
		}
		if !p.Allow(c, policy.Seal, mustParse(t, "eu-west-1"), tt.now) {
			t.Errorf("%s: a grant without an end ended", name)
		}
	}
}

func TestAllowAll(t *testing.T) {
	cfg := sample()
	cfg.Rules = append(cfg.Rules,
		policy.Rule{Callers: []string{"mesh"}, Tenants: []string{"*"}, Verbs: []string{"seal"}, NotAfter: noon.Add(1), Ticket: "t"},
		policy.Rule{Callers: []string{"*"}, Tenants: []string{"*"}, Verbs: []string{"unseal"}, Acknowledge: policy.Acknowledgement})
	p := mustNew(t, cfg)
	for _, tt := range []struct {
		caller string
		verb   policy.Verb
		now    time.Time
		want   bool
	}{
		{"uid:0/gid:0", policy.AdminStatus, noon, true},
		{"uid:0/gid:0", policy.AdminEvict, noon, false},
		{"uid:0/gid:0", policy.Unseal, noon, false},
		{billing, policy.Unseal, noon, true},
		{billing, policy.Seal, noon, false},
		{cron, policy.AdminEvict, noon, false}, // for "eu-*" only
		{"uid:7/gid:20000", policy.Unseal, noon, true},
		{mesh, policy.Seal, noon, true},
		{mesh, policy.Seal, noon.Add(1), false},
	} {
		c := mustCaller(t, tt.caller)
		if got := p.AllowAll(c, tt.verb, tt.now); got != tt.want {
			t.Errorf("AllowAll(%s, %s) = %v, want %v", tt.caller, tt.verb, got, tt.want)
		}
	}
}

// TestLongIDs walks to the ends of the longest IDs and deepest trees.
func TestLongIDs(t *testing.T) {
	long := strings.Repeat("a", tenant.MaxID)
	cfg := policy.Config{Callers: []policy.CallerRule{{Name: "a", UID: new(uint32(1))}}}
	var nested []string
	for n := range tenant.MaxID + 1 {
		nested = append(nested, long[:n]+"*")
	}
	for _, tt := range []struct {
		patterns []string
		verbs    string
		seal     []string
		not      []string
	}{
		{[]string{long}, "seal", []string{long}, []string{long[1:], long[1:] + "b"}},
		{[]string{long + "*"}, "seal", []string{long}, []string{long[1:]}},
		{[]string{long[1:] + "*"}, "seal", []string{long, long[1:]}, []string{long[2:], long[2:] + "ba"}},
		{nested, "admin.evict", nil, []string{long, "a", "b"}},
		{nested, "seal", []string{long, "a", "b"}, nil},
	} {
		cfg.Rules = []policy.Rule{{Callers: []string{"a"}, Tenants: tt.patterns, Verbs: []string{tt.verbs}}}
		p := mustNew(t, cfg)
		for _, id := range slices.Concat(tt.seal, tt.not) {
			if got, want := p.Allow(mustCaller(t, "uid:1"), policy.Seal, mustParse(t, id), noon), slices.Contains(tt.seal, id); got != want {
				t.Errorf("%d patterns: Allow(%s) = %v, want %v", len(tt.patterns), id, got, want)
			}
		}
	}
}

// TestEveryBranch has a node with a child for each byte that a tenant ID can
// have, and one less for each of them.
func TestEveryBranch(t *testing.T) {
	const legal = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-"
	c := mustCaller(t, "uid:1")
	for skip := -1; skip < len(legal); skip++ {
		var exact, prefixes []string
		for i := range legal {
			if i != skip {
				exact, prefixes = append(exact, "x"+legal[i:i+1]+"y"), append(prefixes, "z"+legal[i:i+1]+"*")
			}
		}
		p := mustNew(t, policy.Config{
			Callers: []policy.CallerRule{{Name: "a", UID: new(uint32(1))}},
			Rules: []policy.Rule{
				{Callers: []string{"a"}, Tenants: exact, Verbs: []string{"seal"}},
				{Callers: []string{"a"}, Tenants: prefixes, Verbs: []string{"unseal"}},
			},
		})
		for i := range legal {
			b := legal[i : i+1]
			if got := p.Allow(c, policy.Seal, mustParse(t, "x"+b+"y"), noon); got != (i != skip) {
				t.Fatalf("without %q: Allow(x%sy) = %v", legal[max(skip, 0)], b, got)
			}
			if got := p.Allow(c, policy.Unseal, mustParse(t, "z"+b+"y"), noon); got != (i != skip) {
				t.Fatalf("without %q: Allow(z%sy) = %v", legal[max(skip, 0)], b, got)
			}
		}
	}
}

// Any of sample, and what the property test does not draw.
func TestAny(t *testing.T) {
	p := mustNew(t, sample())
	for _, tt := range []struct {
		caller string
		verb   policy.Verb
		now    time.Time
		want   bool
	}{
		{billing, policy.Seal, noon, true},
		{billing, policy.AdminEvict, noon, false},
		{"uid:7/gid:20000", policy.Unseal, noon, true},
		{"uid:0/gid:20000", policy.Unseal, noon, false},
		{"uid:0/gid:0", policy.Seal, noon, false}, // not in "*"
		{"uid:0/gid:0", policy.AdminReload, noon, true},
		{"uid:65534/gid:20000", policy.Seal, noon, false},
		{"uid:7/gid:7", policy.Seal, noon, true}, // in "*"
		{"uid:7/gid:7", policy.Unseal, noon, false},
		{cron, policy.Unseal, noon.Add(time.Hour - 1), true},
		{cron, policy.Unseal, noon.Add(time.Hour), false},
		{cron, policy.Unseal, time.Time{}, false},
		{cron, policy.AdminEvict, noon.AddDate(9, 0, 0), true},
		{"dns:other.internal", policy.Seal, noon, true},
	} {
		if got := p.Any(mustCaller(t, tt.caller), tt.verb, tt.now); got != tt.want {
			t.Errorf("Any(%s, %s, %s) = %v", tt.caller, tt.verb, tt.now, got)
		}
	}
	if p.Any(policy.Caller{}, policy.Seal, noon) || new(policy.Policy).Any(mustCaller(t, billing), policy.Seal, noon) {
		t.Error("nobody, or the zero Policy, may do something")
	}
}

// TestLatestEndCounts: whoever is granted the same again, until sooner or
// later, has it until the latest.
func TestLatestEndCounts(t *testing.T) {
	for _, hours := range [][]int{{1, 3, 2}, {3, 1, 2}, {2, 1, 3}} {
		cfg := sample()
		for i, h := range hours {
			r := policy.Rule{Callers: []string{"cron"}, Tenants: []string{"us-*", "us-1"}, Verbs: []string{"seal", "unseal"}, Ticket: "t"}
			r.NotAfter, r.Verbs = noon.Add(time.Duration(h)*time.Hour), r.Verbs[:1+i%2]
			cfg.Rules = append(cfg.Rules, r)
		}
		p, c := mustNew(t, cfg), mustCaller(t, cron)
		for _, id := range []string{"us-1", "us-2"} {
			for v, end := range map[policy.Verb]int{policy.Seal: 3, policy.Unseal: hours[1]} {
				for _, d := range []time.Duration{-1, 0} {
					now := noon.Add(time.Duration(end)*time.Hour + d)
					if got := p.Allow(c, v, mustParse(t, id), now); got != (d < 0) {
						t.Errorf("ends %v: Allow(%s, %s, %s) = %v", hours, v, id, now, got)
					}
				}
			}
		}
	}
}

// TestEndsOfIDAndPrefix: the ends of "us" and of "us*" are not the same.
func TestEndsOfIDAndPrefix(t *testing.T) {
	for _, hours := range []struct{ id, prefix time.Duration }{{time.Hour, 2 * time.Hour}, {2 * time.Hour, time.Hour}} {
		cfg := sample()
		for pattern, after := range map[string]time.Duration{"us": hours.id, "us*": hours.prefix} {
			cfg.Rules = append(cfg.Rules, policy.Rule{
				Callers: []string{"cron"}, Tenants: []string{pattern}, Verbs: []string{"seal"}, NotAfter: noon.Add(after), Ticket: "t",
			})
		}
		p, c := mustNew(t, cfg), mustCaller(t, cron)
		for id, after := range map[string]time.Duration{"us": 2 * time.Hour, "us-1": hours.prefix} {
			for _, d := range []time.Duration{-1, 0} {
				if got := p.Allow(c, policy.Seal, mustParse(t, id), noon.Add(after+d)); got != (d < 0) {
					t.Errorf("%+v: Allow for %s, %s%+d = %v", hours, id, after, d, got)
				}
			}
		}
	}
}

func TestWho(t *testing.T) {
	p := mustNew(t, sample())
	limits := tenant.Limits{Rate: 2.5, Burst: 10, Calls: 3}
	for caller, want := range map[string]struct {
		name   string
		limits tenant.Limits
	}{
		billing:               {"billing", limits},
		"uid:10001/gid:7":     {name: "billing-any"},
		"uid:10001":           {name: "billing-any"},
		"uid:10001/gid:85536": {name: "billing-any"}, // 20000 + 1<<16
		"uid:7/gid:20000":     {name: "batch"},
		"uid:7/gid:7":         {name: "uid:7/gid:7"},
		"uid:0/gid:20000":     {name: "root"},
		"uid:65534/gid:20000": {name: "uid:65534/gid:20000"},
		mesh:                  {name: "mesh"},
		cron:                  {name: "cron"},
		"dns:other.internal":  {name: "dns:other.internal"},
	} {
		if name, l := p.Who(mustCaller(t, caller)); name != want.name || l != want.limits {
			t.Errorf("Who(%s) = %s, %v, want %v", caller, name, l, want)
		}
	}
	if name, l := new(policy.Policy).Who(mustCaller(t, billing)); name != billing || l != (tenant.Limits{}) {
		t.Errorf("Who of the zero Policy = %s, %v", name, l)
	}
}

func TestNamed(t *testing.T) {
	cfg := sample()
	for _, uid := range []uint32{1, 2, 4} { // so that "batch" needs another user
		cfg.Callers = append(cfg.Callers, policy.CallerRule{Name: fmt.Sprint("u", uid), UID: &uid})
	}
	cfg.Callers = append(cfg.Callers, policy.CallerRule{Name: "both", UID: new(uint32(3)), GID: new(uint32(20000))})
	p := mustNew(t, cfg)
	for name, want := range map[string]string{
		"billing": billing, "billing-any": "uid:10001", "batch": "uid:5/gid:20000", "mesh": mesh, "cron": cron, "root": "uid:0",
	} {
		c, ok := p.Named(name)
		if !ok || c != mustCaller(t, want) {
			t.Errorf("Named(%s) = %+v, %v, want %s", name, c, ok, want)
		}
		if who, _ := p.Who(c); who != name {
			t.Errorf("Who(Named(%s)) = %s", name, who)
		}
	}
	for _, name := range []string{"", "*", "Billing", billing} {
		if c, ok := p.Named(name); ok || c != (policy.Caller{}) {
			t.Errorf("Named(%q) = %+v, %v", name, c, ok)
		}
	}
	if _, ok := new(policy.Policy).Named("billing"); ok {
		t.Error("the zero Policy names somebody")
	}
}

func TestAllowDoesNotAllocate(t *testing.T) {
	p := mustNew(t, sample())
	id, other := mustParse(t, "eu-west-1"), mustParse(t, "nobody")
	for _, text := range []string{billing, "uid:10001/gid:1", "uid:7/gid:20000", "uid:7/gid:7", "uid:0", mesh, cron, "dns:x"} {
		c := mustCaller(t, text)
		if n := testing.AllocsPerRun(100, func() {
			p.Allow(c, policy.Unseal, id, noon)
			p.Allow(c, policy.Seal, other, noon)
			p.AllowAll(c, policy.AdminStatus, noon)
			p.Any(c, policy.Unseal, noon)
			p.Who(c)
		}); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}

// TestPolicyKeepsItsConfig: who changes the Config after New changes nothing.
func TestPolicyKeepsItsConfig(t *testing.T) {
	cfg := sample()
	p := mustNew(t, cfg)
	before := answers(t, p)
	for i := range cfg.Callers {
		c := &cfg.Callers[i]
		for _, id := range []*uint32{c.UID, c.GID} {
			if id != nil {
				*id = 99
			}
		}
		c.Name, c.SPIFFE, c.DNS, c.Limits = "x", "", "", tenant.Limits{}
	}
	for i := range cfg.Rules {
		r := &cfg.Rules[i]
		for _, list := range [][]string{r.Callers, r.Tenants, r.Verbs} {
			for j := range list {
				list[j] = "x"
			}
		}
		r.NotAfter = time.Time{}
	}
	if after := answers(t, p); !slices.Equal(before, after) {
		t.Errorf("before: %q\nafter:  %q", before, after)
	}
}

// answers returns what p says of all there is in sample.
func answers(t *testing.T, p *policy.Policy) []string {
	t.Helper()
	var all []string
	for _, caller := range []string{billing, "uid:10001", "uid:7/gid:20000", "uid:99/gid:99", mesh, cron, "uid:0"} {
		c := mustCaller(t, caller)
		name, limits := p.Who(c)
		all = append(all, fmt.Sprint(name, limits))
		for _, id := range []string{"acme", "eu-west-1", "public", "x"} {
			for _, v := range policy.Verbs() {
				all = append(all, fmt.Sprint(p.Allow(c, v, mustParse(t, id), noon), p.Explain(c, v, mustParse(t, id), noon)))
			}
		}
	}
	return all
}

func TestPolicyIsSafeForConcurrentUse(t *testing.T) {
	p := mustNew(t, sample())
	want := answers(t, p)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := answers(t, p); !slices.Equal(got, want) {
				t.Errorf("answers differ: %q", got)
			}
		})
	}
	wg.Wait()
}
