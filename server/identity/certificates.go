package identity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"

	"github.com/keysidecar/keysidecar/policy"
)

const (
	defaultMaxAge = time.Hour
	// lastWords is how long a connection stays open after its identity ended,
	// so that the answer that says so arrives.
	lastWords = time.Second
	// http2 is HTTP/2's name in ALPN (RFC 9113, section 3.1).
	http2 = "h2"
)

// CertificatesConfig is what a Certificates needs.
type CertificatesConfig struct {
	// CertFile is the server's certificate and its intermediates, in PEM, leaf
	// first, not writable by others. Required.
	CertFile string
	// KeyFile is the certificate's key, in PEM. Others than its owner and its
	// group may have no permissions on it. Required.
	KeyFile string
	// ClientCAFile is the certificates of the authorities that sign clients'
	// certificates, in PEM, with nothing in between, not writable by others.
	// Required.
	ClientCAFile string
	// TrustDomain is the SPIFFE trust domain of ClientCAFile and of every
	// client, such as "example.org". Empty means that clients are known by the
	// DNS name in their certificates.
	TrustDomain string
	// MaxAge is how long after its handshake a connection's identity holds,
	// however long the certificate is valid. 0 means 1 hour.
	MaxAge time.Duration
	// Logger gets a record of refused handshakes, of at most one a second and
	// ten at once, with the number of those left out since; and one of each
	// Use of a certificate that has expired. Required.
	Logger *slog.Logger
}

// Certificates is the Source of TLS 1.3 connections with client certificates.
//
// With a trust domain, a certificate has to be an X509-SVID of it: its caller
// is the SPIFFE ID, and other names in it mean nothing, as that standard says.
// Without, it has to have exactly one subject alternative name, of kind DNS and
// without a wildcard: that is the caller. Extended key usages, if there are
// any, have to include client authentication.
//
// An identity ends with the first certificate of the chain that expires, or
// MaxAge after the handshake. Time is the later of the wall clock and of what it
// would be had it never been set back: an identity that ended stays ended, and
// after a clock was set far ahead by mistake, callers are refused until the
// process starts again. Sessions are not resumed.
//
// It is safe for concurrent use.
type Certificates struct {
	cfg         CertificatesConfig
	trustDomain spiffeid.TrustDomain
	clock       clock
	refusals    *refusals
	reloading   sync.Mutex    // held from reading files to storing what they held
	loads       atomic.Uint64 // so many Loads worked
	current     atomic.Pointer[Loaded]
}

var _ Source = (*Certificates)(nil)

// NewCertificates reads the files and returns a Certificates.
func NewCertificates(cfg CertificatesConfig) (*Certificates, error) {
	return newCertificates(cfg, systemClock())
}

func newCertificates(cfg CertificatesConfig, read func() (time.Time, time.Duration)) (*Certificates, error) {
	if cfg.CertFile == "" || cfg.KeyFile == "" || cfg.ClientCAFile == "" || cfg.Logger == nil {
		return nil, errors.New("client certificates need a certificate, a key, a client CA file and a Logger")
	}
	if cfg.MaxAge < 0 {
		return nil, fmt.Errorf("longest age of an identity, %v, is negative", cfg.MaxAge)
	}
	cfg.MaxAge = cmp.Or(cfg.MaxAge, defaultMaxAge)
	c := &Certificates{cfg: cfg, clock: clock{read: read}, refusals: newRefusals(cfg.Logger)}
	if cfg.TrustDomain != "" {
		td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
		if err != nil {
			return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
		}
		if td.Name() != cfg.TrustDomain {
			return nil, fmt.Errorf("trust domain %q is more than a name: use %q", cfg.TrustDomain, td.Name())
		}
		c.trustDomain = td
	}
	l, err := c.Load()
	if err == nil {
		err = l.expired
	}
	if err != nil {
		return nil, err
	}
	c.current.Store(l)
	return c, nil
}

// Reload is Load and, unless there is an error, Use. Of two at a time, the one
// that read last is in effect.
func (c *Certificates) Reload() error {
	c.reloading.Lock()
	defer c.reloading.Unlock()
	l, err := c.Load()
	if err != nil {
		return err
	}
	c.Use(l)
	return nil
}

// Load reads and checks the files again, and changes nothing: an authority that
// was taken out is trusted until Use. An error names the file; see HashesOf.
//
// An own certificate that has expired, which NewCertificates refuses, is no error
// here: what it breaks is broken anyway, and the authorities may be others.
func (c *Certificates) Load() (*Loaded, error) {
	l, err := load(&c.cfg, c.trustDomain, time.UnixMicro(c.clock.now()))
	if err != nil {
		return nil, err
	}
	l.generation = c.loads.Add(1)
	return l, nil
}

// Use puts in effect what c's Load returned. New connections get the new
// certificate, and are verified against the new authorities; connections that
// are open stay open, and the identity of each is verified again at its next
// call. An own certificate that had expired is a warning in the log.
func (c *Certificates) Use(l *Loaded) {
	if l.expired != nil {
		c.cfg.Logger.LogAttrs(context.Background(), slog.LevelWarn, "the sidecar's own certificate is refused by its callers",
			slog.String("file", c.cfg.CertFile), slog.Time("expired", l.own.Leaf.NotAfter), slog.Any("cause", l.expired))
	}
	c.current.Store(l)
}

// Hashes returns Loaded.Hashes of what is in effect.
func (c *Certificates) Hashes() map[string]string { return c.current.Load().Hashes() }

// Credentials returns credentials that let nobody in but callers.
func (c *Certificates) Credentials() credentials.TransportCredentials {
	return serverCredentials{protocol: "tls", shake: c.handshake}
}

// Caller returns who connected, as long as that holds. A connection whose
// identity has ended is closed a second later, because peers connect again,
// with the certificate that they have by then, only when they have to.
func (c *Certificates) Caller(ctx context.Context) (policy.Caller, error) {
	info, ok := infoOf(ctx)
	if !ok || info.session == nil || info.session.source != c {
		return policy.Caller{}, errUnproven
	}
	if err := info.session.check(); err != nil {
		info.session.hangUp.Do(func() { time.AfterFunc(lastWords, info.session.close) })
		return policy.Caller{}, fmt.Errorf("caller %s: %w", info.caller.Name, err)
	}
	return info.caller, nil
}

// handshake proves who is at the other end of conn.
func (c *Certificates) handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	l := c.current.Load()
	var caller policy.Caller
	var until int64
	s := &session{source: c}
	s.conn = tls.Server(conn, l.config(func(state tls.ConnectionState) (err error) {
		if state.NegotiatedProtocol != http2 {
			return errors.New("peer does not offer HTTP/2 by ALPN")
		}
		s.chain = state.PeerCertificates
		now := c.clock.now()
		s.until = now + c.cfg.MaxAge.Microseconds()
		caller, until, err = l.authorities.verify(s.chain, now)
		return err
	}))
	// The client has proved that it has the key only when this returns. gRPC
	// has given the connection a deadline, and closes it after an error.
	if err := s.conn.HandshakeContext(context.Background()); err != nil {
		c.refusals.log(conn.RemoteAddr(), err)
		return nil, nil, fmt.Errorf("TLS handshake: %w", err)
	}
	s.verdict.Store(&verdict{generation: l.generation, until: min(until, s.until)})
	return s.conn, Info{CommonAuthInfo: secured(), authType: "certificate", caller: caller, session: s}, nil
}

// config returns the configuration of one handshake. Whatever resumes a session
// skips RequireAnyClientCert, but not verify.
func (l *Loaded) config(verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{l.own},
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{http2},
		SessionTicketsDisabled: true,
		VerifyConnection:       verify,
	}
}

// session is the identity of one connection.
type session struct {
	source    *Certificates
	conn      *tls.Conn
	chain     []*x509.Certificate // what the peer sent, its own certificate first
	until     int64               // MaxAge after the handshake, in the clock's microseconds
	verifying sync.Mutex          // held by whoever replaces verdict
	verdict   atomic.Pointer[verdict]
	hangUp    sync.Once
}

// verdict is what verifying a session against one generation of authorities
// led to.
type verdict struct {
	generation uint64
	until      int64 // when the identity ends, in the clock's microseconds
	err        error
}

// check returns nil as long as the identity holds.
func (s *session) check() error {
	v := s.verdict.Load()
	if v.generation != s.source.current.Load().generation {
		v = s.verifyAgain()
	}
	if v.err != nil {
		return v.err
	}
	if s.source.clock.now() > v.until {
		return fmt.Errorf("identity ended at %s: connect again with a certificate that is valid",
			time.UnixMicro(v.until).UTC().Format(time.RFC3339))
	}
	return nil
}

// verifyAgain verifies against the authorities of now, once however many calls
// ask for it.
func (s *session) verifyAgain() *verdict {
	s.verifying.Lock()
	defer s.verifying.Unlock()
	l := s.source.current.Load()
	if v := s.verdict.Load(); v.generation == l.generation {
		return v
	}
	_, until, err := l.authorities.verify(s.chain, s.source.clock.now())
	v := &verdict{generation: l.generation, until: min(until, s.until), err: err}
	s.verdict.Store(v)
	return v
}

func (s *session) close() { _ = s.conn.Close() } // the peer may have gone before
