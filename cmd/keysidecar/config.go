package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/config"
)

func (a *app) configGroup() *cobra.Command {
	group := &cobra.Command{Use: "config", Short: "Check the configuration, explain its policy, or print its reference"}
	var against string
	check := &cobra.Command{
		Use:   "check [--config FILE] [--against OLD]",
		Short: "Check the configuration, the tenants file and the policy file, offline",
		RunE:  func(*cobra.Command, []string) error { return a.configCheck(against) },
	}
	check.Flags().StringVar(&against, "against", "", "older configuration `file`: refuse what would make its data unreadable")
	reference := &cobra.Command{
		Use:   "reference",
		Short: "Print every configuration key with its meaning and default",
		RunE: func(*cobra.Command, []string) error {
			return a.print(map[string]string{
				"config.yaml": config.ReferenceConfig(), "tenants.yaml": config.ReferenceTenants(), "policy.yaml": config.ReferencePolicy(),
			}, "%s", config.Reference())
		},
	}
	group.AddCommand(check, a.explain(), reference)
	return group
}

func (a *app) configCheck(against string) error {
	cfg, err := config.Load(a.config)
	if err != nil {
		return permanent(err)
	}
	var findings []config.Finding
	if against != "" {
		old, err := config.Load(against)
		if err != nil {
			return permanent(fmt.Errorf("the configuration to compare with: %w", err))
		}
		findings = config.Check(old, cfg)
	}
	lines, refused := []string{}, false
	for _, f := range findings {
		lines = append(lines, f.String())
		refused = refused || f.Kind.Refuses()
	}
	if refused {
		return permanent(errors.New("data sealed under " + against + " would not open:\n" + strings.Join(lines, "\n")))
	}
	lines = append(lines, cfg.Policy.Expired(time.Now())...)
	lines = append(lines, cfg.Warnings()...)
	tenants, rules := cfg.Tenants.Config, cfg.Policy.Config
	return a.print(map[string]any{
		"keks": len(tenants.KEKs), "tenants": len(tenants.Tenants),
		"policy_rules": len(rules.Rules), "callers": len(rules.Callers), "warnings": lines,
	}, "ok: %d KEKs, %d tenant rules, %d policy rules, %d callers\n%s",
		len(tenants.KEKs), len(tenants.Tenants), len(rules.Rules), len(rules.Callers), joinLines(lines))
}

func joinLines(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return "warning: " + strings.Join(lines, "\nwarning: ") + "\n"
}
