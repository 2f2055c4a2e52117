package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/internal/devsetup"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

func (a *app) dev() *cobra.Command {
	var dir string
	var tenants []string
	c := &cobra.Command{
		Use:   "dev [--dir DIR] [--tenant ID]...",
		Short: "Run an embedded Key Vault and a sidecar that uses it, for development",
		Long: "dev runs an embedded Key Vault that speaks the real protocol over TLS, and a sidecar\n" +
			"that uses it as it would use Azure. Keys and configuration are kept in DIR, so that\n" +
			"what was sealed opens after a restart. Each tenant has a vault and a KEK of its own.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := devsetup.CheckTenants(tenants); err != nil {
				return usage(err)
			}
			return a.runDev(c.Context(), dir, tenants)
		},
	}
	c.Flags().StringVar(&dir, "dir", ".keysidecar-dev", "`directory` of keys and configuration")
	c.Flags().StringArrayVar(&tenants, "tenant", []string{"acme", "globex"}, "tenant `ID`, 3 to 24 of [a-z0-9-]; repeat for more")
	return c
}

func (a *app) runDev(ctx context.Context, dir string, tenants []string) error {
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return permanent(err)
	}
	vault, err := a.openVault(devvault.Config{Dir: filepath.Join(dir, "vault")})
	if err != nil {
		return err
	}
	defer vault.Close()
	path, err := devsetup.Write(devsetup.Config{Dir: dir, Vault: vault, Tenants: tenants})
	if err != nil {
		return permanent(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		return permanent(err)
	}
	err = a.runServe(ctx, cfg, func() error { return a.printDev(cfg, vault) })
	return errors.Join(err, a.printAsked(vault))
}

func (a *app) printDev(cfg *config.Config, vault *devvault.Server) error {
	const url = "https://TENANT.vault.localhost/keys/" + devsetup.KEK
	return a.print(map[string]string{
		"socket": cfg.Listen.Socket, "key_vault": url, "address": vault.Addr(), "tenants_file": cfg.TenantsFile,
	}, "keysidecar for development: not for real data\n  socket     %s\n  Key Vault  %s at %s\n  tenants    %s\n",
		cfg.Listen.Socket, url, vault.Addr(), cfg.TenantsFile)
}
