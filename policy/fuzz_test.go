package policy_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// code reads choices from bytes; when they run out, the first choice.
type code []byte

func (c *code) below(n int) int {
	if len(*c) == 0 {
		return 0
	}
	b := (*c)[0]
	*c = (*c)[1:]
	return int(b) % n
}

func pick[T any](c *code, from ...T) T { return from[c.below(len(from))] }

// rarely is for the choices that are mistakes.
func (c *code) rarely() bool { return c.below(64) == 63 }

func list(c *code, from ...string) []string {
	var all []string
	for range pick(c, 1, 2, 3) {
		if c.rarely() {
			return nil
		}
		all = append(all, pick(c, from...))
	}
	return all
}

// decode makes a Config of bytes: most of its choices are good ones.
func decode(b []byte) policy.Config {
	c := code(b)
	var cfg policy.Config
	var names []string
	for i := range c.below(6) {
		r := policy.CallerRule{Name: string(rune('a' + i))}
		switch c.below(6) {
		case 0:
			r.UID = new(pick(&c, uint32(0), 1, 65534))
		case 1:
			r.GID = new(pick(&c, uint32(0), 1, 65533))
		case 2:
			r.UID, r.GID = new(pick(&c, uint32(0), 1, 65534)), new(pick(&c, uint32(0), 1, 65534))
		case 3:
			r.SPIFFE = pick(&c, "spiffe://a/b", "spiffe://a/b/c")
		case 4:
			r.DNS = pick(&c, "a", "a.b")
		case 5:
			r = pick(&c, r, policy.CallerRule{Name: "a", UID: new(uint32(1<<32 - 1)), DNS: "*.b"})
			r.SPIFFE, r.Limits.Burst = pick(&c, "spiffe://a/b/d", "spiffe://a"), pick(&c, 7, -1)
		}
		cfg.Callers, names = append(cfg.Callers, r), append(names, r.Name)
	}
	for range c.below(9) {
		r := policy.Rule{
			Callers: []string{"*"},
			Tenants: list(&c, "a", "ab", "a*", "ab*", "abc", "*", "b-*", "b-a*"),
			Verbs:   []string{pick(&c, "seal", "unseal")},
		}
		if len(names) > 0 && c.below(3) > 0 {
			r.Callers, r.Verbs = list(&c, names...), list(&c, "seal", "unseal", "admin.status")
		} else if slices.Contains(r.Tenants, "*") {
			r.Acknowledge = policy.Acknowledgement
		}
		if c.below(3) == 2 {
			r.NotAfter, r.Ticket = noon.Add(time.Duration(pick(&c, -1, 0, 1))), "t"
		}
		if c.rarely() {
			r = pick(&c, policy.Rule{Tenants: []string{"-", "a**"}, Verbs: []string{"sael"}}, policy.Rule{Callers: []string{"*", "a"}, Ticket: " "})
		}
		cfg.Rules = append(cfg.Rules, r)
	}
	return cfg
}

func FuzzNew(f *testing.F) {
	f.Add([]byte{})
	random, valid := rand.New(rand.NewPCG(5, 6)), 0
	for range 100 {
		b := make([]byte, 60)
		for i := range b {
			b[i] = byte(random.IntN(256))
		}
		if _, err := policy.New(decode(b)); err == nil {
			valid++
		}
		f.Add(b)
	}
	if valid < 3 {
		f.Errorf("%d of the seeds are valid", valid)
	}
	var ids []tenant.ID
	for _, s := range []string{"a", "ab", "abc", "b-a", "b-ab", "c"} {
		ids = append(ids, mustParse(f, s))
	}
	callers := append(askers(), policy.Caller{Name: "dns:a", Source: policy.DNS})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := policy.New(decode(b))
		if err != nil {
			var bad *policy.ConfigError
			if p != nil || !errors.As(err, &bad) || len(bad.Mistakes) == 0 || len(bad.Mistakes) > 10 {
				t.Fatalf("New = %v, %v", p, err)
			}
			return
		}
		for _, c := range callers {
			for _, v := range []policy.Verb{policy.Seal, policy.Unseal, policy.AdminStatus} {
				for _, id := range ids {
					if got, d := p.Allow(c, v, id, noon), p.Explain(c, v, id, noon); got != d.Allowed || d.Why == "" {
						t.Fatalf("%+v %s %s: Allow = %v, Explain = %+v", c, v, id, got, d)
					}
				}
				some := slices.ContainsFunc(ids, func(id tenant.ID) bool { return p.Allow(c, v, id, noon) })
				if some && !p.Any(c, v, noon) {
					t.Fatalf("%+v %s: Any is false, but it is allowed for some tenant", c, v)
				}
				if got, d := p.AllowAll(c, v, noon), p.ExplainAll(c, v, noon); got != d.Allowed || d.Why == "" {
					t.Fatalf("%+v %s: AllowAll = %v, ExplainAll = %+v", c, v, got, d)
				}
			}
		}
	})
}
