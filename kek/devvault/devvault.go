// Package devvault is an embedded Azure Key Vault: the keys data plane over
// TLS, behaving like the service where clients of it are known to stumble.
//
// It is for development, tests and CI. It answers 401 with a challenge before
// anything else, collapses empty versions, lets a disabled version wrap but
// not unwrap or sign, lets an expired one unwrap but not wrap or sign, pages
// lists, deletes softly, and keeps its keys in a directory that survives a kill
// at any moment. EC keys sign with ES256; RSA keys sign nothing here. Faults can be injected and every request is counted, in process
// (Inject, Counters) or over a control API under /devvault/.
//
// Its private keys lie unprotected in files. Never keep anything of value
// under them.
//
// # Control API
//
// It is served on any host, speaks JSON, and only the token of the token file
// opens it. Fault, Counters and IssueToken say what the members mean; durations
// are written as "250ms".
//
//	GET    /devvault/counters     Counters, of this process only
//	DELETE /devvault/counters     reset
//	GET    /devvault/faults       {"faults": [...]}, with the skip and count that are left
//	POST   /devvault/faults       {"kind", "vault", "key", "op", "skip", "count", "status",
//	                              "retry_after", "delay"} -> {"id": 1}
//	DELETE /devvault/faults       clear all
//	DELETE /devvault/faults/ID    clear one
//	POST   /devvault/tokens       {"expires_in": 3600} -> {"access_token", "token_type", "expires_in"}
//	DELETE /devvault/tokens       revoke all that were issued
//	GET    /devvault/vaults       {"vaults": [...]}
//	PUT    /devvault/vaults/NAME  create
package devvault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// ErrInUse means that another process, or another Server in this one, has the
// directory open.
var ErrInUse = state.ErrInUse

// Error is a refusal by the vault. The methods of Server return it as the REST
// API answers it.
type Error = state.Error

const (
	defaultListen = "127.0.0.1:0"
	defaultSuffix = "vault.localhost"
	// gracePeriod is how long Close waits for requests under way.
	gracePeriod = 2 * time.Second
)

// Config says where a Server keeps its state and how it listens.
type Config struct {
	// Dir holds the keys, the certificate authority and the token. It is
	// required, created if missing, and made private (mode 0700). A directory
	// that is neither empty nor a devvault's is refused.
	Dir string
	// Listen is the TCP address to listen on. Empty means 127.0.0.1:0.
	Listen string
	// Suffix is the DNS suffix of all vaults: the vault "acme" is the host
	// acme.<Suffix>. Empty means vault.localhost.
	Suffix string
	// Now is the vault's clock: attributes, validity windows, tokens. Nil
	// means time.Now. Certificates always follow time.Now.
	Now func() time.Time
	// Logger gets one debug record per request and a few about start and
	// stop. Nil means no logging.
	Logger *slog.Logger
}

func (c *Config) setDefaults() error {
	if c.Dir == "" {
		return errors.New("directory is required")
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if c.Suffix == "" {
		c.Suffix = defaultSuffix
	}
	if !state.ValidSuffix(c.Suffix) {
		return fmt.Errorf("suffix %q is not a lower-case DNS name", c.Suffix)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Server is a running devvault. Its methods are safe for concurrent use.
type Server struct {
	suffix   string
	log      *slog.Logger
	state    *state.Dir
	counters *counters
	faults   *faults

	listener net.Listener
	http     *http.Server
	served   chan struct{} // closed when Serve has returned
	closing  chan struct{} // closed when Close begins; releases hangs and delays

	closeOnce sync.Once
	closeErr  error

	gate     sync.Mutex // guards closed and every inflight.Add
	closed   bool
	inflight sync.WaitGroup
}

// Open loads or creates the directory, listens and serves until Close. It
// starts goroutines. The error wraps ErrInUse when the directory is open
// elsewhere. A key file that does not parse is an error: nothing is dropped.
func Open(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	dir, err := state.Open(cfg.Dir, cfg.Suffix, cfg.Now)
	if err != nil {
		return nil, err
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening: %w", err), dir.Close())
	}
	s := &Server{
		suffix: cfg.Suffix, log: cfg.Logger, state: dir, listener: ln,
		served: make(chan struct{}), closing: make(chan struct{}),
		counters: newCounters(cfg.Now), faults: &faults{},
	}
	s.serve()
	s.log.Info("devvault open", slog.String("address", s.Addr()), slog.String("dir", cfg.Dir))
	return s, nil
}

// serve starts the HTTP server on the listener.
func (s *Server) serve() {
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      2 * time.Minute, // generating RSA-4096 on a busy machine
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			NextProtos:     []string{"h2", "http/1.1"},
			GetCertificate: s.state.CA.Certificate,
		},
	}
	go func() {
		defer close(s.served)
		if err := s.http.ServeTLS(s.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("devvault stopped serving", slog.Any("error", err))
		}
	}()
}

// connKey is the context key of a request's connection.
type connKey struct{}

// Addr returns the address it listens on, host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL returns the base URL of a vault, "https://VAULT.SUFFIX:PORT", whether or
// not the vault exists.
func (s *Server) URL(vault string) string {
	_, port, _ := net.SplitHostPort(s.Addr())
	return "https://" + net.JoinHostPort(strings.ToLower(vault)+"."+s.suffix, port)
}

// CAFile returns the path of the PEM certificate that clients must trust. It
// stays the same across restarts.
func (s *Server) CAFile() string { return s.state.CAFile() }

// TokenFile returns the path of the bearer token, without a trailing newline,
// that the vaults and the control API accept. It is created once.
func (s *Server) TokenFile() string { return s.state.TokenFile() }

// EntraTenant returns the tenant GUID that challenges name. It is created once
// and kept in the directory.
func (s *Server) EntraTenant() string { return s.state.EntraTenant }

// Client returns a new HTTP client that trusts the certificate authority and
// reaches every vault at Addr, whatever DNS says. It follows no redirects.
func (s *Server) Client() *http.Client {
	var d net.Dialer
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: s.state.CA.Pool(), MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: 32,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, s.Addr())
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close stops accepting, waits up to two seconds for requests under way, cuts
// off the rest, and releases the directory. Hanging and delayed requests are
// cut off at once. When it returns none of its goroutines runs. Later calls
// return the same error.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	close(s.closing)
	ctx, cancel := context.WithTimeout(context.Background(), gracePeriod)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	<-s.served
	s.gate.Lock()
	s.closed = true
	s.gate.Unlock()
	s.inflight.Wait()
	return errors.Join(err, s.state.Close())
}

// enter registers a request, so that Close can wait for it.
func (s *Server) enter() bool {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closed {
		return false
	}
	s.inflight.Add(1)
	return true
}
