package policy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// asked is one decision to take.
type asked struct {
	caller policy.Caller
	verb   policy.Verb
	tenant tenant.ID
}

// patterns returns n different tenant patterns, half IDs and half prefixes, of
// 2 to 8 segments. Every third goes on where another ended, so that prefixes
// are within prefixes.
func patterns(n int) []string {
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

// big returns a Config of as many callers with as many rules each.
func big(callers, rules int) policy.Config {
	var cfg policy.Config
	for i := range callers {
		cfg.Callers = append(cfg.Callers, policy.CallerRule{Name: fmt.Sprint("c", i), UID: new(uint32(1000 + i)), GID: new(uint32(7))})
	}
	for i, p := range patterns(callers * rules) {
		verbs := [][]string{{"seal"}, {"seal", "unseal"}, {"unseal"}}[i/callers%3]
		cfg.Rules = append(cfg.Rules, policy.Rule{Callers: []string{fmt.Sprint("c", i%callers)}, Tenants: []string{p}, Verbs: verbs})
	}
	return cfg
}

// questions returns n decisions, all granted or all denied: about the
// tenants that the rules have, and about tenants whose IDs are like theirs but
// for the last bytes. Each has its ID in memory of its own, as calls have.
func questions(tb testing.TB, cfg policy.Config, p *policy.Policy, n int, hits bool) []asked {
	tb.Helper()
	random := rand.New(rand.NewPCG(3, 4))
	qs := make([]asked, 0, n)
	for len(qs) < n {
		i := random.IntN(len(cfg.Rules))
		id, prefix := strings.CutSuffix(cfg.Rules[i].Tenants[0], "*")
		if prefix {
			id += "tenant-7"
		}
		if !hits && random.IntN(2) == 0 {
			id = strings.TrimRight(id[:len(id)-2], "-") + "x"
		}
		q := asked{policy.PeerCaller(uint32(1000+i%len(cfg.Callers)), 7, 1), policy.Verb(1 + random.IntN(2)), mustParse(tb, strings.Clone(id))}
		if p.Explain(q.caller, q.verb, q.tenant, noon).Allowed == hits {
			qs = append(qs, q)
		}
	}
	return qs
}

func BenchmarkAllow(b *testing.B) {
	for _, size := range []struct{ callers, rules int }{{1, 10}, {1, 10_000}, {10, 1}, {100, 100}} {
		cfg := big(size.callers, size.rules)
		p := mustNew(b, cfg)
		for kind, hits := range map[string]bool{"hit": true, "miss": false} {
			qs := questions(b, cfg, p, 1024, hits)
			b.Run(fmt.Sprintf("callers=%d/rules=%d/%s", size.callers, size.rules, kind), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					q := &qs[i%len(qs)]
					if p.Allow(q.caller, q.verb, q.tenant, noon) != hits {
						b.Fatalf("wrong decision for %s", q.tenant)
					}
				}
			})
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for _, size := range []struct{ callers, rules int }{{1, 10_000}, {100, 100}} {
		cfg := big(size.callers, size.rules)
		b.Run(fmt.Sprintf("callers=%d/rules=%d", size.callers, size.rules), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				mustNew(b, cfg)
			}
		})
	}
}

// TestCostDoesNotGrowWithTheRules finds a decision that goes through the
// rules: its bound is far over what BenchmarkAllow measures, for machines that
// have other things to do.
func TestCostDoesNotGrowWithTheRules(t *testing.T) {
	cost := func(callers, rules int, hits bool) time.Duration {
		cfg := big(callers, rules)
		p := mustNew(t, cfg)
		qs := questions(t, cfg, p, 64, hits)
		best := time.Duration(1 << 62)
		for range 100 {
			start := time.Now()
			for i := range qs {
				p.Allow(qs[i].caller, qs[i].verb, qs[i].tenant, noon)
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	for _, hits := range []bool{true, false} {
		few := cost(1, 10, hits)
		for _, size := range []struct{ callers, rules int }{{1, 10_000}, {100, 100}} {
			if many := cost(size.callers, size.rules, hits); many > 8*few {
				t.Errorf("hits %v: %v for %d callers with %d rules each, %v for one with 10", hits, many, size.callers, size.rules, few)
			}
		}
	}
}

// TestCostDoesNotGrowWithTheEnds: the same may be granted often, if it ends.
func TestCostDoesNotGrowWithTheEnds(t *testing.T) {
	cost := func(rules int) time.Duration {
		cfg := sample()
		for i := range rules {
			cfg.Rules = append(cfg.Rules, policy.Rule{
				Callers: []string{"cron"}, Tenants: []string{"us-1"}, Verbs: []string{"admin.suspend"},
				NotAfter: noon.Add(-time.Duration(i)), Ticket: "INC-1",
			})
		}
		p, c, id := mustNew(t, cfg), mustCaller(t, cron), mustParse(t, "us-1")
		best := time.Duration(1 << 62)
		for range 100 {
			start := time.Now()
			for range 64 {
				if p.Allow(c, policy.AdminSuspend, id, noon) || p.Any(c, policy.AdminSuspend, noon) {
					t.Fatal("a grant that has ended holds")
				}
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	if few, many := cost(1), cost(10_000); many > 8*few {
		t.Errorf("%v with 10,000 grants that have ended, %v with one", many, few)
	}
}
