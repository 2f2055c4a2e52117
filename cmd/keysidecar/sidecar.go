package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/client"
)

func (a *app) sidecarGroup() *cobra.Command {
	group, f := adminGroup("sidecar", "Ask a running sidecar how it is doing, reload its files, or wipe data keys")
	status := &cobra.Command{
		Use:   "status",
		Short: "Tell how a running sidecar is doing",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.callAdmin(c.Context(), f, func(ctx context.Context, admin *client.Admin) error {
				s, err := admin.Status(ctx)
				if err != nil {
					return err
				}
				return a.print(s, "%s", statusText(&s))
			})
		},
	}
	reload := &cobra.Command{
		Use:   "reload",
		Short: "Read tenants, policy and certificates again: all of them take effect, or none",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.callAdmin(c.Context(), f, a.reload)
		},
	}
	group.AddCommand(status, reload, a.evict(f))
	return group
}

func (a *app) reload(ctx context.Context, admin *client.Admin) error {
	res, err := admin.Reload(ctx)
	if err != nil {
		return err
	}
	if !res.OK {
		return permanent(errors.New("nothing has changed, the files are not right:\n" + strings.Join(res.Problems, "\n")))
	}
	return a.print(res, "reloaded\n%s", joinLines(res.Warnings))
}

func (a *app) evict(f *adminFlags) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "evict TENANT | --all",
		Short: "Wipe a tenant's data keys from memory; the next use asks Key Vault",
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case !all:
				return oneTenant(c, args)
			case len(args) > 0:
				return usage(fmt.Errorf("both %q and --all: name one", args[0]))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.callAdmin(c.Context(), f, func(ctx context.Context, admin *client.Admin) error {
				if all {
					deks, err := admin.EvictAll(ctx)
					return a.printEvicted("*", "all tenants", deks, err)
				}
				deks, err := admin.Evict(ctx, args[0])
				return a.printEvicted(args[0], args[0], deks, err)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "those of every tenant")
	return c
}

func (a *app) printEvicted(tenant, words string, deks uint32, err error) error {
	if err != nil {
		return err
	}
	return a.print(map[string]any{"tenant": tenant, "deks": deks}, "%s: %s wiped in this sidecar\n", words, dataKeys(deks))
}

// statusText is a status for people.
func statusText(s *client.Status) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	line("version", "%s", cmp.Or(s.Version, "-"))
	line("started", "%s", instant(s.Started))
	line("region", "%s", cmp.Or(s.Region, "-"))
	line("key memory", "%s", s.KeyMemory)
	for _, l := range s.Listeners {
		line(l.Name, "%s: connections %d, refused %d", l.Address, l.Connections, l.Refused)
	}
	line("data keys", "%d of %d, tenants with an active one %d", s.DEKsCached, s.DEKsLimit, s.DEKsActive)
	line("in flight", "%d of %d bytes", s.BytesInFlight, s.BytesLimit)
	line("files", "read %s: policy rules %d, tenant rules %d, KEKs %d", instant(s.FilesLoaded), s.PolicyRules, s.TenantRules, s.KEKs)
	line("suspended", "%d here, by tenant suspend", s.TenantsSuspended)
	line("audit", "%s", auditText(s))
	for _, p := range s.FileProblems {
		line("problem", "%s", p)
	}
	if len(s.FileProblems) > 0 {
		line("", "the files are not right: those read before stay in effect")
	}
	_ = w.Flush() // to a strings.Builder
	return text.String()
}

func auditText(s *client.Status) string {
	switch {
	case s.AuditLog == "":
		return "none: audit.sink"
	case !s.AuditFailingSince.IsZero():
		return fmt.Sprintf("%s CANNOT BE WRITTEN since %s", s.AuditLog, instant(s.AuditFailingSince))
	}
	return fmt.Sprintf("%s, records %d, key %s", s.AuditLog, s.AuditRecords, s.AuditKey)
}

// instant is a time for people and scripts, without what is under a second.
func instant(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
