package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/config/internal/strict"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// Policy is a policy file, loaded and checked.
type Policy struct {
	// Path is the file's path.
	Path string
	// Config is what the file says.
	Config policy.Config
	// Policy is the policy made from Config.
	Policy *policy.Policy
	// RuleLines are where each of Config.Rules begins, counted from 1.
	RuleLines []int
}

// policyFile is policy.yaml: who may do what for which tenant. What no rule
// allows is denied. A change needs a reload.
type policyFile struct {
	// APIVersion names this format.
	APIVersion string `yaml:"apiVersion" enum:"keysidecar/v1" required:"true"`
	// Callers are the callers that rules name. Each has uid, gid or both, or
	// spiffe, or dns.
	Callers []callerEntry `yaml:"callers"`
	// Rules say what is allowed: whatever one of them allows.
	Rules []ruleEntry `yaml:"rules" required:"true"`
}

// callerEntry is an element of "callers".
type callerEntry struct {
	// Name is what rules and logs call it: 1 to 63 of [a-z0-9-].
	Name string `yaml:"name" required:"true" example:"orders"`
	// UID is the user ID of a process that connects to the Unix socket. User
	// IDs 0 and 65534 are nobody unless an entry has them here.
	UID *uint32 `yaml:"uid" min:"0" max:"4294967294" example:"10001" show:"true"`
	// GID is its primary group ID. A process is the entry with both its IDs,
	// else that with its user ID only, else that with its group ID only. 0 is
	// the primary group of any container that sets only runAsUser. 65534 needs
	// a uid.
	GID *uint32 `yaml:"gid" min:"0" max:"4294967294" example:"10001"`
	// SPIFFE is the SPIFFE ID in the caller's certificate.
	SPIFFE string `yaml:"spiffe" example:"spiffe://example.org/orders"`
	// DNS is the DNS name in the caller's certificate.
	DNS string `yaml:"dns" example:"orders.internal"`
	// Rate is how many calls of it begin in a second, for long. 0 is what
	// limits.caller of config.yaml says.
	Rate float64 `yaml:"rate" min:"0" max:"10000000"`
	// Burst is how many begin at once after a pause. 0 is as many as rate, or
	// without a rate what limits.caller says.
	Burst int `yaml:"burst" min:"0" max:"10000000"`
	// Calls is how many are in flight at a time. 0 is what limits.caller says.
	Calls int `yaml:"calls" min:"0" max:"1000000"`
}

// ruleEntry is an element of "rules".
type ruleEntry struct {
	// Callers are names of callers; or "*" alone: everybody who proves an
	// identity, listed or not, but never users 0 and 65534.
	Callers []string `yaml:"callers" required:"true" example:"orders"`
	// Tenants are tenant IDs; "eu-*" is all that begin with "eu-", and "*" is
	// all. There has to be an entry of tenants.yaml about each.
	Tenants []string `yaml:"tenants" required:"true" example:"acme"`
	// Verbs are what these callers may do for these tenants. Those with
	// "admin." need callers by name, and "*" in tenants where they are about
	// the sidecar as a whole.
	Verbs []string `yaml:"verbs" required:"true" example:"seal, unseal" enum:"seal unseal admin.status admin.reload admin.evict admin.policy admin.tenants admin.suspend"`
	// NotAfter is when a rule ends that is for an emergency, in RFC 3339 with
	// a time zone. It needs a ticket. Such a rule may allow what others do.
	NotAfter time.Time `yaml:"not_after" example:"2026-12-31T18:00:00Z"`
	// Ticket says where that emergency is written down: 1 to 64 printable
	// ASCII characters without spaces. It needs not_after.
	Ticket string `yaml:"ticket" example:"INC-4711"`
	// Acknowledge has to be "grants-everything" in a rule that lets callers
	// "*" seal or unseal for tenants "*", and may not be in any other.
	Acknowledge string `yaml:"acknowledge" enum:"grants-everything"`
}

// loadPolicy returns nil if there are problems. t is nil where nobody knows
// which tenants there are.
func (c *Config) loadPolicy(t *Tenants, ps *strict.Problems) *Policy {
	data := c.read(c.PolicyFile, MaxPolicyFile, ps)
	if len(*ps) > 0 {
		return nil
	}
	return parsePolicy(c.PolicyFile, data, t, ps)
}

func parsePolicy(name string, data []byte, t *Tenants, ps *strict.Problems) *Policy {
	f := strict.Parse(name, data, ps)
	var pf policyFile
	f.Decode(&pf)
	if len(*ps) > 0 {
		return nil
	}
	p := &Policy{Path: name, Config: pf.config(), RuleLines: f.Lines("rules")}
	made, err := policy.New(p.Config)
	if bad, ok := errors.AsType[*policy.ConfigError](err); ok {
		for _, m := range bad.Mistakes {
			f.Addf(m.Path, "%s", m.Text)
		}
	} else if err != nil {
		f.Addf("", "%s", err)
	}
	if t != nil {
		p.checkTenants(f, t)
	}
	p.Policy = made
	return p
}

// config returns what the file says.
func (pf *policyFile) config() policy.Config {
	out := policy.Config{Callers: make([]policy.CallerRule, len(pf.Callers)), Rules: make([]policy.Rule, len(pf.Rules))}
	for i, c := range pf.Callers {
		out.Callers[i] = policy.CallerRule{Name: c.Name, UID: c.UID, GID: c.GID, SPIFFE: c.SPIFFE, DNS: c.DNS,
			Limits: tenant.Limits{Rate: c.Rate, Burst: c.Burst, Calls: c.Calls}}
	}
	for i, r := range pf.Rules {
		out.Rules[i] = policy.Rule{Callers: r.Callers, Tenants: r.Tenants, Verbs: r.Verbs,
			NotAfter: r.NotAfter, Ticket: r.Ticket, Acknowledge: r.Acknowledge}
	}
	return out
}

// checkTenants finds rules about tenants that there cannot be.
func (p *Policy) checkTenants(f *strict.File, t *Tenants) {
	known := newKnown(t)
	for i, r := range p.Config.Rules {
		for j, pattern := range r.Tenants {
			if f.Full() {
				return
			}
			if text := known.mistake(pattern); text != "" {
				f.Addf(fmt.Sprintf("rules[%d].tenants[%d]", i, j), "%s", text)
			}
		}
	}
}

// known is which tenants there can be.
type known struct {
	directory *tenant.Directory
	rules     rules
	names     []string // the IDs and prefixes of the rules, sorted
}

func newKnown(t *Tenants) *known {
	k := &known{directory: t.Directory, rules: index(t)}
	k.names = slices.AppendSeq(slices.Collect(maps.Keys(k.rules.exact)), maps.Keys(k.rules.prefix))
	slices.Sort(k.names)
	return k
}

// mistake says that no tenant that there can be is what a rule of a policy is
// about. It returns "" if one is, and for what policy.New refuses.
func (k *known) mistake(pattern string) string {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		next, _ := slices.BinarySearch(k.names, prefix)
		begun := next < len(k.names) && strings.HasPrefix(k.names[next], prefix)
		_, err := tenant.Parse((prefix + "0")[:min(len(prefix)+1, tenant.MaxID)])
		if prefix == "" || err != nil || begun || k.rules.about(&tenant.Rule{Prefix: &prefix}) >= 0 {
			return ""
		}
		return fmt.Sprintf("no entry of tenants.yaml is about a tenant whose ID begins with %q", prefix)
	}
	id, err := tenant.Parse(pattern)
	if err == nil {
		_, err = k.directory.Lookup(id)
	}
	switch {
	case errors.Is(err, tenant.ErrUnknown):
		return fmt.Sprintf("no entry of tenants.yaml is about tenant %q", pattern)
	case errors.Is(err, tenant.ErrTemplate):
		return fmt.Sprintf("no entry of tenants.yaml takes tenant %q: %s", pattern, err)
	}
	return ""
}

// Line returns the line on which a rule begins, 0 for what is none of
// Config.Rules, such as the -1 of policy.Decision.
func (p *Policy) Line(rule int) int {
	if rule < 0 || rule >= len(p.RuleLines) {
		return 0
	}
	return p.RuleLines[rule]
}

// Expired returns a line of text about each rule that has ended by now. That
// is no problem: such a rule allows nothing.
func (p *Policy) Expired(now time.Time) []string {
	var out []string
	for i, r := range p.Config.Rules {
		if !r.NotAfter.IsZero() && !now.Before(r.NotAfter) {
			out = append(out, fmt.Sprintf("%s:%d: rules[%d] expired at %s (ticket %s)",
				p.Path, p.Line(i), i, r.NotAfter.Format(time.RFC3339), r.Ticket))
		}
	}
	return out
}
