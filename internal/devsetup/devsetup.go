// Package devsetup lets a sidecar use an embedded Key Vault: it makes a vault
// and a KEK for each tenant, and writes the files that a sidecar reads.
package devsetup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// KEK is the name of each tenant's key, in the vault of the tenant's own name.
const KEK = "kek"

// Config says what to set up.
type Config struct {
	// Dir is the absolute path of a directory that exists: of config.yaml,
	// tenants.yaml, policy.yaml, the sidecar's socket, keysidecar.sock, and the
	// directory "state" for what it keeps. Required.
	Dir string
	// Vault is the embedded Key Vault. Required.
	Vault *devvault.Server
	// Tenants are the tenant IDs, as CheckTenants wants them. Required.
	Tenants []string
	// Alg is what the KEKs are for; keys that exist stay what they are. Zero
	// is kek.RSAOAEP256.
	Alg kek.Alg
	// Policy is the text of policy.yaml. Empty: the caller "me", any process
	// with the user ID of this one, may use every verb for every tenant.
	Policy string
}

// CheckTenants returns an error unless there are IDs, each can be a vault's
// name, 3 to 24 of [a-z0-9-], and none is there twice.
func CheckTenants(ids []string) error {
	legal := regexp.MustCompile(`^[a-z][a-z0-9-]{1,22}[a-z0-9]$`)
	if len(ids) == 0 {
		return errors.New("no tenant is named")
	}
	for i, id := range ids {
		if !legal.MatchString(id) || strings.Contains(id, "--") {
			return fmt.Errorf("tenant %q cannot be a vault's name: "+
				"3 to 24 of [a-z0-9-], a letter first, no hyphen last and no two in a row", id)
		}
		if slices.Contains(ids[:i], id) {
			return fmt.Errorf("tenant %q is named twice", id)
		}
	}
	return nil
}

// Write makes the keys that are missing, writes the files, replacing what is
// there, makes the directories "state" and "audit" unless they are there, and
// returns the path of config.yaml.
func Write(cfg Config) (path string, err error) {
	if err := CheckTenants(cfg.Tenants); err != nil {
		return "", err
	}
	if cfg.Alg == 0 {
		cfg.Alg = kek.RSAOAEP256
	}
	spec := devvault.KeySpec{Type: "RSA", Bits: 2048} // the quickest to make
	if cfg.Alg == kek.A256KW {
		spec = devvault.KeySpec{Type: "oct-HSM"}
	}
	for _, id := range cfg.Tenants {
		if err := EnsureKey(cfg.Vault, id, KEK, spec); err != nil {
			return "", err
		}
	}
	if cfg.Policy == "" {
		cfg.Policy = fmt.Sprintf(policyFile, os.Geteuid())
	}
	for name, text := range map[string]string{"config.yaml": configFile, "tenants.yaml": tenantsFile, "policy.yaml": "{{.Policy}}"} {
		if err := write(filepath.Join(cfg.Dir, name), text, cfg); err != nil {
			return "", fmt.Errorf("writing %s: %w", name, err)
		}
	}
	for _, dir := range []string{"state", "audit"} {
		if err := os.Mkdir(filepath.Join(cfg.Dir, dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("making directory %s: %w", dir, err)
		}
	}
	return filepath.Join(cfg.Dir, "config.yaml"), nil
}

// EnsureKey creates a key unless the vault has one of that name.
func EnsureKey(vault *devvault.Server, vaultName, name string, spec devvault.KeySpec) error {
	if vault.HasKey(vaultName, name) {
		return nil
	}
	if _, err := vault.CreateKey(vaultName, name, spec); err != nil {
		return fmt.Errorf("creating key %s in vault %s: %w", name, vaultName, err)
	}
	return nil
}

func write(path, text string, cfg Config) error {
	var out strings.Builder
	t, err := template.New("").Parse(text)
	if err == nil {
		err = t.Execute(&out, cfg)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(out.String()), 0o600)
}

const configFile = `# Written at every start: changes are lost.
apiVersion: keysidecar/v1
listen:
  socket: {{printf "%q" (print .Dir "/keysidecar.sock")}}
region: local
state_dir: {{printf "%q" (print .Dir "/state")}}
audit:
  sink: dir
  dir: {{printf "%q" (print .Dir "/audit")}}
key_vault:
  cloud: devvault
  devvault:
    address: {{.Vault.Addr}}
    suffix: vault.localhost
    ca_file: {{printf "%q" .Vault.CAFile}}
    token_file: {{printf "%q" .Vault.TokenFile}}
  credentials:
    - name: dev
      type: devvault
server:
  reflection: true
log:
  level: warn
  format: text
`

const tenantsFile = `# Written at every start: changes are lost.
apiVersion: keysidecar/v1
keks:{{range .Tenants}}
  - ref: {{.}}
    url: https://{{.}}.vault.localhost/keys/` + KEK + `
    alg: {{$.Alg}}
    region: local
    credential: dev
    entra_tenant: {{$.Vault.EntraTenant}}{{end}}
tenants:{{range .Tenants}}
  - id: {{.}}
    kek: {{.}}
    regions: [local]{{end}}
`

const policyFile = `# Written at every start: changes are lost.
apiVersion: keysidecar/v1
callers:
  - name: me
    uid: %d
rules:
  - callers: [me]
    tenants: ["*"]
    verbs: [seal, unseal]
  - callers: [me]
    tenants: ["*"]
    verbs: [admin.status, admin.reload, admin.evict, admin.policy, admin.tenants, admin.suspend]
`
