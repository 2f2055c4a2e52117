package tenant_test

import (
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/tenant"
)

func TestAuditModeReadsBack(t *testing.T) {
	for text, want := range map[string]tenant.AuditMode{
		"": tenant.AuditDefault, "aggregate": tenant.AuditAggregate, "full": tenant.AuditFull,
	} {
		if got, err := tenant.ParseAuditMode(text); err != nil || got != want || got.String() != text {
			t.Errorf("ParseAuditMode(%q) = %d (%s), %v", text, got, got, err)
		}
	}
	for _, text := range []string{"Full", "full ", "none", "default", "audit(3)"} {
		if got, err := tenant.ParseAuditMode(text); err == nil {
			t.Errorf("ParseAuditMode(%q) = %d", text, got)
		}
	}
	if got := tenant.AuditMode(3).String(); got != "audit(3)" {
		t.Errorf("AuditMode(3) is %q", got)
	}
}

func TestParseKeyURL(t *testing.T) {
	hosts := []string{"*.vault.azure.net", "pool.vault.localhost:8443"}
	for url, want := range map[string]string{
		"https://kv-a.vault.azure.net/keys/Key-1":      "https://kv-a.vault.azure.net Key-1",
		"https://pool.vault.localhost:8443/keys/audit": "https://pool.vault.localhost:8443 audit",
	} {
		if vault, name, err := tenant.ParseKeyURL(url, hosts); err != nil || vault+" "+name != want {
			t.Errorf("ParseKeyURL(%s) = %s, %s, %v", url, vault, name, err)
		}
	}
	for url, want := range map[string]string{
		"":                                      `is not "https://..."`,
		"https://kv-a.vault.azure.net/keys/a/b": "key name",
		"https://kv-{tenant}.vault.azure.net/keys/a":     "has {tenant}",
		"https://kv-a.vault.azure.net/keys/{tenant}":     "has {tenant}",
		"https://kv-{a}.vault.azure.net/keys/a":          "brace",
		"https://pool.vault.localhost/keys/a":            "allowed",
		"https://a.b.vault.azure.net/keys/a":             "allowed",
		"https://*.vault.azure.net/keys/a":               "DNS name",
		"https://other.vault.localhost:8443/keys/a":      "allowed",
		"https://kv-a.vault.azure.net:8443/keys/a":       "allowed",
		"https://kv-a.vault.azure.net@evil.com/keys/kek": "DNS name",
	} {
		if vault, name, err := tenant.ParseKeyURL(url, hosts); err == nil || !strings.Contains(err.Error(), want) || vault != "" || name != "" {
			t.Errorf("ParseKeyURL(%s) = %s, %s, %v, want ...%s...", url, vault, name, err, want)
		}
	}
	if _, _, err := tenant.ParseKeyURL("https://kv-a.vault.azure.net/keys/a", nil); err == nil {
		t.Error("without hosts, a URL is taken")
	}
}
