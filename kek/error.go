package kek

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Reason says why a vault did not do what it was asked.
type Reason uint8

// The reasons. Refusals (Disabled, NotFound, Forbidden) are the key owner's
// decision; Throttled and Unreachable are not an answer.
const (
	// Unreachable: no answer, or one that cannot be trusted (a 5xx, a
	// time-out, TLS, DNS, a firewall, garbage, another key's id).
	Unreachable Reason = iota
	// Rejected: the KEK does not accept the wrapped bytes, or they hold
	// something else than 32 bytes.
	Rejected
	// Disabled: the version, or every version, is disabled, or none is
	// within its validity for wrapping.
	Disabled
	// NotFound: the key or the version does not exist, or is deleted.
	NotFound
	// Forbidden: the credential may not do this.
	Forbidden
	// Throttled: the vault answered 429.
	Throttled
	// Unusable: the key exists and can never do this: another key type,
	// an operation that its key_ops do not list.
	Unusable
)

var reasonNames = [...]string{
	Unreachable: "unreachable", Rejected: "rejected", Disabled: "disabled",
	NotFound: "not found", Forbidden: "forbidden", Throttled: "throttled", Unusable: "unusable",
}

// String returns the reason in words.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Refusal reports whether the reason is the key owner's decision.
func (r Reason) Refusal() bool { return r == Disabled || r == NotFound || r == Forbidden }

// Error is what every Wrapper and every Signer returns. It holds nothing
// secret: its text may be logged, and must not be sent to a caller.
type Error struct {
	// Reason is the class of the failure.
	Reason Reason
	// Op is what was asked: "newest", "wrap", "unwrap" or "sign".
	Op string
	// Ref and Version name the KEK, or the key that was to sign; Version may be
	// zero.
	Ref     string
	Version Version
	// Vault is the vault that was meant, as "https://host" or
	// "https://host:port"; it may be empty.
	Vault string
	// Status and Code are the vault's HTTP status and innermost error code
	// (such as KeyDisabled or ForbiddenByRbac), where it answered.
	Status int
	Code   string
	// Expired says, of Newest's and Sign's Disabled, that a version is enabled
	// and only outside its validity. It wraps and signs no more, and still
	// unwraps.
	Expired bool
	// RequestID is the vault's x-ms-request-id, to quote to its operator.
	RequestID string
	// RetryAfter is how long the vault asked to wait; zero if it did not.
	RetryAfter time.Duration
	// Err is the cause, for errors.Is; it may be nil.
	Err error
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	var b strings.Builder
	kind := "KEK"
	if e.Op == OpSign {
		kind = "key"
	}
	fmt.Fprintf(&b, "%s with %s %s", e.Op, kind, e.Ref)
	if !e.Version.IsZero() {
		fmt.Fprintf(&b, " version %s", e.Version)
	}
	if e.Vault != "" {
		fmt.Fprintf(&b, " in %s", e.Vault)
	}
	fmt.Fprintf(&b, ": %s", e.Reason)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (status %d %s, request %s)", e.Status, e.Code, e.RequestID)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %s", e.Err)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the Reason of an error from a Wrapper or a Signer, and
// Unreachable for any other error.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return Unreachable
}

// RetryAfterOf returns how long the vault asked to wait, or zero.
func RetryAfterOf(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}
