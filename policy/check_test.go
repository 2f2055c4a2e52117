package policy_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/policy"
)

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*policy.Config)
		path   string
		text   string
	}{
		{"no name", func(c *policy.Config) { c.Callers[0].Name = "" }, "callers[0].name", "63"},
		{"long name", func(c *policy.Config) { c.Callers[5].Name = strings.Repeat("a", 64) }, "callers[5].name", "63"},
		{"upper-case name", func(c *policy.Config) { c.Callers[5].Name = "Root" }, "callers[5].name", "[a-z0-9-]"},
		{"name like a star", func(c *policy.Config) { c.Callers[5].Name = "*" }, "callers[5].name", "[a-z0-9-]"},
		{"name like an identity", func(c *policy.Config) { c.Callers[5].Name = "uid:1" }, "callers[5].name", "[a-z0-9-]"},
		{"same name", func(c *policy.Config) { c.Callers[5].Name = "batch" }, "callers[5].name", `"batch" is the name of callers[2]`},
		{"no identity", func(c *policy.Config) { c.Callers[3].SPIFFE = "" }, "callers[3]", "exactly one identity"},
		{"uid and spiffe", func(c *policy.Config) { c.Callers[3].UID = new(uint32(1)) }, "callers[3]", "exactly one identity"},
		{"gid and dns", func(c *policy.Config) { c.Callers[4].GID = new(uint32(1)) }, "callers[4]", "exactly one identity"},
		{"spiffe and dns", func(c *policy.Config) { c.Callers[4].SPIFFE = "spiffe://a/b" }, "callers[4]", "exactly one identity"},
		{"all kinds", func(c *policy.Config) { c.Callers[0].SPIFFE, c.Callers[0].DNS = "spiffe://a/b", "a" }, "callers[0]", "exactly one identity"},
		{"no user", func(c *policy.Config) { c.Callers[1].UID = new(uint32(1<<32 - 1)) }, "callers[1].uid", "no user"},
		{"no group", func(c *policy.Config) { c.Callers[0].GID = new(uint32(1<<32 - 1)) }, "callers[0].gid", "no group"},
		{"ill-formed SPIFFE ID", func(c *policy.Config) { c.Callers[3].SPIFFE = "https://a/b" }, "callers[3].spiffe", "spiffe://"},
		{"SPIFFE ID without a path", func(c *policy.Config) { c.Callers[3].SPIFFE = "spiffe://a" }, "callers[3].spiffe", "path"},
		{"SPIFFE ID without a domain", func(c *policy.Config) { c.Callers[3].SPIFFE = "spiffe:///a" }, "callers[3].spiffe", "trust domain"},
		{"long SPIFFE ID", func(c *policy.Config) { c.Callers[3].SPIFFE = spiffeOf(2049) }, "callers[3].spiffe", "2048"},
		{"wildcard", func(c *policy.Config) { c.Callers[4].DNS = "*.internal" }, "callers[4].dns", "labels"},
		{"DNS name with its prefix", func(c *policy.Config) { c.Callers[4].DNS = "dns:internal" }, "callers[4].dns", "labels"},
		{"long DNS name", func(c *policy.Config) { c.Callers[4].DNS = dnsOf("b") }, "callers[4].dns", "253"},
		{"address", func(c *policy.Config) { c.Callers[4].DNS = "127.0.0.1" }, "callers[4].dns", "IP address"},
		{"any unmapped group", func(c *policy.Config) { c.Callers[2].GID = new(uint32(65534)) }, "callers[2].gid", "65534 needs a uid"},
		{"same user", func(c *policy.Config) { c.Callers[5].UID = new(uint32(10001)) }, "callers[5].uid", "uid:10001 is callers[1] (billing-any)"},
		{"same user and group", func(c *policy.Config) { c.Callers[1].GID = new(uint32(20000)) }, "callers[1].gid", "uid:10001/gid:20000 is callers[0] (billing)"},
		{"same group", func(c *policy.Config) { c.Callers[5].UID, c.Callers[5].GID = nil, new(uint32(20000)) }, "callers[5].gid", "callers[2] (batch)"},
		{"same SPIFFE ID", func(c *policy.Config) {
			c.Callers[5].UID, c.Callers[5].SPIFFE = nil, c.Callers[3].SPIFFE
		}, "callers[5].spiffe", "callers[3] (mesh)"},
		{"same DNS name", func(c *policy.Config) { c.Callers[5].UID, c.Callers[5].DNS = nil, c.Callers[4].DNS }, "callers[5].dns", "callers[4] (cron)"},
		{"negative rate", func(c *policy.Config) { c.Callers[0].Limits.Rate = -0.1 }, "callers[0].rate", "-0.1"},
		{"infinite rate", func(c *policy.Config) { c.Callers[0].Limits.Rate = math.Inf(1) }, "callers[0].rate", "Inf"},
		{"no rate", func(c *policy.Config) { c.Callers[0].Limits.Rate = math.NaN() }, "callers[0].rate", "NaN"},
		{"negative burst", func(c *policy.Config) { c.Callers[0].Limits.Burst = -1 }, "callers[0].burst", "negative"},
		{"negative calls", func(c *policy.Config) { c.Callers[0].Limits.Calls = -1 }, "callers[0].calls", "negative"},

		{"no callers", func(c *policy.Config) { c.Rules[0].Callers = nil }, "rules[0].callers", "empty"},
		{"empty caller", func(c *policy.Config) { c.Rules[0].Callers[1] = "" }, "rules[0].callers[1]", `"" is not the name`},
		{"unknown caller", func(c *policy.Config) { c.Rules[0].Callers[1] = "nobody" }, "rules[0].callers[1]", `"nobody" is not the name`},
		{"caller by its identity", func(c *policy.Config) { c.Rules[0].Callers[1] = "uid:0" }, "rules[0].callers[1]", "not the name"},
		{"star after a name", func(c *policy.Config) { c.Rules[0].Callers[1] = "*" }, "rules[0].callers[1]", "alone"},
		{"star before a name", func(c *policy.Config) { c.Rules[2].Callers = []string{"*", "mesh"} }, "rules[2].callers[0]", "alone"},
		{"star twice", func(c *policy.Config) { c.Rules[2].Callers = []string{"*", "*"} }, "rules[2].callers[0]", "alone"},
		{"no tenants", func(c *policy.Config) { c.Rules[0].Tenants = nil }, "rules[0].tenants", "empty"},
		{"empty tenant", func(c *policy.Config) { c.Rules[0].Tenants[1] = "" }, "rules[0].tenants[1]", "128 bytes"},
		{"ill-formed tenant", func(c *policy.Config) { c.Rules[0].Tenants[1] = "eu-" }, "rules[0].tenants[1]", "128 bytes"},
		{"long tenant", func(c *policy.Config) { c.Rules[0].Tenants[1] = strings.Repeat("a", 129) }, "rules[0].tenants[1]", "128 bytes"},
		{"ill-formed prefix", func(c *policy.Config) { c.Rules[0].Tenants[1] = "-eu*" }, "rules[0].tenants[1]", "begin with"},
		{"star inside", func(c *policy.Config) { c.Rules[0].Tenants[1] = "eu-*-1" }, "rules[0].tenants[1]", "128 bytes"},
		{"two stars", func(c *policy.Config) { c.Rules[0].Tenants[1] = "**" }, "rules[0].tenants[1]", "begin with"},
		{"prefix with dots", func(c *policy.Config) { c.Rules[0].Tenants[1] = "eu..*" }, "rules[0].tenants[1]", "begin with"},
		{"long prefix", func(c *policy.Config) { c.Rules[0].Tenants[1] = strings.Repeat("a", 129) + "*" }, "rules[0].tenants[1]", "begin with"},
		{"longest prefix", func(c *policy.Config) { c.Rules[0].Tenants[1] = strings.Repeat("a", 127) + "-*" }, "rules[0].tenants[1]", "begin with"},
		{"no verbs", func(c *policy.Config) { c.Rules[0].Verbs = []string{} }, "rules[0].verbs", "empty"},
		{"empty verb", func(c *policy.Config) { c.Rules[0].Verbs[1] = "" }, "rules[0].verbs[1]", "not known"},
		{"unknown verb", func(c *policy.Config) { c.Rules[0].Verbs[1] = "unsael" }, "rules[0].verbs[1]", `"unsael" is not known; the nearest is unseal`},
		{"star as a verb", func(c *policy.Config) { c.Rules[0].Verbs[0] = "*" }, "rules[0].verbs[0]", "not known"},
		{"same verb", func(c *policy.Config) { c.Rules[0].Verbs[1] = "seal" }, "rules[0].verbs[1]", "seal is given twice"},
		{"admin verb for everybody", func(c *policy.Config) { c.Rules[2].Verbs = []string{"seal", "admin.evict"} }, "rules[2].verbs[1]", "name the callers"},
		{"status of a tenant", func(c *policy.Config) { c.Rules[3].Tenants[0] = "acme" }, "rules[3].verbs[0]", `admin.status needs tenants "*": it is about the sidecar as a whole`},
		{"reload of a tenant", func(c *policy.Config) { c.Rules[5].Verbs[1] = "admin.reload" }, "rules[5].verbs[1]", `admin.reload needs tenants "*"`},
		{"policy of a tenant", func(c *policy.Config) { c.Rules[5].Verbs[1] = "admin.policy" }, "rules[5].verbs[1]", `admin.policy needs tenants "*"`},
		{"list of a tenant", func(c *policy.Config) { c.Rules[5].Verbs[1] = "admin.tenants" }, "rules[5].verbs[1]", `admin.tenants needs tenants "*"`},
		{"no ticket", func(c *policy.Config) { c.Rules[4].Ticket = "" }, "rules[4].ticket", "required"},
		{"no end", func(c *policy.Config) { c.Rules[4].NotAfter = time.Time{} }, "rules[4].not_after", "required"},
		{"long ticket", func(c *policy.Config) { c.Rules[4].Ticket = strings.Repeat("a", 65) }, "rules[4].ticket", "64"},
		{"ticket with a space", func(c *policy.Config) { c.Rules[4].Ticket = "INC 1" }, "rules[4].ticket", "ASCII"},
		{"ticket with a line", func(c *policy.Config) { c.Rules[4].Ticket = "INC\n1" }, "rules[4].ticket", "ASCII"},
		{"ticket with DEL", func(c *policy.Config) { c.Rules[4].Ticket = "INC\x7f1" }, "rules[4].ticket", "ASCII"},
		{"ticket not ASCII", func(c *policy.Config) { c.Rules[4].Ticket = "INC\u00e4" }, "rules[4].ticket", "ASCII"},
		{"not acknowledged", func(c *policy.Config) { c.Rules[2].Tenants[0] = "*" }, "rules[2].acknowledge", "required"},
		{"not acknowledged with an end", func(c *policy.Config) {
			r := &c.Rules[2]
			r.Tenants[0], r.NotAfter, r.Ticket = "*", noon, "t"
		}, "rules[2].acknowledge", "required"},
		{"acknowledged wrongly", func(c *policy.Config) { c.Rules[2].Tenants[0], c.Rules[2].Acknowledge = "*", "yes" }, "rules[2].acknowledge", "grants-everything"},
		{"nothing to acknowledge: named callers", func(c *policy.Config) { c.Rules[1].Acknowledge = "grants-everything" }, "rules[1].acknowledge", "no place"},
		{"nothing to acknowledge: some tenants", func(c *policy.Config) { c.Rules[2].Acknowledge = "grants-everything" }, "rules[2].acknowledge", "no place"},
		{"nothing to acknowledge: other text", func(c *policy.Config) { c.Rules[0].Acknowledge = "no" }, "rules[0].acknowledge", "no place"},
		{"same grant", func(c *policy.Config) {
			c.Rules = append(c.Rules, policy.Rule{Callers: []string{"cron", "mesh"}, Tenants: []string{"us-*", "eu-*"}, Verbs: []string{"admin.evict", "unseal"}})
		}, "rules[6]", `grants unseal for "eu-*" to mesh, as rules[0] does already`},
		{"same grant, below one that ends", func(c *policy.Config) {
			r := policy.Rule{Callers: []string{"cron"}, Tenants: []string{"acme"}, Verbs: []string{"unseal"}}
			c.Rules = append(c.Rules, r, r)
		}, "rules[7]", `grants unseal for "acme" to cron, as rules[6] does already`},
		{"same grant to everybody", func(c *policy.Config) {
			c.Rules = append(c.Rules, policy.Rule{Callers: []string{"*"}, Tenants: []string{"pub-*"}, Verbs: []string{"unseal", "seal"}})
		}, "rules[6]", `grants seal for "pub-*" to every caller, as rules[2] does already`},
		{"same grant, with one of a prefix between", func(c *policy.Config) {
			c.Rules = append(c.Rules,
				policy.Rule{Callers: []string{"mesh"}, Tenants: []string{"acme*"}, Verbs: []string{"seal"}},
				policy.Rule{Callers: []string{"mesh"}, Tenants: []string{"acme"}, Verbs: []string{"seal"}})
		}, "rules[7]", `grants seal for "acme" to mesh, as rules[0] does already`},
		{"same grant, with one of another verb between", func(c *policy.Config) {
			c.Rules = append(c.Rules,
				policy.Rule{Callers: []string{"mesh"}, Tenants: []string{"acme"}, Verbs: []string{"admin.evict"}},
				policy.Rule{Callers: []string{"mesh"}, Tenants: []string{"acme"}, Verbs: []string{"unseal"}})
		}, "rules[7]", `grants unseal for "acme" to mesh, as rules[0] does already`},
		{"same tenant in a rule", func(c *policy.Config) { c.Rules[0].Tenants[1] = "acme" }, "rules[0]", `grants seal for "acme" to billing twice`},
		{"same caller in a rule", func(c *policy.Config) { c.Rules[0].Callers[1] = "billing" }, "rules[0]", `to billing twice`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := sample()
			tt.change(&cfg)
			p, err := policy.New(cfg)
			var bad *policy.ConfigError
			if p != nil || !errors.As(err, &bad) {
				t.Fatalf("New = %v, %v, want a *ConfigError", p, err)
			}
			if m := bad.Mistakes[0]; m.Path != tt.path || !strings.Contains(m.Text, tt.text) {
				t.Errorf("New: %s: %s\nwant %s: ...%s...", m.Path, m.Text, tt.path, tt.text)
			}
			if len(bad.Mistakes) > 2 { // a caller without a name takes two rules with it
				t.Errorf("one mistake makes %d:\n%s", len(bad.Mistakes), err)
			}
		})
	}
}

func TestNewAccepts(t *testing.T) {
	for name, change := range map[string]func(*policy.Config){
		"nothing":                    func(c *policy.Config) { *c = policy.Config{} },
		"callers only":               func(c *policy.Config) { c.Rules = nil },
		"everybody only":             func(c *policy.Config) { c.Callers, c.Rules = nil, c.Rules[2:3] },
		"longest name":               func(c *policy.Config) { c.Callers[1].Name = strings.Repeat("-", 63) },
		"longest ticket":             func(c *policy.Config) { c.Rules[4].Ticket = strings.Repeat("~!", 32) },
		"expired grant":              func(c *policy.Config) { c.Rules[4].NotAfter = noon.AddDate(-9, 0, 0) },
		"longest tenant":             func(c *policy.Config) { c.Rules[0].Tenants[1] = strings.Repeat("a", 128) },
		"longest prefix":             func(c *policy.Config) { c.Rules[0].Tenants[1] = strings.Repeat("a", 128) + "*" },
		"prefix and its text":        func(c *policy.Config) { c.Rules[0].Tenants[1] = "acme*" },
		"prefix of one":              func(c *policy.Config) { c.Rules[0].Tenants = []string{"a*", "*", "a", "ab*"} },
		"same for others":            func(c *policy.Config) { c.Rules[1].Callers = append(c.Rules[1].Callers, "billing-any") },
		"other verbs for same":       func(c *policy.Config) { c.Rules[5].Tenants[0] = "eu-west-*" },
		"admin verbs of a tenant":    func(c *policy.Config) { c.Rules[5].Verbs = []string{"admin.evict", "admin.suspend"} },
		"all tenants and one":        func(c *policy.Config) { c.Rules[3].Tenants = []string{"acme", "*"} },
		"unmapped group of a user":   func(c *policy.Config) { c.Callers[1].GID = new(uint32(65534)) },
		"grant that ends, again":     func(c *policy.Config) { c.Rules = append(c.Rules, c.Rules[4], c.Rules[4]) },
		"grant that ends, for ever":  func(c *policy.Config) { c.Rules[1].Callers, c.Rules[4].Tenants[0] = []string{"batch", "cron"}, "*" },
		"grant for ever, for a time": func(c *policy.Config) { c.Rules[4].Callers, c.Rules[4].Verbs[0] = []string{"mesh"}, "seal" },
		"acknowledged": func(c *policy.Config) {
			c.Rules[2].Tenants[0], c.Rules[2].Acknowledge = "*", policy.Acknowledgement
		},
		"named and everybody": func(c *policy.Config) {
			c.Rules = append(c.Rules, policy.Rule{Callers: []string{"*"}, Tenants: []string{"acme"}, Verbs: []string{"seal"}})
		},
	} {
		cfg := sample()
		change(&cfg)
		if _, err := policy.New(cfg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewReportsAllMistakesButNotTooMany(t *testing.T) {
	cfg := sample()
	cfg.Callers[5].DNS = "a"
	cfg.Rules[0].Verbs[0] = "sael"
	cfg.Rules[3].Ticket = "t"
	cfg.Rules = append(cfg.Rules, cfg.Rules[2], cfg.Rules[2])
	_, err := policy.New(cfg)
	for _, want := range []string{"callers[5]: ", "rules[0].verbs[0]: ", "rules[3].not_after: ", "rules[6]: ", "rules[7]: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want %s", err, want)
		}
	}
	if n := strings.Count(fmt.Sprint(err), "\n"); n != 4 {
		t.Errorf("New = %v, want 5 lines", err)
	}

	for name, change := range map[string]func(*policy.Config){
		"callers": func(c *policy.Config) {
			for range 100 {
				c.Callers = append(c.Callers, policy.CallerRule{})
			}
		},
		"rules": func(c *policy.Config) {
			for range 100 {
				c.Rules = append(c.Rules, policy.Rule{})
			}
		},
		"verbs": func(c *policy.Config) { c.Rules[0].Verbs = make([]string, 100) },
		"duplicates": func(c *policy.Config) {
			for range 100 {
				c.Rules = append(c.Rules, c.Rules[0])
			}
		},
	} {
		cfg := sample()
		change(&cfg)
		_, err := policy.New(cfg)
		var bad *policy.ConfigError
		if !errors.As(err, &bad) || len(bad.Mistakes) != 10 {
			t.Errorf("%s: New = %v, want 10 mistakes", name, err)
		}
	}
}

func TestCallersAreBounded(t *testing.T) {
	var cfg policy.Config
	for i := range policy.MaxCallers {
		cfg.Callers = append(cfg.Callers, policy.CallerRule{Name: fmt.Sprint("c", i), GID: new(uint32(i))})
	}
	mustNew(t, cfg)
	cfg.Callers = append(cfg.Callers, policy.CallerRule{Name: "more", DNS: "more"})
	if _, err := policy.New(cfg); err == nil || err.Error() != "callers: are 10001, over 10000" {
		t.Errorf("New = %v", err)
	}
}

// TestGrantsAreBounded: rules multiply their lists.
func TestGrantsAreBounded(t *testing.T) {
	var cfg policy.Config
	var names, tenants []string
	for i := range 500 {
		names = append(names, fmt.Sprint("c", i))
		cfg.Callers = append(cfg.Callers, policy.CallerRule{Name: names[i], UID: new(uint32(i))})
	}
	for i := range 1000 {
		tenants = append(tenants, fmt.Sprint("t", i))
	}
	cfg.Rules = []policy.Rule{
		{Callers: names, Tenants: tenants[:999], Verbs: []string{"seal", "unseal"}},
		{Callers: names, Tenants: tenants[999:], Verbs: []string{"seal", "unseal"}},
	}
	p := mustNew(t, cfg)
	for _, uid := range []uint32{0, 499} {
		for _, id := range []string{"t0", "t999"} {
			if !p.Allow(policy.PeerCaller(uid, 1, 1), policy.Unseal, mustParse(t, id), noon) {
				t.Errorf("user %d may not unseal for %s", uid, id)
			}
		}
	}
	cfg.Rules = append(cfg.Rules, policy.Rule{Callers: []string{"*"}, Tenants: []string{"public"}, Verbs: []string{"seal"}})
	if _, err := policy.New(cfg); err == nil || !strings.HasPrefix(err.Error(), "rules[2]: takes the grants to over 1000000") {
		t.Errorf("New = %v", err)
	}
	long := make([]string, 1<<22) // 1<<66 grants: 0 in an int
	cfg.Rules = []policy.Rule{{Callers: long, Tenants: long, Verbs: long}}
	if _, err := policy.New(cfg); err == nil || !strings.HasPrefix(err.Error(), "rules[0]: takes the grants") {
		t.Errorf("New = %v", err)
	}
}
