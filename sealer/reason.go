package sealer

import (
	"fmt"
	"time"
)

// Reason says why an operation was refused or did not succeed. Its String is
// part of the API: it is the reason of google.rpc.ErrorInfo. Reasons are never
// renamed.
type Reason uint8

// The reasons. None is OK; it is the zero value so that an event without an
// error has it.
const (
	OK Reason = iota
	Unauthenticated
	PermissionDenied
	InvalidTenant
	UnknownTenant
	InvalidContext
	MalformedEnvelope
	UnsupportedFormat
	AuthenticationFailed
	UnknownDEK
	KEKNotAllowed
	KEKDisabled
	KEKNotFound
	KEKForbidden
	Residency
	KeyVaultThrottled
	KeyVaultUnreachable
	OutageGraceOver
	RegistryUnreachable
	NeedsRegistry
	AuditUnavailable
	TenantSuspended
	TenantShredded
	StateUnavailable
	InvalidRequest
	TooLarge
	RateLimited
	Overloaded
	Draining
)

// reasons holds, per Reason, its stable name and the constant text that a
// caller gets. The texts hold nothing of the request or of the cause.
var reasons = [...]struct{ name, text string }{
	OK:                   {"OK", "done"},
	Unauthenticated:      {"UNAUTHENTICATED", "the caller is not authenticated"},
	PermissionDenied:     {"PERMISSION_DENIED", "the caller may not do this for this tenant"},
	InvalidTenant:        {"INVALID_TENANT", "the tenant ID is not well-formed, or not one that this tenant's KEK template takes"},
	UnknownTenant:        {"UNKNOWN_TENANT", "the tenant is not in the tenant directory"},
	InvalidContext:       {"INVALID_CONTEXT", "the encryption context is over its limits, or has an empty, repeated or reserved key"},
	MalformedEnvelope:    {"MALFORMED_ENVELOPE", "the sealed data does not follow the format"},
	UnsupportedFormat:    {"UNSUPPORTED_FORMAT", "the sealed data has a version, suite, flag, kind, purpose or algorithm that this release does not know"},
	AuthenticationFailed: {"AUTHENTICATION_FAILED", "the sealed data does not open for this tenant with this encryption context"},
	UnknownDEK:           {"UNKNOWN_DEK", "the data key of this envelope is not known"},
	KEKNotAllowed:        {"KEK_NOT_ALLOWED", "a key block names a KEK or an algorithm that this tenant's configuration does not allow"},
	KEKDisabled:          {"KEK_DISABLED", "the tenant's KEK version is disabled in its vault, or none is valid for wrapping"},
	KEKNotFound:          {"KEK_NOT_FOUND", "the tenant's KEK or its version does not exist in its vault"},
	KEKForbidden:         {"KEK_FORBIDDEN", "the sidecar's credential may not use the tenant's KEK"},
	Residency:            {"RESIDENCY", "the tenant's data may not be processed in this sidecar's region"},
	KeyVaultThrottled:    {"KEY_VAULT_THROTTLED", "the key vault is throttling; retry later"},
	KeyVaultUnreachable:  {"KEY_VAULT_UNREACHABLE", "the key vault gave no answer that can be trusted; retry later"},
	OutageGraceOver:      {"OUTAGE_GRACE_OVER", "the key vault has not answered for longer than the tenant's outage grace"},
	RegistryUnreachable:  {"REGISTRY_UNREACHABLE", "the registry does not answer; retry later"},
	NeedsRegistry:        {"NEEDS_REGISTRY", "the envelope carries no key block that can be used without a registry, and none is configured"},
	AuditUnavailable:     {"AUDIT_UNAVAILABLE", "the audit log cannot be written"},
	TenantSuspended:      {"TENANT_SUSPENDED", "the tenant is suspended"},
	TenantShredded:       {"TENANT_SHREDDED", "the tenant's keys have been destroyed"},
	StateUnavailable:     {"STATE_UNAVAILABLE", "the sidecar cannot keep this beyond a restart, so nothing was changed"},
	InvalidRequest:       {"INVALID_REQUEST", "a field of the request is over its limits, or is not one that the sidecar gave"},
	TooLarge:             {"TOO_LARGE", "the data is over the configured limit"},
	RateLimited:          {"RATE_LIMITED", "the caller or the tenant is over its rate; retry later"},
	Overloaded:           {"OVERLOADED", "the sidecar has no room for this now; retry later"},
	Draining:             {"DRAINING", "the sidecar is shutting down; connect again"},
}

// Reasons returns every Reason but OK, in their order.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasons)-1)
	for r := range reasons[1:] {
		all = append(all, Reason(r+1))
	}
	return all
}

// String returns the stable name, such as "AUTHENTICATION_FAILED".
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r].name
	}
	return fmt.Sprintf("REASON_%d", uint8(r))
}

// Denial reports whether r says that somebody asked for what is not theirs, or
// not now. Others are mistakes, limits, or something that does not work.
func (r Reason) Denial() bool {
	switch r {
	case Unauthenticated, PermissionDenied, InvalidTenant, UnknownTenant, TenantSuspended, TenantShredded, Residency,
		AuthenticationFailed, KEKNotAllowed:
		return true
	}
	return false
}

// Text returns the constant message for callers.
func (r Reason) Text() string {
	if int(r) < len(reasons) {
		return reasons[r].text
	}
	return "unknown reason"
}

// Error is what Sealer's methods return, except that the caller's own context
// errors and internal errors come back as they are.
type Error struct {
	// Reason says why.
	Reason Reason
	// RetryAfter is when a retry may help; zero if it does not.
	RetryAfter time.Duration
	cause      error
}

// Error returns the reason and the cause. It is for logs: callers get
// Reason.Text.
func (e *Error) Error() string {
	if e.cause == nil {
		return e.Reason.String()
	}
	return e.Reason.String() + ": " + e.cause.Error()
}

// Unwrap returns the cause, which may be nil.
func (e *Error) Unwrap() error { return e.cause }

// NewError returns an Error for an operation that others carry out by the
// same rules, such as an administrator's. cause is for logs and may be nil.
func NewError(r Reason, cause error) *Error { return fail(r, cause) }

func fail(r Reason, cause error) *Error { return &Error{Reason: r, cause: cause} }
