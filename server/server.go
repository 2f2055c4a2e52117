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
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

// Defaults and limits of connections. The times suit a peer on the same machine.
const (
	defaultCallsPerConnection = 256
	defaultConnections        = 1024

	// A drain waits for handshakes under way: a silent peer may not hold it up.
	handshakeTimeout = time.Second
	idleTimeout      = 30 * time.Minute
	minPingInterval  = 10 * time.Second
	// watchTime is how long health.Watch has to report NOT_SERVING at drain,
	// before its streams are ended.
	watchTime      = 200 * time.Millisecond
	maxHeaderBytes = 32 << 10
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

// Config is what a Server needs.
type Config struct {
	// Sealer does the work. Required.
	Sealer Sealer
	// Caller proves who makes a call, from the call's context. An error that is
	// no *sealer.Error is answered with UNAUTHENTICATED. Required.
	Caller func(context.Context) (policy.Caller, error)
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
	// Connections is how many connections each listener has open at a time;
	// further ones wait to be accepted. 0 means 1024.
	Connections int
	// Reflection answers gRPC reflection. Off by default.
	Reflection bool
	// Unary and Stream are further interceptors, such as metrics. They see the
	// final code of every call, but for errors that gRPC answers by itself. Nil
	// means none.
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
}

// Server is a gRPC server of keysidecar.v1.SealService and grpc.health.v1. It
// is safe for concurrent use.
type Server struct {
	grpc     *grpc.Server
	health   *health.Server
	logger   *slog.Logger
	conns    int
	draining atomic.Bool
	open     connections
	inflight atomic.Int64 // calls under way
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
	if cfg.Sealer == nil || cfg.Caller == nil || cfg.Logger == nil {
		return nil, errors.New("server needs a Sealer, a Caller and a Logger")
	}
	if cfg.MaxUnary < 0 || cfg.MaxUnary > sealer.MaxPlaintext {
		return nil, fmt.Errorf("unary limit of %d bytes is not between 0 and %d", cfg.MaxUnary, sealer.MaxPlaintext)
	}
	if cfg.Connections < 0 {
		return nil, fmt.Errorf("connection limit %d is negative", cfg.Connections)
	}
	s := &Server{
		health: health.NewServer(), logger: cfg.Logger, conns: cmp.Or(cfg.Connections, defaultConnections),
		idPrefix: rand.Text()[:10] + "-",
	}
	s.streams, s.endStreams = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(s.options(cfg)...)

	keysidecarv1.RegisterSealServiceServer(s.grpc, &service{
		sealer: cfg.Sealer, caller: cfg.Caller, draining: &s.draining,
	})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	s.SetServing(keysidecarv1.SealService_ServiceDesc.ServiceName, true)
	if cfg.Reflection {
		reflection.Register(s.grpc)
	}
	return s, nil
}

func (s *Server) options(cfg Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.unary(cfg.Unary)...),
		grpc.ChainStreamInterceptor(s.stream(cfg.Stream)...),
		grpc.MaxRecvMsgSize(maxRequest(cmp.Or(cfg.MaxUnary, sealer.DefaultMaxPlaintext))),
		grpc.MaxConcurrentStreams(cmp.Or(cfg.CallsPerConnection, defaultCallsPerConnection)),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}),
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
	err := s.grpc.Serve(netutil.LimitListener(s.open.listen(ln), s.conns))
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving %s: %w", ln.Addr(), err)
	}
	return nil
}

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
		s.open.closeAll()
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
	s.open.closeAll()
	s.grpc.Stop()
}
