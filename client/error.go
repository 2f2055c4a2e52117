package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// domain is the domain of the sidecar's own google.rpc.ErrorInfo.
const domain = "keysidecar"

// ErrServerUID is what an *Error wraps when the process that listens on the
// socket runs as a user that is not accepted (see WithServerUID).
var ErrServerUID = errors.New("sidecar runs as a user that is not accepted")

// Error is the failure of a call. It wraps ErrServerUID, or the context's error
// where that ended the call.
type Error struct {
	// Reason is the sidecar's stable reason, such as "AUTHENTICATION_FAILED"
	// (docs/errors.md). It is empty if the answer is not the sidecar's own: the
	// connection was lost, or gRPC refused the message.
	Reason string
	// Code is the gRPC code.
	Code codes.Code
	// Message says what Reason means. It holds nothing of the data.
	Message string
	// RetryAfter is when a retry may help; 0 if the sidecar does not say.
	RetryAfter time.Duration
	// RequestID names the call in the sidecar's log; empty with Reason.
	RequestID string

	cause error
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	switch {
	case e.cause != nil:
		return "calling the sidecar: " + e.cause.Error()
	case e.Reason == "":
		return fmt.Sprintf("calling the sidecar: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s: %s (request %s)", e.Reason, e.Message, e.RequestID)
}

// Unwrap returns ErrServerUID, the context's error, or nil.
func (e *Error) Unwrap() error { return e.cause }

// ReasonOf returns the Reason of an *Error, and "" for any other error.
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// newError makes an *Error of what gRPC returned.
func (c *connection) newError(ctx context.Context, err error) *Error {
	st := status.Convert(err)
	e := &Error{Code: st.Code(), Message: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == domain {
				e.Reason, e.RequestID = d.GetReason(), d.GetMetadata()["request_id"]
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = max(0, d.GetRetryDelay().AsDuration())
		}
	}
	switch {
	case e.Code == codes.DeadlineExceeded:
		e.cause = context.DeadlineExceeded
	case e.Code == codes.Canceled: // nil if the connection was closed
		e.cause = ctx.Err()
	case e.lost():
		if refused := c.refused.Load(); refused != nil {
			e.cause = *refused
		}
	}
	return e
}

// lost reports whether there is no connection, or the connection was lost.
func (e *Error) lost() bool { return e.Code == codes.Unavailable && e.Reason == "" }

// wait returns how long to wait before the next attempt, 0 for not at all.
func (e *Error) wait() time.Duration {
	switch {
	case errors.Is(e, ErrServerUID):
		return 0
	case e.lost():
		return reconnectPause
	case e.RetryAfter <= longestWait:
		return e.RetryAfter
	}
	return 0
}
