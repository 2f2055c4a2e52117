package server

import (
	"github.com/keysidecar/keysidecar/sealer"
	"google.golang.org/grpc/codes"
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
