package config_test

import (
	"strings"
	"testing"

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
		{"suspended", edits{"also_opens: [z]}", "also_opens: [z], state: suspended}"}, nil},
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
			`new:9: prefix "c-": KEK b no longer opens: add it to also_opens (tenant-kek-removed)`}},
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
				if f.Kind.Refuses() == (f.Kind == config.TenantRemoved) {
					t.Errorf("%s refuses: %t", f.Kind, f.Kind.Refuses())
				}
			}
		})
	}
}

// parseTenants returns a configuration with those tenants.
func parseTenants(t *testing.T, name, text string) *config.Config {
	t.Helper()
	c := *mustLoad(t, "testdata/minimal.yaml")
	tenants, err := config.DecodeTenants(name, []byte(text), &c)
	if err != nil {
		t.Fatal(err)
	}
	c.Tenants = tenants
	return &c
}
