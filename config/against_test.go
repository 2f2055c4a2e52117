package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/config"
)

const oldTenants = `apiVersion: keysidecar/v1
keks:
- {ref: a, url: "https://kv-a.vault.azure.net/keys/kek", alg: RSA-OAEP-256, credential: main, entra_tenant: 11111111-2222-3333-4444-555555555555}
- {ref: b, url: "https://kv-b.vault.azure.net/keys/kek", alg: A256KW, credential: main, entra_tenant: 11111111-2222-3333-4444-555555555555}
- {ref: t, url: "https://kv-{tenant}.vault.azure.net/keys/kek", alg: A256KW, credential: main, entra_tenant: 11111111-2222-3333-4444-555555555555}
- {ref: z, url: "https://kv-z.vault.azure.net/keys/kek", alg: A256KW, credential: main, retired: true, entra_tenant: 11111111-2222-3333-4444-555555555555}
tenants:
- {id: acme, kek: a, also_opens: [z]}
- {prefix: "", kek: t}
- {prefix: c-, kek: b}
`

// ofTwo is a KEK whose template leaves 20 bytes for the ID, one less than t's.
const ofTwo = `- {ref: two, url: "https://{tenant}-two.vault.azure.net/keys/kek", alg: A256KW, credential: main, entra_tenant: 11111111-2222-3333-4444-555555555555}
`

// edits are texts, each followed by what replaces it.
type edits []string

func (e edits) apply(t *testing.T, text string) string {
	for i := 0; i < len(e); i += 2 {
		changed := strings.Replace(text, e[i], e[i+1], 1)
		if changed == text {
			t.Fatalf("%q is not there to be replaced", e[i])
		}
		text = changed
	}
	return text
}

func TestCheck(t *testing.T) {
	z := oldTenants[strings.Index(oldTenants, "- {ref: z, "):strings.Index(oldTenants, "tenants:")]
	for _, tt := range []struct {
		name  string
		edits edits // to the new file
		want  []string
	}{
		{"nothing", edits{}, nil},
		{"a new KEK and tenant", edits{"tenants:\n", "tenants:\n- {id: new-one, kek: b, also_opens: [t]}\n"}, nil},
		{"retired", edits{"A256KW, credential", "A256KW, retired: true, credential", "kek: b", "kek: a, also_opens: [b]"}, nil},
		{"case of a key name", edits{"kv-a.vault.azure.net/keys/kek", "kv-a.vault.azure.net/keys/KEK"}, nil},
		{"another KEK wraps", edits{"kek: a, also_opens: [z]", "kek: b, also_opens: [a, z]"}, nil},
		{"more room for a tenant", edits{"- {prefix: c-, kek: b}", "- {prefix: c-, kek: b, also_opens: [a]}"}, nil},
		{"suspended", edits{"also_opens: [z]}", "also_opens: [z], state: suspended}"}, []string{
			"new:8: acme: is suspended: nothing is sealed or unsealed (tenant-suspended)"}},
		{"template of the same room", edits{"tenants:\n", ofTwo + "tenants:\n", "kek: t}", "kek: two, also_opens: [t]}", "{tenant}-two.", "k{tenant}-x."}, nil},
		{"narrower template", edits{"tenants:\n", ofTwo + "tenants:\n", "kek: t}", "kek: two, also_opens: [t]}"}, []string{
			`new:10: prefix "": tenant ID "aaaaaaaaaaaaaaaaaaaaa" no longer fits a KEK's URL template, and its data does not open: leave as much room (tenant-template-narrower)`}},
		{"narrower template, may open", edits{"tenants:\n", ofTwo + "tenants:\n", "kek: t}", "kek: t, also_opens: [two]}"}, []string{
			`new:10: prefix "": tenant ID "aaaaaaaaaaaaaaaaaaaaa" no longer fits a KEK's URL template, and its data does not open: leave as much room (tenant-template-narrower)`}},
		{"template where there was none", edits{"kek: b}", "kek: b, also_opens: [t]}"}, []string{
			`new:10: prefix "c-": tenant ID "c-A" no longer fits a KEK's URL template, and its data does not open: leave as much room (tenant-template-narrower)`}},
		{"tenant fell to a template", edits{"- {id: acme, kek: a, also_opens: [z]}\n", "", "kek: t}", "kek: t, also_opens: [a, z]}"}, nil},
		{"removed", edits{z, "", ", also_opens: [z]", ""}, []string{"old:6: z: is gone: set \"retired: true\" instead (kek-removed)",
			"new:7: acme: KEK z no longer opens: add it to also_opens (tenant-kek-removed)"}},
		{"renamed", edits{"ref: z,", "ref: zz,", "also_opens: [z]", "also_opens: [zz]"}, []string{"old:6: z: is now called zz: sealed data names it by its ref, for ever (kek-renamed)",
			"new:8: acme: KEK z no longer opens: add it to also_opens (tenant-kek-removed)"}},
		{"other vault", edits{"kv-b.vault", "kv-bb.vault"}, []string{"new:4: b: was https://kv-b.vault.azure.net/keys/kek: another key needs another ref (kek-url-changed)"}},
		{"other key", edits{"kv-b.vault.azure.net/keys/kek", "kv-b.vault.azure.net/keys/kek2"}, []string{"new:4: b: was https://kv-b.vault.azure.net/keys/kek: another key needs another ref (kek-url-changed)"}},
		{"other algorithm", edits{"kek\", alg: RSA-OAEP-256", "kek\", alg: A256KW"}, []string{"new:3: a: was RSA-OAEP-256: a ref has one algorithm, for ever (kek-alg-changed)"}},
		{"no longer retired", edits{"retired: true, ", ""}, []string{"new:6: z: was retired: use a new key and ref (kek-unretired)"}},
		{"tenant lost its KEK", edits{"kek: a,", "kek: b,"}, []string{"new:8: acme: KEK a no longer opens: add it to also_opens (tenant-kek-removed)"}},
		{"tenant lost its other KEK", edits{", also_opens: [z]", ""}, []string{"new:8: acme: KEK z no longer opens: add it to also_opens (tenant-kek-removed)"}},
		{"tenant fell to a prefix", edits{"- {id: acme, kek: a, also_opens: [z]}\n", ""}, []string{
			"new:8: acme: KEK a no longer opens: add it to also_opens (tenant-kek-removed)",
			"new:8: acme: KEK z no longer opens: add it to also_opens (tenant-kek-removed)"}},
		{"tenant taken from a prefix", edits{"tenants:\n", "tenants:\n- {id: c-7, kek: a}\n"}, []string{
			"new:8: c-7: KEK b no longer opens: add it to also_opens (tenant-kek-removed)"}},
		{"tenants taken from a prefix", edits{"tenants:\n", "tenants:\n- {prefix: c-eu-, kek: a}\n"}, []string{
			`new:8: prefix "c-eu-": KEK b no longer opens: add it to also_opens (tenant-kek-removed)`}},
		{"tenants that the template refused", edits{"tenants:\n", "tenants:\n- {id: Big, kek: b}\n- {prefix: Big., kek: b}\n"}, nil},
		{"prefix lost its KEK", edits{"prefix: c-, kek: b", "prefix: c-, kek: a"}, []string{
			`new:10: prefix "c-": KEK b no longer opens: add it to also_opens (tenant-kek-removed)`}},
		{"prefix fell to another", edits{"- {prefix: c-, kek: b}\n", ""}, []string{
			`new:9: prefix "c-": KEK b no longer opens: add it to also_opens (tenant-kek-removed)`,
			`new:9: prefix "c-": tenant ID "c-A" no longer fits a KEK's URL template, and its data does not open: leave as much room (tenant-template-narrower)`}},
		{"prefix is gone", edits{"- {prefix: \"\", kek: t}\n", ""}, []string{
			`old:9: prefix "": is gone, and its data does not open: suspend it instead (tenant-removed)`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := config.Check(parseTenants(t, "old", oldTenants), parseTenants(t, "new", tt.edits.apply(t, oldTenants)))
			if len(got) != len(tt.want) {
				t.Errorf("%d findings, want %d", len(got), len(tt.want))
			}
			for i, f := range got {
				if i >= len(tt.want) || f.String() != tt.want[i] {
					t.Errorf("finding %s", f)
				}
				if f.Kind.Refuses() == (f.Kind == config.TenantRemoved || f.Kind == config.TenantSuspended) {
					t.Errorf("%s refuses: %t", f.Kind, f.Kind.Refuses())
				}
			}
		})
	}
}

// TestCheckOwnTenants has an exact rule removed from above a template that
// refuses its ID although the KEKs are all there.
func TestCheckOwnTenants(t *testing.T) {
	const own = "- {id: Acme, kek: b}\n"
	old := edits{"- {prefix: c-, kek: b}\n", own, "kek: t}", "kek: t, also_opens: [b]}"}.apply(t, oldTenants)
	got := config.Check(parseTenants(t, "old", old), parseTenants(t, "new", edits{own, ""}.apply(t, old)))
	want := `new:9: Acme: tenant ID "Acme" no longer fits a KEK's URL template, ` +
		"and its data does not open: leave as much room (tenant-template-narrower)"
	if len(got) != 1 || got[0].String() != want || !got[0].Kind.Refuses() {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestCheckRegions(t *testing.T) {
	const here, there = "region: westeurope, alg: A256KW", "region: northeurope, alg: A256KW"
	text := strings.ReplaceAll(oldTenants, "alg: A256KW", here)
	in := func(region, rule string) *config.Config {
		text := edits{"kek: b}", rule + " "}.apply(t, text)
		if strings.Contains(rule, "north") {
			text = strings.ReplaceAll(text, here, there)
		}
		return parseTenantsIn(t, region, "file", text)
	}
	const anywhere, west, north = "kek: b}", "kek: b, regions: [westeurope]}", "kek: b, regions: [northeurope]}"
	for _, tt := range []struct {
		name     string
		old, now *config.Config
		region   string // of the finding; empty: there is none
	}{
		{"the sidecar's", in("westeurope", anywhere), in("westeurope", west), ""},
		{"another than the sidecar's", in("westeurope", west), in("westeurope", north), "westeurope"},
		{"stated, another than the sidecar's", in("northeurope", anywhere), in("northeurope", west), "northeurope"},
		{"another sidecar's", in("westeurope", west), in("northeurope", west), "northeurope"},
		{"never the sidecar's", in("southeurope", west), in("southeurope", north), ""},
	} {
		var want []string
		if tt.region != "" {
			want = []string{`file:10: prefix "c-": the sidecar's region "` + tt.region +
				`" is not one of its regions: nothing is sealed or unsealed here (tenant-region)`}
		}
		var got []string
		for _, f := range config.Check(tt.old, tt.now) {
			got = append(got, f.String())
			if f.Kind.Refuses() {
				t.Errorf("%s: %s refuses", tt.name, f.Kind)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// parseTenants returns a configuration with those tenants.
func parseTenants(t testing.TB, name, text string) *config.Config {
	t.Helper()
	return parseTenantsIn(t, "", name, text)
}

// parseTenantsIn is parseTenants for a sidecar in that region.
func parseTenantsIn(t testing.TB, region, name, text string) *config.Config {
	t.Helper()
	c := *mustLoad(t, "testdata/minimal.yaml")
	c.Region = region
	tenants, err := config.DecodeTenants(name, []byte(text), &c)
	if err != nil {
		t.Fatal(err)
	}
	c.Tenants = tenants
	return &c
}
