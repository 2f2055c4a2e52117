package sealer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// op is one operation between begin and done.
type op struct {
	s       *Sealer
	event   Event
	start   time.Time
	entry   *tenant.Entry
	context envelope.Context
}

// begin makes the checks that need no sealed data: size, syntax of tenant and
// context, policy, tenant state, residency. It returns an op in any case.
func (s *Sealer) begin(v policy.Verb, r Request) (*op, error) {
	op := &op{s: s, start: time.Now(), event: Event{Verb: v, Caller: r.Caller, Bytes: len(r.Data)}}
	limit := s.cfg.MaxPlaintext
	if v == policy.Unseal {
		limit = MaxSealed(limit)
	}
	if len(r.Data) > limit {
		return op, fail(TooLarge, fmt.Errorf("%d bytes are over the limit of %d", len(r.Data), limit))
	}
	id, err := tenant.Parse(r.Tenant)
	if err != nil {
		return op, fail(InvalidTenant, err)
	}
	op.event.Tenant = r.Tenant
	if op.context, err = envelope.ParseContext(r.Context); err != nil {
		return op, fail(InvalidContext, err)
	}
	if !s.cfg.Policy().Allow(r.Caller, v, id) {
		return op, fail(PermissionDenied, nil)
	}
	return op, op.enter(id)
}

// enter looks the tenant up, and checks that it may be served here and now.
func (op *op) enter(id tenant.ID) error {
	entry, err := op.s.cfg.Tenants(id)
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
	return nil
}

// done reports the outcome, and returns it.
func (op *op) done(ctx context.Context, res Result, err error) (Result, error) {
	op.event.Duration = time.Since(op.start)
	if e, ok := errors.AsType[*Error](err); ok {
		op.event.Reason = e.Reason
	}
	op.event.Err = err
	op.s.cfg.Observe(ctx, op.event)
	if err != nil {
		return Result{}, err
	}
	return res, nil
}

// MaxSealed returns the size of the largest bundle over n bytes of plaintext.
func MaxSealed(n int) int { return envelope.MaxBundleHeader + envelope.SealedSize(n) }
