package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// ends are the NotAfters of the property test, zero for none; clocks are the
// times at which it asks.
var (
	ends   = []time.Time{{}, {}, noon, noon.Add(time.Hour)}
	clocks = []time.Time{noon.Add(-1), noon, noon.Add(time.Hour - 1), noon.Add(time.Hour), {}}
)

// identities are callers that overlap in every way.
func identities() []policy.CallerRule {
	var all []policy.CallerRule
	for _, uid := range []uint32{0, 1, 2, 65533, 65534} {
		all = append(all, policy.CallerRule{UID: new(uid)})
		for _, gid := range []uint32{0, 1, 65534} {
			all = append(all, policy.CallerRule{UID: new(uid), GID: new(gid)})
		}
	}
	for _, gid := range []uint32{0, 1, 65533} {
		all = append(all, policy.CallerRule{GID: new(gid)})
	}
	return append(all,
		policy.CallerRule{SPIFFE: "spiffe://a/b"}, policy.CallerRule{SPIFFE: "spiffe://a/b/c"},
		policy.CallerRule{DNS: "a.b"}, policy.CallerRule{DNS: "b"})
}

// askers are the callers that ask.
func askers() []policy.Caller {
	all := []policy.Caller{
		{}, {Name: "uid:1", UID: 1}, {Name: "spiffe://a/b", Source: policy.SPIFFE}, {Name: "spiffe://a/b/c", Source: policy.SPIFFE},
		{Name: "spiffe://a/b/d", Source: policy.SPIFFE}, {Name: "dns:a.b", Source: policy.DNS}, {Name: "dns:b", Source: policy.DNS},
		{Name: "dns:c", Source: policy.DNS}, {Name: "uid:1/gid:1", Source: 9, UID: 1, GID: 1, HasGID: true},
	}
	for _, uid := range []uint32{0, 1, 2, 3, 65533, 65534} {
		all = append(all, policy.Caller{Name: "uid", Source: policy.Peer, UID: uid})
		for _, gid := range []uint32{0, 1, 2, 65533, 65534} {
			all = append(all, policy.PeerCaller(uid, gid, 1))
		}
	}
	return all
}

// drawText draws a part of a tenant ID, of few letters, so that they nest;
// sometimes a long one.
func drawText(t *rapid.T, label string) string {
	s := rapid.StringMatching(`[ab]?[ab-]{0,4}`).Draw(t, label)
	if rapid.IntRange(0, 9).Draw(t, label+" is long") == 0 {
		s = strings.Repeat("a", rapid.IntRange(100, 128-len(s)).Draw(t, label+" more")) + s
	}
	return s
}

// drawPattern draws a valid pattern of a rule.
func drawPattern(t *rapid.T) string {
	s := drawText(t, "pattern")
	if _, err := tenant.Parse(s); err == nil && rapid.Bool().Draw(t, "exact") {
		return s
	}
	if _, err := tenant.Parse(s + "0"); err != nil {
		s = ""
	}
	return s + "*"
}

// drawID draws a tenant ID, half of the time one that is near a pattern.
func drawID(t *rapid.T, cfg *policy.Config) tenant.ID {
	s := drawText(t, "id")
	if len(cfg.Rules) > 0 && rapid.Bool().Draw(t, "near") {
		r := &cfg.Rules[rapid.IntRange(0, len(cfg.Rules)-1).Draw(t, "near rule")]
		s = strings.TrimSuffix(rapid.SampledFrom(r.Tenants).Draw(t, "near pattern"), "*") + s
	}
	s = s[:min(len(s), tenant.MaxID)]
	id, err := tenant.Parse(s)
	if err != nil {
		return mustParse(t, "a")
	}
	return id
}

// drawConfig draws a valid Config.
func drawConfig(t *rapid.T) policy.Config {
	var cfg policy.Config
	names := []string{"*"}
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(identities())-1), 0, 12, rapid.ID).Draw(t, "callers") {
		r := identities()[i]
		r.Name = string(rune('a' + len(cfg.Callers)))
		cfg.Callers, names = append(cfg.Callers, r), append(names, r.Name)
	}
	granted := make(map[[3]string]bool) // without an end
	for range rapid.IntRange(0, 20).Draw(t, "rules") {
		if r, ok := drawRule(t, names, granted); ok {
			cfg.Rules = append(cfg.Rules, r)
		}
	}
	return cfg
}

// drawRule draws a rule that grants nothing that is granted already, unless it
// ends; false if it would.
func drawRule(t *rapid.T, names []string, granted map[[3]string]bool) (policy.Rule, bool) {
	verbs := []string{"seal", "unseal", "admin.status"}
	r := policy.Rule{
		Callers:  rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, min(3, len(names)), rapid.ID).Draw(t, "callers"),
		Tenants:  rapid.SliceOfNDistinct(rapid.Custom(drawPattern), 1, 4, rapid.ID).Draw(t, "tenants"),
		NotAfter: rapid.SampledFrom(ends).Draw(t, "not_after"),
	}
	if slices.Contains(r.Callers, "*") {
		r.Callers, verbs = []string{"*"}, verbs[:2]
		if slices.Contains(r.Tenants, "*") {
			r.Acknowledge = "grants-everything"
		}
	}
	if !slices.Contains(r.Tenants, "*") {
		verbs = verbs[:2]
	}
	r.Verbs = rapid.SliceOfNDistinct(rapid.SampledFrom(verbs), 1, len(verbs), rapid.ID).Draw(t, "verbs")
	if !r.NotAfter.IsZero() {
		r.Ticket = "t"
		return r, true
	}
	var grants [][3]string
	for _, c := range r.Callers {
		for _, p := range r.Tenants {
			for _, v := range r.Verbs {
				grants = append(grants, [3]string{c, p, v})
			}
		}
	}
	if slices.ContainsFunc(grants, func(g [3]string) bool { return granted[g] }) {
		return policy.Rule{}, false
	}
	for _, g := range grants {
		granted[g] = true
	}
	return r, true
}

// naiveName says as plainly as can be which caller c is: "" if it is not
// listed.
func naiveName(cfg *policy.Config, c policy.Caller) string {
	is := func(kind func(r *policy.CallerRule) bool) string {
		for i := range cfg.Callers {
			if kind(&cfg.Callers[i]) {
				return cfg.Callers[i].Name
			}
		}
		return ""
	}
	switch c.Source {
	case policy.SPIFFE:
		return is(func(r *policy.CallerRule) bool { return r.SPIFFE == c.Name })
	case policy.DNS:
		return is(func(r *policy.CallerRule) bool { return "dns:"+r.DNS == c.Name })
	case policy.Peer:
		both := is(func(r *policy.CallerRule) bool {
			return r.UID != nil && *r.UID == c.UID && r.GID != nil && *r.GID == c.GID && c.HasGID
		})
		user := is(func(r *policy.CallerRule) bool { return r.UID != nil && *r.UID == c.UID && r.GID == nil })
		group := is(func(r *policy.CallerRule) bool { return r.GID != nil && *r.GID == c.GID && r.UID == nil && c.HasGID })
		switch {
		case both != "":
			return both
		case user != "":
			return user
		case c.UID != 0 && c.UID != 65534:
			return group
		}
	}
	return ""
}

// naiveAllow is the rules in words: id "" asks for every tenant.
func naiveAllow(cfg *policy.Config, c policy.Caller, v policy.Verb, id string, now time.Time) bool {
	for _, r := range cfg.Rules {
		for _, name := range r.Callers {
			if name == "*" {
				if c.Source < policy.Peer || c.Source > policy.DNS || c.Source == policy.Peer && (c.UID == 0 || c.UID == 65534) {
					continue
				}
			} else if name != naiveName(cfg, c) {
				continue
			}
			for _, pattern := range r.Tenants {
				if prefix, ok := strings.CutSuffix(pattern, "*"); ok && id != "" {
					if len(id) < len(prefix) || id[:len(prefix)] != prefix {
						continue
					}
				} else if ok && prefix != "" || !ok && pattern != id {
					continue
				}
				for _, verb := range r.Verbs {
					if verb == v.String() && (r.NotAfter.IsZero() || !now.IsZero() && now.UnixNano() < r.NotAfter.UnixNano()) {
						return true
					}
				}
			}
		}
	}
	return false
}

// checkAny compares Any with Explain, about a tenant of every pattern of the
// rules.
func checkAny(t *rapid.T, cfg *policy.Config, p *policy.Policy, callers []policy.Caller, now time.Time) {
	var ids []tenant.ID
	for _, r := range cfg.Rules {
		for _, pattern := range r.Tenants {
			prefix, ok := strings.CutSuffix(pattern, "*")
			if ok && len(prefix) < tenant.MaxID {
				prefix += "0"
			}
			ids = append(ids, mustParse(t, prefix))
		}
	}
	for _, c := range callers {
		for _, v := range []policy.Verb{0, policy.Seal, policy.Unseal, policy.AdminStatus, policy.AdminEvict, 200} {
			want := slices.ContainsFunc(ids, func(id tenant.ID) bool { return p.Explain(c, v, id, now).Allowed })
			if got := p.Any(c, v, now); got != want {
				t.Fatalf("%+v: Any(%s) = %v, want %v", c, v, got, want)
			}
		}
	}
}

// TestAllowIsWhatTheRulesSay compares Allow, Explain and a third reading of
// the rules.
func TestAllowIsWhatTheRulesSay(t *testing.T) {
	callers, verbs := askers(), []policy.Verb{0, policy.Seal, policy.Seal, policy.Unseal, policy.AdminStatus, 200}
	rapid.Check(t, func(t *rapid.T) {
		cfg := drawConfig(t)
		p := mustNew(t, cfg)
		id, now := drawID(t, &cfg), rapid.SampledFrom(clocks).Draw(t, "now")
		for _, c := range callers {
			name := naiveName(&cfg, c)
			for _, v := range verbs {
				want := naiveAllow(&cfg, c, v, id.String(), now)
				d := p.Explain(c, v, id, now)
				if got := p.Allow(c, v, id, now); got != want || d.Allowed != want {
					t.Fatalf("%+v %s %s: Allow = %v, Explain = %+v, want %v", c, v, id, got, d, want)
				}
				wantAll := naiveAllow(&cfg, c, v, "", now)
				if got, all := p.AllowAll(c, v, now), p.ExplainAll(c, v, now); got != wantAll || all.Allowed != wantAll {
					t.Fatalf("%+v %s: AllowAll = %v, ExplainAll = %+v, want %v", c, v, got, all, wantAll)
				}
				if who, _ := p.Who(c); name != "" && who != name || name == "" && who != c.Name || d.CallerName != who {
					t.Fatalf("Who(%+v) = %q, Explain %q, want %q", c, who, d.CallerName, name)
				}
			}
		}
		checkAny(t, &cfg, p, callers, now)
		for _, r := range cfg.Callers {
			c, ok := p.Named(r.Name)
			if who, _ := p.Who(c); !ok || who != r.Name {
				t.Fatalf("Named(%s) = %+v, %v, which is %q", r.Name, c, ok, who)
			}
		}
	})
}
