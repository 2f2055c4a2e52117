package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/server/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trustDomain = "example.org"
	workload    = "spiffe://example.org/billing"
	dnsName     = "batch.internal"
	serverName  = "sidecar.internal"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// chain is this authority and those above it but the root.
	chain [][]byte
}

var serial atomic.Int64

func template() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)),
		Subject:      pkix.Name{CommonName: "common name that nobody reads"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func authorityTemplate(name string) *x509.Certificate {
	c := template()
	c.Subject.CommonName = name
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	return c
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, c, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// newRoot returns an authority of its own.
func newRoot(t *testing.T, name string) *authority {
	t.Helper()
	c, key := authorityTemplate(name), newKey(t)
	return &authority{t: t, cert: sign(t, c, c, &key.PublicKey, key), key: key}
}

// intermediate returns an authority below a.
func (a *authority) intermediate(notAfter time.Time) *authority {
	a.t.Helper()
	c, key := authorityTemplate("intermediate"), newKey(a.t)
	c.NotAfter = notAfter
	cert := sign(a.t, c, a.cert, &key.PublicKey, a.key)
	return &authority{t: a.t, cert: cert, key: key, chain: append([][]byte{cert.Raw}, a.chain...)}
}

// issue returns a client's certificate of template() as change left it.
func (a *authority) issue(change func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	c, key := template(), newKey(a.t)
	change(c)
	leaf := sign(a.t, c, a.cert, &key.PublicKey, a.key)
	return tls.Certificate{Certificate: append([][]byte{leaf.Raw}, a.chain...), PrivateKey: key, Leaf: leaf}
}

func withURIs(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, text := range uris {
			u, err := url.Parse(text)
			if err != nil {
				panic("identity: internal error: " + err.Error())
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

func withNames(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = names }
}

// name gives a certificate the name by which callers are known.
func name(trustDomain string) func(*x509.Certificate) {
	if trustDomain == "" {
		return withNames(dnsName)
	}
	return withURIs(workload)
}

// site is a server's files, and the authorities behind them.
type site struct {
	t       *testing.T
	config  identity.CertificatesConfig
	root    *authority // of the server's certificate
	clients *authority // in the client CA file
	log     lines
}

// lines is a log, a line at a time.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// wait returns the next line.
func (l lines) wait(t *testing.T) string {
	t.Helper()
	select {
	case line := <-l:
		return line
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was logged")
		return ""
	}
}

func newSite(t *testing.T, trustDomain string) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, root: newRoot(t, "server root"), clients: newRoot(t, "client root"), log: make(lines, 1000)}
	s.config = identity.CertificatesConfig{
		CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
		ClientCAFile: filepath.Join(dir, "ca.crt"), TrustDomain: trustDomain,
		Logger: slog.New(slog.NewTextHandler(s.log, nil)),
	}
	s.writePair(s.root.issue(withNames(serverName)))
	s.writeCAs(s.clients)
	return s
}

func (s *site) write(name string, mode os.FileMode, text []byte) {
	s.t.Helper()
	if err := errors.Join(os.WriteFile(name, text, mode), os.Chmod(name, mode)); err != nil {
		s.t.Fatal(err)
	}
}

func pemOf(kind string, ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return out
}

func keyPEM(t *testing.T, c tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

func (s *site) writePair(c tls.Certificate) {
	s.t.Helper()
	s.write(s.config.CertFile, 0o644, pemOf("CERTIFICATE", c.Certificate...))
	s.write(s.config.KeyFile, 0o640, keyPEM(s.t, c))
}

func (s *site) writeCAs(cas ...*authority) {
	s.t.Helper()
	var ders [][]byte
	for _, a := range cas {
		ders = append(ders, a.cert.Raw)
	}
	s.write(s.config.ClientCAFile, 0o644, pemOf("CERTIFICATE", ders...))
}

func (s *site) open() *identity.Certificates {
	s.t.Helper()
	c, err := identity.NewCertificates(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// clientConfig returns the TLS configuration of a client that has these
// certificates.
func (s *site) clientConfig(certs ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(s.root.cert)
	return &tls.Config{RootCAs: roots, ServerName: serverName, Certificates: certs}
}

// listener is a gRPC server whose calls answer only if the Source says who
// makes them.
type listener struct {
	addr     net.Addr
	accepted atomic.Int64
	callers  chan policy.Caller // one a call that was let in
	infos    chan identity.Info // likewise
}

type acceptCounter struct {
	net.Listener
	n *atomic.Int64
}

func (a acceptCounter) Accept() (net.Conn, error) {
	conn, err := a.Listener.Accept()
	if err == nil {
		a.n.Add(1)
	}
	return conn, err
}

func serve(t *testing.T, source identity.Source, ln net.Listener) *listener {
	t.Helper()
	l := &listener{addr: ln.Addr(), callers: make(chan policy.Caller, 1000), infos: make(chan identity.Info, 1000)}
	srv := grpc.NewServer(grpc.Creds(source.Credentials()), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			c, err := source.Caller(ctx)
			if err != nil {
				return nil, status.Error(codes.Unauthenticated, err.Error())
			}
			l.callers <- c
			l.infos <- infoFrom(ctx)
			return next(ctx, req)
		}))
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(acceptCounter{ln, &l.accepted}) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// dial returns a connection that is made at its first call.
func (l *listener) dial(t *testing.T, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+l.addr.String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func call(t *testing.T, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, opts...)
	return err
}

// admitted makes a call that has to be let in, and returns as whose it was.
func (l *listener) admitted(t *testing.T, cc *grpc.ClientConn, opts ...grpc.CallOption) (policy.Caller, identity.Info) {
	t.Helper()
	if err := call(t, cc, opts...); err != nil {
		t.Fatalf("call: %v", err)
	}
	return <-l.callers, <-l.infos
}

// refused makes a call that has to get this code.
func (l *listener) refused(t *testing.T, cc *grpc.ClientConn, code codes.Code, text string) {
	t.Helper()
	err := call(t, cc)
	if status.Code(err) != code || !strings.Contains(err.Error(), text) {
		t.Fatalf("call got %v, not %v with %q", err, code, text)
	}
	if len(l.callers) > 0 {
		t.Fatalf("%v was let in", <-l.callers)
	}
}
