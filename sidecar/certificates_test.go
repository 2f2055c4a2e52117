package sidecar_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

const (
	trustDomain = "example.org"
	billing     = "spiffe://example.org/billing"
	batch       = "batch.internal"
	ourName     = "sidecar.internal"
)

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

// certify returns a certificate of what change makes of a plain one, signed by
// parent, or by itself if that is nil.
func certify(t *testing.T, parent *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: fmt.Sprint("certificate ", serial.Load())},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	change(c)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := &authority{cert: c, key: key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer.cert, &key.PublicKey, signer.key)
	if err == nil {
		c, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: c, key: key}
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	return certify(t, nil, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
}

// issue returns what proves names: SPIFFE IDs and DNS names.
func (a *authority) issue(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	return certify(t, a, named(t, names...)).pair()
}

func named(t *testing.T, names ...string) func(*x509.Certificate) {
	t.Helper()
	return func(c *x509.Certificate) {
		for _, name := range names {
			if !strings.Contains(name, "://") {
				c.DNSNames = append(c.DNSNames, name)
				continue
			}
			u, err := url.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

// pair returns the certificate with its key.
func (a *authority) pair() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key, Leaf: a.cert}
}

func pemOf(kind string, ders ...[]byte) string {
	var out strings.Builder
	for _, der := range ders {
		_ = pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}) // a Builder takes everything
	}
	return out.String()
}

// bundleOf is a client CA file.
func bundleOf(authorities ...*authority) string {
	var ders [][]byte
	for _, a := range authorities {
		ders = append(ders, a.cert.Raw)
	}
	return pemOf("CERTIFICATE", ders...)
}

// A pki is who signs the certificate of a sidecar, and those of its callers.
type pki struct{ server, callers *authority }

func newPKI(t *testing.T) *pki {
	t.Helper()
	return &pki{server: newAuthority(t), callers: newAuthority(t)}
}

// files are those of a TCP listener.
func (p *pki) files(t *testing.T) map[string]string {
	t.Helper()
	own := p.server.issue(t, ourName)
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"tls.crt": pemOf("CERTIFICATE", own.Certificate...), "tls.key": pemOf("PRIVATE KEY", key), "callers.pem": bundleOf(p.callers),
	}
}

// secure gives a sidecar a TCP listener; more are further keys of it.
func (set *settings) secure(t *testing.T, p *pki, trustDomain, more string) {
	t.Helper()
	set.files = p.files(t)
	set.listen = fmt.Sprintf(", tcp: {address: '%s', cert_file: tls.crt, key_file: tls.key, client_ca_file: callers.pem, trust_domain: '%s'%s}",
		freeAddress(t), trustDomain, more)
}

// trusting returns a client's configuration.
func (p *pki) trusting(certs ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(p.server.cert)
	return &tls.Config{RootCAs: roots, ServerName: ourName, Certificates: certs}
}

// secured returns a connection that is made at its first call.
func (n *node) secured(t *testing.T, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	return n.over(t, credentials.NewTLS(cfg), new(net.Dialer))
}

func (n *node) over(t *testing.T, creds credentials.TransportCredentials, d *net.Dialer) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+n.tcp, grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// tryOver seals over a connection, and returns the reason of what it got.
func tryOver(t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	return try(t.Context(), keysidecarv1.NewSealServiceClient(conn), "acme")
}

// callersPolicy lets this user do everything, and these callers seal and
// unseal: SPIFFE IDs and DNS names.
func callersPolicy(names ...string) string {
	callers, rules := "", ""
	for i, name := range names {
		kind := "dns"
		if strings.HasPrefix(name, "spiffe:") {
			kind = "spiffe"
		}
		callers += fmt.Sprintf(", {name: caller-%d, %s: '%s'}", i, kind, name)
		rules += fmt.Sprintf("- {callers: [caller-%d], tenants: ['*'], verbs: [seal, unseal]}\n", i)
	}
	return strings.Replace(admitMe(), "}]\n", "}"+callers+"]\n", 1) + rules
}

// A securedNode is a sidecar with a TCP listener, and what its sealer was asked.
type securedNode struct {
	*node
	*pki
	events atomic.Int64 // operations that reached the sealer
}

// startSecured runs a sidecar for callers with these names: SPIFFE IDs of
// trustDomain, or DNS names if it is empty. more are further keys of listen.tcp.
func startSecured(t *testing.T, trustDomain, more string, names ...string) *securedNode {
	t.Helper()
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: acme")
	s := &securedNode{pki: newPKI(t)}
	set.policy, set.config = callersPolicy(names...), "reload_interval: 0s"
	set.Observe = func(context.Context, sealer.Event) { s.events.Add(1) }
	set.secure(t, s.pki, trustDomain, more)
	s.node = site.start(t, set)
	return s
}

// seals wants that a connection may be used, and sealing leads to that.
func (s *securedNode) seals(t *testing.T, who string, conn *grpc.ClientConn, want string) {
	t.Helper()
	before := s.events.Load()
	got := tryOver(t, conn)
	if got != want {
		t.Errorf("%s: %s, want %s", who, got, want)
	}
	// Who may seal for nobody is denied before a message is read.
	if n := s.events.Load() - before; (n == 1) != (want == "OK") {
		t.Errorf("%s: %s, and the sealer was asked %d times", who, got, n)
	}
}

// The names of the two modes, of whom policy.yaml names the first.
func modes() map[string][]string {
	return map[string][]string{trustDomain: {billing, billing + "/other"}, "": {batch, "other." + batch}}
}

func TestCertificateModes(t *testing.T) {
	for domain, names := range modes() {
		t.Run("trust domain "+domain, func(t *testing.T) {
			s := startSecured(t, domain, "", names[0])
			s.seals(t, "named", s.secured(t, s.trusting(s.callers.issue(t, names[0]))), "OK")
			s.seals(t, "not named", s.secured(t, s.trusting(s.callers.issue(t, names[1]))), "PERMISSION_DENIED")
			s.seals(t, "Unix socket", s.connect(t), "OK")
			if !strings.Contains(s.log.String(), names[1]) {
				t.Error("the log does not have the caller who was denied")
			}
		})
	}
}

// strangers are who may not come in.
func (s *securedNode) strangers(t *testing.T, domain string, names []string) map[string]credentials.TransportCredentials {
	good := s.callers.issue(t, names[0])
	old := s.trusting(good)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	all := map[string]credentials.TransportCredentials{"plain text": insecure.NewCredentials(), "TLS 1.2": credentials.NewTLS(old)}
	for name, certs := range map[string][]tls.Certificate{
		"anonymous":                   nil,
		"of an unknown authority":     {newAuthority(t).issue(t, names[0])},
		"of the server's authority":   {s.server.issue(t, names[0])},
		"signed by itself":            {certify(t, nil, named(t, names[0])).pair()},
		"the authority's own":         {s.callers.pair()},
		"with the key of another":     {{Certificate: good.Certificate, PrivateKey: s.server.key}},
		"without a name":              {s.callers.issue(t)},
		"with two names":              {s.callers.issue(t, names...)},
		"of another kind":             {s.callers.issue(t, map[string]string{trustDomain: batch, "": billing}[domain])},
		"with a name that is no name": {s.callers.issue(t, map[string]string{trustDomain: "spiffe://example.com/billing", "": "*." + batch}[domain])},
		"expired": {certify(t, s.callers, func(c *x509.Certificate) {
			named(t, names[0])(c)
			c.NotAfter = time.Now().Add(-time.Minute)
		}).pair()},
		"not valid yet": {certify(t, s.callers, func(c *x509.Certificate) {
			named(t, names[0])(c)
			c.NotBefore = time.Now().Add(time.Minute)
		}).pair()},
		"for servers": {certify(t, s.callers, func(c *x509.Certificate) {
			named(t, names[0])(c)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}).pair()},
	} {
		all[name] = credentials.NewTLS(s.trusting(certs...))
	}
	return all
}

func TestStrangersAreRefused(t *testing.T) {
	for domain, names := range modes() {
		t.Run("trust domain "+domain, func(t *testing.T) {
			s := startSecured(t, domain, "", names...)
			for name, creds := range s.strangers(t, domain, names) {
				s.seals(t, name, s.over(t, creds, new(net.Dialer)), "Unavailable")
			}
			s.seals(t, "a caller", s.secured(t, s.trusting(s.callers.issue(t, names[0]))), "OK")
			s.seals(t, "Unix socket", s.connect(t), "OK")
		})
	}
}

// remembering returns a configuration that resumes sessions if it can.
func (s *securedNode) remembering(cert tls.Certificate) *tls.Config {
	cfg := s.trusting(cert)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	return cfg
}

// Whose authority leaves the bundle is refused at the next call and at the
// next connection, also one that would resume a session.
func TestAuthorityLeaves(t *testing.T) {
	for domain, names := range modes() {
		t.Run("trust domain "+domain, func(t *testing.T) {
			s := startSecured(t, domain, "", names...)
			goes, stays := s.callers, newAuthority(t)
			s.load(t, "callers.pem", bundleOf(goes, stays))
			cfg := s.remembering(goes.issue(t, names[0]))
			gone, other := s.secured(t, cfg), s.secured(t, s.trusting(stays.issue(t, names[1])))
			s.seals(t, "before", gone, "OK")
			s.seals(t, "the other one before", other, "OK")
			s.seals(t, "a second connection before", s.secured(t, cfg), "OK")

			s.put(t, "callers.pem", bundleOf(stays))
			s.seals(t, "before the reload", gone, "OK")
			s.load(t, "callers.pem", bundleOf(stays))
			s.seals(t, "connection that is open", gone, "UNAUTHENTICATED")
			s.seals(t, "new connection", s.secured(t, s.trusting(goes.issue(t, names[0]))), "Unavailable")
			s.seals(t, "connection that remembers", s.secured(t, cfg), "Unavailable")
			s.seals(t, "the other one", other, "OK")
			s.seals(t, "new connection of the other one", s.secured(t, s.trusting(stays.issue(t, names[1]))), "OK")
			s.seals(t, "Unix socket", s.connect(t), "OK")
		})
	}
}

// Who leaves policy.yaml is denied at the next call, and on a new connection.
func TestIdentityLeaves(t *testing.T) {
	for domain, names := range modes() {
		t.Run("trust domain "+domain, func(t *testing.T) {
			s := startSecured(t, domain, "", names...)
			cfg := s.remembering(s.callers.issue(t, names[0]))
			gone, other := s.secured(t, cfg), s.secured(t, s.trusting(s.callers.issue(t, names[1])))
			s.seals(t, "before", gone, "OK")
			s.load(t, "policy.yaml", callersPolicy(names[1]))
			s.seals(t, "connection that is open", gone, "PERMISSION_DENIED")
			s.seals(t, "connection that remembers", s.secured(t, cfg), "PERMISSION_DENIED")
			s.seals(t, "the other one", other, "OK")
			s.load(t, "policy.yaml", callersPolicy(names...))
			s.seals(t, "back again", gone, "OK")
			s.load(t, "policy.yaml", admitMe())
			s.seals(t, "without any", gone, "PERMISSION_DENIED")
			s.seals(t, "Unix socket", s.connect(t), "OK")
		})
	}
}

// ownSerial returns the serial number of the sidecar's certificate.
func (s *securedNode) ownSerial(t *testing.T, caller tls.Certificate) int64 {
	t.Helper()
	cfg := s.trusting(caller)
	cfg.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// The sidecar's certificate changes while callers call and connect.
func TestOwnCertificateRotates(t *testing.T) {
	s := startSecured(t, trustDomain, "", billing)
	caller := s.callers.issue(t, billing)
	var group sync.WaitGroup
	var calls atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	work := func(call func() string) {
		group.Go(func() {
			for ctx.Err() == nil {
				if got := call(); got != "OK" {
					t.Errorf("while certificates change: %s", got)
				}
				calls.Add(1)
			}
		})
	}
	for range 2 {
		conn := s.secured(t, s.trusting(caller))
		work(func() string { return tryOver(t, conn) })
	}
	work(func() string {
		conn := s.secured(t, s.trusting(caller))
		defer conn.Close()
		return tryOver(t, conn)
	})
	last := s.ownSerial(t, caller)
	for range 20 {
		files := s.files(t)
		s.put(t, "tls.crt", files["tls.crt"])
		s.load(t, "tls.key", files["tls.key"])
		now := s.ownSerial(t, caller)
		if now <= last {
			t.Errorf("certificate is %d after %d", now, last)
		}
		last = now
		seen := calls.Load()
		await(t, "calls", func() bool { return calls.Load() > seen+10 })
	}
	stop()
	group.Wait()
	t.Logf("%d calls during 20 certificates", calls.Load())
}

// With a file of the listener that is bad, nothing of a reload takes effect.
func TestBadCertificateFiles(t *testing.T) {
	s := startSecured(t, trustDomain, "", billing)
	caller := s.callers.issue(t, billing)
	was, good := s.ownSerial(t, caller), s.files(t)
	conn := s.secured(t, s.trusting(caller))
	s.put(t, "tls.crt", good["tls.crt"])
	s.put(t, "tls.key", good["tls.key"])
	s.put(t, "policy.yaml", callersPolicy(billing+"/other"))
	for name, bad := range map[string]string{"tls.crt": "x", "tls.key": s.files(t)["tls.key"], "callers.pem": "-----BEGIN"} {
		s.put(t, name, bad)
		warnings, err := s.Reload(t.Context())
		if err == nil || !strings.Contains(err.Error(), name) || len(warnings) > 0 {
			t.Errorf("bad %s: %v, %v", name, warnings, err)
		}
		if level, problems := s.logged(t, refusedLine); level != "ERROR" || !strings.Contains(fmt.Sprint(problems), name) {
			t.Errorf("bad %s: the log has %s %q", name, level, problems)
		}
		if now := s.ownSerial(t, caller); now != was {
			t.Errorf("bad %s: the certificate is %d instead of %d", name, now, was)
		}
		s.seals(t, "bad "+name+", connection that is open", conn, "OK")
		s.seals(t, "bad "+name+", new connection", s.secured(t, s.trusting(caller)), "OK")
		s.put(t, name, good[name])
	}
	s.load(t, "callers.pem", bundleOf(s.callers))
	s.seals(t, "good files", conn, "PERMISSION_DENIED")
	if now := s.ownSerial(t, caller); now <= was {
		t.Errorf("good files: the certificate is %d after %d", now, was)
	}
}

// from returns a dialer of a loopback address.
func from(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
}

func TestAllowedAddresses(t *testing.T) {
	s := startSecured(t, trustDomain, ", allow: ['127.0.0.2/31']", billing)
	creds := credentials.NewTLS(s.trusting(s.callers.issue(t, billing)))
	refused := func() uint64 {
		t.Helper()
		status, err := s.operator(t).Status(t.Context())
		if err != nil || len(status.Listeners) != 3 || status.Listeners[2].Name != "tcp" || status.Listeners[2].Address != s.tcp {
			t.Fatalf("%+v, %v", status.Listeners, err)
		}
		return status.Listeners[2].Refused
	}
	for address, want := range map[string]string{
		"127.0.0.1": "Unavailable", "127.0.0.2": "OK", "127.0.0.3": "OK", "127.0.0.4": "Unavailable", "127.1.0.2": "Unavailable",
	} {
		before := refused()
		s.seals(t, address, s.over(t, creds, from(address)), want)
		if n := refused() - before; (n > 0) != (want != "OK") {
			t.Errorf("%s: %d connections were refused", address, n)
		}
	}
	s.seals(t, "Unix socket", s.connect(t), "OK")
}

// A running sidecar sees that files of its TCP listener change.
func TestRunWatchesCertificates(t *testing.T) {
	site, p := newSite(t), newPKI(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: acme")
	set.policy, set.config = callersPolicy(billing), "reload_interval: 50ms"
	set.secure(t, p, trustDomain, "")
	n := site.start(t, set)
	conn := n.secured(t, p.trusting(p.callers.issue(t, billing)))
	if got := tryOver(t, conn); got != "OK" {
		t.Errorf("before: %s", got)
	}
	n.put(t, "callers.pem", bundleOf(newAuthority(t)))
	await(t, "UNAUTHENTICATED", func() bool { return tryOver(t, conn) == "UNAUTHENTICATED" })
}
