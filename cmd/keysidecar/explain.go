package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// everyTenant stands for all tenants on the command line, as in policy.yaml.
const everyTenant = "*"

// question is what config explain is asked.
type question struct {
	caller policy.Caller
	tenant tenant.ID // zero: every tenant
	verb   policy.Verb
}

// explained is what config explain answers.
type explained struct {
	Caller  string `json:"caller"`
	Tenant  string `json:"tenant"`
	Verb    string `json:"verb"`
	Allowed bool   `json:"allowed"`
	Rule    int    `json:"rule"`
	Line    int    `json:"line"`
	Why     string `json:"why"`
	State   string `json:"tenant_state,omitempty"`
}

func (a *app) explain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain CALLER TENANT VERB",
		Short: "Tell, offline, whether a caller may do something for a tenant, and by which rule",
		Long: "explain tells from the files of --config whether a caller may do something for a tenant,\n" +
			"by which rule, and whether the tenant's state lets it: exit 0 if so, 42 if not.\n\n" +
			"CALLER is the name of one of callers in policy.yaml, or what a caller proves: uid:10001/gid:20000,\n" +
			"spiffe://example.org/web, dns:batch.internal; or uid:10001, a user whose group is not known.\n" +
			`TENANT is a tenant ID, or "*" for every tenant, as verbs about the sidecar as a whole have it.` + "\n" +
			"VERB is one of " + verbList() + ".\n\n" +
			"What tenant suspend did in a running sidecar is not in the files: tenant list tells.",
		Example: "  keysidecar config explain uid:10001/gid:20000 acme seal",
		Args:    threeArguments,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.runExplain(args[0], args[1], args[2])
		},
	}
}

func threeArguments(_ *cobra.Command, args []string) error {
	if len(args) < 3 {
		return usage(errors.New(strings.Join([]string{"CALLER", "TENANT", "VERB"}[len(args):], ", ") + " missing"))
	}
	if len(args) > 3 {
		return usage(fmt.Errorf("argument %q is not expected", args[3]))
	}
	return nil
}

func (a *app) runExplain(caller, tenantID, verb string) error {
	var q question
	var err error
	if q.verb, err = policy.ParseVerb(verb); err != nil {
		return usage(fmt.Errorf("verb %q is not known: one of %s", verb, verbList()))
	}
	if tenantID != everyTenant {
		if q.tenant, err = tenant.Parse(tenantID); err != nil {
			return usage(fmt.Errorf("tenant %q: %w", tenantID, err))
		}
	}
	if aboutSidecar(q.verb) {
		q.tenant = tenant.ID{}
	}
	cfg, err := config.Load(a.config)
	if err != nil {
		return permanent(err)
	}
	if q.caller, err = callerOf(cfg.Policy.Policy, caller); err != nil {
		return usage(err)
	}
	return a.answer(cfg, &q, time.Now())
}

// answer prints what cfg says of q.
func (a *app) answer(cfg *config.Config, q *question, now time.Time) error {
	p := cfg.Policy.Policy
	d, e := p.ExplainAll(q.caller, q.verb, now), explained{Tenant: everyTenant, Verb: q.verb.String()}
	if q.tenant != (tenant.ID{}) {
		d, e.Tenant = p.Explain(q.caller, q.verb, q.tenant, now), q.tenant.String()
	}
	e.Caller, e.Allowed, e.Rule, e.Line, e.Why = d.CallerName, d.Allowed, d.Rule, cfg.Policy.Line(d.Rule), d.Why
	text := "denied: "
	if d.Allowed {
		text = "allowed: "
	}
	if e.Line > 0 {
		text += fmt.Sprintf("%s:%d: ", cfg.Policy.Path, e.Line)
	}
	text += e.Why + "\n"
	refused := !d.Allowed
	if d.Allowed && q.tenant != (tenant.ID{}) {
		var why string
		e.State, why = stateOf(cfg, q.tenant)
		if refused = stops(e.State, q.verb); refused {
			text += "refused all the same: " + why + "\n"
		}
	}
	if err := a.print(e, "%s", text); err != nil || !refused {
		return err
	}
	return &exitError{code: exitPermanent, err: errors.New(e.Why), silent: true}
}

// The states of a tenant, as the files have it.
const (
	stateActive    = "active"
	stateUnknown   = "unknown"
	stateInvalid   = "invalid"
	stateSuspended = "suspended"
	stateElsewhere = "elsewhere"
)

// stateOf returns the state of a tenant, and what it means.
func stateOf(cfg *config.Config, id tenant.ID) (state, why string) {
	entry, err := cfg.Tenants.Directory.Lookup(id)
	switch {
	case errors.Is(err, tenant.ErrUnknown):
		return stateUnknown, fmt.Sprintf("%s is not in %s (UNKNOWN_TENANT)", id, cfg.TenantsFile)
	case err != nil:
		return stateInvalid, fmt.Sprintf("%s: %s (INVALID_TENANT)", id, err)
	case entry.Suspended:
		return stateSuspended, fmt.Sprintf("%s is suspended by %s (TENANT_SUSPENDED)", id, cfg.TenantsFile)
	case !entry.Allows(cfg.Region):
		return stateElsewhere, fmt.Sprintf("%s may be processed in %s only, and this sidecar's region is %q (RESIDENCY)",
			id, strings.Join(entry.Regions, ", "), cfg.Region)
	}
	return stateActive, ""
}

// stops reports whether a sidecar refuses a call for a tenant in that state.
func stops(state string, v policy.Verb) bool {
	switch v {
	case policy.Seal, policy.Unseal:
		return state != stateActive
	case policy.AdminSuspend:
		return state == stateUnknown || state == stateInvalid
	}
	return false
}

// aboutSidecar reports whether a verb is about the sidecar as a whole: a rule
// has to grant it for every tenant.
func aboutSidecar(v policy.Verb) bool {
	return slices.Contains([]policy.Verb{policy.AdminStatus, policy.AdminReload, policy.AdminPolicy, policy.AdminTenants}, v)
}

// callerOf returns the caller that a word on the command line means.
func callerOf(p *policy.Policy, word string) (policy.Caller, error) {
	if c, ok := p.Named(word); ok {
		return c, nil
	}
	c, err := policy.ParseCaller(word)
	if err != nil {
		return policy.Caller{}, fmt.Errorf("not one of callers in policy.yaml, and no identity: %w", err)
	}
	return c, nil
}

func verbList() string {
	var names []string
	for _, v := range policy.Verbs() {
		names = append(names, v.String())
	}
	return strings.Join(names, ", ")
}
