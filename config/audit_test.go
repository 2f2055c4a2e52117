package config_test

import (
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

const entra = "11111111-2222-3333-4444-555555555555"

// decodeAudit decodes a config.yaml with that section "audit", in flow style
// without its braces.
func decodeAudit(section string) (*config.Audit, error) {
	c, err := config.Decode("f", []byte(`apiVersion: keysidecar/v1
key_vault: {hosts: ["kv.example.com:8443"], credentials: [{name: main, type: managed_identity},
 {name: bound, type: workload_identity, tenant_id: aaaaaaaa-2222-3333-4444-555555555555, client_id: `+entra+`}]}
audit: {`+section+"}\n"))
	return &c.Audit, err
}

// TestAuditEveryKey sets each key to another value than its default.
func TestAuditEveryKey(t *testing.T) {
	got, err := decodeAudit(`sink: dir, dir: /log, name: A.b_c-1, data: full, interval: 2m, rows: 16, checkpoint_interval: 1s,
 write_timeout: 3s, sync_interval: 1s, denials_per_minute: 1, context: [a, é b], segment_bytes: 1MiB, max_bytes: 16MiB,
 retention: {keys: 1d, denials: 2d, data: 0s}, signer: {url: "https://kv.example.com:8443/keys/Audit-1", credential: main, entra_tenant: ` + entra + "}")
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Audit{Sink: "dir", Dir: "/log", Name: "A.b_c-1", Data: "full", Interval: 2 * time.Minute, Rows: 16,
		CheckpointInterval: time.Second, WriteTimeout: 3 * time.Second, SyncInterval: time.Second, DenialsPerMinute: 1, Context: []string{"a", "é b"},
		SegmentBytes: config.MiB, MaxBytes: 16 * config.MiB,
		Retention: config.Retention{Keys: 24 * time.Hour, Denials: 48 * time.Hour},
		Signer:    config.Signer{URL: "https://kv.example.com:8443/keys/Audit-1", Credential: "main", EntraTenant: entra}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(config.Audit{})); diff != "" {
		t.Errorf("Decode (-want +got):\n%s", diff)
	}
	if same := sameFields(reflect.ValueOf(config.Default().Audit), reflect.ValueOf(*got)); len(same) > 0 {
		t.Errorf("%v are as by default: set them too", same)
	}
	if got.Mode() != tenant.AuditFull || (&config.Default().Audit).Mode() != tenant.AuditAggregate {
		t.Errorf("Mode = %s", got.Mode())
	}
}

// sameFields returns the exported fields of a section that are equal in a and b.
func sameFields(a, b reflect.Value) []string {
	var same []string
	for i := range a.NumField() {
		switch f := a.Type().Field(i); {
		case !f.IsExported():
		case config.IsSection(f.Type):
			same = append(same, sameFields(a.Field(i), b.Field(i))...)
		case reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			same = append(same, f.Name)
		}
	}
	return same
}

func TestAuditBounds(t *testing.T) {
	keys := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("k%d", i))
		}
		return "context: [" + strings.Join(all, ", ") + "]"
	}
	for section, want := range map[string]bool{
		"": true, "sink: none": true, "sink: none, name: x, data: full": true, "sink: dir": false, "sink: dir, dir: a": true,
		"sink: stdout, dir: a": false, "dir: a": false, "sink: none, dir: a": false, `sink: dir, dir: ""`: false, `dir: ""`: true,
		"name: " + strings.Repeat("x", 64): true, "name: " + strings.Repeat("x", 65): false, `name: ""`: true, "name: a/b": false,
		`name: "a b"`: false, "name: é": false, "name: a+b": false, `name: "1"`: true, "name: AZaz.-_": true, "name: \"a\u2028\"": false,
		"segment_bytes: 1GiB": true, "segment_bytes: 1GiB, max_bytes: 4095MiB": false, "max_bytes: 256MiB": true,
		"max_bytes: 268435455B": false, "segment_bytes: 4MiB, max_bytes: 16MiB": true, "segment_bytes: 5MiB, max_bytes: 16MiB": false,
		"segment_bytes: 1GiB, max_bytes: 1TiB": true, "segment_bytes: 1025MiB": false, "max_bytes: 1025GiB": false,
		"retention: {keys: 0s}": true, "retention: {keys: 1ns}": false, "retention: {keys: 1h}": true, "retention: {keys: 3660d}": true,
		"retention: {denials: 0d}": true, "retention: {denials: 59m}": false, "retention: {denials: 87841h}": false, "retention: {data: 3599s}": false,
		"interval: 1s": true, "interval: 10m": true, "interval: 601s": false, "checkpoint_interval: 100ms": true, "checkpoint_interval: 11m": false,
		"write_timeout: 100ms": true, "write_timeout: 30s": true, "write_timeout: 99ms": false, "rows: 100000": true, "rows: 100001": false, "sync_interval: 0s": true, "sync_interval: 11s": false,
		"denials_per_minute: 1000000": true, "denials_per_minute: 1000001": false,
		"context: []": true, keys(16): true, keys(17): false, "context: [" + strings.Repeat("é", 64) + "]": true,
		"context: [" + strings.Repeat("é", 64) + "a]": false, "context: [a, A]": true, "context: [a, b, a]": false, `context: ["\t"]`: false,
		`context: ["\x9f"]`: false, `context: ["\x7f"]`: false, `context: ["1", " "]`: true, "context: [1]": false, "context: a": false,
	} {
		if _, err := decodeAudit(section); (err == nil) != want {
			t.Errorf("{%s}: %v, want ok %t", section, err, want)
		}
	}
}

func TestAuditSignerKey(t *testing.T) {
	const rest = `", credential: main, entra_tenant: ` + entra + "}"
	for url, want := range map[string]kek.Key{
		"https://kv-audit.vault.azure.net/keys/audit": {Vault: "https://kv-audit.vault.azure.net", Name: "audit"},
		"https://kv.example.com:8443/keys/A-1":        {Vault: "https://kv.example.com:8443", Name: "A-1"},
		"https://h.managedhsm.azure.net/keys/a":       {Vault: "https://h.managedhsm.azure.net", Name: "a"},
	} {
		a, err := decodeAudit(`signer: {url: "` + url + rest)
		if err != nil {
			t.Error(err)
			continue
		}
		want.Ref, want.Credential, want.EntraTenant = "audit.signer", "main", entra
		if got, ok := a.SignerKey(); !ok || got != want {
			t.Errorf("SignerKey of %s = %+v, %t, want %+v", url, got, ok, want)
		}
	}
	for url, want := range map[string]string{
		"http://kv-audit.vault.azure.net/keys/audit":         `is not "https://..."`,
		"https://kv-audit.vault.azure.net/keys/audit/0123":   "key name",
		"https://kv-audit.vault.azure.net/secrets/audit":     "https://host/keys/name",
		"https://kv-{tenant}.vault.azure.net/keys/audit":     "has {tenant}",
		"https://kv-audit.vault.azure.net/keys/a-{tenant}":   "has {tenant}",
		"https://kv.example.com/keys/audit":                  "host kv.example.com is not one of the allowed vault hosts",
		"https://kv-audit.vault.localhost/keys/audit":        "allowed",
		"https://KV-audit.vault.azure.net/keys/audit":        "lower case",
		"https://kv-audit.vault.azure.net.evil.com/keys/key": "allowed",
		"https://*.vault.azure.net/keys/audit":               "DNS name",
	} {
		_, err := decodeAudit(`signer: {url: "` + url + rest)
		if p := problemsOf(t, err); len(p) != 1 || p[0].Path != "audit.signer.url" || p[0].Line != 4 || !strings.Contains(p[0].Text, want) {
			t.Errorf("%s: %v, want ...%s...", url, p, want)
		}
	}
	if k, ok := (&config.Default().Audit).SignerKey(); ok {
		t.Errorf("by default SignerKey = %+v", k)
	}
}

func TestAuditSignerTakesAllThree(t *testing.T) {
	const url, cred, id = `url: "https://kv.vault.azure.net/keys/audit"`, "credential: main", "entra_tenant: " + entra
	for keys, want := range map[string]string{
		"": "", `url: ""`: "", url + ", " + cred + ", " + id: "", url + ", credential: bound, entra_tenant: aaaaaaaa-2222-3333-4444-555555555555": "",
		url: "audit.signer.credential: is required with a url\n" +
			"audit.signer.entra_tenant: is required with a url",
		url + ", " + cred:                   "audit.signer.entra_tenant: is required with a url",
		url + ", " + id:                     "audit.signer.credential: is required with a url",
		cred:                                "audit.signer.credential: goes with a url only",
		id:                                  "audit.signer.entra_tenant: goes with a url only",
		`url: "", ` + cred + ", " + id:      "audit.signer.credential: goes with a url only\naudit.signer.entra_tenant: goes with a url only",
		url + ", credential: nobody, " + id: `audit.signer.credential: "nobody" is not the name of one of key_vault.credentials`,
		url + ", credential: bound, " + id:  "audit.signer.entra_tenant: is neither tenant_id nor one of allowed_tenants of credential bound",
		url + ", credential: main, entra_tenant: contoso.com": `audit.signer.entra_tenant: "contoso.com" is not a GUID in lower case`,
	} {
		_, err := decodeAudit("signer: {" + keys + "}")
		var got []string
		for _, p := range problemsOf(t, err) {
			got = append(got, p.Path+": "+p.Text)
		}
		if diff := cmp.Diff(want, strings.Join(got, "\n")); diff != "" {
			t.Errorf("{%s} (-want +got):\n%s", keys, diff)
		}
	}
}

func TestAuditOfThePlatformExample(t *testing.T) {
	c := mustLoad(t, "testdata/platform.yaml")
	if c.Path != "testdata/platform.yaml" || c.Audit.Dir != filepath.Join("testdata", "audit") || c.Audit.Retention.Denials != 400*24*time.Hour {
		t.Errorf("of %s: %+v", c.Path, c.Audit)
	}
	for id, want := range map[string]tenant.AuditMode{"bank": tenant.AuditFull, "c-7": tenant.AuditAggregate, "s-7": tenant.AuditDefault} {
		parsed, err := tenant.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := c.Tenants.Directory.Lookup(parsed); err != nil || e.Audit != want {
			t.Errorf("Lookup(%s) = %+v, %v, want audit %s", id, e, err, want)
		}
	}
	if k, ok := c.Audit.SignerKey(); !ok || k.Vault+" "+k.Name+" "+k.Credential != "https://hsm.internal.example.com Audit hsm" {
		t.Errorf("SignerKey = %+v, %t", k, ok)
	}
	if again, err := config.Reload(c); err != nil {
		t.Error(err)
	} else if k, ok := again.Audit.SignerKey(); !ok || k.Name != "Audit" || again.Path != c.Path {
		t.Errorf("after a reload: %+v", again.Audit)
	}
}

func TestWarnings(t *testing.T) {
	for text, want := range map[string][]string{
		"apiVersion: keysidecar/v1\n":                                                 nil,
		"apiVersion: keysidecar/v1\naudit: {sink: dir, dir: a}\n":                     nil,
		"apiVersion: keysidecar/v1\naudit:\n  data: full\n  sink: none\nserver: {}\n": {"f:4: audit.sink is none: nothing is recorded"},
	} {
		c, err := config.Decode("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, c.Warnings()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}

// TestCheckAudit changes how the tenants acme (by its own rule) and c-7 (by a
// prefix) are recorded.
func TestCheckAudit(t *testing.T) {
	in := func(section, acme, prefix string) *config.Config {
		text := edits{"also_opens: [z]}", "also_opens: [z]" + acme + " }", "kek: b}", "kek: b" + prefix + " }"}.apply(t, oldTenants)
		c := parseTenants(t, "file", text)
		with, err := config.Decode("cfg", []byte("apiVersion: keysidecar/v1\naudit: {"+section+"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		c.Path, c.Audit = with.Path, with.Audit
		return c
	}
	const full, aggregate = ", audit: full", ", audit: aggregate"
	const acme = "file:8: acme: its calls are no longer recorded one by one (tenant-audit)"
	const rest = `file:9: prefix "": its calls are no longer recorded one by one (tenant-audit)`
	const c7 = `file:10: prefix "c-": its calls are no longer recorded one by one (tenant-audit)`
	const off = "cfg:2: audit.sink: is none: nothing is recorded any more (audit-off)"
	for _, tt := range []struct {
		name     string
		old, now *config.Config
		want     []string
	}{
		{"full from now on", in("", "", aggregate), in("", full, full), nil},
		{"full still, by its own rule", in("data: full", "", full), in("", full, full), []string{rest}},
		{"full still, by default", in("", full, full), in("data: full", "", ""), nil},
		{"aggregate", in("", full, full), in("", full, aggregate), []string{c7}},
		{"aggregate by default", in("", full, full), in("data: aggregate", "", full), []string{acme}},
		{"aggregate before", in("data: full", aggregate, aggregate), in("data: full", aggregate, ""), nil},
		{"aggregate for all", in("data: full", "", ""), in("", "", ""), []string{acme, rest, c7}},
		{"off", in("", full, ""), in("sink: none", "", ""), []string{off}},
		{"off still", in("sink: none, data: full", full, ""), in("sink: none", "", ""), nil},
		{"on", in("sink: none, data: full", full, ""), in("", "", ""), nil},
		{"another sink", in("", full, ""), in("sink: dir, dir: a", full, ""), nil},
	} {
		var got []string
		for _, f := range config.Check(tt.old, tt.now) {
			got = append(got, f.String())
			if f.Kind.Refuses() {
				t.Errorf("%s: %s refuses", tt.name, f.Kind)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
