package server

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

const (
	// drainRetry is when a caller that got DRAINING may find a new sidecar.
	drainRetry = time.Second
	// overloadRetry is when there may be room again for a caller that has all
	// its calls under way, or more bytes in flight than it may have.
	overloadRetry = 100 * time.Millisecond
	// roomWait is how long a call waits for its share of the bytes in flight.
	roomWait = 250 * time.Millisecond
	// callBytes is what a call takes besides its data, about.
	callBytes = 4 << 10
)

// openLimit is what a caller gets of the methods that need no verb, so that a
// probe works while its user's calls are refused.
func openLimit() limit.Limit { return limit.Limit{Rate: 100, Burst: 100, Calls: 32} }

// Limits bound what callers ask of all Servers that share them.
type Limits struct {
	// Callers counts the calls of each caller. Required.
	Callers *limit.Table
	// Caller is the limit of a caller for which policy.yaml says nothing else.
	Caller limit.Limit
	// Bytes counts the bytes of calls in flight. Required.
	Bytes *limit.Bytes
}

// Call is what is known of a call. It is one call's own.
type Call struct {
	// Caller makes the call. CallerName is what the policy calls it.
	Caller     policy.Caller
	CallerName string
	// Verb is what the method needs: the zero Verb if it needs none.
	Verb policy.Verb

	prefix string // of the request id
	number uint64
	tenant string // as the request names it: not checked
	hold   limit.Hold
}

type callKey struct{}

// CallOf returns what is known of the call of ctx, nil outside one.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// ID returns the call's request id: ten random characters, the same for all
// calls of this server, and a count. A peer's own id is not taken: it could be
// made to look like another call's.
func (c *Call) ID() string {
	if c == nil {
		return ""
	}
	return c.prefix + strconv.FormatUint(c.number, 36)
}

// begin gives ctx a Call.
func (s *Server) begin(ctx context.Context, verb policy.Verb) (context.Context, *Call) {
	c := &Call{Verb: verb, prefix: s.idPrefix, number: s.calls.Add(1)}
	return context.WithValue(ctx, callKey{}, c), c
}

// register registers a service. Its unary methods are registered as streams
// that receive one message and send one, which is the same on the wire: so the
// caller is known, and has room, before the message is read.
func (s *Server) register(desc *grpc.ServiceDesc, impl any) {
	gated := *desc
	gated.Methods = nil
	gated.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	for i := range desc.Methods {
		m := &desc.Methods[i]
		gated.Streams = append(gated.Streams, grpc.StreamDesc{
			StreamName: m.MethodName, Handler: s.gated("/"+desc.ServiceName+"/"+m.MethodName, m),
		})
	}
	s.grpc.RegisterService(&gated, impl)
}

// gated returns the handler of a unary method.
func (s *Server) gated(full string, m *grpc.MethodDesc) grpc.StreamHandler {
	verb := methods()[full]
	s.unaryMethods[full] = struct{}{}
	return func(srv any, stream grpc.ServerStream) error {
		ctx, c := s.begin(stream.Context(), verb)
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: full}
		reply, err := s.chained(ctx, info, 0, func(ctx context.Context, _ any) (any, error) {
			return s.admitted(ctx, c, m, srv, stream)
		})
		if err != nil {
			return err
		}
		return stream.SendMsg(reply)
	}
}

// chained runs the interceptors from the i-th on, and then last.
func (s *Server) chained(ctx context.Context, info *grpc.UnaryServerInfo, i int, last grpc.UnaryHandler) (any, error) {
	if i == len(s.interceptors) {
		return last(ctx, nil)
	}
	return s.interceptors[i](ctx, nil, info, func(ctx context.Context, _ any) (any, error) {
		return s.chained(ctx, info, i+1, last)
	})
}

// admitted answers a call if its caller may make one now.
func (s *Server) admitted(ctx context.Context, c *Call, m *grpc.MethodDesc, srv any, stream grpc.ServerStream) (any, error) {
	pass, err := s.enter(ctx, c)
	if err != nil {
		return nil, err
	}
	defer pass.Leave()
	defer c.hold.Release()
	reply, err := m.Handler(srv, ctx, func(req any) error { return s.receive(ctx, c, stream, req) }, nil)
	if err != nil && c.Verb != openToAll {
		return nil, ours(ctx, err)
	}
	return reply, err
}

// ours maps what a handler of ours returned, unless that is done already.
func ours(ctx context.Context, err error) error {
	if _, unread := errors.AsType[*receiveError](err); unread {
		return err
	}
	if _, mapped := errors.AsType[*callError](err); mapped {
		return err
	}
	return fail(ctx, err)
}

// enter finds out who calls, and whether the caller's limits allow a call now.
func (s *Server) enter(ctx context.Context, c *Call) (limit.Pass, error) {
	if s.draining.Load() && c.Verb != openToAll { // health goes on
		return limit.Pass{}, s.refuse(ctx, sealer.Draining, drainRetry, nil)
	}
	caller, err := s.source.Caller(ctx)
	if err != nil {
		return limit.Pass{}, s.refuse(ctx, sealer.Unauthenticated, 0, err)
	}
	name, own := s.policy().Who(caller)
	if name == caller.Name {
		name = callerKey(caller) // nobody gets more by taking another group
	}
	c.Caller, c.CallerName = caller, name
	if c.Verb == openToAll {
		return s.take(ctx, s.open, name, openLimit())
	}
	return s.take(ctx, s.limits.Callers, name, limit.Limit(own).Or(s.limits.Caller))
}

func (s *Server) take(ctx context.Context, table *limit.Table, name string, l limit.Limit) (limit.Pass, error) {
	pass, wait, ok := table.Enter(name, l)
	switch {
	case ok:
		return pass, nil
	case wait > 0:
		return pass, s.refuse(ctx, sealer.RateLimited, wait, errRate)
	}
	return pass, s.refuse(ctx, sealer.Overloaded, overloadRetry, errCalls)
}

// What a refused call's log line says.
var (
	errRate  = errors.New("caller is over its rate: limits.caller.rate, or rate in policy.yaml")
	errCalls = errors.New("caller has too many calls under way: limits.caller.calls, or calls in policy.yaml")
	errBytes = errors.New("caller has too many bytes in flight: limits.bytes_in_flight and limits.bytes_share")
)

func (s *Server) refuse(ctx context.Context, r sealer.Reason, retryAfter time.Duration, cause error) error {
	s.refused(r)
	return failFor(ctx, r, retryAfter, cause)
}

// receive reads the message once there is room for the longest one there may
// be, and then keeps the room that its actual length needs.
func (s *Server) receive(ctx context.Context, c *Call, stream grpc.ServerStream, req any) error {
	if err := s.makeRoom(ctx, c); err != nil {
		return err
	}
	if err := stream.RecvMsg(req); err != nil {
		return &receiveError{err}
	}
	if named, ok := req.(interface{ GetTenant() string }); ok {
		c.tenant = named.GetTenant()
	}
	c.hold.Shrink(callBytes + 2*int64(dataLen(req))) // the request's data and the answer's
	return nil
}

func (s *Server) makeRoom(ctx context.Context, c *Call) (err error) {
	n := s.room
	var ok bool
	if c.hold, ok = s.limits.Bytes.TryAcquire(c.CallerName, n); ok {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	if c.hold, err = s.limits.Bytes.Acquire(waiting, c.CallerName, n); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fail(ctx, ctx.Err())
	}
	return s.refuse(ctx, sealer.Overloaded, overloadRetry, errBytes)
}

// RoomForCall returns how many bytes in flight a call may need, with a unary
// limit of n bytes: the longest request, and an answer as long.
func RoomForCall(n int) int64 { return 2*int64(maxRequest(n)) + callBytes }

// dataLen returns the length of a request's data, in bytes.
func dataLen(req any) int {
	switch req := req.(type) {
	case *keysidecarv1.SealRequest:
		return len(req.GetPlaintext())
	case *keysidecarv1.UnsealRequest:
		return len(req.GetSealed())
	}
	return 0
}

// capDeadline is gRPC's tap: it ends calls that have no deadline, or a later
// one than a call may have, so that nobody keeps a message half sent. It
// refuses nothing: gRPC 1.85 does not free the timer of a call that a tap
// refuses before the deadline that the peer chose.
func (s *Server) capDeadline(ctx context.Context, info *tap.Info) (context.Context, error) {
	if _, unary := s.unaryMethods[info.FullMethodName]; !unary {
		return ctx, nil
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= s.callTimeout {
		return ctx, nil
	}
	capped, _ := context.WithTimeout(ctx, s.callTimeout) //nolint:govet // the stream cancels ctx when it ends, and that capped
	return capped, nil
}
