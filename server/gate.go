package server

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
)

const (
	// drainRetry is when a caller that got DRAINING may find a new sidecar.
	drainRetry = time.Second
	// overloadRetry is when there may be room again for a caller that has all
	// its calls under way, or more bytes in flight than it may have.
	overloadRetry = 100 * time.Millisecond
	// auditRetry is when a refusal may be recorded that could not be.
	auditRetry = time.Second
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
	pass   limit.Pass
	hold   limit.Hold
	// leaving says that an answer gives back what the call holds, left that it
	// has been given back.
	leaving bool
	left    atomic.Bool
}

// leave gives back what the call holds.
func (c *Call) leave() {
	if c.left.CompareAndSwap(false, true) {
		c.pass.Leave()
		c.hold.Release()
	}
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
	s.unaryMethods[full] = verb
	return func(srv any, stream grpc.ServerStream) error {
		ctx, c := s.begin(stream.Context(), verb)
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: full}
		defer func() {
			if !c.leaving {
				c.leave()
			}
		}()
		reply, err := s.chained(ctx, info, 0, func(ctx context.Context, _ any) (any, error) {
			return s.admitted(ctx, c, m, srv, stream)
		})
		if err != nil {
			return err
		}
		return s.send(stream, c, reply)
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
	if err := s.enter(ctx, c); err != nil {
		return nil, err
	}
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

// enter finds out who calls, and whether the caller may make a call now. Who may
// do what the method does for no tenant at all is denied here, before its
// message costs anything; that tells nothing about tenants.
func (s *Server) enter(ctx context.Context, c *Call) error {
	if s.draining.Load() && c.Verb != openToAll { // health goes on
		return s.refuse(ctx, sealer.Draining, drainRetry, nil)
	}
	caller, err := s.source.Caller(ctx)
	if err != nil {
		return s.refuse(ctx, sealer.Unauthenticated, 0, err)
	}
	rules := s.policy()
	name, own := rules.Who(caller)
	if name == caller.Name {
		name = callerKey(caller) // nobody gets more by taking another group
	}
	c.Caller, c.CallerName = caller, name
	if c.Verb == openToAll {
		return s.take(ctx, c, s.open.Callers, openLimit())
	}
	if err := s.take(ctx, c, s.limits.Callers, limit.Limit(own).Or(s.limits.Caller)); err != nil {
		return err
	}
	if !rules.Any(caller, c.Verb, s.clock.At(time.Now())) {
		return s.refuse(ctx, sealer.PermissionDenied, 0, nil)
	}
	return nil
}

// take counts the call until it leaves.
func (s *Server) take(ctx context.Context, c *Call, table *limit.Table, l limit.Limit) error {
	pass, wait, ok := table.Enter(c.CallerName, l)
	if ok {
		c.pass = pass
		return nil
	}
	if flooding := connOf(ctx); flooding != nil {
		flooding.slowDown(l)
	}
	if wait > 0 {
		return s.refuse(ctx, sealer.RateLimited, wait, errRate)
	}
	return s.refuse(ctx, sealer.Overloaded, overloadRetry, errCalls)
}

// What a refused call's log line says.
var (
	errRate  = errors.New("caller is over its rate: limits.caller.rate, or rate in policy.yaml")
	errCalls = errors.New("caller has too many calls under way: limits.caller.calls, or calls in policy.yaml")
	errBytes = errors.New("caller has too many bytes in flight: limits.bytes_in_flight and limits.bytes_share")
)

func (s *Server) refuse(ctx context.Context, r sealer.Reason, retryAfter time.Duration, cause error) error {
	if err := s.refused(ctx, r); err != nil {
		return failFor(ctx, sealer.AuditUnavailable, auditRetry, err)
	}
	return failFor(ctx, r, retryAfter, cause)
}

// receive reads the message once there is room for the longest one there may
// be, keeps the room that its actual length needs, and takes it apart.
func (s *Server) receive(ctx context.Context, c *Call, stream grpc.ServerStream, req any) error {
	if err := s.makeRoom(ctx, c); err != nil {
		return err
	}
	var m received
	if err := stream.RecvMsg(&m); err != nil {
		return &receiveError{err}
	}
	defer m.buffer.Free()
	raw := m.buffer.ReadOnlyData()
	c.hold.Shrink(callBytes + 2*int64(len(raw))) // the request and an answer as long
	if err := checkShape(raw, req); err != nil {
		return fail(ctx, err)
	}
	if err := proto.Unmarshal(raw, req.(proto.Message)); err != nil {
		return &receiveError{unreadable(err)}
	}
	if named, ok := req.(interface{ GetTenant() string }); ok {
		c.tenant = named.GetTenant()
	}
	return nil
}

func (s *Server) makeRoom(ctx context.Context, c *Call) (err error) {
	bytes := s.limits.Bytes
	if c.Verb == openToAll {
		bytes = s.open.Bytes
	}
	var ok bool
	if c.hold, ok = bytes.TryAcquire(c.CallerName, s.room); ok {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	if c.hold, err = bytes.Acquire(waiting, c.CallerName, s.room); err == nil {
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

// openTimeout is how long a call may take that needs no verb.
const openTimeout = 2 * time.Second

// capDeadline is gRPC's tap: it ends calls that have no deadline, or a later
// one than a call may have, so that nobody keeps a message half sent. It
// refuses nothing: gRPC 1.85 does not free the timer of a call that a tap
// refuses before the deadline that the peer chose.
func (s *Server) capDeadline(ctx context.Context, info *tap.Info) (context.Context, error) {
	verb, unary := s.unaryMethods[info.FullMethodName]
	longest := s.callTimeout
	switch {
	case !unary:
		return ctx, nil
	case verb == openToAll:
		longest = min(longest, openTimeout)
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= longest {
		return ctx, nil
	}
	capped, _ := context.WithTimeout(ctx, longest) //nolint:govet // the stream cancels ctx when it ends, and that capped
	return capped, nil
}

// openLimits are those of methods that need no verb. They are not taken from
// the callers' own, so that a probe works while its user's calls are refused.
func openLimits(room int64) (*Limits, error) {
	callers, err := limit.New(limit.Config{})
	if err != nil {
		return nil, err
	}
	const at = 8 // messages that may be on their way, one of each caller
	bytes, err := limit.NewBytes(limit.BytesConfig{Total: at * room, Share: 1.0 / at})
	return &Limits{Callers: callers, Bytes: bytes}, err
}
