package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keysidecar/keysidecar/sealer"
)

// domain is the domain of every google.rpc.ErrorInfo.
const domain = "keysidecar"

// callError is the error of one call: what the caller gets, and why. Its text
// is for the log; only GRPCStatus goes on the wire.
type callError struct {
	status     *status.Status
	reason     string
	retryAfter time.Duration
	cause      error
}

// Error returns the cause, which names the reason, or the reason alone.
func (e *callError) Error() string {
	if e.cause == nil {
		return e.reason
	}
	return e.cause.Error()
}

// GRPCStatus returns what the caller gets; it holds nothing of the cause.
func (e *callError) GRPCStatus() *status.Status { return e.status }

// fail maps err to the error of the call of ctx.
func fail(ctx context.Context, err error) *callError {
	if e, ok := errors.AsType[*sealer.Error](err); ok {
		return failFor(ctx, e.Reason, e.RetryAfter, err)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return newCallError(ctx, codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "the call's deadline passed", 0, err)
	case errors.Is(err, context.Canceled):
		return newCallError(ctx, codes.Canceled, "CANCELLED", "the caller gave the call up", 0, err)
	}
	return newCallError(ctx, codes.Internal, "INTERNAL", "internal error", 0, err)
}

// failFor maps a reason to the error of the call of ctx. A reason that the
// table lacks is INTERNAL.
func failFor(ctx context.Context, r sealer.Reason, retryAfter time.Duration, cause error) *callError {
	if int(r) >= len(outcomes) || outcomes[r].code == codes.OK {
		return newCallError(ctx, codes.Internal, "INTERNAL", "internal error", 0, cause)
	}
	return newCallError(ctx, outcomes[r].code, r.String(), r.Text(), retryAfter, cause)
}

func newCallError(
	ctx context.Context, c codes.Code, reason, text string, retryAfter time.Duration, cause error,
) *callError {
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.ErrorInfo{
		Domain: domain, Reason: reason, Metadata: map[string]string{requestIDKey: CallOf(ctx).ID()},
	})}
	if retryAfter > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{
			RetryDelay: durationpb.New(retryAfter),
		}))
	}
	st, err := status.New(c, text).WithDetails(details...)
	if err != nil {
		panic("server: internal error: error details do not marshal: " + err.Error())
	}
	return &callError{status: st, reason: reason, retryAfter: retryAfter, cause: cause}
}

// unreadable is gRPC's own answer to a message that does not decode.
func unreadable(err error) error {
	return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
}
