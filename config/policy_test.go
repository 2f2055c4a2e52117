package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestPolicyFile(t *testing.T) {
	c := mustLoad(t, "testdata/platform.yaml")
	admin := []string{"admin.status", "admin.reload", "admin.evict", "admin.policy", "admin.tenants", "admin.suspend"}
	want := policy.Config{
		Callers: []policy.CallerRule{
			{Name: "orders", UID: new(uint32(10001)), GID: new(uint32(20000)), Limits: tenant.Limits{Rate: 500, Burst: 1000, Calls: 64}},
			{Name: "batch", GID: new(uint32(30000)), Limits: tenant.Limits{Rate: 0.5}},
			{Name: "root", UID: new(uint32(0))},
			{Name: "billing", SPIFFE: "spiffe://platform.example.com/billing"},
			{Name: "legacy", DNS: "legacy.internal.example.com"},
		},
		Rules: []policy.Rule{
			{Callers: []string{"orders", "billing"}, Tenants: []string{"c-*", "s-*", "bank"}, Verbs: []string{"seal", "unseal"}},
			{Callers: []string{"batch", "legacy"}, Tenants: []string{"c-7", "s-eu-*"}, Verbs: []string{"unseal"}},
			{Callers: []string{"root"}, Tenants: []string{"*"}, Verbs: admin},
			{Callers: []string{"root"}, Tenants: []string{"bank"}, Verbs: []string{"unseal"},
				NotAfter: time.Date(2025, 3, 1, 17, 0, 0, 0, time.UTC), Ticket: "INC-4711"},
			{Callers: []string{"batch"}, Tenants: []string{"late-payer"}, Verbs: []string{"unseal"},
				NotAfter: time.Date(2999, 3, 1, 18, 0, 0, 500_000_000, time.UTC), Ticket: "INC-4712"},
		},
	}
	if diff := cmp.Diff(want, c.Policy.Config); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{9, 12, 15, 19, 24}, c.Policy.RuleLines); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	for rule, want := range map[int]int{-1: 0, 0: 9, 4: 24, 5: 0} {
		if got := c.Policy.Line(rule); got != want {
			t.Errorf("Line(%d) = %d, want %d", rule, got, want)
		}
	}
	who, err := policy.ParseCaller("spiffe://platform.example.com/billing")
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"bank": true, "c-9": true, "late-payer": false} {
		parsed, err := tenant.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Policy.Policy.Allow(who, policy.Seal, parsed, time.Now()); got != want {
			t.Errorf("Allow for %s = %t", id, got)
		}
	}
}

func TestExpired(t *testing.T) {
	p := mustLoad(t, "testdata/platform.yaml").Policy
	end := time.Date(2025, 3, 1, 17, 0, 0, 0, time.UTC)
	const first = "testdata/platform.policy.yaml:19: rules[3] expired at 2025-03-01T18:00:00+01:00 (ticket INC-4711)"
	for _, c := range []struct {
		now  time.Time
		want []string
	}{
		{end.Add(-1), nil},
		{end, []string{first}},
		{end.AddDate(1000, 0, 0), []string{first, "testdata/platform.policy.yaml:24: rules[4] expired at 2999-03-01T18:00:00Z (ticket INC-4712)"}},
	} {
		if diff := cmp.Diff(c.want, p.Expired(c.now)); diff != "" {
			t.Errorf("at %s (-want +got):\n%s", c.now, diff)
		}
	}
}

// TestVerbs compares the verbs that policy.yaml takes with those that there are.
func TestVerbs(t *testing.T) {
	rules, _ := reflect.TypeOf(config.PolicyFile()).FieldByName("Rules")
	verbs, _ := rules.Type.Elem().FieldByName("Verbs")
	var want []string
	for _, v := range policy.Verbs() {
		want = append(want, v.String())
	}
	if diff := cmp.Diff(want, strings.Fields(verbs.Tag.Get("enum"))); diff != "" {
		t.Errorf("verbs (-want +got):\n%s", diff)
	}
}

func TestNotAfter(t *testing.T) {
	c := mustLoad(t, "testdata/minimal.yaml")
	want := time.Date(2026, 12, 31, 17, 30, 0, 0, time.UTC)
	for _, text := range []string{
		"2026-12-31T17:30:00Z", "2026-12-31T17:30:00+00:00", "2026-12-31T18:30:00+01:00", "2026-12-30T17:31:00-23:59",
		"2026-12-31T17:30:00.0Z", "2026-12-31T17:30:00.000000000Z", "2026-12-31T23:15:00.000+05:45",
	} {
		for _, quoted := range []string{text, `"` + text + `"`, "'" + text + "'"} {
			p, err := config.DecodePolicy("f", []byte("apiVersion: keysidecar/v1\nrules: [{callers: [\"*\"], tenants: [acme], "+
				"verbs: [seal], ticket: T-1, not_after: "+quoted+"}]\n"), c.Tenants)
			if err != nil {
				t.Errorf("%s: %v", quoted, err)
			} else if got := p.Config.Rules[0].NotAfter; !got.Equal(want) {
				t.Errorf("%s is read as %s", quoted, got)
			}
		}
	}
}

// someTenants has rules about IDs and prefixes, one of them with a template.
const someTenants = `apiVersion: keysidecar/v1
keks:
- {ref: a, url: "https://kv-a.vault.azure.net/keys/kek", alg: A256KW, credential: main, entra_tenant: 11111111-2222-3333-4444-555555555555}
- {ref: t, url: "https://kv-{tenant}.vault.azure.net/keys/kek", alg: A256KW, credential: main, entra_tenant: 11111111-2222-3333-4444-555555555555}
tenants:
- {id: acme, kek: a, rate: 0.5, burst: 7, calls: 3}
- {id: "4711", kek: a, state: suspended}
- {prefix: c-eu-, kek: t}
`

func TestRuleTenants(t *testing.T) {
	c := mustLoad(t, "testdata/minimal.yaml")
	tenants, err := config.DecodeTenants("f", []byte(someTenants), c)
	if err != nil {
		t.Fatal(err)
	}
	if want := (tenant.Limits{Rate: 0.5, Burst: 7, Calls: 3}); tenants.Config.Tenants[0].Limits != want {
		t.Errorf("limits are %+v, want %+v", tenants.Config.Tenants[0].Limits, want)
	}
	long := strings.Repeat("x", tenant.MaxID)
	for pattern, want := range map[string]string{
		"acme": "", "4711": "", "c-eu-7": "", "*": "", "a*": "", "acme*": "", "4*": "", "c*": "", "c-eu-*": "", "c-eu-7*": "",
		"acme2":    `no entry of tenants.yaml is about tenant "acme2"`,
		"c-us-7":   `no entry of tenants.yaml is about tenant "c-us-7"`,
		"c-eu-A":   `no entry of tenants.yaml takes tenant "c-eu-A": `,
		"acme2*":   `no entry of tenants.yaml is about a tenant whose ID begins with "acme2"`,
		"b*":       `no entry of tenants.yaml is about a tenant whose ID begins with "b"`,
		"c-us-*":   `no entry of tenants.yaml is about a tenant whose ID begins with "c-us-"`,
		"z*":       `no entry of tenants.yaml is about a tenant whose ID begins with "z"`,
		long:       `no entry of tenants.yaml is about tenant "xxx`,
		long + "*": `no entry of tenants.yaml is about a tenant whose ID begins with "xxx`,
		"-":        `"-": tenant ID is not`,
		"..*":      `no tenant ID can begin with ".."`,
		"a*b":      `"a*b": tenant ID is not`,
	} {
		text := fmt.Sprintf("apiVersion: keysidecar/v1\ncallers: [{name: me, uid: 1}]\nrules:\n- callers: [me]\n  verbs: [seal]\n  tenants:\n  - %q\n", pattern)
		_, err := config.DecodePolicy("f", []byte(text), tenants)
		got := problemsOf(t, err)
		if want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || want == "" || !strings.HasPrefix(got[0].Text, want) || got[0].Path != "rules[0].tenants[0]" || got[0].Line != 7 || got[0].Column != 5 {
			t.Errorf("%s: %v, want %q", pattern, got, want)
		}
	}
}

// TestNoTenants sees that "*" stands for what tenants there are, even none.
func TestNoTenants(t *testing.T) {
	tenants, err := config.DecodeTenants("f", []byte("apiVersion: keysidecar/v1\nkeks: []\ntenants: []\n"), mustLoad(t, "testdata/minimal.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const rule = "apiVersion: keysidecar/v1\ncallers: [{name: me, uid: 1}]\nrules: [{callers: [me], verbs: [seal], tenants: [%q]}]\n"
	if _, err := config.DecodePolicy("f", fmt.Appendf(nil, rule, "*"), tenants); err != nil {
		t.Error(err)
	}
	if _, err := config.DecodePolicy("f", fmt.Appendf(nil, rule, "a*"), tenants); err == nil {
		t.Error("a prefix that no tenant has is taken")
	}
}

// TestRulePrefixes compares random tenants files and prefixes with what a
// search through all rules finds.
func TestRulePrefixes(t *testing.T) {
	base := *mustLoad(t, "testdata/minimal.yaml")
	names := rapid.StringOfN(rapid.SampledFrom([]rune("ab-")), 1, 4, -1).Filter(func(s string) bool { _, err := tenant.Parse(s); return err == nil })
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(names, 0, 4, rapid.ID).Draw(t, "ids")
		prefixes := rapid.SliceOfNDistinct(names, 0, 4, rapid.ID).Draw(t, "prefixes")
		text := someTenants[:strings.Index(someTenants, "- {id: acme")] + "- {id: Z, kek: a}\n"
		for _, id := range ids {
			text += fmt.Sprintf("- {id: %q, kek: a}\n", id)
		}
		for _, p := range prefixes {
			text += fmt.Sprintf("- {prefix: %q, kek: a}\n", p)
		}
		tenants, err := config.DecodeTenants("f", []byte(text), &base)
		if err != nil {
			t.Fatal(err)
		}
		pattern := names.Draw(t, "pattern")
		want := slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(id, pattern) }) ||
			slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(p, pattern) || strings.HasPrefix(pattern, p) })
		_, err = config.DecodePolicy("f", []byte("apiVersion: keysidecar/v1\nrules: [{callers: [\"*\"], verbs: [seal], tenants: [\""+pattern+"*\"]}]\n"), tenants)
		if (err == nil) != want {
			t.Errorf("%s*: %v, want ok %t", pattern, err, want)
		}
	})
}

func TestReload(t *testing.T) {
	path := writeFiles(t, config.ReferenceConfig(), config.ReferenceTenants(), config.ReferencePolicy())
	c := mustLoad(t, path)
	before, beforeTenants, beforePolicy := *c, *c.Tenants, *c.Policy
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "not read again")
	same, err := config.Reload(c)
	if err != nil || same == c || same.Tenants == c.Tenants || same.Policy == c.Policy || same.Policy.Policy == nil || same.Limits != c.Limits {
		t.Errorf("Reload = %+v, %v", same, err)
	}
	// Both new files go together only: neither fits the other's old one.
	write(c.TenantsFile, strings.Replace(config.ReferenceTenants(), "id: acme", "id: globex", 1))
	if bad, err := config.Reload(c); bad != nil || err == nil || !strings.Contains(err.Error(), `no entry of tenants.yaml is about tenant "acme"`) {
		t.Errorf("Reload = %v, %v", bad, err)
	}
	write(c.PolicyFile, strings.Replace(config.ReferencePolicy(), "tenants: [acme]", "tenants: [globex]", 1))
	now, err := config.Reload(c)
	if err != nil || now.Tenants.Config.Tenants[0].ID != "globex" || now.Policy.Config.Rules[0].Tenants[0] != "globex" {
		t.Errorf("Reload = %+v, %v", now, err)
	}
	if !reflect.DeepEqual(before, *c) || !reflect.DeepEqual(beforeTenants, *c.Tenants) || !reflect.DeepEqual(beforePolicy, *c.Policy) {
		t.Error("Reload changed the configuration")
	}
}

// TestBothFilesAreReported also sees that a policy is not compared with a
// tenants file that is not right.
func TestBothFilesAreReported(t *testing.T) {
	path := writeFiles(t, config.ReferenceConfig(), strings.Replace(config.ReferenceTenants(), "id: acme", "idx: acme", 1),
		strings.Replace(config.ReferencePolicy(), "verbs: [seal, unseal]", "verbs: [sael, unseal]", 1))
	bad, err := config.Load(path)
	got := problemsOf(t, err)
	if bad != nil || len(got) != 2 || got[0].File != filepath.Join(filepath.Dir(path), "policy.yaml") || got[0].Path != "rules[0].verbs[0]" ||
		got[1].File != filepath.Join(filepath.Dir(path), "tenants.yaml") || got[1].Path != "tenants[0].idx" {
		t.Errorf("Load = %v", got)
	}
	c := mustLoad(t, "testdata/minimal.yaml")
	c.TenantsFile = "testdata/bad/regions.tenants.yaml"
	c.PolicyFile = filepath.Join(filepath.Dir(path), "none.yaml")
	_, err = config.Reload(c)
	if got := problemsOf(t, err); len(got) != 2 || got[0].Text != "no such file or directory" {
		t.Errorf("Reload = %v", got)
	}
}
