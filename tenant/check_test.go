package tenant_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/tenant"
)

func TestNewRefuses(t *testing.T) {
	url := func(u string) func(*tenant.Config) { return func(c *tenant.Config) { c.KEKs[0].URL = u } }
	for _, tt := range []struct {
		name   string
		change func(*tenant.Config)
		path   string
		text   string
	}{
		{"no URL", url(""), "keks[0].url", "https"},
		{"plain HTTP", url("http://kv-acme.vault.azure.net/keys/kek"), "keks[0].url", "https"},
		{"no path", url("https://kv-acme.vault.azure.net"), "keks[0].url", "host/keys/name"},
		{"secret", url("https://kv-acme.vault.azure.net/secrets/kek"), "keks[0].url", "host/keys/name"},
		{"version", url("https://kv-acme.vault.azure.net/keys/kek/0123"), "keks[0].url", "key name"},
		{"no name", url("https://kv-acme.vault.azure.net/keys/"), "keks[0].url", "key name"},
		{"long name", url("https://kv-acme.vault.azure.net/keys/" + strings.Repeat("k", 128)), "keks[0].url", "key name"},
		{"query", url("https://kv-acme.vault.azure.net/keys/kek?x=y"), "keks[0].url", "key name"},
		{"fragment", url("https://kv-acme.vault.azure.net/keys/kek#x"), "keks[0].url", "key name"},
		{"percent", url("https://kv-acme.vault.azure.net/keys/k%65k"), "keks[0].url", "key name"},
		{"user", url("https://kv@evil.vault.azure.net/keys/kek"), "keks[0].url", "DNS name"},
		{"upper case", url("https://KV-acme.vault.azure.net/keys/kek"), "keks[0].url", "lower case"},
		{"address", url("https://127.0.0.1/keys/kek"), "keks[0].url", "DNS name"},
		{"IPv6", url("https://[::1]/keys/kek"), "keks[0].url", "port"},
		{"one label", url("https://localhost/keys/kek"), "keks[0].url", "two labels"},
		{"empty label", url("https://kv..vault.azure.net/keys/kek"), "keks[0].url", "DNS name"},
		{"final dot", url("https://kv.vault.azure.net./keys/kek"), "keks[0].url", "DNS name"},
		{"no host", url("https:///keys/kek"), "keks[0].url", "DNS name"},
		{"port 443", url("https://kv-acme.vault.azure.net:443/keys/kek"), "keks[0].url", "443"},
		{"port 0", url("https://kv-acme.vault.azure.net:0/keys/kek"), "keks[0].url", "port"},
		{"port 65536", url("https://kv-acme.vault.azure.net:65536/keys/kek"), "keks[0].url", "port"},
		{"no port", url("https://kv-acme.vault.azure.net:/keys/kek"), "keks[0].url", "port"},
		{"foreign port", url("https://kv-acme.vault.azure.net:8443/keys/kek"), "keks[0].url", "allowed"},
		{"foreign host", url("https://kv-acme.vault.azure.net.evil.com/keys/kek"), "keks[0].url", "allowed"},
		{"two labels before the suffix", url("https://a.b.vault.azure.net/keys/kek"), "keks[0].url", "allowed"},
		{"the suffix itself", url("https://vault.azure.net/keys/kek"), "keks[0].url", "allowed"},
		{"two holes", url("https://kv-{tenant}.vault.azure.net/keys/{tenant}"), "keks[0].url", "more than once"},
		{"hole in the second label", url("https://kv.{tenant}.azure.net/keys/kek"), "keks[0].url", "DNS name"},
		{"hole in the suffix", url("https://kv.vault.azure.{tenant}/keys/kek"), "keks[0].url", "DNS name"},
		{"hole in the port", url("https://kv.vault.azure.net:{tenant}/keys/kek"), "keks[0].url", "port"},
		{"hole in the path", url("https://kv.vault.azure.net/{tenant}/kek"), "keks[0].url", "host/keys/name"},
		{"other hole", url("https://kv-{region}.vault.azure.net/keys/kek"), "keks[0].url", "brace"},
		{"open hole", url("https://kv-{tenant.vault.azure.net/keys/kek"), "keks[0].url", "brace"},
		{"hole after two hyphens", url("https://kv--{tenant}.vault.azure.net/keys/kek"), "keks[0].url", "vault name"},
		{"hole before a hyphen", url("https://{tenant}-.vault.azure.net/keys/kek"), "keks[0].url", "vault name"},
		{"hole after a digit", url("https://1{tenant}.vault.azure.net/keys/kek"), "keks[0].url", "vault name"},
		{"hole in a long name", url("https://a123456789012345678901{tenant}.vault.azure.net/keys/kek"), "keks[0].url", "vault name"},
		{"hole in a long key name", url("https://kv.vault.azure.net/keys/" + strings.Repeat("k", 104) + "{tenant}"), "keks[0].url", "key name"},
		{"hole with a foreign host", url("https://kv-{tenant}.evil.com/keys/kek"), "keks[0].url", "allowed"},
		{"hole before a literal host", url("https://{tenant}.vault.localhost:8443/keys/kek"), "keks[0].url", "allowed"},
		{"same URL", url("https://kv-shared.vault.azure.net/keys/KEK"), "keks[4].url", "already"},
		{"no ref", func(c *tenant.Config) { c.KEKs[3].Ref = "" }, "keks[3].ref", "[a-z0-9-]"},
		{"long ref", func(c *tenant.Config) { c.KEKs[3].Ref = strings.Repeat("a", 64) }, "keks[3].ref", "63"},
		{"upper-case ref", func(c *tenant.Config) { c.KEKs[3].Ref = "Each" }, "keks[3].ref", "[a-z0-9-]"},
		{"ref with a last hyphen", func(c *tenant.Config) { c.KEKs[3].Ref = "each-" }, "keks[3].ref", "last"},
		{"same ref", func(c *tenant.Config) { c.KEKs[3].Ref = "acme" }, "keks[3].ref", "twice"},
		{"no alg", func(c *tenant.Config) { c.KEKs[3].Alg = 0 }, "keks[3].alg", "RSA-OAEP-256"},
		{"no credential", func(c *tenant.Config) { c.KEKs[3].Credential = "" }, "keks[3].credential", "required"},
		{"no Entra tenant", func(c *tenant.Config) { c.KEKs[3].EntraTenant = "" }, "keks[3].entra_tenant", "GUID"},
		{"Entra domain", func(c *tenant.Config) { c.KEKs[3].EntraTenant = "contoso.com" }, "keks[3].entra_tenant", "GUID"},
		{"upper-case GUID", func(c *tenant.Config) { c.KEKs[3].EntraTenant = strings.Replace(entra, "5", "A", 1) }, "keks[3].entra_tenant", "GUID"},
		{"no ID", func(c *tenant.Config) { c.Tenants[0].ID = "" }, "tenants[0]", "neither"},
		{"ID and prefix", func(c *tenant.Config) { c.Tenants[0].Prefix = new("") }, "tenants[0]", "both"},
		{"ill-formed ID", func(c *tenant.Config) { c.Tenants[0].ID = "a b" }, "tenants[0].id", "128 bytes"},
		{"same ID", func(c *tenant.Config) { c.Tenants[1].ID = "acme" }, "tenants[1].id", "twice"},
		{"ID that does not fit", func(c *tenant.Config) { c.Tenants[1].ID = "Closed" }, "tenants[1].id", "does not fit"},
		{"ill-formed prefix", func(c *tenant.Config) { c.Tenants[3].Prefix = new("-c") }, "tenants[3].prefix", "begin with"},
		{"prefix with dots", func(c *tenant.Config) { c.Tenants[3].Prefix = new("c..") }, "tenants[3].prefix", "begin with"},
		{"long prefix", func(c *tenant.Config) { c.Tenants[3].Prefix = new(strings.Repeat("c", 129)) }, "tenants[3].prefix", "begin with"},
		{"longest prefix", func(c *tenant.Config) { c.Tenants[3].Prefix = new(strings.Repeat("c", 127) + "-") }, "tenants[3].prefix", "begin with"},
		{"same prefix", func(c *tenant.Config) { c.Tenants[3].Prefix = new("c-") }, "tenants[3].prefix", "twice"},
		{"prefix that fits nothing", func(c *tenant.Config) { c.Tenants[2].Prefix = new("C-") }, "tenants[2].prefix", "fits"},
		{"prefix too long to fit", func(c *tenant.Config) { c.Tenants[2].Prefix = new(strings.Repeat("c", 20)) }, "tenants[2].prefix", "fits"},
		{"no KEK", func(c *tenant.Config) { c.Tenants[0].KEK = "" }, "tenants[0].kek", "not the ref"},
		{"unknown KEK", func(c *tenant.Config) { c.Tenants[0].KEK = "none" }, "tenants[0].kek", "not the ref"},
		{"retired KEK", func(c *tenant.Config) { c.Tenants[0].KEK, c.Tenants[0].AlsoOpens = "old", nil }, "tenants[0].kek", "retired"},
		{"unknown other KEK", func(c *tenant.Config) { c.Tenants[0].AlsoOpens[1] = "none" }, "tenants[0].also_opens[1]", "not the ref"},
		{"same KEK", func(c *tenant.Config) { c.Tenants[0].AlsoOpens[1] = "acme" }, "tenants[0].also_opens[1]", "twice"},
		{"too many KEKs", func(c *tenant.Config) { c.Tenants[0].AlsoOpens = make([]string, 16) }, "tenants[0].also_opens", "over 15"},
		{"KEK elsewhere", func(c *tenant.Config) { c.Tenants[0].Regions = []string{"northeurope"} }, "tenants[0].kek", "region"},
		{"other KEK elsewhere", func(c *tenant.Config) { c.KEKs[1].Region = "eastus" }, "tenants[0].also_opens[0]", "region"},
		{"KEK without a region", func(c *tenant.Config) { c.KEKs[1].Region = "" }, "tenants[0].also_opens[0]", "region"},
		{"empty region", func(c *tenant.Config) { c.Tenants[0].Regions[1] = "" }, "tenants[0].regions[1]", "empty"},
		{"negative rate", func(c *tenant.Config) { c.Tenants[3].Limits.Rate = -1e-9 }, "tenants[3].rate", "finite"},
		{"rate that is no number", func(c *tenant.Config) { c.Tenants[3].Limits.Rate = math.NaN() }, "tenants[3].rate", "NaN"},
		{"infinite rate", func(c *tenant.Config) { c.Tenants[0].Limits.Rate = math.Inf(1) }, "tenants[0].rate", "+Inf"},
		{"negatively infinite rate", func(c *tenant.Config) { c.Tenants[0].Limits.Rate = math.Inf(-1) }, "tenants[0].rate", "-Inf"},
		{"negative burst", func(c *tenant.Config) { c.Tenants[3].Limits.Burst = -1 }, "tenants[3].burst", "negative"},
		{"negative calls", func(c *tenant.Config) { c.Tenants[1].Limits.Calls = -1 }, "tenants[1].calls", "negative"},
		{"no mode of the audit log", func(c *tenant.Config) { c.Tenants[3].Audit = tenant.AuditFull + 1 }, "tenants[3].audit", "audit(3)"},
		{"host in upper case", func(c *tenant.Config) { c.Hosts = append(c.Hosts, "KV.example.com") }, "hosts[2]", "lower case"},
		{"any host", func(c *tenant.Config) { c.Hosts = append(c.Hosts, "*") }, "hosts[2]", "DNS name"},
		{"host of one label", func(c *tenant.Config) { c.Hosts = append(c.Hosts, "*.net") }, "hosts[2]", "two labels"},
		{"star inside", func(c *tenant.Config) { c.Hosts = append(c.Hosts, "kv.*.net") }, "hosts[2]", "DNS name"},
		{"no hosts", func(c *tenant.Config) { c.Hosts = nil }, "keks[0].url", "allowed"},
		{"negative cache", func(c *tenant.Config) { c.TemplateCache = -1 }, "template_cache", "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := sample()
			tt.change(&cfg)
			d, err := tenant.New(cfg)
			var bad *tenant.ConfigError
			if d != nil || !errors.As(err, &bad) {
				t.Fatalf("New = %v, %v, want a *ConfigError", d, err)
			}
			if m := bad.Mistakes[0]; m.Path != tt.path || !strings.Contains(m.Text, tt.text) {
				t.Errorf("New: %s: %s\nwant %s: ...%s...", m.Path, m.Text, tt.path, tt.text)
			}
		})
	}
}

func TestNewReportsAllMistakesButNotTooMany(t *testing.T) {
	cfg := sample()
	cfg.KEKs[0].Ref = "-"
	cfg.Tenants[3].KEK = "none"
	_, err := tenant.New(cfg)
	for _, want := range []string{"keks[0].ref: ", "tenants[0].kek: ", "tenants[3].kek: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want %q too", err, want)
		}
	}
	cfg.Tenants = nil
	for i := range 1000 {
		cfg.Tenants = append(cfg.Tenants, tenant.Rule{ID: fmt.Sprint(i), KEK: "none"})
	}
	var bad *tenant.ConfigError
	if _, err := tenant.New(cfg); !errors.As(err, &bad) || len(bad.Mistakes) != 10 {
		t.Errorf("New = %v, want 10 mistakes", err)
	}
}

func TestNewAcceptsNothing(t *testing.T) {
	d, err := tenant.New(tenant.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup(mustParse(t, "a")); !errors.Is(err, tenant.ErrUnknown) {
		t.Error(err)
	}
}

func TestCheckHost(t *testing.T) {
	for host, want := range map[string]bool{
		"kv.example.com": true, "kv.example.com:8443": true, "*.vault.azure.net": true, "*.vault.localhost:8443": true,
		"xn--kv-x.example": true, "1kv.example.com": true,
		"": false, "*": false, "*.": false, "*.net": false, "localhost": false, "*.*.net": false, "a.b:": false, "a.b:+80": false,
		"a.b:080": false, "a.b:443": false, "10.0.0.1": false, "a_b.net": false, "a.-b": false, "a.b/c": false, "https://a.b": false,
		strings.Repeat("a", 64) + ".net": false, strings.Repeat("a.", 127) + "net": false,
	} {
		if err := tenant.CheckHost(host); (err == nil) != want {
			t.Errorf("CheckHost(%q) = %v, want ok %t", host, err, want)
		}
	}
}
