package devsetup_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/internal/devsetup"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheckTenants(t *testing.T) {
	for _, c := range []struct {
		ids  []string
		want string // "" is none
	}{
		{[]string{"acme"}, ""},
		{[]string{"abc", "a-b-c", "a23456789012345678901234"}, ""},
		{nil, "no tenant"},
		{[]string{""}, `tenant ""`},
		{[]string{"acme", "ab"}, `tenant "ab"`},
		{[]string{"a2345678901234567890123456"}, "3 to 24"},
		{[]string{"Acme"}, `tenant "Acme"`},
		{[]string{"1acme"}, "a letter first"},
		{[]string{"acme-"}, "no hyphen last"},
		{[]string{"ac--me"}, "no two in a row"},
		{[]string{"acme\n"}, `tenant "acme\n"`},
		{[]string{"acme", "globex", "acme"}, `"acme" is named twice`},
	} {
		err := devsetup.CheckTenants(c.ids)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("CheckTenants(%q) returned %v, want %q", c.ids, err, c.want)
		}
	}
}

func TestWrite(t *testing.T) {
	for _, alg := range []kek.Alg{0, kek.RSAOAEP256, kek.A256KW} {
		// A path that YAML would not take without quotes.
		dir := filepath.Join(t.TempDir(), `a: "b" # c`)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		vault, err := devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { vault.Close() })
		setup := devsetup.Config{Dir: dir, Vault: vault, Tenants: []string{"acme", "globex"}, Alg: alg}
		file, err := devsetup.Write(setup)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		if alg == 0 {
			alg = kek.RSAOAEP256
		}
		want := &tenant.Config{
			KEKs: []tenant.KEK{
				{Ref: "acme", URL: "https://acme.vault.localhost/keys/kek", Alg: alg, Region: "local", Credential: "dev", EntraTenant: vault.EntraTenant()},
				{Ref: "globex", URL: "https://globex.vault.localhost/keys/kek", Alg: alg, Region: "local", Credential: "dev", EntraTenant: vault.EntraTenant()},
			},
			Tenants: []tenant.Rule{
				{ID: "acme", KEK: "acme", Regions: []string{"local"}}, {ID: "globex", KEK: "globex", Regions: []string{"local"}},
			},
		}
		got := &tenant.Config{KEKs: cfg.Tenants.Config.KEKs, Tenants: cfg.Tenants.Config.Tenants}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("tenants (-want +got):\n%s", diff)
		}
		if want := filepath.Join(dir, "keysidecar.sock"); cfg.Listen.Socket != want {
			t.Errorf("socket is %s, want %s", cfg.Listen.Socket, want)
		}
		if !vault.HasKey("acme", devsetup.KEK) || !vault.HasKey("globex", devsetup.KEK) {
			t.Error("a key is missing")
		}
		if want := filepath.Join(dir, "admin.sock"); cfg.Listen.AdminSocket != want {
			t.Errorf("admin socket is %s, want %s", cfg.Listen.AdminSocket, want)
		}
		if want := filepath.Join(dir, "state"); cfg.StateDir != want {
			t.Errorf("state directory is %s, want %s", cfg.StateDir, want)
		}
		for name, want := range map[string]os.FileMode{"config.yaml": 0o600, "tenants.yaml": 0o600, "policy.yaml": 0o600, "state": os.ModeDir | 0o700} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
				t.Errorf("%s: %v, %v, want %v", name, info, err, want)
			}
		}
	}
}

// TestPolicy lets this user do everything, and nobody else anything.
func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	vault, err := devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vault.Close() })
	setup := devsetup.Config{Dir: dir, Vault: vault, Tenants: []string{"acme"}, Alg: kek.A256KW}
	load := func() *policy.Policy {
		t.Helper()
		file, err := devsetup.Write(setup)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Policy.Policy
	}
	acme, err := tenant.Parse("acme")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	uid := uint32(os.Geteuid())
	me, other := policy.PeerCaller(uid, 4711, 1), policy.PeerCaller(uid+1, 4711, 1)
	p := load()
	for _, v := range policy.Verbs() {
		if !p.Allow(me, v, acme, now) || v.Admin() && !p.AllowAll(me, v, now) {
			t.Errorf("this user may not %s", v)
		}
		if p.Allow(other, v, acme, now) || p.AllowAll(other, v, now) {
			t.Errorf("another user may %s", v)
		}
	}
	if name, _ := p.Who(me); name != "me" {
		t.Errorf("this user is called %s", name)
	}
	setup.Policy = "# {{.Dir}}\napiVersion: keysidecar/v1\nrules: []\n"
	if p := load(); p.Allow(me, policy.Seal, acme, now) {
		t.Error("Config.Policy has no effect")
	}
	if text, err := os.ReadFile(filepath.Join(dir, "policy.yaml")); err != nil || string(text) != setup.Policy {
		t.Errorf("policy.yaml is %q, %v", text, err)
	}
}

// TestWriteAgain keeps keys and replaces files.
func TestWriteAgain(t *testing.T) {
	dir := t.TempDir()
	vault, err := devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vault.Close() })
	setup := devsetup.Config{Dir: dir, Vault: vault, Tenants: []string{"acme"}, Alg: kek.A256KW}
	if _, err := devsetup.Write(setup); err != nil {
		t.Fatal(err)
	}
	rotated, err := vault.Rotate("acme", devsetup.KEK)
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "state", "suspensions.json")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	setup.Tenants = []string{"globex", "acme"}
	file, err := devsetup.Write(setup)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil || len(cfg.Tenants.Config.Tenants) != 2 {
		t.Errorf("config.Load returned %+v, %v", cfg, err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("the second Write lost the state: %v", err)
	}
	if newest := newestVersion(t, vault, "acme"); newest != rotated {
		t.Errorf("acme's key has the version %s after the second Write, %s before", newest, rotated)
	}
}

// newestVersion asks the vault as any client does.
func newestVersion(t *testing.T, vault *devvault.Server, name string) string {
	t.Helper()
	token, err := os.ReadFile(vault.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, vault.URL(name)+"/keys/"+devsetup.KEK+"?api-version=7.4", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	c := vault.Client()
	defer c.CloseIdleConnections()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var key struct{ Key struct{ KID string } }
	if err := json.NewDecoder(res.Body).Decode(&key); err != nil {
		t.Fatal(err)
	}
	return path.Base(key.Key.KID)
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	vault, err := devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vault.Close() })
	for name, c := range map[string]struct {
		dir    string
		tenant string
		want   string
	}{
		"tenant":    {dir, "a", "cannot be a vault's name"},
		"directory": {filepath.Join(dir, "none"), "acme", "writing "},
	} {
		_, err := devsetup.Write(devsetup.Config{Dir: c.dir, Vault: vault, Tenants: []string{c.tenant}, Alg: kek.A256KW})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Write returned %v, want %q", name, err, c.want)
		}
	}
}
