package config_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/tenant"
)

// propertyKEKs returns refs and URLs of every kind. The templates leave 24, 21,
// 10 and 24 bytes for the ID.
func propertyKEKs() [][2]string {
	return [][2]string{
		{"a", "https://kv-a.vault.azure.net/keys/kek"},
		{"b", "https://kv-b.vault.azure.net/keys/kek"},
		{"whole", "https://{tenant}.vault.azure.net/keys/kek"},
		{"kv", "https://kv-{tenant}.vault.azure.net/keys/kek"},
		{"long", "https://keyvault-{tenant}-long.vault.azure.net/keys/kek"},
		{"name", "https://kv-name.vault.azure.net/keys/kek-{tenant}"},
	}
}

// drawTenants draws a tenants file with rules from ids and prefixes.
func drawTenants(t *rapid.T, c config.Config, ids, prefixes []string) *config.Config {
	head := "apiVersion: keysidecar/v1\nkeks:\n"
	var refs []string
	for _, k := range propertyKEKs() {
		refs = append(refs, k[0])
		head += fmt.Sprintf("- {ref: %s, url: %q, alg: A256KW, credential: main, region: r, "+
			"entra_tenant: 11111111-2222-3333-4444-555555555555}\n", k[0], k[1])
	}
	head += "tenants:\n- {id: always-there, kek: a}\n"
	for _, name := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(ids)+len(prefixes)-1), 0, 6, rapid.ID).Draw(t, "rules") {
		var about string
		if name < len(ids) {
			about = fmt.Sprintf("id: %q", ids[name])
		} else {
			about = fmt.Sprintf("prefix: %q", prefixes[name-len(ids)])
		}
		keks := rapid.SliceOfNDistinct(rapid.SampledFrom(refs), 1, 4, rapid.ID).Draw(t, "keks")
		more := rapid.SampledFrom([]string{"", "", ", state: suspended", ", regions: [r]"}).Draw(t, "more")
		more += rapid.SampledFrom([]string{"", ", audit: full", ", audit: aggregate"}).Draw(t, "audit")
		rule := fmt.Sprintf("- {%s, kek: %s, also_opens: [%s]%s}\n", about, keks[0], strings.Join(keks[1:], ", "), more)
		if _, err := config.DecodeTenants("f", []byte(head+rule), &c); err == nil { // the ID fits the templates
			head += rule
		}
	}
	tenants, err := config.DecodeTenants("f", []byte(head), &c)
	if err != nil {
		t.Fatal(err)
	}
	c.Tenants = tenants
	return &c
}

// concerned returns the name of the finding that a change for id has: id's if
// a file has a rule for it alone, or that of the longest prefix in either.
func concerned(id string, files ...*config.Config) string {
	longest := ""
	for _, c := range files {
		for _, r := range c.Tenants.Config.Tenants {
			switch {
			case r.ID == id:
				return id
			case r.Prefix != nil && strings.HasPrefix(id, *r.Prefix) && len(*r.Prefix) > len(longest):
				longest = *r.Prefix
			}
		}
	}
	return fmt.Sprintf("prefix %q", longest)
}

// lost returns what id loses from old to now, of the kind of finding that says so.
func lost(id tenant.ID, old, now *config.Config) []config.Kind {
	was, err := old.Tenants.Directory.Lookup(id)
	if err != nil {
		return nil
	}
	is, err := now.Tenants.Directory.Lookup(id)
	switch {
	case err != nil && strings.Contains(err.Error(), "template"):
		return []config.Kind{config.TenantTemplateNarrower}
	case err != nil:
		return []config.Kind{config.TenantRemoved}
	}
	var kinds []config.Kind
	for _, k := range was.KEKs {
		if got, ok := is.KEK([]byte(k.Ref)); !ok || got != k {
			kinds = append(kinds, config.TenantKEKRemoved)
		}
	}
	if is.Suspended && !was.Suspended {
		kinds = append(kinds, config.TenantSuspended)
	}
	if was.Allows(old.Region) && !is.Allows(now.Region) {
		kinds = append(kinds, config.TenantRegion)
	}
	if eachRecorded(was, old) && !eachRecorded(is, now) {
		kinds = append(kinds, config.TenantAudit)
	}
	return kinds
}

// eachRecorded reports whether a sidecar with that configuration writes a record
// of each of the tenant's calls.
func eachRecorded(e *tenant.Entry, c *config.Config) bool {
	return e.Audit == tenant.AuditFull || e.Audit == tenant.AuditDefault && c.Audit.Data == "full"
}

// TestCheckFindsWhatIsLost looks up random IDs in random pairs of files. Check
// says what each of them loses, under the name of the rule that it is about,
// and nothing about an ID of its own that loses nothing.
func TestCheckFindsWhatIsLost(t *testing.T) {
	base := *mustLoad(t, "testdata/minimal.yaml")
	base.Region = "r"
	ids := []string{"acme", "Acme", "c-7", "acme-corporation-eu", "c-" + strings.Repeat("7", 22), strings.Repeat("a", 21), "aa.b"}
	prefixes := []string{"", "a", "ac", "acme-", "A", "c-", "c-7", strings.Repeat("a", 12), "aa."}
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SampledFrom([]string{"aggregate", "full"})
		first, other := base, base
		first.Audit.Data, other.Audit.Data = data.Draw(t, "data"), data.Draw(t, "data")
		old := drawTenants(t, first, ids, prefixes)
		other.Region = rapid.SampledFrom([]string{"r", "elsewhere"}).Draw(t, "region")
		now := drawTenants(t, other, ids, prefixes)
		if same := config.Check(old, old); len(same) > 0 {
			t.Fatalf("compared with itself: %v", same)
		}
		findings := config.Check(old, now)
		says := func(name string, kind config.Kind) bool {
			return slices.ContainsFunc(findings, func(f config.Finding) bool { return f.Name == name && f.Kind == kind })
		}
		for _, s := range slices.Concat(ids, rapid.SliceOfN(drawID(prefixes), 30, 30).Draw(t, "ids")) {
			id, err := tenant.Parse(s)
			if err != nil {
				continue
			}
			kinds, name := lost(id, old, now), concerned(s, old, now)
			for _, kind := range kinds {
				if !says(name, kind) {
					t.Fatalf("no finding %s about %s, for ID %s: %v", kind, name, s, findings)
				}
			}
			if name == s && len(kinds) == 0 && slices.ContainsFunc(findings, func(f config.Finding) bool { return f.Name == s }) {
				t.Fatalf("findings about %s, which loses nothing: %v", s, findings)
			}
		}
	})
}

// drawID draws IDs that begin with one of prefixes, of every length that
// matters to a template.
func drawID(prefixes []string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		prefix := rapid.SampledFrom(prefixes).Draw(t, "prefix")
		n := rapid.IntRange(0, 26).Draw(t, "length")
		fill := rapid.SampledFrom([]string{"z", "9", "z9", "-z", "Z", ".z", "--z"}).Draw(t, "fill")
		return prefix + strings.Repeat(fill, n)[:n]
	})
}
