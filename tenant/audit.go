package tenant

import "fmt"

// AuditMode is how the audit log records a tenant's calls.
type AuditMode uint8

// The modes.
const (
	// AuditDefault is whatever the sidecar does for tenants whose rule says
	// nothing.
	AuditDefault AuditMode = iota
	// AuditAggregate counts calls that are alike.
	AuditAggregate
	// AuditFull records each call, before its caller gets the answer.
	AuditFull
)

// String returns the name that the files use, "" for AuditDefault, or
// "audit(N)".
func (m AuditMode) String() string {
	switch m {
	case AuditDefault:
		return ""
	case AuditAggregate:
		return "aggregate"
	case AuditFull:
		return "full"
	}
	return fmt.Sprintf("audit(%d)", uint8(m))
}

// ParseAuditMode returns the mode of that name, in exactly String's spelling.
func ParseAuditMode(s string) (AuditMode, error) {
	for _, m := range []AuditMode{AuditDefault, AuditAggregate, AuditFull} {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("audit mode %q is not aggregate or full", s)
}
