package sealer

import (
	"context"
	"errors"
	"fmt"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/lease"
	"github.com/keysidecar/keysidecar/tenant"
)

// candidates makes the checks of SPEC.md, section 10, on every key block, used
// or not, and appends to dst the ways to unwrap the DEK, in the order in which
// they are tried. No check costs a Key Vault call.
func (s *Sealer) candidates(dst []dek.Candidate, t *tenant.Entry, sealed *envelope.Sealed) ([]dek.Candidate, error) {
	if sealed.N == 0 {
		return nil, fail(NeedsRegistry, errors.New("an envelope alone"))
	}
	if err := sealed.CheckTenant(t.ID); err != nil {
		return nil, fail(AuthenticationFailed, err)
	}
	var keks [envelope.MaxBlocks]kek.Key
	for i := range sealed.Blocks() {
		b := &sealed.Blocks()[i]
		if b.Alg == envelope.AlgBranch {
			continue
		}
		k, ok := t.KEK(b.KEKRef)
		if !ok || envelope.Alg(k.Alg) != b.Alg {
			return nil, fail(KEKNotAllowed, fmt.Errorf("block names KEK %q with algorithm %s", b.KEKRef, b.Alg))
		}
		keks[i] = k
	}
	for i := range sealed.Blocks() {
		if err := s.checkProof(&sealed.Blocks()[i]); err != nil {
			return nil, err
		}
	}
	return appendCandidates(dst, sealed, &keks), nil
}

// appendCandidates lists the DEK blocks that a KEK wraps, and those that a
// branch key wraps whose block is in the bundle.
func appendCandidates(dst []dek.Candidate, sealed *envelope.Sealed, keks *[envelope.MaxBlocks]kek.Key) []dek.Candidate {
	blocks := sealed.Blocks()
	for i := range blocks {
		switch {
		case blocks[i].Kind != envelope.KindDEK:
		case blocks[i].Alg != envelope.AlgBranch:
			dst = append(dst, dek.Candidate{Block: sealed.RawBlock(i), KEK: keks[i]})
		default:
			for j := range blocks {
				if blocks[j].Kind == envelope.KindBranch && blocks[j].KeyID == blocks[i].Parent {
					dst = append(dst, dek.Candidate{Block: sealed.RawBlock(i), Branch: sealed.RawBlock(j), KEK: keks[j]})
				}
			}
		}
	}
	return dst
}

// checkWarm checks that a DEK may be used that was in memory, under the KEK of
// that ref: a reload may have taken the KEK from the tenant since it was
// unwrapped. Nothing has looked at the wrapped bytes then, so the ref that the
// block names says nothing. Sealing needs no such check: dek.Source seals only
// under the KEK that the entry names first.
func checkWarm(t *tenant.Entry, ref string) error {
	for i := range t.KEKs {
		if t.KEKs[i].Ref == ref {
			return nil
		}
	}
	return fail(KEKNotAllowed, fmt.Errorf("DEK was unwrapped by KEK %q, which tenant %s has no more", ref, t.ID))
}

// checkProof verifies a proof if there is one: one that is present is never
// ignored.
func (s *Sealer) checkProof(b *envelope.Block) error {
	signer, ok := b.Signer()
	if !ok {
		return nil
	}
	pub := s.cfg.Signers[signer]
	if pub == nil {
		return fail(AuthenticationFailed, fmt.Errorf("block is proved by %s, which is not pinned", signer))
	}
	if err := b.VerifyProof(pub); err != nil {
		return fail(AuthenticationFailed, err)
	}
	return nil
}

// formatError gives the reason of an error of envelope.Parse.
func formatError(err error) error {
	if errors.Is(err, envelope.ErrUnsupported) {
		return fail(UnsupportedFormat, err)
	}
	return fail(MalformedEnvelope, err)
}

var kekReasons = [...]Reason{
	kek.Unreachable: KeyVaultUnreachable, kek.Rejected: AuthenticationFailed, kek.Disabled: KEKDisabled,
	kek.NotFound: KEKNotFound, kek.Forbidden: KEKForbidden, kek.Throttled: KeyVaultThrottled, kek.Unusable: KEKForbidden,
}

// keyError gives the reason of an error of dek.Source. The caller's own
// context error stays as it is, and so does an error that should not happen.
func keyError(ctx context.Context, err error) error {
	var own *Error
	var remote *kek.Error
	var over *lease.GraceOverError
	switch {
	case errors.As(err, &own):
		return own
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, dek.ErrMismatch):
		return fail(AuthenticationFailed, err)
	case errors.Is(err, dek.ErrNoBlock):
		return fail(NeedsRegistry, err)
	case errors.Is(err, dek.ErrNotRecorded):
		return &Error{Reason: AuditUnavailable, RetryAfter: retryAudit, cause: err}
	case errors.Is(err, dek.ErrBusy):
		return &Error{Reason: Overloaded, RetryAfter: retryOverloaded, cause: fmt.Errorf("%w: see why that vault does not answer; "+
			"limits.tenant.waiting is how many wait for key_vault.load_timeout", err)}
	case errors.Is(err, secret.ErrFull):
		return &Error{Reason: Overloaded, RetryAfter: retryOverloaded, cause: err}
	case errors.As(err, &over):
		return &Error{Reason: OutageGraceOver, RetryAfter: retryUnreachable, cause: err}
	case errors.As(err, &remote):
		return &Error{Reason: kekReasons[remote.Reason], RetryAfter: retryAfter(remote), cause: err}
	case errors.Is(err, context.DeadlineExceeded): // the load's, not the caller's
		return &Error{Reason: KeyVaultUnreachable, RetryAfter: retryUnreachable, cause: err}
	}
	return err
}
