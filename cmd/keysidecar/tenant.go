package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/client"
)

// tableRows is how many rows of a table are lined up with one another: a long
// list is not held in memory.
const tableRows = 1000

func (a *app) tenantGroup() *cobra.Command {
	group, f := adminGroup("tenant", "List the tenants of a running sidecar, suspend one there, or resume it")
	list := &cobra.Command{
		Use:   "list",
		Short: "List the rules of the tenant directory, and who is suspended; as JSON one object a line",
		RunE:  func(c *cobra.Command, _ []string) error { return a.callAdmin(c.Context(), f, a.listTenants) },
	}
	var reason string
	suspend := &cobra.Command{
		Use:   "suspend TENANT [--reason TEXT]",
		Short: "Refuse every operation for a tenant, in this sidecar only, also after a restart",
		Args:  oneTenant,
		RunE: func(c *cobra.Command, args []string) error {
			return a.callAdmin(c.Context(), f, func(ctx context.Context, admin *client.Admin) error {
				return a.suspendTenant(ctx, admin, args[0], reason)
			})
		},
	}
	suspend.Flags().StringVar(&reason, "reason", "", "why: `text` for people, at most 256 printable bytes")
	resume := &cobra.Command{
		Use:   "resume TENANT",
		Short: "Take back what suspend did, in this sidecar only",
		Args:  oneTenant,
		RunE: func(c *cobra.Command, args []string) error {
			return a.callAdmin(c.Context(), f, func(ctx context.Context, admin *client.Admin) error {
				return a.resumeTenant(ctx, admin, args[0])
			})
		},
	}
	group.AddCommand(list, suspend, resume)
	return group
}

// listTenants prints tenants as they come.
func (a *app) listTenants(ctx context.Context, admin *client.Admin) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	rows := 0
	for tenant, err := range admin.Tenants(ctx) {
		if err != nil {
			_ = w.Flush() // what has come so far; err is worse
			return err
		}
		if a.output == "json" {
			if err := a.print(tenant, ""); err != nil {
				return err
			}
			continue
		}
		if rows%tableRows == 0 {
			if err := a.flushTable(w); err != nil {
				return err
			}
			fmt.Fprintln(w, "TENANT\tSTATE\tKEK\tALSO OPENS\tREGIONS\tSUSPENDED BY")
		}
		rows++
		fmt.Fprintln(w, tenantRow(&tenant))
	}
	return a.flushTable(w)
}

func (a *app) flushTable(w *tabwriter.Writer) error {
	if err := w.Flush(); err != nil {
		return tryAgain(fmt.Errorf("writing the result: %w", err))
	}
	return nil
}

// tenantRow is a tenant as a row of the table.
func tenantRow(t *client.Tenant) string {
	by := "-"
	switch s := t.Suspension; {
	case s != nil:
		by = s.By + " at " + instant(s.At)
		if s.Reason != "" {
			by += ": " + s.Reason
		}
	case t.State == "suspended":
		by = "tenants.yaml"
	}
	return strings.Join([]string{
		cmp.Or(t.ID, t.Prefix), t.State, cmp.Or(t.KEK, "-"), cmp.Or(strings.Join(t.AlsoOpens, ","), "-"),
		cmp.Or(strings.Join(t.Regions, ","), "-"), by,
	}, "\t")
}

func (a *app) suspendTenant(ctx context.Context, admin *client.Admin, tenant, reason string) error {
	res, err := admin.Suspend(ctx, tenant, reason)
	if err != nil {
		return err
	}
	return a.print(res, "%s: suspended in this sidecar only, also after a restart; %s wiped\n", tenant, dataKeys(res.DEKs))
}

func (a *app) resumeTenant(ctx context.Context, admin *client.Admin, tenant string) error {
	res, err := admin.Resume(ctx, tenant)
	if err != nil {
		return err
	}
	was := "was not suspended in this sidecar"
	if res.WasSuspended {
		was = "resumed in this sidecar only"
	}
	if res.Tenant.State == "suspended" {
		return &exitError{
			code: exitPermanent, err: fmt.Errorf("%s: %s, and is suspended all the same: by tenants.yaml", tenant, was),
			hint: "set its state to active in tenants.yaml, then: keysidecar sidecar reload",
		}
	}
	return a.print(res, "%s: %s\n", tenant, was)
}
