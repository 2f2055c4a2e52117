package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/tenant"
)

// files returns the files of that kind that match pattern, at least one. The
// kind is ".tenants" or ".policy", or "" for a config.yaml.
func files(t testing.TB, pattern, kind string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, name := range all {
		if _, suffix, ok := strings.Cut(filepath.Base(name), "."); ok && suffix == strings.TrimPrefix(kind+".yaml", ".") {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no file matches %s", pattern)
	}
	return out
}

func mustLoad(t testing.TB, name string) *config.Config {
	t.Helper()
	c, err := config.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// noRules is a policy.yaml that allows nothing.
const noRules = "apiVersion: keysidecar/v1\nrules: []\n"

// writeFiles writes all files to a new directory and returns config.yaml's path.
func writeFiles(t testing.TB, cfg, tenants, policy string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"config.yaml": cfg, "tenants.yaml": tenants, "policy.yaml": policy} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.yaml")
}

// problemsOf returns the problems of an *config.Error, nil for nil.
func problemsOf(t testing.TB, err error) []config.Problem {
	t.Helper()
	var bad *config.Error
	if err != nil && !errors.As(err, &bad) {
		t.Fatalf("%v is not a *config.Error", err)
	}
	if bad == nil {
		return nil
	}
	return bad.Problems
}

func TestExamplesLoad(t *testing.T) {
	for _, name := range files(t, "testdata/*.yaml", "") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c := mustLoad(t, name)
			if c.Tenants.Directory == nil || len(c.Tenants.Config.KEKs) == 0 {
				t.Errorf("Tenants = %+v", c.Tenants)
			}
			if c.Policy.Policy == nil || len(c.Policy.Config.Rules) == 0 || c.Policy.Path != c.PolicyFile {
				t.Errorf("Policy = %+v", c.Policy)
			}
		})
	}
}

func TestBadExamples(t *testing.T) {
	for _, name := range files(t, "testdata/bad/*.yaml", "") {
		t.Run(filepath.Base(name), func(t *testing.T) { checkBad(t, name, func() error { _, err := config.Load(name); return err }) })
	}
	for kind, other := range map[string]func(c *config.Config, name string){
		".tenants": func(c *config.Config, name string) { c.TenantsFile = name },
		".policy":  func(c *config.Config, name string) { c.PolicyFile = name },
	} {
		for _, name := range files(t, "testdata/bad/*.yaml", kind) {
			t.Run(filepath.Base(name), func(t *testing.T) {
				c := mustLoad(t, "testdata/minimal.yaml")
				other(c, name)
				checkBad(t, name, func() error { _, err := config.Reload(c); return err })
			})
		}
	}
}

// checkBad compares the problems with the file's own "# want: " lines, each
// the beginning of a problem without the file's name, in any order.
func checkBad(t *testing.T, name string, load func() error) {
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	wants := regexp.MustCompile(`(?m)^# want: (.*)$`).FindAllStringSubmatch(string(text), -1)
	got := problemsOf(t, load())
	if len(wants) == 0 || len(got) != len(wants) {
		t.Errorf("%d problems, want %d", len(got), len(wants))
	}
	for i, p := range got {
		if i > 0 && (p.Line < got[i-1].Line || p.Line == got[i-1].Line && p.Column < got[i-1].Column) {
			t.Errorf("not in order: %s", p)
		}
		found := false
		for _, want := range wants {
			found = found || strings.HasPrefix(p.String(), name+":"+want[1])
		}
		if !found {
			t.Errorf("unexpected: %s", p)
		}
	}
}

func TestReferenceLoads(t *testing.T) {
	c := mustLoad(t, writeFiles(t, config.ReferenceConfig(), config.ReferenceTenants(), config.ReferencePolicy()))
	want := config.Default()
	want.APIVersion = "keysidecar/v1"
	want.Path, want.TenantsFile, want.PolicyFile = c.Path, c.TenantsFile, c.PolicyFile
	want.Listen.AdminSocket = "/run/keysidecar/admin.sock"
	want.Region = "westeurope"
	want.KeyVault.Credentials = []config.Credential{{Name: "main", Type: "workload_identity",
		TenantID: "11111111-2222-3333-4444-555555555555", ClientID: "66666666-7777-8888-9999-000000000000"}}
	if diff := cmp.Diff(want, c, cmpopts.IgnoreFields(config.Config{}, "Tenants", "Policy"), cmpopts.IgnoreUnexported(config.Config{}, config.Audit{})); diff != "" {
		t.Errorf("the reference differs from the defaults (-want +got):\n%s", diff)
	}
	for _, text := range []string{config.ReferenceConfig(), config.ReferenceTenants(), config.ReferencePolicy()} {
		if text == "" || !strings.Contains(config.Reference(), text) {
			t.Error("Reference lacks a file")
		}
	}
}

func TestDefaults(t *testing.T) {
	// The figures that design and documentation name. They are written here
	// once more so that a change is seen.
	c := mustLoad(t, "testdata/minimal.yaml")
	for name, ok := range map[string]bool{
		"mode":     c.Listen.Mode == 0o600,
		"ages":     c.DEK.SoftAge == 720*time.Hour && c.DEK.HardAge() == 900*time.Hour,
		"usage":    c.DEK.MaxMessages == 1<<32 && c.DEK.MaxBytes == 1<<50,
		"cache":    c.Cache.Entries == 10_000 && c.Cache.TenantShare == 0.25,
		"negative": c.Cache.Negative == config.Negative{Unknown: 5 * time.Second, Unreachable: 2 * time.Second, Refused: 15 * time.Second, Entries: 10_000},
		"limits": c.Limits == config.Limits{UnaryBytes: 1 << 20, CallsPerConnection: 256, Connections: 1024, ConnectionsPerCaller: 128,
			CallTimeout: 30 * time.Second, BytesInFlight: 0, BytesShare: 0.25, Drain: 10 * time.Second,
			Caller: config.CallLimit{Rate: 20_000, Burst: 20_000, Calls: 1024},
			Tenant: config.TenantLimit{Rate: 20_000, Burst: 20_000, Calls: 1024, Waiting: 32},
			Misses: config.MissLimit{Rate: 100, Burst: 2000}},
		"admin":     c.Listen.AdminSocket == "/run/keysidecar/admin.sock" && c.Listen.AdminMode == 0o600,
		"tcp":       c.Listen.TCP.Address == "" && c.Listen.TCP.MaxAge == time.Hour && slices.Equal(c.Listen.TCP.Allow, []string{"127.0.0.0/8", "::1/128"}),
		"reload":    c.ReloadInterval == 5*time.Second && c.StateDir == "",
		"key vault": c.KeyVault.Cloud == "public" && c.KeyVault.PollInterval == 5*time.Minute && c.KeyVault.LoadTimeout == 5*time.Second,
		"off":       c.Metrics.Listen == "" && !c.Server.Reflection && !c.Memory.RequireLocked,
		"log":       c.Log == config.Log{Level: "info", Format: "json"},
		"audit": c.Audit.Sink == "stdout" && c.Audit.Dir == "" && c.Audit.Name == "" && c.Audit.Data == "aggregate" && c.Audit.Context == nil &&
			c.Audit.Interval == time.Minute && c.Audit.CheckpointInterval == 10*time.Second && c.Audit.WriteTimeout == 2*time.Second,
		"audit bounds": c.Audit.Rows == 10_000 && c.Audit.DenialsPerMinute == 600 && c.Audit.SegmentBytes == 64<<20 && c.Audit.MaxBytes == 4<<30,
		"audit retention": c.Audit.Retention == config.Retention{Keys: 9600 * time.Hour, Denials: 9600 * time.Hour, Data: 2160 * time.Hour} &&
			c.Audit.Signer == config.Signer{},
		"credential": c.Tenants.Config.KEKs[0].Credential == "main",
	} {
		if !ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestPathsAreRelativeToTheFile(t *testing.T) {
	c := mustLoad(t, "testdata/platform.yaml")
	for got, want := range map[string]string{
		c.TenantsFile:                             "testdata/platform.tenants.yaml",
		c.Tenants.Path:                            "testdata/platform.tenants.yaml",
		c.Listen.Socket:                           "/run/keysidecar/api.sock",
		c.KeyVault.Credentials[0].TokenFile:       "testdata/token",
		c.KeyVault.Credentials[1].CertificateFile: "partner.pem",
		c.KeyVault.Credentials[2].TokenFile:       "",
		mustLoad(t, "testdata/devvault.yaml").KeyVault.DevVault.CAFile: "testdata/vault/ca.pem",
	} {
		if got != want {
			t.Errorf("path %q, want %q", got, want)
		}
	}
}

func TestPlatformExample(t *testing.T) {
	c := mustLoad(t, "testdata/platform.yaml")
	for id, want := range map[string]string{
		"bank": "https://hsm.internal.example.com Bank", "c-7": "https://kv-c-7.vault.azure.net kek",
		"s-7": "https://pool.kv.example.com:8443 c-s-7", "late-payer": "https://kv-late-payer.vault.azure.net kek",
	} {
		parsed, err := tenant.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		e, err := c.Tenants.Directory.Lookup(parsed)
		if err != nil {
			t.Errorf("Lookup(%s): %v", id, err)
			continue
		}
		if got := e.KEKs[0].Vault + " " + e.KEKs[0].Name; got != want {
			t.Errorf("Lookup(%s) reaches %s, want %s", id, got, want)
		}
		if e.Suspended != (id == "late-payer") {
			t.Errorf("Lookup(%s).Suspended = %t", id, e.Suspended)
		}
		if id != "late-payer" && (!e.Allows(c.Region) || e.Allows("eastus")) {
			t.Errorf("Lookup(%s).Regions = %v", id, e.Regions)
		}
	}
	if diff := cmp.Diff(config.Negative{Unknown: 10 * time.Second, Unreachable: 2 * time.Second, Refused: time.Minute, Entries: 10_000},
		c.Cache.Negative); diff != "" {
		t.Errorf("a part of a section has to keep the other defaults (-want +got):\n%s", diff)
	}
}

// TestEveryMisspeltKey misspells each key of each section in turn.
func TestEveryMisspeltKey(t *testing.T) {
	path := writeFiles(t, config.ReferenceConfig(), config.ReferenceTenants(), config.ReferencePolicy())
	good := mustLoad(t, path)
	for _, f := range []struct {
		text string
		load func([]byte) error
		want int // keys in the file
	}{
		{config.ReferenceConfig(), func(b []byte) error { _, err := config.Decode("f", b); return err }, countKeys(reflect.TypeFor[config.Config]())},
		{config.ReferenceTenants(), func(b []byte) error { _, err := config.DecodeTenants("f", b, good); return err }, countKeys(reflect.TypeOf(config.TenantsFile()))},
		{config.ReferencePolicy(), func(b []byte) error { _, err := config.DecodePolicy("f", b, good.Tenants); return err }, countKeys(reflect.TypeOf(config.PolicyFile()))},
	} {
		lines := strings.Split(f.text, "\n")
		setting := regexp.MustCompile(`^( *)(# )?([a-z][a-zA-Z_]*):( .*)?$`)
		devvault := slices.Index(lines, "  # devvault:")
		found := 0
		for i, line := range lines {
			m := setting.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			found++
			changed := slices.Clone(lines)
			changed[i] = m[1] + m[3] + "x:" + m[4]
			switch {
			case strings.HasSuffix(line, "# devvault:"): // its keys are comments
				changed[i] += " {}"
			case devvault >= 0 && m[1] == "    " && m[2] != "": // one of them
				changed[devvault] = "  devvault:"
			}
			checkMisspelt(t, f.load([]byte(strings.Join(changed, "\n"))), i+1, m[3])
		}
		if found != f.want {
			t.Errorf("%d keys misspelt, want %d", found, f.want)
		}
	}
}

func checkMisspelt(t *testing.T, err error, line int, key string) {
	t.Helper()
	for _, p := range problemsOf(t, err) {
		if p.Line == line && strings.HasSuffix(p.Path, key+"x") && strings.Contains(p.Text, fmt.Sprintf("did you mean %q", key)) {
			return
		}
	}
	t.Errorf("line %d: %q misspelt: %v", line, key, err)
}

// countKeys counts the keys of a section and of those in it.
func countKeys(section reflect.Type) int {
	n := 0
	for f := range section.Fields() {
		if f.Tag.Get("yaml") == "-" {
			continue
		}
		n++
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if config.IsSection(inner) {
			n += countKeys(inner)
		}
	}
	return n
}

func TestLoadUnreadable(t *testing.T) {
	dir := t.TempDir()
	if _, err := config.Load(filepath.Join(dir, "none.yaml")); err == nil || !strings.HasSuffix(err.Error(), "none.yaml: no such file or directory") {
		t.Errorf("Load of no file: %v", err)
	}
	if _, err := config.Load(dir); err == nil || !strings.HasSuffix(err.Error(), ": is a directory") {
		t.Errorf("Load of a directory: %v", err)
	}
	path := writeFiles(t, "apiVersion: keysidecar/v1\ntenants_file: none.yaml\n", "", noRules)
	if _, err := config.Load(path); err == nil || !strings.HasSuffix(err.Error(), "none.yaml: no such file or directory") {
		t.Errorf("Load without tenants: %v", err)
	}
}

func TestSizeLimit(t *testing.T) {
	fill := func(text string, n int) string { return text + "#" + strings.Repeat("x", n-len(text)-1) }
	const head, tenants = "apiVersion: keysidecar/v1\n", "apiVersion: keysidecar/v1\nkeks: []\ntenants: []\n"
	mustLoad(t, writeFiles(t, fill(head, config.MaxConfigFile), tenants, noRules))
	for _, c := range []struct{ config, tenants, policy, want string }{
		{fill(head, config.MaxConfigFile+1), tenants, noRules, "config.yaml: is over 1MiB"},
		{head, tenants, fill(noRules, config.MaxPolicyFile+1), "policy.yaml: is over 16MiB"},
		{head, fill(tenants, config.MaxTenantsFile+1), noRules, "tenants.yaml: is over 64MiB"},
	} {
		if _, err := config.Load(writeFiles(t, c.config, c.tenants, c.policy)); err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("Load of a large file: %v, want %s", err, c.want)
		}
	}
}

func TestNotUTF8(t *testing.T) {
	for _, text := range []string{"\xff\xfea\x00", "region: \xff", "apiVersion: keysidecar/v1\nregion: \"\xc3\x28\"\n"} {
		if _, err := config.Decode("f", []byte(text)); err == nil || err.Error() != "f: is not UTF-8" {
			t.Errorf("Decode(%q) = %v", text, err)
		}
	}
}

func TestAtMostTenProblems(t *testing.T) {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "key%d: a\n", i)
	}
	_, err := config.Decode("f", []byte(b.String()))
	if got := problemsOf(t, err); len(got) != config.MaxProblems || got[9].Line != 10 {
		t.Errorf("Decode = %v", got)
	}
	if !strings.HasSuffix(err.Error(), "\nthere may be more") {
		t.Errorf("%q does not say that there may be more", err)
	}
}

func TestLongTextIsCut(t *testing.T) {
	long := strings.Repeat("é", 5000)
	_, err := config.Decode("f", []byte("apiVersion: "+long+"\n"+long[:2000]+": a\nlog: {level: "+long+"}\n"))
	if got := problemsOf(t, err); len(got) != 3 || len(err.Error()) > 1000 || strings.ToValidUTF8(err.Error(), "?") != err.Error() {
		t.Errorf("Decode = %d bytes: %v", len(err.Error()), got)
	}
}

func TestAllowedHosts(t *testing.T) {
	for cloud, want := range map[string]string{
		"public": "*.managedhsm.azure.net", "us_government": "*.vault.usgovcloudapi.net", "china": "*.vault.azure.cn",
		"devvault": "*.vault.localhost:8443",
	} {
		kv := config.KeyVault{Cloud: cloud, Hosts: []string{"kv.example.com"}, DevVault: config.DevVault{Suffix: "vault.localhost", Address: "127.0.0.1:8443"}}
		got := kv.AllowedHosts()
		joined := " " + strings.Join(got, " ") + " "
		if !strings.Contains(joined, " "+want+" ") || !strings.HasSuffix(joined, " kv.example.com ") {
			t.Errorf("%s: %v", cloud, got)
		}
		if cloud != "public" && strings.Contains(joined, "azure.net") || cloud != "devvault" && strings.Contains(joined, "localhost") {
			t.Errorf("%s reaches another cloud: %v", cloud, got)
		}
		for _, h := range got {
			if err := tenant.CheckHost(h); err != nil {
				t.Errorf("%s: %s: %v", cloud, h, err)
			}
		}
	}
}

func TestCredentialReachesEntraTenant(t *testing.T) {
	tenants, err := os.ReadFile("testdata/platform.tenants.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := *mustLoad(t, "testdata/platform.yaml")
	const other = "dddddddd-2222-3333-4444-555555555555"
	text := strings.ReplaceAll(string(tenants), "aaaaaaaa-2222-3333-4444-555555555555", other)
	_, err = config.DecodeTenants("f", []byte(text), &c)
	got := problemsOf(t, err)
	if len(got) != 1 || got[0].Path != "keks[3].entra_tenant" || got[0].Line != 26 || !strings.Contains(got[0].Text, "credential partner") {
		t.Errorf("DecodeTenants = %v", got)
	}
	c.KeyVault.Credentials = append([]config.Credential(nil), c.KeyVault.Credentials...)
	c.KeyVault.Credentials[1].AllowedTenants = []string{other}
	if _, err := config.DecodeTenants("f", []byte(text), &c); err != nil {
		t.Error(err)
	}
	// A managed identity gets tokens of the tenant it is in: nothing to check.
	text = strings.Replace(string(tenants), "credential: hsm\n    entra_tenant: 1", "credential: hsm\n    entra_tenant: 2", 1)
	if _, err := config.DecodeTenants("f", []byte(text), &c); err != nil {
		t.Error(err)
	}
}

func TestErrorsRepeatNoSecrets(t *testing.T) {
	// A key pasted where it does not belong has to be seen as such; its value
	// is not repeated.
	_, err := config.Decode("f", []byte("apiVersion: keysidecar/v1\npassword: hunter2\nkey_vault: {client_secret: hunter2}\n"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Decode = %v", err)
	}
}

func TestModes(t *testing.T) {
	for mode, want := range map[string]bool{
		"0600": true, "0660": true, "0666": true, "0606": true, "0640": true,
		"0700": false, "0400": false, "0060": false, "0000": false, "1600": false, "600": false, "00600": false, "0o600": false, "0680": false, "": false,
	} {
		c, err := config.Decode("f", []byte("apiVersion: keysidecar/v1\nlisten: {mode: \""+mode+"\"}\n"))
		if (err == nil) != want {
			t.Errorf("mode %q: %v, want ok %t", mode, err, want)
		}
		if err == nil && fmt.Sprintf("%04o", uint32(c.Listen.Mode)) != mode {
			t.Errorf("mode %q is %04o", mode, uint32(c.Listen.Mode))
		}
	}
}
