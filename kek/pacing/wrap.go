package pacing

import (
	"context"
	"errors"

	"github.com/keysidecar/keysidecar/kek"
)

// Operations of a kek.Wrapper, as kek.Error has them.
const (
	opNewest = "newest"
	opWrap   = "wrap"
	opUnwrap = "unwrap"
)

// paced is a kek.Wrapper that waits for its turn before it asks another.
type paced struct {
	next  kek.Wrapper
	pacer *Pacer
}

var _ kek.Wrapper = (*paced)(nil)

// Wrap returns w behind p: each call that asks a vault waits for its turn, with
// the priority and for the tenant that kek.WithCall told, and tells p how the
// vault answered.
//
// Newest, Unwrap and Wrap with A256KW are a call each. Wrap with RSA is none, and
// goes on while the vault is stopped: kek/azurekv does it with the public key
// that Newest fetched, and asks only if that is more than 10 minutes ago.
//
// A call may be more requests than one: Newest lists the versions if the latest
// is not usable, the first to a vault meets its challenge, and the SDK tries
// twice. Only w knows: who wants them counted passes each request after the first
// of a call (azurekv.Call's Attempt) to Charge.
func Wrap(w kek.Wrapper, p *Pacer) kek.Wrapper { return &paced{next: w, pacer: p} }

// Newest implements kek.Wrapper.
func (w *paced) Newest(ctx context.Context, k kek.Key) (kek.Version, error) {
	if err := w.wait(ctx, opNewest, k, kek.Version{}); err != nil {
		return kek.Version{}, err
	}
	v, err := w.next.Newest(ctx, k)
	w.heard(k, err)
	return v, err
}

// Wrap implements kek.Wrapper.
func (w *paced) Wrap(ctx context.Context, k kek.Key, v kek.Version, dek *[kek.Size]byte) ([]byte, error) {
	local := k.Alg == kek.RSAOAEP256
	if !local {
		if err := w.wait(ctx, opWrap, k, v); err != nil {
			return nil, err
		}
	}
	wrapped, err := w.next.Wrap(ctx, k, v, dek)
	if err != nil || !local {
		w.heard(k, err)
	}
	return wrapped, err
}

// Unwrap implements kek.Wrapper.
func (w *paced) Unwrap(ctx context.Context, k kek.Key, v kek.Version, wrapped []byte, dek *[kek.Size]byte) error {
	if err := w.wait(ctx, opUnwrap, k, v); err != nil {
		clear(dek[:])
		return err
	}
	err := w.next.Unwrap(ctx, k, v, wrapped, dek)
	w.heard(k, err)
	return err
}

func (w *paced) wait(ctx context.Context, op string, k kek.Key, v kek.Version) error {
	err := w.pacer.Wait(ctx, k.Vault)
	if e, ok := errors.AsType[*kek.Error](err); ok {
		e.Op, e.Ref, e.Version = op, k.Ref, v
	}
	return err
}

// heard tells the Pacer how the vault answered. No answer, and what was decided
// without asking, is none.
func (w *paced) heard(k kek.Key, err error) {
	e, ok := errors.AsType[*kek.Error](err)
	switch {
	case err == nil:
		w.pacer.Answered(k.Vault, false, 0)
	case !ok:
	case e.Reason == kek.Throttled:
		w.pacer.Answered(k.Vault, true, e.RetryAfter)
	case e.RetryAfter > 0, e.Status != 0 && e.Reason != kek.Unreachable:
		w.pacer.Answered(k.Vault, false, e.RetryAfter)
	}
}
