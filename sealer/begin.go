package sealer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// op is one operation between begin and end.
type op struct {
	s       *Sealer
	event   Event
	start   time.Time
	entry   *tenant.Entry
	context envelope.Context
	pass    limit.Pass // the tenant's
	done    bool       // by finish
}

// begin makes the checks that need no sealed data: size, syntax of tenant and
// context, policy, tenant state, residency. It returns an op in any case.
func (s *Sealer) begin(v policy.Verb, r Request) (*op, error) {
	op := &op{s: s, start: time.Now(), event: Event{Verb: v, Caller: r.Caller, CallerName: r.CallerName, Bytes: len(r.Data)}}
	limit := s.cfg.MaxPlaintext
	if v == policy.Unseal {
		limit = MaxSealed(limit)
	}
	if len(r.Data) > limit {
		return op, fail(TooLarge, fmt.Errorf("%d bytes are over the limit of %d", len(r.Data), limit))
	}
	id, err := tenant.Parse(r.Tenant)
	if err != nil {
		op.event.InputBytes, op.event.InputSum = rejected(r.Tenant)
		return op, fail(InvalidTenant, err)
	}
	op.event.Tenant = r.Tenant
	if op.context, err = envelope.ParseContext(r.Context); err != nil {
		return op, fail(InvalidContext, err)
	}
	op.event.context = r.Context
	rules := s.cfg.Rules()
	if !rules.Policy.Allow(r.Caller, v, id, s.clock.At(op.start)) {
		return op, fail(PermissionDenied, nil)
	}
	op.event.Allowed = true
	return op, op.enter(rules, id)
}

// enter looks the tenant up, and checks that it may be served here and now. All
// of it is known without asking anybody.
func (op *op) enter(rules *Rules, id tenant.ID) error {
	entry, err := rules.Tenants(id)
	if entry != nil {
		op.event.Audit = entry.Audit
	}
	switch {
	case errors.Is(err, tenant.ErrUnknown):
		return fail(UnknownTenant, err)
	case err != nil:
		return fail(InvalidTenant, err)
	case entry.Suspended:
		return fail(TenantSuspended, nil)
	case !entry.Allows(op.s.cfg.Region):
		return fail(Residency, fmt.Errorf("tenant's regions are %v, this sidecar's is %q", entry.Regions, op.s.cfg.Region))
	}
	op.entry = entry
	return op.count()
}

// count counts the operation against the tenant's limits.
func (op *op) count() error {
	limits := &op.s.cfg.Limits
	pass, wait, ok := limits.Tenants.Enter(op.event.Tenant, limit.Limit(op.entry.Limits).Or(limits.Tenant))
	switch {
	case ok:
		op.pass = pass
		return nil
	case wait > 0:
		return &Error{Reason: RateLimited, RetryAfter: wait, cause: errTenantRate}
	}
	return &Error{Reason: Overloaded, RetryAfter: retryOverloaded, cause: errTenantCalls}
}

// admitMiss counts a DEK that is not in memory against the caller's miss
// budget for the tenant's vault: whoever may name many tenants, or sends forged
// blocks, costs each vault no more than that.
func (op *op) admitMiss() error {
	if err := op.s.cfg.Ready(); err != nil {
		return &Error{Reason: AuditUnavailable, RetryAfter: retryAudit, cause: err}
	}
	limits := &op.s.cfg.Limits
	vault := op.entry.KEKs[0].Vault
	if wait, ok := limits.Misses.Take(op.event.CallerName+" "+vault, limits.Miss); !ok {
		return &Error{Reason: RateLimited, RetryAfter: max(wait, retryMiss), cause: fmt.Errorf("%w: vault %s", errMisses, vault)}
	}
	return nil
}

// What a refused operation's log line says.
var (
	errTenantRate  = errors.New("tenant is over its rate: limits.tenant.rate, or rate in tenants.yaml")
	errTenantCalls = errors.New("tenant has too many operations under way: limits.tenant.calls, or calls in tenants.yaml")
	errMisses      = errors.New("caller is over its rate of data keys of one vault that are not in memory: limits.misses")
)

// finish records and reports the outcome, and returns it. What cannot be
// recorded does not happen, as far as the caller is concerned.
func (op *op) finish(ctx context.Context, res Result, err error) (Result, error) {
	op.done = true
	if err == nil {
		op.event.Key = res.Key
	}
	op.describe(err)
	if failed := op.s.cfg.Record(ctx, op.event); failed != nil {
		if err = failed; ctx.Err() == nil || !errors.Is(failed, ctx.Err()) {
			err = &Error{Reason: AuditUnavailable, RetryAfter: retryAudit, cause: failed}
		}
		op.describe(err)
	}
	op.s.cfg.Observe(ctx, op.event)
	if err != nil {
		return Result{}, err
	}
	return res, nil
}

func (op *op) describe(err error) {
	op.event.Duration, op.event.Reason, op.event.Err = time.Since(op.start), OK, err
	if e, ok := errors.AsType[*Error](err); ok {
		op.event.Reason = e.Reason
	}
}

var errPanic = errors.New("the operation panicked")

// end gives back what begin took. A panic is on its way if there was no finish:
// the operation is recorded all the same.
func (op *op) end(ctx context.Context) {
	op.pass.Leave()
	if !op.done {
		_, _ = op.finish(ctx, Result{}, errPanic) // the panic goes on
	}
}

// rejected describes what is not written down.
func rejected(input string) (n int, sum [8]byte) {
	hash := sha256.Sum256([]byte(input))
	return len(input), [8]byte(hash[:8])
}

// MaxSealed returns the size of the largest bundle over n bytes of plaintext.
func MaxSealed(n int) int { return envelope.MaxBundleHeader + envelope.SealedSize(n) }
