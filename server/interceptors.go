package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/tenant"
)

// requestIDKey is the name of the request id in the metadata of ErrorInfo, in
// the trailer of a failed call, and in the log.
const requestIDKey = "request_id"

const (
	// pushbackKey and never tell gRPC clients, and meshes that look for it, not
	// to repeat a call that was refused for lack of room (gRFC A6).
	pushbackKey = "grpc-retry-pushback-ms"
	noPushback  = "-1"
)

// unary returns the interceptors of unary calls, outermost first. recover comes twice: inside,
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
		[]grpc.StreamServerInterceptor{s.endAtDrain, recoverPanic, s.enterStream},
		extra,
		[]grpc.StreamServerInterceptor{recoverPanic},
	)
}

// guard lets no error of one of our own services past that is not a
// *callError: whatever an interceptor made of it, no cause reaches the wire.
func (s *Server) guard(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	s.inflight.Add(1)
	defer s.inflight.Add(-1)
	resp, err := handler(ctx, req)
	if err == nil {
		return resp, nil
	}
	return nil, s.finish(ctx, info.FullMethod, err)
}

// finish returns what of err goes on the wire.
func (s *Server) finish(ctx context.Context, method string, err error) error {
	if e, ok := errors.AsType[*receiveError](err); ok {
		return e.error // gRPC's own answer: the message was too long, or is none
	}
	e, ours := errors.AsType[*callError](err)
	if !ours && !strings.HasPrefix(method, ownServices) {
		return err
	}
	if !ours {
		e = fail(ctx, err)
	}
	// For peers that do not read ErrorInfo. It fails only outside a call.
	trailer := metadata.Pairs(requestIDKey, CallOf(ctx).ID())
	if e.status.Code() == codes.ResourceExhausted && e.retryAfter > 0 {
		trailer.Set(pushbackKey, noPushback)
	}
	_ = grpc.SetTrailer(ctx, trailer)
	return e.status.Err()
}

// ownServices begins the full name of every method of ours.
const ownServices = "/keysidecar.v1."

// receiveError is why a message could not be read: gRPC's own error.
type receiveError struct{ error }

// GRPCStatus returns gRPC's status.
func (e *receiveError) GRPCStatus() *status.Status { return status.Convert(e.error) }

// recovered turns a panic into INTERNAL. The log gets what panicked and where,
// but no values: neither those that a panic may carry nor a traceback's
// arguments, for either could be data or a key.
func (s *Server) recovered(ctx context.Context, p any) error {
	if CallOf(ctx) == nil {
		ctx, _ = s.begin(ctx, openToAll)
	}
	s.logger.LogAttrs(ctx, slog.LevelError, "call panicked",
		slog.String(requestIDKey, CallOf(ctx).ID()),
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
	if _, unread := errors.AsType[*receiveError](err); unread {
		level = slog.LevelInfo // the caller's mistake, whatever gRPC calls it
	}
	if e, ok := errors.AsType[*callError](err); ok && code == codes.ResourceExhausted && e.retryAfter > 0 {
		level = slog.LevelWarn // a limit was met, not a message too long
	}
	if !s.logger.Enabled(ctx, level) {
		return resp, err
	}
	suppressed, ok := s.quiet[min(code, codes.Unauthenticated)].next(level)
	if !ok {
		return resp, err
	}
	c := CallOf(ctx)
	attrs := []slog.Attr{
		slog.String(requestIDKey, CallOf(ctx).ID()),
		slog.String("method", info.FullMethod),
		slog.String("code", code.String()),
		slog.Duration("duration", time.Since(start)),
	}
	if c.CallerName != "" {
		attrs = append(attrs, slog.String("caller", c.CallerName), slog.String("identity", c.Caller.Name),
			slog.Int64("pid", int64(c.Caller.PID)))
	}
	// Only a well-formed ID is short and printable.
	if id, parseErr := tenant.Parse(c.tenant); parseErr == nil {
		attrs = append(attrs, slog.String("tenant", id.String()))
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Uint64("lines_left_out", suppressed))
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

// quiet keeps calls that go wrong by the thousand from filling the log. There
// is one for each code, so that a flood of one hides no other.
type quiet struct {
	lines *rate.Limiter
	left  atomic.Uint64
}

// Of calls below Error, so many lines are written in a second, and so many at
// once.
const (
	linesPerSecond = 50
	linesAtOnce    = 200
)

// next reports whether the next line is written, and how many were left out
// before it. Lines that are errors, and those of debugging, always are.
func (q *quiet) next(level slog.Level) (left uint64, ok bool) {
	if level >= slog.LevelError || level <= slog.LevelDebug {
		return 0, true
	}
	if !q.lines.Allow() {
		q.left.Add(1)
		return 0, false
	}
	return q.left.Swap(0), true
}

// enterStream finds out who opens a stream, health.Watch or reflection, and
// bounds how many one caller has.
func (s *Server) enterStream(
	srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	ctx, c := s.begin(ss.Context(), openToAll)
	defer c.leave()
	if err := s.enter(ctx, c); err != nil {
		return s.finish(ctx, "", err)
	}
	return handler(srv, &boundStream{ServerStream: ss, ctx: ctx, receive: func(m any) error { return s.receivePart(ctx, c, ss, m) }})
}

// receivePart reads a message of a stream. One that is on its way for too long
// costs the peer its connection, since nothing else ends a stream that has no
// deadline; a stream on which nothing comes is left alone.
func (s *Server) receivePart(ctx context.Context, c *Call, ss grpc.ServerStream, m any) error {
	if err := s.makeRoom(ctx, c); err != nil {
		return s.finish(ctx, "", err)
	}
	defer c.hold.Release()
	if cut := connOf(ctx); cut != nil {
		defer time.AfterFunc(openTimeout, func() { _ = cut.Close() }).Stop()
	}
	return ss.RecvMsg(m)
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
	ctx     context.Context
	receive func(any) error // nil: the stream's own
}

// RecvMsg receives a message as an interceptor wants it.
func (s *boundStream) RecvMsg(m any) error {
	if s.receive != nil {
		return s.receive(m)
	}
	return s.ServerStream.RecvMsg(m)
}

// Context returns the context that an interceptor gave the stream.
func (s *boundStream) Context() context.Context { return s.ctx }
