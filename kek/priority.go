package kek

import (
	"context"
	"fmt"
)

// Priority says what a call to a vault is for, and so who goes first when not
// all can go at once (kek/pacing). The zero Priority means UnsealMiss.
type Priority uint8

// The priorities. Who is earlier in this list goes strictly first.
const (
	// Renewal asks whether a KEK still says yes to what is in use.
	Renewal Priority = 1 + iota
	// UnsealMiss is for an Unseal that waits for its DEK.
	UnsealMiss
	// SealMiss is for a Seal that waits for its DEK.
	SealMiss
	// MintAhead is for the next DEK of a tenant, for which nobody waits yet.
	MintAhead
	// Poll asks for a KEK's newest version.
	Poll
	// Job is for work in bulk, such as moving all that an old KEK version wraps.
	Job
)

var priorityNames = [...]string{
	Renewal: "renewal", UnsealMiss: "unseal miss", SealMiss: "seal miss", MintAhead: "mint ahead", Poll: "poll", Job: "job",
}

// String returns the priority in words.
func (p Priority) String() string {
	if p >= Renewal && int(p) < len(priorityNames) {
		return priorityNames[p]
	}
	return fmt.Sprintf("priority(%d)", uint8(p))
}

// call is what WithCall tells.
type call struct {
	priority Priority
	tenant   string
}

type callKey struct{}

// WithCall returns a context that tells what the calls made with it are for:
// their priority, and the tenant on whose behalf they are made; empty if it is
// nobody's. The inner of two counts. A Priority of zero is UnsealMiss, and one
// that does not exist is Job.
func WithCall(ctx context.Context, p Priority, tenant string) context.Context {
	switch {
	case p == 0:
		p = UnsealMiss
	case p > Job:
		p = Job
	}
	return context.WithValue(ctx, callKey{}, &call{priority: p, tenant: tenant})
}

// CallOf returns what WithCall told: a priority that exists, and a tenant. It
// returns UnsealMiss and nobody if nothing was told. It allocates nothing.
func CallOf(ctx context.Context) (Priority, string) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.priority, c.tenant
	}
	return UnsealMiss, ""
}
