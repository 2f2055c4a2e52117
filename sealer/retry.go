package sealer

import (
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// When a retry may help: not before the failure is forgotten (dek.Negative),
// and not before the vault wants to be asked again.
const (
	retryUnreachable = 2 * time.Second
	retryForbidden   = 15 * time.Second
	retryOverloaded  = 100 * time.Millisecond
	retryAudit       = time.Second
	// retryMiss is at least: who comes back for each token gets no further than
	// who comes once for many.
	retryMiss = time.Second
)

// retryAfter says when asking a vault again may help, or zero if only the
// KEK's owner can help.
func retryAfter(e *kek.Error) time.Duration {
	switch e.Reason {
	case kek.Unreachable, kek.Throttled:
		return max(retryUnreachable, e.RetryAfter)
	case kek.Forbidden: // role assignments take minutes to work
		return retryForbidden
	}
	return 0
}
