// Package server speaks gRPC for a sealer: handlers, listeners, interceptors,
// the table of codes, health. It translates and decides nothing.
package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server/identity"
)

// Defaults and limits of connections. The times suit a peer on the same machine.
const (
	defaultCallsPerConnection   = 256
	defaultConnections          = 1024
	defaultConnectionsPerCaller = 128
	defaultCallTimeout          = 30 * time.Second
	// windowBytes is how much of a message a peer may send before anybody reads
	// it: RFC 9113, section 5.2. Less is not possible. gRPC extends the window of
	// a connection without waiting for a reader, so that it bounds nothing.
	windowBytes = 64 << 10
	connBytes   = 1 << 20

	// A drain waits for handshakes under way: a silent peer may not hold it up.
	handshakeTimeout = time.Second
	idleTimeout      = 30 * time.Minute
	minPingInterval  = 10 * time.Second
	// watchTime is how long health.Watch has to report NOT_SERVING at drain,
	// before its streams are ended.
	watchTime      = 200 * time.Millisecond
	maxHeaderBytes = 16 << 10
	streamWorkers  = 64
)

// Sealer does the work. *sealer.Sealer is one; so is anything that a test
// wants to answer with. Both methods are called concurrently, may keep nothing
// of the request, and return a *sealer.Error, the caller's context error, or
// an error that is answered with INTERNAL.
type Sealer interface {
	Seal(context.Context, sealer.Request) (sealer.Result, error)
	Unseal(context.Context, sealer.Request) (sealer.Result, error)
}

var _ Sealer = (*sealer.Sealer)(nil)

// Config is what a Server needs. A Server has one listener, or several whose
// peers prove who they are in the same way.
type Config struct {
	// Sealer answers SealService; nil if Admin is set.
	Sealer Sealer
	// Admin answers AdminService, nil if Sealer is set. Its methods find their
	// caller and verb with CallOf, authorise it, and return what Sealer's do.
	Admin keysidecarv1.AdminServiceServer
	// Source proves who makes a call. Required.
	Source identity.Source
	// Policy is asked what a caller is called, and for its limits. Required.
	Policy func() *policy.Policy
	// Limits bound what callers ask. Required.
	Limits *Limits
	// Refused, if set, is told of every call that got no further than the
	// server, before its answer: UNAUTHENTICATED, PERMISSION_DENIED,
	// RATE_LIMITED, OVERLOADED, DRAINING. CallOf tells whose it is. When it
	// returns an error, the answer is AUDIT_UNAVAILABLE instead.
	Refused func(context.Context, sealer.Reason) error
	// Logger gets one record per call and one per panic. Required.
	Logger *slog.Logger
	// MaxUnary is the limit in bytes on the plaintext of one call, which the
	// Sealer enforces exactly (TOO_LARGE). Messages that no valid request of
	// this limit can have are not read: gRPC answers RESOURCE_EXHAUSTED.
	// 0 means sealer.DefaultMaxPlaintext; more than sealer.MaxPlaintext is
	// refused. It has to be the Sealer's own limit.
	MaxUnary int
	// CallsPerConnection is how many calls one connection may have under way,
	// counted before a message is read; further ones wait in the peer.
	// 0 means 256.
	CallsPerConnection uint32
	// CallTimeout ends calls whose own deadline is later, or that have none.
	// 0 means 30 s.
	CallTimeout time.Duration
	// Connections is how many connections may be open, ConnectionsPerCaller how
	// many of one caller. Further ones are closed at once. 0 means 1024, and 128.
	Connections, ConnectionsPerCaller int
	// MaxConnectionAge is when peers are asked to connect again, so that they
	// prove anew who they are: up to a tenth more or less. 0 means never.
	MaxConnectionAge time.Duration
	// Allow has the addresses from which peers may connect. Nil means all; it is
	// for TCP listeners.
	Allow []netip.Prefix
	// Reflection answers gRPC reflection. Off by default.
	Reflection bool
	// Unary and Stream are further interceptors, such as metrics. They see the
	// final code of every call, but for errors that gRPC answers by itself; a
	// Unary interceptor gets a nil request. Nil means none.
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
}

func (cfg *Config) check() error {
	switch {
	case cfg.Source == nil || cfg.Policy == nil || cfg.Logger == nil:
		return errors.New("server needs a Source, a Policy and a Logger")
	case cfg.Limits == nil || cfg.Limits.Callers == nil || cfg.Limits.Bytes == nil:
		return errors.New("server needs Limits")
	case (cfg.Sealer == nil) == (cfg.Admin == nil):
		return errors.New("server needs either a Sealer or an Admin")
	case cfg.MaxUnary < 0 || cfg.MaxUnary > sealer.MaxPlaintext:
		return fmt.Errorf("unary limit of %d bytes is not between 0 and %d", cfg.MaxUnary, sealer.MaxPlaintext)
	case cfg.Connections < 0 || cfg.ConnectionsPerCaller < 0:
		return fmt.Errorf("connection limit %d or %d is negative", cfg.Connections, cfg.ConnectionsPerCaller)
	case cfg.CallTimeout < 0 || cfg.MaxConnectionAge < 0:
		return fmt.Errorf("call timeout %v or connection age %v is negative", cfg.CallTimeout, cfg.MaxConnectionAge)
	}
	return nil
}

// Server is a gRPC server of SealService or AdminService, and of
// grpc.health.v1. It is safe for concurrent use.
type Server struct {
	grpc   *grpc.Server
	health *health.Server
	logger *slog.Logger
	source identity.Source
	policy func() *policy.Policy
	limits *Limits
	open   *Limits // of calls of methods that need no verb
	clock  *policy.Clock
	allow  []netip.Prefix

	interceptors []grpc.UnaryServerInterceptor
	unaryMethods map[string]policy.Verb // filled before Serve
	refused      func(context.Context, sealer.Reason) error
	room         int64 // what a call may need of the bytes in flight
	callTimeout  time.Duration

	draining atomic.Bool
	conns    *connections
	inflight atomic.Int64 // calls under way
	quiet    [codes.Unauthenticated + 1]quiet
	// idPrefix and calls make request ids.
	idPrefix string
	calls    atomic.Uint64
	// streams ends at drain, and with it every stream.
	streams    context.Context
	endStreams context.CancelFunc
}

// New returns a Server. It starts goroutines that wait for calls: Close or
// Drain must be called even if Serve is not.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	room := RoomForCall(cmp.Or(cfg.MaxUnary, sealer.DefaultMaxPlaintext))
	open, err := openLimits(room)
	if err != nil {
		return nil, err
	}
	s := &Server{
		health: health.NewServer(), logger: cfg.Logger, source: cfg.Source, policy: cfg.Policy, limits: cfg.Limits,
		open: open, clock: policy.NewClock(), allow: cfg.Allow, refused: cfg.Refused, idPrefix: rand.Text()[:10] + "-",
		room:         room,
		callTimeout:  cmp.Or(cfg.CallTimeout, defaultCallTimeout),
		unaryMethods: make(map[string]policy.Verb),
		conns: newConnections(cmp.Or(cfg.Connections, defaultConnections),
			cmp.Or(cfg.ConnectionsPerCaller, defaultConnectionsPerCaller), cfg.Logger),
	}
	for i := range s.quiet {
		s.quiet[i].lines = rate.NewLimiter(linesPerSecond, linesAtOnce)
	}
	if s.refused == nil {
		s.refused = func(context.Context, sealer.Reason) error { return nil }
	}
	s.interceptors = s.unary(cfg.Unary)
	s.streams, s.endStreams = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(s.options(cfg)...)
	s.registerAll(cfg)
	if err := checkMethods(s.grpc.GetServiceInfo()); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) registerAll(cfg Config) {
	if cfg.Sealer != nil {
		s.register(&keysidecarv1.SealService_ServiceDesc, &service{sealer: cfg.Sealer})
		s.SetServing(keysidecarv1.SealService_ServiceDesc.ServiceName, true)
	} else {
		s.register(&keysidecarv1.AdminService_ServiceDesc, cfg.Admin)
		s.SetServing(keysidecarv1.AdminService_ServiceDesc.ServiceName, true)
	}
	s.register(&grpc_health_v1.Health_ServiceDesc, s.health)
	if cfg.Reflection {
		reflection.Register(s.grpc)
	}
}

func (s *Server) options(cfg Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(claiming{cfg.Source.Credentials(), s.conns}),
		grpc.InTapHandle(s.capDeadline),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ChainStreamInterceptor(s.stream(cfg.Stream)...),
		grpc.MaxRecvMsgSize(maxRequest(cmp.Or(cfg.MaxUnary, sealer.DefaultMaxPlaintext))),
		grpc.MaxConcurrentStreams(cmp.Or(cfg.CallsPerConnection, defaultCallsPerConnection)),
		grpc.StaticStreamWindowSize(windowBytes),
		grpc.StaticConnWindowSize(connBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: idleTimeout,
			MaxConnectionAge:  cfg.MaxConnectionAge, MaxConnectionAgeGrace: s.callTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: minPingInterval, PermitWithoutStream: true,
		}),
		grpc.NumStreamWorkers(streamWorkers),
		// Keys are wiped after Drain: no handler may outlive it.
		grpc.WaitForHandlers(true),
	}
}

// requestSlack is what a request may have besides its data, in bytes. A valid
// one has at most 131 for the tenant, 8,480 for the encryption context (32
// pairs, 8,192 bytes of keys and values, 9 of framing each) and 6 for the data's
// tag and length: under 9 KiB. The rest lets a request that is a little over
// one of our limits get our own answer.
const requestSlack = 64 << 10

// maxRequest returns the longest message that is read, in bytes, for n bytes
// of plaintext.
func maxRequest(n int) int { return sealer.MaxSealed(n) + requestSlack }

// Serve answers calls on ln until Drain or Close, and then returns nil. It
// closes ln. It may be called for several listeners.
func (s *Server) Serve(ln net.Listener) error {
	err := s.grpc.Serve(s.conns.listen(ln, s.allow))
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving %s: %w", ln.Addr(), err)
	}
	return nil
}

// Connections returns how many connections are open, and how many were closed
// at once so far because of a limit or of their address.
func (s *Server) Connections() (open int, refused uint64) { return s.conns.counts() }

// SetServing sets what grpc.health.v1 answers for a service name. "" is the
// server as a whole; it and keysidecar.v1.SealService serve from the start.
// After Drain everything is NOT_SERVING, whatever is set.
func (s *Server) SetServing(name string, serving bool) {
	status := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = grpc_health_v1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus(name, status)
}

// Drain stops accepting connections, answers DRAINING to calls that still
// arrive, reports NOT_SERVING and returns nil once every call under way has its
// answer. When ctx ends first, it cuts every connection off, and returns ctx's
// error if that took an answer from somebody. No handler runs after it returned.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	s.health.Shutdown()
	defer time.AfterFunc(watchTime, s.endStreams).Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		lost := s.inflight.Load()
		s.conns.closeAll()
		s.grpc.Stop()
		<-done
		if lost == 0 {
			return nil
		}
		return fmt.Errorf("draining: %d calls cut off: %w", lost, context.Cause(ctx))
	}
}

// Close cuts all calls off and waits for their handlers. It is idempotent.
func (s *Server) Close() {
	s.draining.Store(true)
	s.endStreams()
	s.conns.closeAll()
	s.grpc.Stop()
}
