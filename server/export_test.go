package server

import (
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
)

// Outcome is a line of the table, for the generator of docs/errors.md.
type Outcome struct {
	Code        codes.Code
	Retry, Next string
}

// OutcomeOf returns the line of r; it panics if the table has none.
func OutcomeOf(r sealer.Reason) Outcome {
	o := outcomes[r]
	return Outcome{o.code, o.retry, o.next}
}

// MaxRequest is the longest message that is read for n bytes of plaintext.
func MaxRequest(n int) int { return maxRequest(n) }

// StartDraining makes calls fail as they do once Drain has begun, on a
// connection that stays.
func (s *Server) StartDraining() { s.draining.Store(true) }

// Methods returns the verb that each method needs.
func Methods() map[string]policy.Verb { return methods() }

// CheckMethods returns an error for a method that has no verb.
func CheckMethods(registered map[string]grpc.ServiceInfo) error { return checkMethods(registered) }

// Registered returns the methods that s answers.
func (s *Server) Registered() map[string]grpc.ServiceInfo { return s.grpc.GetServiceInfo() }

// Allowed reports whether a connection from addr may be served.
func Allowed(allow []netip.Prefix, addr net.Addr) bool { return allowed(allow, addr) }

// MaxHeaderBytes is how much metadata is read.
const MaxHeaderBytes = maxHeaderBytes

// What bounds the log.
const (
	LinesPerSecond = linesPerSecond
	LinesAtOnce    = linesAtOnce
)

// NewQuiet returns whether the next line of a level is written, and how many
// were left out before it.
func NewQuiet() func(slog.Level) (left uint64, ok bool) {
	q := &quiet{lines: rate.NewLimiter(linesPerSecond, linesAtOnce)}
	return q.next
}

// CutOffAfter sets how long the peers of connections that are yet to come may
// leave an answer in their sockets.
func (s *Server) CutOffAfter(d time.Duration) {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	s.conns.stuck = d
}

// OpenTimeout is how long a call may take that needs no verb.
const OpenTimeout = openTimeout

// Braked returns raw as a connection of a caller, and what is called for each of
// the caller's calls that is refused.
func Braked(raw net.Conn) (braked net.Conn, press func()) {
	all := newConnections(1, 1, slog.New(slog.DiscardHandler))
	c := all.add(raw)
	all.claim(c, "caller")
	return c, func() { c.slowDown(limit.Limit{}) }
}

// What is read of a caller far over its rate.
const (
	BrakeRead    = brakeRead
	BrakeFree    = brakeFree
	BrakeSlack   = brakeSlack
	BrakeMost    = brakeMost
	BrakeAfter   = brakeAfter
	RefusalPause = refusalPause
)
