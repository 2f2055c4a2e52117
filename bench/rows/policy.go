package rows

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

const (
	policyBar  = 2
	manyRules  = 10_000
	fewRules   = 10
	decisions  = 1024 // different ones, of each function
	perDecide  = 64   // of them in each of its calls
	firstUID   = 1000
	primaryGID = 7
)

// decision is one question to a policy.
type decision struct {
	caller policy.Caller
	verb   policy.Verb
	tenant tenant.ID
}

// policyRows measures decisions of a policy with 10,000 rules, of one caller or of 100,
// beside those of a policy whose only caller has 10: about tenants that rules name and about
// tenants of a prefix, allowed and denied.
func policyRows() ([]Row, error) {
	few, err := newPolicy(1, fewRules)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, callers := range []int{1, 100} {
		many, err := newPolicy(callers, manyRules)
		if err != nil {
			return nil, err
		}
		for _, prefix := range []bool{false, true} {
			for _, allowed := range []bool{true, false} {
				rows = append(rows, Row{
					Claim:   policyClaim(callers, prefix, allowed),
					Subject: many.decide(prefix, allowed),
					Base:    few.decide(prefix, allowed),
					Bar:     policyBar,
				})
			}
		}
	}
	return rows, nil
}

// policyClaim says how many rules each caller has.
func policyClaim(callers int, prefix, allowed bool) string {
	shape := fmt.Sprintf("%dx%d / 1x%d rules", callers, manyRules/callers, fewRules)
	about := map[bool]string{false: "ID", true: "prefix"}[prefix]
	return fmt.Sprintf("policy %s: %s %s", shape, about, map[bool]string{false: "denied", true: "allowed"}[allowed])
}

// rules is a policy and what it was made of.
type rules struct {
	cfg    policy.Config
	policy *policy.Policy
}

// newPolicy makes a policy of n rules, each of one of so many callers.
func newPolicy(callers, n int) (*rules, error) {
	r := &rules{}
	for i := range callers {
		uid, gid := uint32(firstUID+i), uint32(primaryGID)
		r.cfg.Callers = append(r.cfg.Callers, policy.CallerRule{Name: fmt.Sprint("c", i), UID: &uid, GID: &gid})
	}
	for i, p := range tenantPatterns(n) {
		verbs := [][]string{{"seal"}, {"seal", "unseal"}, {"unseal"}}[i/callers%3]
		r.cfg.Rules = append(r.cfg.Rules, policy.Rule{Callers: []string{fmt.Sprint("c", i%callers)}, Tenants: []string{p}, Verbs: verbs})
	}
	var err error
	r.policy, err = policy.New(r.cfg)
	return r, err
}

// tenantPatterns returns n different patterns, half of them IDs and half
// prefixes, of 2 to 8 segments. Every third goes on where another ended, so
// that prefixes are within prefixes.
func tenantPatterns(n int) []string {
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]string, 0, n)
	seen := make(map[string]bool, n)
	for len(all) < n {
		p := fmt.Sprintf("%s-%x", []string{"eu", "eu-west", "us", "ap"}[random.IntN(4)], random.IntN(1<<20))
		if len(all) > 2 && random.IntN(3) == 0 {
			p = strings.TrimSuffix(all[random.IntN(len(all))], "-*")
		}
		for len(p) < 100 && random.IntN(3) > 0 {
			p += fmt.Sprintf("-%x", random.IntN(1<<(4*random.IntN(5))))
		}
		if len(all)%2 == 1 {
			p += "-*"
		}
		if !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	return all
}

// decide returns a function that takes the next of different decisions, all of
// them allowed or all denied, about what rules for prefixes or for IDs say.
func (r *rules) decide(prefix, allowed bool) func() {
	all := r.decisions(prefix, allowed)
	next, at := 0, time.Unix(1<<31, 0)
	return func() {
		for range perDecide {
			d := &all[next%len(all)]
			// What a call asks: whose limits, whether it may do this at all, and for this tenant.
			name, _ := r.policy.Who(d.caller)
			must(name != "" && (r.policy.Any(d.caller, d.verb, at) || !allowed))
			must(r.policy.Allow(d.caller, d.verb, d.tenant, at) == allowed)
			next++
		}
	}
}

// decisions returns questions of those whom the rules are for: about the
// tenants that the rules have, or, of those denied, also about tenants whose
// IDs differ from theirs in the last bytes only.
func (r *rules) decisions(prefix, allowed bool) []decision {
	random := rand.New(rand.NewPCG(3, 4))
	all := make([]decision, 0, decisions)
	for len(all) < decisions {
		i := random.IntN(len(r.cfg.Rules))
		id, isPrefix := strings.CutSuffix(r.cfg.Rules[i].Tenants[0], "*")
		if isPrefix != prefix {
			continue
		}
		if prefix {
			id += "tenant-7"
		}
		if !allowed && random.IntN(2) == 0 {
			id = strings.TrimRight(id[:len(id)-2], "-") + "x"
		}
		t, err := tenant.Parse(id)
		uid := uint32(firstUID + i%len(r.cfg.Callers)) //nolint:gosec // few callers
		verb := []policy.Verb{policy.Seal, policy.Unseal}[random.IntN(2)]
		d := decision{policy.PeerCaller(uid, primaryGID, 1), verb, t}
		if err == nil && r.policy.Allow(d.caller, d.verb, d.tenant, time.Time{}) == allowed {
			all = append(all, d)
		}
	}
	return all
}
