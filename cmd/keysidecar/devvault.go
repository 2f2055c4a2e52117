package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

func (a *app) devvault() *cobra.Command {
	var listen, dir string
	var keys []string
	c := &cobra.Command{
		Use:   "devvault --dir DIR [--listen ADDR] [--key VAULT/NAME]...",
		Short: "Run an embedded Key Vault, for development and tests: its keys are files in DIR",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.runDevvault(c.Context(), listen, dir, keys)
		},
	}
	flags := c.Flags()
	flags.StringVar(&listen, "listen", "127.0.0.1:0", "TCP `address` to listen on")
	flags.StringVar(&dir, "dir", "", "`directory` of the keys, the certificate authority and the token")
	flags.StringArrayVar(&keys, "key", nil, "create `VAULT/NAME`, an RSA-3072 key, if there is none; repeat for more")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic("keysidecar: internal error: " + err.Error())
	}
	return c
}

func (a *app) runDevvault(ctx context.Context, listen, dir string, keys []string) error {
	vault, err := devvault.Open(devvault.Config{Dir: dir, Listen: listen, Logger: a.logger(slog.LevelWarn)})
	if err != nil {
		return permanent(fmt.Errorf("opening the embedded Key Vault: %w", err))
	}
	defer vault.Close()
	for _, key := range keys {
		name, kekName, ok := strings.Cut(key, "/")
		if !ok {
			return usage(fmt.Errorf("--key %q is not VAULT/NAME", key))
		}
		if err := ensureKey(vault, name, kekName, 3072); err != nil {
			return permanent(err)
		}
	}
	err = a.print(map[string]string{
		"address": vault.Addr(), "url": vault.URL("VAULT"), "ca_file": vault.CAFile(),
		"token_file": vault.TokenFile(), "entra_tenant": vault.EntraTenant(),
	}, "embedded Key Vault, for development only\n  vaults        %s\n  connect to    %s\n  CA            %s\n  token         %s\n  Entra tenant  %s\n",
		vault.URL("VAULT"), vault.Addr(), vault.CAFile(), vault.TokenFile(), vault.EntraTenant())
	if err != nil {
		return err
	}
	<-ctx.Done()
	return a.printAsked(vault)
}

// ensureKey creates an RSA key unless the vault has it.
func ensureKey(vault *devvault.Server, name, key string, bits int) error {
	if vault.HasKey(name, key) {
		return nil
	}
	if _, err := vault.CreateKey(name, key, devvault.KeySpec{Type: "RSA", Bits: bits}); err != nil {
		return fmt.Errorf("creating key %s in vault %s: %w", key, name, err)
	}
	return nil
}

// printAsked tells what the vault was asked, by kind.
func (a *app) printAsked(vault *devvault.Server) error {
	counts := vault.Counters()
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(counts.Kinds)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, counts.Kinds[kind]))
	}
	return a.print(counts, "Key Vault was asked: %s\n", strings.Join(kinds, ", "))
}

// logger returns a logger to standard error: JSON, or text for a person.
func (a *app) logger(level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if isTerminal(a.err) {
		return slog.New(slog.NewTextHandler(a.err, options))
	}
	return slog.New(slog.NewJSONHandler(a.err, options))
}
