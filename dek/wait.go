package dek

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// waiters counts, by tenant, the operations that wait for a vault as long as
// it takes. A tenant for which nobody waits has no entry.
type waiters struct {
	mu       sync.Mutex
	byTenant map[tenant.ID]int
}

// enter counts one more, unless there are limit of them.
func (w *waiters) enter(t tenant.ID, limit int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byTenant[t] >= limit {
		return false
	}
	if w.byTenant == nil {
		w.byTenant = make(map[tenant.ID]int)
	}
	w.byTenant[t]++
	return true
}

func (w *waiters) leave(t tenant.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byTenant[t]--; w.byTenant[t] == 0 {
		delete(w.byTenant, t)
	}
}

// await runs ask, which waits for k's vault until its context ends. Where
// enough operations of the tenant wait already, that is soon: what they hold is
// missed by other tenants, whose vaults answer. What ask has begun goes on.
func await[V any](ctx context.Context, s *Source, t tenant.ID, k kek.Key, ask func(context.Context) (V, error)) (V, error) {
	if s.waiters.enter(t, s.cfg.PatientWaiters) {
		defer s.waiters.leave(t)
		return ask(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.ImpatientWait, ErrBusy)
	defer cancel()
	v, err := ask(ctx)
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), ErrBusy) {
		err = fmt.Errorf("%w: tenant %s, vault %s, no answer in %s", ErrBusy, t, k.Vault, s.cfg.ImpatientWait)
	}
	return v, err
}
