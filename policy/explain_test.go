package policy_test

import (
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestExplain(t *testing.T) {
	cfg := sample()
	cfg.Rules[4].NotAfter = time.Date(2026, 12, 1, 2, 0, 0, 0, time.FixedZone("", 2*3600))
	cfg.Rules = append(cfg.Rules, policy.Rule{Callers: []string{"cron"}, Tenants: []string{"acm*"}, Verbs: []string{"unseal"}},
		policy.Rule{Callers: []string{"cron"}, Tenants: []string{"eu-w*"}, Verbs: []string{"unseal"}, NotAfter: noon.Add(-1), Ticket: "INC-1"})
	p := mustNew(t, cfg)
	late := noon.AddDate(1, 0, 0)
	for _, tt := range []struct {
		caller string
		verb   policy.Verb
		tenant string
		now    time.Time
		want   policy.Decision
	}{
		{billing, policy.Seal, "eu-1", noon, policy.Decision{Allowed: true, Rule: 0, CallerName: "billing", Why: `rules[0] grants seal for "eu-*" to billing`}},
		{billing, policy.Unseal, "acme", noon, policy.Decision{Allowed: true, Rule: 0, CallerName: "billing", Why: `rules[0] grants unseal for "acme" to billing`}},
		{billing, policy.Seal, "pub-1", noon, policy.Decision{Allowed: true, Rule: 2, CallerName: "billing", Why: `rules[2] grants seal for "pub-*" to every caller`}},
		{"uid:10005/gid:10005", policy.Seal, "public", noon, policy.Decision{
			Allowed: true, Rule: 2, CallerName: "uid:10005/gid:10005", Why: `rules[2] grants seal for "public" to every caller`,
		}},
		{cron, policy.Unseal, "eu-west-1", noon, policy.Decision{
			Allowed: true, Rule: 4, CallerName: "cron", Why: `rules[4] grants unseal for "eu-west-*" to cron until 2026-12-01T00:00:00Z (ticket INC-4711)`,
		}},
		{cron, policy.Unseal, "eu-west-1", late, policy.Decision{
			Rule: 4, CallerName: "cron", Why: `rules[4] granted it until 2026-12-01T00:00:00Z (ticket INC-4711): it has expired`,
		}},
		{cron, policy.Unseal, "acme", late, policy.Decision{ // another rule goes on
			Allowed: true, Rule: 6, CallerName: "cron", Why: `rules[6] grants unseal for "acm*" to cron`,
		}},
		{cron, policy.Unseal, "eu-1", late, policy.Decision{Rule: -1, CallerName: "cron", Why: `no rule grants unseal for eu-1 to cron`}},
		{"uid:10005/gid:10005", policy.Unseal, "acme", noon, policy.Decision{
			Rule: -1, CallerName: "uid:10005/gid:10005", Why: `no rule grants unseal for acme to uid:10005/gid:10005 (it is not one of callers)`,
		}},
		{"uid:65534/gid:20000", policy.Seal, "public", noon, policy.Decision{
			Rule: -1, CallerName: "uid:65534/gid:20000",
			Why: `no rule grants seal for public to uid:65534/gid:20000 (it is not one of callers, and user 65534 is neither in "*" nor in a group)`,
		}},
		{"uid:0/gid:0", policy.Seal, "public", noon, policy.Decision{Rule: -1, CallerName: "root", Why: `no rule grants seal for public to root`}},
		{"", policy.Seal, "public", noon, policy.Decision{Rule: -1, Why: `no rule grants seal for public to nobody`}},
		{billing, policy.Seal, "", noon, policy.Decision{Rule: -1, CallerName: "billing", Why: `no tenant is given`}},
		{billing, 0, "acme", noon, policy.Decision{Rule: -1, CallerName: "billing", Why: `no rule grants unknown verb for acme to billing`}},
	} {
		var c policy.Caller
		if tt.caller != "" {
			c = mustCaller(t, tt.caller)
		}
		var id tenant.ID
		if tt.tenant != "" {
			id = mustParse(t, tt.tenant)
		}
		if got := p.Explain(c, tt.verb, id, tt.now); got != tt.want {
			t.Errorf("Explain(%s, %s, %s) =\n%+v, want\n%+v", tt.caller, tt.verb, tt.tenant, got, tt.want)
		}
	}
}

func TestExplainAll(t *testing.T) {
	p := mustNew(t, sample())
	for _, tt := range []struct {
		caller string
		verb   policy.Verb
		want   policy.Decision
	}{
		{"uid:0/gid:0", policy.AdminStatus, policy.Decision{Allowed: true, Rule: 3, CallerName: "root", Why: `rules[3] grants admin.status for "*" to root`}},
		{cron, policy.AdminEvict, policy.Decision{Rule: -1, CallerName: "cron", Why: `no rule grants admin.evict for every tenant to cron`}},
	} {
		if got := p.ExplainAll(mustCaller(t, tt.caller), tt.verb, noon); got != tt.want {
			t.Errorf("ExplainAll(%s, %s) =\n%+v, want\n%+v", tt.caller, tt.verb, got, tt.want)
		}
	}
}
