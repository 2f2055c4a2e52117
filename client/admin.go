package client

import (
	"context"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// Admin asks and changes what one sidecar does, over its admin socket. What it
// changes is true for that sidecar only. It is safe for concurrent use.
//
// Every method needs a verb in the sidecar's policy.yaml, such as
// "admin.status". Every call is made once, and its error is an *Error. Types
// marshal to the JSON that the keysidecar command prints, without what is
// empty.
type Admin struct {
	*connection
	rpc keysidecarv1.AdminServiceClient
}

// DialAdmin returns an Admin for the admin socket at a path. Paths, options,
// and who may listen are as for Dial. It does not connect. The Admin has to be
// closed.
func DialAdmin(socket string, opts ...Option) (*Admin, error) {
	c, err := open(socket, opts)
	if err != nil {
		return nil, err
	}
	return &Admin{c, keysidecarv1.NewAdminServiceClient(c.grpc)}, nil
}

// Status is the state of one sidecar. It holds nothing secret.
type Status struct {
	// Version is the program's version.
	Version string `json:"version,omitempty"`
	// Started is when the process began to serve.
	Started time.Time `json:"started,omitzero"`
	// Region is where the sidecar runs, as configured.
	Region string `json:"region,omitempty"`
	// KeyMemory is how keys are kept in memory: "memfd_secret", "locked" or
	// "heap".
	KeyMemory string `json:"key_memory,omitempty"`
	// Listeners are the addresses on which the sidecar listens.
	Listeners []Listener `json:"listeners,omitempty"`
	// DEKsCached is how many DEKs are in memory, of at most DEKsLimit.
	// DEKsActive is how many tenants have an active one.
	DEKsCached uint64 `json:"deks_cached"`
	DEKsActive uint64 `json:"deks_active"`
	DEKsLimit  uint64 `json:"deks_limit"`
	// BytesInFlight is the data of calls in flight, of at most BytesLimit.
	BytesInFlight uint64 `json:"bytes_in_flight"`
	BytesLimit    uint64 `json:"bytes_limit"`
	// FilesLoaded is when the files in effect were read.
	FilesLoaded time.Time `json:"files_loaded,omitzero"`
	// FileProblems says what is wrong with the files as they are now: then
	// those loaded before stay in effect.
	FileProblems []string `json:"file_problems,omitempty"`
	// PolicyRules, TenantRules and KEKs count what the files hold, retired
	// KEKs included.
	PolicyRules uint32 `json:"policy_rules"`
	TenantRules uint32 `json:"tenant_rules"`
	KEKs        uint32 `json:"keks"`
	// TenantsSuspended counts the tenants that Suspend suspended.
	TenantsSuspended uint32 `json:"tenants_suspended"`
	// AuditLog is the origin of the audit log that is being written, AuditKey
	// its public key, a C2SP signed-note verifier key; empty if there is none.
	AuditLog string `json:"audit_log"`
	AuditKey string `json:"audit_key"`
	// AuditRecords counts the records in that log.
	AuditRecords uint64 `json:"audit_records"`
	// AuditFailingSince is since when nothing could be written to it; zero if
	// it can be.
	AuditFailingSince time.Time `json:"audit_failing_since,omitzero"`
}

// Listener is one address on which a sidecar listens.
type Listener struct {
	// Name is "unix", "tcp" or "admin".
	Name string `json:"name"`
	// Address is the path of the socket, or the TCP address.
	Address string `json:"address"`
	// Connections counts those that are open, Refused those that were closed
	// at once, because of a limit or the address they came from.
	Connections uint32 `json:"connections"`
	Refused     uint64 `json:"refused"`
}

// Status tells how the sidecar is doing. Verb admin.status.
func (a *Admin) Status(ctx context.Context) (Status, error) {
	r, err := a.rpc.GetStatus(ctx, &keysidecarv1.GetStatusRequest{})
	if err != nil {
		return Status{}, a.newError(ctx, err)
	}
	s := Status{
		Version: r.GetVersion(), Started: timeOf(r.GetStarted()), Region: r.GetRegion(), KeyMemory: r.GetKeyMemory(),
		DEKsCached: r.GetDeksCached(), DEKsActive: r.GetDeksActive(), DEKsLimit: r.GetDeksLimit(),
		BytesInFlight: r.GetBytesInFlight(), BytesLimit: r.GetBytesLimit(),
		FilesLoaded: timeOf(r.GetFilesLoaded()), FileProblems: r.GetFileProblems(),
		PolicyRules: r.GetPolicyRules(), TenantRules: r.GetTenantRules(), KEKs: r.GetKeks(),
		TenantsSuspended: r.GetTenantsSuspended(),
		AuditLog:         r.GetAuditLog(), AuditKey: r.GetAuditKey(), AuditRecords: r.GetAuditRecords(),
		AuditFailingSince: timeOf(r.GetAuditFailingSince()),
	}
	for _, l := range r.GetListeners() {
		s.Listeners = append(s.Listeners, Listener{
			Name: l.GetName(), Address: l.GetAddress(), Connections: l.GetConnections(), Refused: l.GetRefused(),
		})
	}
	return s, nil
}

// Reloaded is what Reload returns.
type Reloaded struct {
	// OK says that the files are in effect now. If not, nothing has changed.
	OK bool `json:"reloaded"`
	// Problems are what is wrong with the files, if they are not:
	// "file:line:column: field: text".
	Problems []string `json:"problems,omitempty"`
	// Warnings are what the new files take away from data that was sealed
	// under the old ones.
	Warnings []string `json:"warnings,omitempty"`
}

// Reload reads tenants.yaml, policy.yaml and certificates again, checks them
// together, and swaps them together or not at all. Files that are not right
// are no error: look at OK. Verb admin.reload.
func (a *Admin) Reload(ctx context.Context) (Reloaded, error) {
	r, err := a.rpc.Reload(ctx, &keysidecarv1.ReloadRequest{})
	if err != nil {
		return Reloaded{}, a.newError(ctx, err)
	}
	return Reloaded{OK: r.GetReloaded(), Problems: r.GetProblems(), Warnings: r.GetWarnings()}, nil
}

// Evict wipes a tenant's unwrapped DEKs from memory and returns how many: those
// in use are wiped when their last operation ends. The next use asks Key Vault.
// Verb admin.evict.
func (a *Admin) Evict(ctx context.Context, tenant string) (deks uint32, err error) {
	return a.evict(ctx, &keysidecarv1.EvictRequest{Tenant: tenant})
}

// EvictAll is Evict for every tenant. The verb has to be granted for all.
func (a *Admin) EvictAll(ctx context.Context) (deks uint32, err error) {
	return a.evict(ctx, &keysidecarv1.EvictRequest{All: true})
}

func (a *Admin) evict(ctx context.Context, req *keysidecarv1.EvictRequest) (uint32, error) {
	r, err := a.rpc.Evict(ctx, req)
	if err != nil {
		return 0, a.newError(ctx, err)
	}
	return r.GetDeks(), nil
}

// Policy is the policy that is in effect.
type Policy struct {
	// Path is the file's path, Loaded when it was read.
	Path   string    `json:"path"`
	Loaded time.Time `json:"loaded,omitzero"`
	// Callers are the callers that have a name.
	Callers []PolicyCaller `json:"callers,omitempty"`
	// Rules are in the order of the file.
	Rules []PolicyRule `json:"rules,omitempty"`
}

// PolicyCaller is a caller that policy.yaml names.
type PolicyCaller struct {
	// Name is its name.
	Name string `json:"name"`
	// Identity is what it has to prove: "uid:10001", "uid:10001/gid:20000",
	// "gid:20000", "spiffe://example.org/web", "dns:batch.internal".
	Identity string `json:"identity"`
}

// PolicyRule is a rule of policy.yaml.
type PolicyRule struct {
	// Callers are names of callers, or "*".
	Callers []string `json:"callers"`
	// Tenants are tenant IDs, prefixes with "*", or "*".
	Tenants []string `json:"tenants"`
	// Verbs are verbs, such as "seal".
	Verbs []string `json:"verbs"`
	// NotAfter is when a break-glass grant ends; zero if it does not.
	NotAfter time.Time `json:"not_after,omitzero"`
	// Ticket is the approval of a break-glass grant.
	Ticket string `json:"ticket,omitempty"`
	// Expired says that NotAfter has passed.
	Expired bool `json:"expired"`
}

// Policy returns the policy that is in effect. Verb admin.policy.
func (a *Admin) Policy(ctx context.Context) (Policy, error) {
	r, err := a.rpc.GetPolicy(ctx, &keysidecarv1.GetPolicyRequest{})
	if err != nil {
		return Policy{}, a.newError(ctx, err)
	}
	p := Policy{Path: r.GetPath(), Loaded: timeOf(r.GetLoaded())}
	for _, c := range r.GetCallers() {
		p.Callers = append(p.Callers, PolicyCaller{Name: c.GetName(), Identity: c.GetIdentity()})
	}
	for _, rule := range r.GetRules() {
		p.Rules = append(p.Rules, PolicyRule{
			Callers: rule.GetCallers(), Tenants: rule.GetTenants(), Verbs: rule.GetVerbs(),
			NotAfter: timeOf(rule.GetNotAfter()), Ticket: rule.GetTicket(), Expired: rule.GetExpired(),
		})
	}
	return p, nil
}

// Tenant is a rule of the tenant directory, or one tenant.
type Tenant struct {
	// ID is the tenant ID; empty for a rule about a prefix.
	ID string `json:"id,omitempty"`
	// Prefix is what the tenant IDs begin with, followed by "*", for a rule
	// about many; "*" is every tenant. Empty for one tenant.
	Prefix string `json:"prefix,omitempty"`
	// KEK is the ref of the KEK that new DEKs are wrapped with, AlsoOpens
	// those of others that open the tenant's data.
	KEK       string   `json:"kek,omitempty"`
	AlsoOpens []string `json:"also_opens,omitempty"`
	// Regions are where the tenant's data may be processed; empty: anywhere.
	Regions []string `json:"regions,omitempty"`
	// State is "active", "suspended", or "unknown": the directory has it no longer.
	State string `json:"state"`
	// Suspension is the one in this sidecar; nil if there is none, also where
	// tenants.yaml suspends the tenant.
	Suspension *Suspension `json:"suspension,omitempty"`
}

// Suspension is what Suspend leaves.
type Suspension struct {
	// By is who asked for it.
	By string `json:"by"`
	// Reason is why, in the operator's words; may be empty.
	Reason string `json:"reason,omitempty"`
	// At is when.
	At time.Time `json:"at,omitzero"`
}

// Tenants lists the rules of the tenant directory in the order of the file,
// then tenants that are suspended here and have no rule of their own. It asks
// for a page at a time, and ends after an error. Verb admin.tenants.
func (a *Admin) Tenants(ctx context.Context) iter.Seq2[Tenant, error] {
	return func(yield func(Tenant, error) bool) {
		req := &keysidecarv1.ListTenantsRequest{}
		for {
			r, err := a.rpc.ListTenants(ctx, req)
			if err != nil {
				yield(Tenant{}, a.newError(ctx, err))
				return
			}
			for _, t := range r.GetTenants() {
				if !yield(tenantOf(t), nil) {
					return
				}
			}
			if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
				return
			}
		}
	}
}

// Suspended is what Suspend returns.
type Suspended struct {
	// Tenant is the tenant as it is now, in this sidecar.
	Tenant Tenant `json:"tenant"`
	// DEKs is how many of its DEKs left memory.
	DEKs uint32 `json:"deks"`
}

// Suspend refuses all operations for a tenant in this sidecar, also after a
// restart, and wipes its DEKs from memory. The reason is for people, at most
// 256 printable bytes, and may be empty. Suspending again changes nothing.
// Verb admin.suspend.
func (a *Admin) Suspend(ctx context.Context, tenant, reason string) (Suspended, error) {
	r, err := a.rpc.SuspendTenant(ctx, &keysidecarv1.SuspendTenantRequest{Tenant: tenant, Reason: reason})
	if err != nil {
		return Suspended{}, a.newError(ctx, err)
	}
	return Suspended{Tenant: tenantOf(r.GetTenant()), DEKs: r.GetDeks()}, nil
}

// Resumed is what Resume returns.
type Resumed struct {
	// Tenant is the tenant as it is now, in this sidecar: its State is still
	// "suspended" if tenants.yaml says so.
	Tenant Tenant `json:"tenant"`
	// WasSuspended says that Suspend had suspended it.
	WasSuspended bool `json:"was_suspended"`
}

// Resume takes Suspend back. What tenants.yaml suspends stays suspended. Verb
// admin.suspend.
func (a *Admin) Resume(ctx context.Context, tenant string) (Resumed, error) {
	r, err := a.rpc.ResumeTenant(ctx, &keysidecarv1.ResumeTenantRequest{Tenant: tenant})
	if err != nil {
		return Resumed{}, a.newError(ctx, err)
	}
	return Resumed{Tenant: tenantOf(r.GetTenant()), WasSuspended: r.GetWasSuspended()}, nil
}

func tenantOf(t *keysidecarv1.Tenant) Tenant {
	out := Tenant{
		ID: t.GetId(), Prefix: t.GetPrefix(), KEK: t.GetKek(), AlsoOpens: t.GetAlsoOpens(), Regions: t.GetRegions(),
		State: t.GetState(),
	}
	if s := t.GetSuspension(); s != nil {
		out.Suspension = &Suspension{By: s.GetBy(), Reason: s.GetReason(), At: timeOf(s.GetAt())}
	}
	return out
}

// timeOf returns the zero Time for what is absent.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
