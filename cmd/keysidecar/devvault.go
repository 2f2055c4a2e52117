package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/internal/devsetup"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

func (a *app) devvault() *cobra.Command {
	var cfg devvault.Config
	var keys, signing []string
	c := &cobra.Command{
		Use:   "devvault --dir DIR [--listen ADDR] [--key VAULT/NAME]...",
		Short: "Run an embedded Key Vault, for development and tests: its keys are files in DIR",
		RunE: func(c *cobra.Command, _ []string) error {
			for flag, names := range map[string][]string{"key": keys, "signing-key": signing} {
				for _, key := range names {
					if !strings.Contains(key, "/") {
						return usage(fmt.Errorf("--%s %q is not VAULT/NAME", flag, key))
					}
				}
			}
			return a.runDevvault(c.Context(), cfg, keys, signing)
		},
	}
	flags := c.Flags()
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:0", "TCP `address` to listen on")
	flags.StringVar(&cfg.Dir, "dir", "", "`directory` of the keys, the certificate authority and the token")
	flags.StringArrayVar(&keys, "key", nil, "create `VAULT/NAME`, an RSA-3072 key, if there is none; repeat for more")
	flags.StringArrayVar(&signing, "signing-key", nil, "create `VAULT/NAME`, an EC P-256 key, if there is none; repeat for more")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic("keysidecar: internal error: " + err.Error())
	}
	return c
}

func (a *app) runDevvault(ctx context.Context, cfg devvault.Config, keys, signing []string) error {
	vault, err := a.openVault(cfg)
	if err != nil {
		return err
	}
	defer vault.Close()
	if err := ensureKeys(vault, keys, devvault.KeySpec{Type: "RSA", Bits: 3072}); err != nil {
		return err
	}
	if err := ensureKeys(vault, signing, devvault.KeySpec{Type: "EC"}); err != nil {
		return err
	}
	const vaults = "https://VAULT.vault.localhost" // a port is not needed in a KEK's URL
	err = a.print(map[string]string{
		"address": vault.Addr(), "url": vaults, "ca_file": vault.CAFile(),
		"token_file": vault.TokenFile(), "entra_tenant": vault.EntraTenant(),
	}, "embedded Key Vault, for development only\n  vaults        %s\n  connect to    %s\n  CA            %s\n"+
		"  token         %s\n  Entra tenant  %s\n",
		vaults, vault.Addr(), vault.CAFile(), vault.TokenFile(), vault.EntraTenant())
	if err != nil {
		return err
	}
	<-ctx.Done()
	return a.printAsked(vault)
}

// ensureKeys creates the keys that are missing, each VAULT/NAME.
func ensureKeys(vault *devvault.Server, keys []string, spec devvault.KeySpec) error {
	for _, key := range keys {
		vaultName, name, _ := strings.Cut(key, "/")
		err := devsetup.EnsureKey(vault, vaultName, name, spec)
		if refusal, ok := errors.AsType[*devvault.Error](err); ok && refusal.Status == http.StatusBadRequest {
			return usage(err)
		}
		if err != nil {
			return permanent(err)
		}
	}
	return nil
}

// openVault opens an embedded Key Vault that logs warnings.
func (a *app) openVault(cfg devvault.Config) (*devvault.Server, error) {
	cfg.Logger = slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	vault, err := devvault.Open(cfg)
	if err != nil {
		return nil, startError(fmt.Errorf("opening the embedded Key Vault: %w", err))
	}
	return vault, nil
}

// printAsked tells what the vault was asked, by kind.
func (a *app) printAsked(vault *devvault.Server) error {
	counts := vault.Counters()
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(counts.Kinds)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, counts.Kinds[kind]))
	}
	if len(kinds) == 0 {
		kinds = []string{"nothing"}
	}
	return a.print(counts, "Key Vault was asked: %s\n", strings.Join(kinds, ", "))
}
