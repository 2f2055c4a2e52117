package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keysidecar/keysidecar/internal/metrics"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/tenant"
)

// admin implements keysidecar.v1.AdminService. Every method authorises its
// caller first, and logs what it did for whom.
type admin struct {
	keysidecarv1.UnimplementedAdminServiceServer
	s *Sidecar
}

// allowAll authorises a call about the sidecar as a whole.
func (a *admin) allowAll(ctx context.Context) error {
	call := server.CallOf(ctx)
	if !a.policy().AllowAll(call.Caller, call.Verb, a.s.clock.At(time.Now())) {
		return a.s.audit.denied(ctx, sealer.PermissionDenied, "", nil)
	}
	return nil
}

// allow authorises a call about one tenant.
func (a *admin) allow(ctx context.Context, name string) (tenant.ID, error) {
	id, err := tenant.Parse(name)
	if err != nil {
		return tenant.ID{}, a.s.audit.denied(ctx, sealer.InvalidTenant, "", err)
	}
	call := server.CallOf(ctx)
	if !a.policy().Allow(call.Caller, call.Verb, id, a.s.clock.At(time.Now())) {
		return tenant.ID{}, a.s.audit.denied(ctx, sealer.PermissionDenied, id.String(), nil)
	}
	return id, nil
}

func (a *admin) policy() *policy.Policy { return a.s.loaded.Load().rules.Policy }

// log tells that an operator did something.
func (a *admin) log(ctx context.Context, did string, attrs ...slog.Attr) {
	call := server.CallOf(ctx)
	a.s.log.LogAttrs(ctx, slog.LevelInfo, "operator's call", append([]slog.Attr{
		slog.String("did", did), slog.String("caller", call.CallerName), slog.String("identity", call.Caller.Name),
		slog.String("request_id", call.ID()),
	}, attrs...)...)
}

// GetStatus tells how the sidecar is doing.
func (a *admin) GetStatus(ctx context.Context, _ *keysidecarv1.GetStatusRequest) (*keysidecarv1.GetStatusResponse, error) {
	if err := a.allowAll(ctx); err != nil {
		return nil, err
	}
	a.s.audit.looked(ctx)
	s, now, stats := a.s, a.s.loaded.Load(), a.s.deks.Stats()
	out := &keysidecarv1.GetStatusResponse{
		Version: s.version, Started: timestamppb.New(s.started), Region: s.cfg.Region, KeyMemory: s.slab.Level().String(),
		DeksCached: count64(stats.Cached), DeksActive: count64(stats.Active), DeksLimit: count64(s.cfg.Cache.Entries),
		BytesInFlight: count64(s.limits.Bytes.InUse()), BytesLimit: count64(s.bytesLimit),
		FilesLoaded: timestamppb.New(now.at), FileProblems: *s.problems.Load(),
		PolicyRules: count32(len(now.cfg.Policy.Config.Rules)), TenantRules: count32(len(now.cfg.Tenants.Config.Tenants)),
		Keks: count32(len(now.cfg.Tenants.Config.KEKs)), TenantsSuspended: count32(len(s.suspensions.All())),
	}
	s.addAuditStatus(out)
	for _, d := range s.doors {
		open, refused := d.server.Connections()
		out.Listeners = append(out.Listeners, &keysidecarv1.Listener{
			Name: d.name, Address: d.address, Connections: count32(open), Refused: refused,
		})
	}
	return out, nil
}

// count64 and count32 are counts, which are not negative, as the wire has them.
func count64[N int | int64](n N) uint64 { return uint64(max(0, n)) }

func count32(n int) uint32 { return uint32(max(0, min(n, 1<<32-1))) }

// Reload reads the files again.
func (a *admin) Reload(ctx context.Context, _ *keysidecarv1.ReloadRequest) (*keysidecarv1.ReloadResponse, error) {
	if err := a.allowAll(ctx); err != nil {
		return nil, err
	}
	if err := a.s.audit.willDo(ctx, "reload", "", ""); err != nil {
		return nil, err
	}
	a.log(ctx, "reload")
	warnings, err := a.s.Reload(ctx)
	if err != nil {
		return &keysidecarv1.ReloadResponse{Problems: *a.s.problems.Load()}, nil //nolint:nilerr // the answer says what is wrong
	}
	return &keysidecarv1.ReloadResponse{Reloaded: true, Warnings: warnings}, nil
}

// Evict wipes DEKs.
func (a *admin) Evict(ctx context.Context, req *keysidecarv1.EvictRequest) (*keysidecarv1.EvictResponse, error) {
	drop, which := func(tenant.ID) bool { return true }, "every tenant"
	switch {
	case req.GetAll() == (req.GetTenant() != ""):
		if err := a.allowAll(ctx); err != nil {
			return nil, err
		}
		return nil, sealer.NewError(sealer.InvalidRequest, errors.New("a tenant or all has to be asked for, and not both"))
	case req.GetAll():
		if err := a.allowAll(ctx); err != nil {
			return nil, err
		}
	default:
		id, err := a.allow(ctx, req.GetTenant())
		if err != nil {
			return nil, err
		}
		drop, which = func(t tenant.ID) bool { return t == id }, id.String()
	}
	n := a.s.deks.Evict(drop)
	a.log(ctx, "evict", slog.String("tenant", which), slog.Int("deks_wiped", n))
	a.s.audit.did(ctx, "evict", req.GetTenant(), sealer.OK.String(), fmt.Sprintf("%d DEKs of %s wiped", n, which))
	return &keysidecarv1.EvictResponse{Deks: count32(n)}, nil
}

// GetPolicy returns the policy in effect.
func (a *admin) GetPolicy(ctx context.Context, _ *keysidecarv1.GetPolicyRequest) (*keysidecarv1.GetPolicyResponse, error) {
	if err := a.allowAll(ctx); err != nil {
		return nil, err
	}
	a.s.audit.looked(ctx)
	now, at := a.s.loaded.Load(), a.s.clock.At(time.Now())
	out := &keysidecarv1.GetPolicyResponse{Path: now.cfg.Policy.Path, Loaded: timestamppb.New(now.at)}
	for _, c := range now.cfg.Policy.Config.Callers {
		out.Callers = append(out.Callers, &keysidecarv1.PolicyCaller{Name: c.Name, Identity: identityOf(&c)})
	}
	for _, r := range now.cfg.Policy.Config.Rules {
		rule := &keysidecarv1.PolicyRule{Callers: r.Callers, Tenants: r.Tenants, Verbs: r.Verbs, Ticket: r.Ticket}
		if !r.NotAfter.IsZero() {
			rule.NotAfter, rule.Expired = timestamppb.New(r.NotAfter), !at.Before(r.NotAfter)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out, nil
}

// identityOf says what a caller has to prove.
func identityOf(c *policy.CallerRule) string {
	switch {
	case c.SPIFFE != "":
		return c.SPIFFE
	case c.DNS != "":
		return "dns:" + c.DNS
	}
	var parts []string
	if c.UID != nil {
		parts = append(parts, fmt.Sprintf("uid:%d", *c.UID))
	}
	if c.GID != nil {
		parts = append(parts, fmt.Sprintf("gid:%d", *c.GID))
	}
	return strings.Join(parts, "/")
}

// maxPage is how many tenants a page has at most.
const maxPage = 1000

// ListTenants lists the rules of the directory, then suspensions of tenants
// that have no rule of their own.
func (a *admin) ListTenants(ctx context.Context, req *keysidecarv1.ListTenantsRequest) (*keysidecarv1.ListTenantsResponse, error) {
	if err := a.allowAll(ctx); err != nil {
		return nil, err
	}
	a.s.audit.looked(ctx)
	rules := a.s.loaded.Load().cfg.Tenants.Config.Tenants
	others := a.s.suspensionsWithoutRule(rules)
	from, err := pageStart(req.GetPageToken(), len(rules)+len(others))
	if err != nil {
		return nil, sealer.NewError(sealer.InvalidRequest, err)
	}
	size := maxPage
	if n := req.GetPageSize(); n > 0 && n < maxPage {
		size = int(n)
	}
	out := &keysidecarv1.ListTenantsResponse{}
	for i := from; i < min(from+size, len(rules)+len(others)); i++ {
		if i < len(rules) {
			out.Tenants = append(out.Tenants, a.s.tenantOf(&rules[i]))
		} else {
			out.Tenants = append(out.Tenants, suspendedHere(others[i-len(rules)]))
		}
	}
	if next := from + size; next < len(rules)+len(others) {
		out.NextPageToken = strconv.Itoa(next)
	}
	return out, nil
}

func pageStart(token string, n int) (int, error) {
	if token == "" {
		return 0, nil
	}
	from, err := strconv.Atoi(token)
	if err != nil || from < 0 || from > n {
		return 0, fmt.Errorf("page token %.20q is not one that this sidecar gave", token)
	}
	return from, nil
}

// suspensionsWithoutRule returns the suspensions of tenants that only a prefix
// rule is about.
func (s *Sidecar) suspensionsWithoutRule(rules []tenant.Rule) []tenant.Suspension {
	all := s.suspensions.All()
	if len(all) == 0 {
		return nil
	}
	exact := make(map[string]bool)
	for i := range rules {
		exact[rules[i].ID] = true
	}
	return slices.DeleteFunc(all, func(x tenant.Suspension) bool { return exact[x.Tenant.String()] })
}

func (s *Sidecar) tenantOf(r *tenant.Rule) *keysidecarv1.Tenant {
	out := &keysidecarv1.Tenant{Id: r.ID, Kek: r.KEK, AlsoOpens: r.AlsoOpens, Regions: r.Regions, State: stateOf(r.Suspended)}
	if r.Prefix != nil {
		out.Prefix = *r.Prefix + "*"
		return out
	}
	if id, err := tenant.Parse(r.ID); err == nil {
		s.addSuspension(out, id)
	}
	return out
}

func (s *Sidecar) addSuspension(t *keysidecarv1.Tenant, id tenant.ID) {
	if x, here := s.suspensions.Get(id); here {
		t.State, t.Suspension = stateOf(true), suspendedHere(x).GetSuspension()
	}
}

func suspendedHere(x tenant.Suspension) *keysidecarv1.Tenant {
	return &keysidecarv1.Tenant{Id: x.Tenant.String(), State: stateOf(true), Suspension: &keysidecarv1.Suspension{
		By: x.By, Reason: x.Reason, At: timestamppb.New(x.At),
	}}
}

func stateOf(suspended bool) string {
	if suspended {
		return "suspended"
	}
	return "active"
}

// SuspendTenant suspends a tenant in this sidecar.
func (a *admin) SuspendTenant(ctx context.Context, req *keysidecarv1.SuspendTenantRequest) (*keysidecarv1.SuspendTenantResponse, error) {
	id, err := a.allow(ctx, req.GetTenant())
	if err != nil {
		return nil, err
	}
	if _, err := a.s.lookup(id); err != nil {
		a.s.audit.did(ctx, "suspend", id.String(), sealer.UnknownTenant.String(), "")
		return nil, err
	}
	if err := tenant.CheckReason(req.GetReason()); err != nil {
		return nil, sealer.NewError(sealer.InvalidRequest, err)
	}
	err = a.s.suspensions.Suspend(tenant.Suspension{
		Tenant: id, By: server.CallOf(ctx).CallerName, Reason: req.GetReason(), At: time.Now(),
	})
	if err != nil {
		a.s.audit.did(ctx, "suspend", id.String(), sealer.StateUnavailable.String(), req.GetReason())
		return nil, sealer.NewError(sealer.StateUnavailable, err)
	}
	n := a.s.evictRefused()
	a.s.audit.did(ctx, "suspend", id.String(), sealer.OK.String(), req.GetReason())
	a.log(ctx, "suspend", slog.String("tenant", id.String()), slog.String("reason", req.GetReason()), slog.Int("deks_wiped", n))
	return &keysidecarv1.SuspendTenantResponse{Tenant: a.s.tenantNow(id), Deks: count32(n)}, nil
}

// ResumeTenant takes a suspension in this sidecar back.
func (a *admin) ResumeTenant(ctx context.Context, req *keysidecarv1.ResumeTenantRequest) (*keysidecarv1.ResumeTenantResponse, error) {
	id, err := a.allow(ctx, req.GetTenant())
	if err != nil {
		return nil, err
	}
	if err := a.s.audit.willDo(ctx, "resume", id.String(), ""); err != nil {
		return nil, err
	}
	was, err := a.s.suspensions.Resume(id)
	if err != nil {
		a.s.audit.did(ctx, "resume", id.String(), sealer.StateUnavailable.String(), "")
		return nil, sealer.NewError(sealer.StateUnavailable, err)
	}
	a.log(ctx, "resume", slog.String("tenant", id.String()), slog.Bool("was_suspended", was))
	return &keysidecarv1.ResumeTenantResponse{Tenant: a.s.tenantNow(id), WasSuspended: was}, nil
}

// lookup finds a tenant for an operator.
func (s *Sidecar) lookup(id tenant.ID) (*tenant.Entry, error) {
	entry, err := s.loaded.Load().rules.Tenants(id)
	switch {
	case errors.Is(err, tenant.ErrUnknown):
		return nil, sealer.NewError(sealer.UnknownTenant, err)
	case err != nil:
		return nil, sealer.NewError(sealer.InvalidTenant, err)
	}
	return entry, nil
}

// tenantNow returns a tenant as it is in this sidecar now. A tenant that left
// the directory is "unknown".
func (s *Sidecar) tenantNow(id tenant.ID) *keysidecarv1.Tenant {
	out := &keysidecarv1.Tenant{Id: id.String(), State: "unknown"}
	if entry, err := s.lookup(id); err == nil {
		out.Kek, out.Regions, out.State = entry.KEKs[0].Ref, entry.Regions, stateOf(entry.Suspended)
		for _, k := range entry.KEKs[1:] {
			out.AlsoOpens = append(out.AlsoOpens, k.Ref)
		}
	}
	s.addSuspension(out, id)
	return out
}

// doorStats is for metrics.
func (s *Sidecar) doorStats() []metrics.Door {
	var out []metrics.Door
	for _, d := range s.doors {
		open, refused := d.server.Connections()
		out = append(out, metrics.Door{Name: d.name, Open: open, Refused: refused})
	}
	return out
}
