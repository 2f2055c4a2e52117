package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/tenant"
)

// devBits is the size of the KEKs that dev makes: quick to generate.
const devBits = 2048

func (a *app) dev() *cobra.Command {
	var dir string
	var tenants []string
	c := &cobra.Command{
		Use:   "dev [--dir DIR] [--tenant ID]...",
		Short: "Run an embedded Key Vault and a sidecar that uses it, for development",
		Long: "dev runs an embedded Key Vault that speaks the real protocol over TLS, and a sidecar\n" +
			"that uses it as it would use Azure. Keys and configuration are kept in DIR, so that\n" +
			"what was sealed opens after a restart. Each tenant has a vault and a KEK of its own.",
		RunE: func(c *cobra.Command, _ []string) error { return a.runDev(c.Context(), dir, tenants) },
	}
	c.Flags().StringVar(&dir, "dir", ".keysidecar-dev", "`directory` of keys and configuration")
	c.Flags().StringArrayVar(&tenants, "tenant", []string{"acme", "globex"}, "tenant `ID`, 3 to 24 of [a-z0-9-]; repeat for more")
	return c
}

func (a *app) runDev(ctx context.Context, dir string, tenants []string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return permanent(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return permanent(err)
	}
	log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	vault, err := devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault"), Logger: log})
	if err != nil {
		return permanent(fmt.Errorf("opening the embedded Key Vault: %w", err))
	}
	defer vault.Close()
	for _, t := range tenants {
		if _, err := tenant.Parse(t); err != nil {
			return usage(fmt.Errorf("--tenant %q: %w", t, err))
		}
		if err := ensureKey(vault, t, "kek", devBits); err != nil {
			return permanent(err)
		}
	}
	cfg, err := writeDevConfig(dir, vault, tenants)
	if err != nil {
		return permanent(err)
	}
	if err := a.printDev(cfg, vault); err != nil {
		return err
	}
	err = a.runServe(ctx, cfg)
	return errors.Join(err, a.printAsked(vault))
}

func (a *app) printDev(cfg *config.Config, vault *devvault.Server) error {
	const url = "https://TENANT.vault.localhost/keys/kek"
	return a.print(map[string]string{"socket": cfg.Listen.Socket, "key_vault": url, "address": vault.Addr(), "tenants_file": cfg.TenantsFile},
		"keysidecar for development: not for real data\n  socket     %s\n  Key Vault  %s at %s\n  tenants    %s\n",
		cfg.Listen.Socket, url, vault.Addr(), cfg.TenantsFile)
}

// writeDevConfig writes the files that serve would read, and reads them.
func writeDevConfig(dir string, vault *devvault.Server, tenants []string) (*config.Config, error) {
	values := map[string]any{"Vault": vault, "Dir": dir, "Tenants": tenants}
	for name, text := range map[string]string{"config.yaml": devConfig, "tenants.yaml": devTenants} {
		var out bytes.Buffer
		if err := template.Must(template.New(name).Parse(text)).Execute(&out, values); err != nil {
			return nil, fmt.Errorf("making %s: %w", name, err)
		}
		if err := writeWhole(filepath.Join(dir, name), out.Bytes()); err != nil {
			return nil, fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return config.Load(filepath.Join(dir, "config.yaml"))
}

const devConfig = `# Written by "keysidecar dev" at every start.
apiVersion: keysidecar/v1
listen:
  socket: {{printf "%q" (print .Dir "/keysidecar.sock")}}
region: local
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

const devTenants = `# Written by "keysidecar dev" at every start.
apiVersion: keysidecar/v1
keks:{{range .Tenants}}
  - ref: {{.}}
    url: https://{{.}}.vault.localhost/keys/kek
    alg: RSA-OAEP-256
    region: local
    credential: dev
    entra_tenant: {{$.Vault.EntraTenant}}{{end}}
tenants:{{range .Tenants}}
  - id: {{.}}
    kek: {{.}}
    regions: [local]{{end}}
`
