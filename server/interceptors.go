package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/tenant"
)

// requestIDKey is the name of the request id in the metadata of ErrorInfo, in
// the trailer of a failed call, and in the log.
const requestIDKey = "request_id"

type requestIDCtxKey struct{}

// requestID returns the request id of a call, or "" outside one.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDCtxKey{}).(string)
	return id
}

// withRequestID gives a call its id: ten random characters, the same for all
// calls of this server, and a count. A peer's own id is not taken: it could be
// made to look like another call's.
func (s *Server) withRequestID(ctx context.Context) context.Context {
	return context.WithValue(ctx, requestIDCtxKey{}, s.idPrefix+strconv.FormatUint(s.calls.Add(1), 36))
}

// unary returns the interceptors, outermost first. recover comes twice: inside,
// so that metrics and the log see the INTERNAL of a panicking handler, and
// outside, so that an interceptor's own panic ends its call only.
func (s *Server) unary(extra []grpc.UnaryServerInterceptor) []grpc.UnaryServerInterceptor {
	recoverPanic := recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(s.recovered))
	return slices.Concat(
		[]grpc.UnaryServerInterceptor{s.guard, recoverPanic},
		extra,
		[]grpc.UnaryServerInterceptor{s.log, recoverPanic},
	)
}

// stream returns the interceptors of health.Watch and reflection.
func (s *Server) stream(extra []grpc.StreamServerInterceptor) []grpc.StreamServerInterceptor {
	recoverPanic := recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(s.recovered))
	return slices.Concat(
		[]grpc.StreamServerInterceptor{s.endAtDrain, recoverPanic},
		extra,
		[]grpc.StreamServerInterceptor{recoverPanic},
	)
}

// guard gives a call its request id and lets no error of a SealService call
// past that is not a *callError: whatever an interceptor made of it, no cause
// reaches the wire.
func (s *Server) guard(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	s.inflight.Add(1)
	defer s.inflight.Add(-1)
	ctx = s.withRequestID(ctx)
	resp, err := handler(ctx, req)
	if err == nil {
		return resp, nil
	}
	// For peers that do not read ErrorInfo. It fails only outside a call.
	_ = grpc.SetTrailer(ctx, metadata.Pairs(requestIDKey, requestID(ctx)))
	if e, ok := errors.AsType[*callError](err); ok {
		return nil, e.status.Err()
	}
	if strings.HasPrefix(info.FullMethod, "/"+keysidecarv1.SealService_ServiceDesc.ServiceName+"/") {
		return nil, fail(ctx, err).status.Err()
	}
	return nil, err
}

// recovered turns a panic into INTERNAL. The log gets what panicked and where,
// but no values: neither those that a panic may carry nor a traceback's
// arguments, for either could be data or a key.
func (s *Server) recovered(ctx context.Context, p any) error {
	if requestID(ctx) == "" {
		ctx = s.withRequestID(ctx)
	}
	s.logger.LogAttrs(ctx, slog.LevelError, "call panicked",
		slog.String(requestIDKey, requestID(ctx)),
		slog.String("panic", panicText(p)),
		slog.Any("stack", stack()))
	return fail(ctx, errors.New("panic in a handler"))
}

// panicText returns the text of a runtime error or of a string, which are
// constants of code, and otherwise the type alone.
func panicText(p any) string {
	switch p := p.(type) {
	case string:
		return p
	case runtime.Error:
		return p.Error()
	}
	return fmt.Sprintf("%T", p)
}

// stack returns the functions and lines that led here, innermost first.
func stack() []string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var lines []string
	for {
		f, more := frames.Next()
		lines = append(lines, fmt.Sprintf("%s %s:%d", f.Function, f.File, f.Line))
		if !more {
			return lines
		}
	}
}

// log writes one record per call, without payloads. A call that succeeded costs
// nothing unless debug records are on.
func (s *Server) log(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	start := time.Now()
	resp, err := handler(ctx, req)
	code := status.Code(err)
	level := levelOf(code)
	if !s.logger.Enabled(ctx, level) {
		return resp, err
	}
	attrs := []slog.Attr{
		slog.String(requestIDKey, requestID(ctx)),
		slog.String("method", info.FullMethod),
		slog.String("code", code.String()),
		slog.Duration("duration", time.Since(start)),
	}
	if t, ok := req.(interface{ GetTenant() string }); ok {
		// Only a well-formed ID is short and printable.
		if id, parseErr := tenant.Parse(t.GetTenant()); parseErr == nil {
			attrs = append(attrs, slog.String("tenant", id.String()))
		}
	}
	if e, ok := errors.AsType[*callError](err); ok {
		attrs = append(attrs, slog.String("reason", e.reason))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.logger.LogAttrs(ctx, level, "call finished", attrs...)
	return resp, err
}

// levelOf returns Error where somebody must act, Warn where somebody should
// know.
func levelOf(c codes.Code) slog.Level {
	switch c {
	case codes.OK:
		return slog.LevelDebug
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	case codes.Unavailable, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// endAtDrain ends health.Watch streams soon after draining begins; they would
// otherwise outlast every call.
func (s *Server) endAtDrain(
	srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	stop := context.AfterFunc(s.streams, cancel)
	defer stop()
	return handler(srv, &boundStream{ServerStream: ss, ctx: ctx})
}

type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the stream's context, which also ends at drain.
func (s *boundStream) Context() context.Context { return s.ctx }
