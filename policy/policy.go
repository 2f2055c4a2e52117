// Package policy says who calls, and what a caller may do for a tenant.
package policy

import "github.com/keysidecar/keysidecar/tenant"

// Verb is something a caller may be allowed to do.
type Verb uint8

// The verbs of the data plane.
const (
	Seal Verb = 1 + iota
	Unseal
)

// String returns the verb as policies and logs write it.
func (v Verb) String() string {
	switch v {
	case Seal:
		return "seal"
	case Unseal:
		return "unseal"
	}
	return "unknown verb"
}

// Caller is an authenticated local process. The zero Caller is nobody.
// Callers are compared with ==.
type Caller struct {
	// Name is what policies, limits and logs call it, such as "socket".
	Name string
	// UID is the user ID the kernel reported, or 0 with HasUID false.
	UID    uint32
	HasUID bool
	// PID is for the log only. It is never decided on: it can be reused.
	PID int32
}

// SocketCaller is any process that the Unix socket's mode admits.
func SocketCaller() Caller { return Caller{Name: "socket"} }

// Policy decides. The zero Policy denies everything. It is immutable and safe
// for concurrent use.
type Policy struct{ admitSocket bool }

// AdmitSocket returns the policy of a sidecar whose socket's mode is its only
// gate: SocketCaller may do everything for every tenant, others nothing.
func AdmitSocket() *Policy { return &Policy{admitSocket: true} }

// Allow reports whether c may do v for t. It does not allocate.
func (p *Policy) Allow(c Caller, v Verb, t tenant.ID) bool {
	return p.admitSocket && c.Name == SocketCaller().Name && v != 0 && t != tenant.ID{}
}
