package identity_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"github.com/keysidecar/keysidecar/server/identity"
)

// TestReloadWithoutAuthority takes the clients' authority out of the bundle and
// puts it back.
func TestReloadWithoutAuthority(t *testing.T) {
	for _, td := range []string{"", trustDomain} {
		t.Run("trust domain "+td, func(t *testing.T) {
			s := newSite(t, td)
			source := s.open()
			l := serve(t, source, listen(t))
			cfg := s.clientConfig(s.clients.issue(name(td)))
			live := l.dial(t, cfg)
			_, info := l.admitted(t, live)

			s.writeCAs(newRoot(t, "another"))
			if err := source.Reload(); err != nil {
				t.Fatal(err)
			}
			l.refused(t, live, codes.Unauthenticated, "no authority of the client CA file")
			l.refused(t, l.dial(t, cfg), codes.Unavailable, "")

			s.writeCAs(newRoot(t, "another"), s.clients)
			if err := source.Reload(); err != nil {
				t.Fatal(err)
			}
			if c, err := source.Caller(with(info)); err != nil || c != info.Caller() {
				t.Errorf("with its authority back, the caller is %v, %v", c, err)
			}
			l.admitted(t, l.dial(t, cfg))
		})
	}
}

// TestReloadKeepsConnections rotates the server's certificate: the connection
// that is open stays, the next one sees the new certificate.
func TestReloadKeepsConnections(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	served := make(chan string, 10)
	cfg := s.clientConfig(s.clients.issue(withNames(dnsName)))
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		served <- state.PeerCertificates[0].SerialNumber.String()
		return nil
	}
	live := l.dial(t, cfg)
	l.admitted(t, live)
	first := <-served

	next := s.root.issue(withNames(serverName))
	s.writePair(next)
	if err := source.Reload(); err != nil {
		t.Fatal(err)
	}
	l.admitted(t, live)
	if n := l.accepted.Load(); n != 1 {
		t.Fatalf("the connection was made %d times", n)
	}
	l.admitted(t, l.dial(t, cfg))
	if second := <-served; second == first || second != next.Leaf.SerialNumber.String() {
		t.Errorf("new connection saw certificate %s, old one %s, the file has %s", second, first, next.Leaf.SerialNumber)
	}
}

// TestBadFiles loads what must not be loaded, at start and at Reload.
func TestBadFiles(t *testing.T) {
	type row struct {
		file   func(identity.CertificatesConfig) string
		damage func(s *site)
		want   string
	}
	cert := func(c identity.CertificatesConfig) string { return c.CertFile }
	key := func(c identity.CertificatesConfig) string { return c.KeyFile }
	ca := func(c identity.CertificatesConfig) string { return c.ClientCAFile }
	remove := func(file func(identity.CertificatesConfig) string) func(*site) {
		return func(s *site) {
			if err := os.Remove(file(s.config)); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	mode := func(file func(identity.CertificatesConfig) string, m os.FileMode) func(*site) {
		return func(s *site) {
			if err := os.Chmod(file(s.config), m); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	bundle := func(text func(s *site, good []byte) []byte) func(*site) {
		return func(s *site) {
			s.write(s.config.ClientCAFile, 0o644, text(s, pemOf("CERTIFICATE", s.clients.cert.Raw)))
		}
	}
	pair := func(change func(*x509.Certificate)) func(*site) {
		return func(s *site) { s.writePair(s.root.issue(change)) }
	}
	for name, test := range map[string]row{
		"no certificate file":        {cert, remove(cert), "no such file"},
		"no key file":                {key, remove(key), "no such file"},
		"no CA file":                 {ca, remove(ca), "no such file"},
		"others read the key":        {key, mode(key, 0o644), "without permissions 0007"},
		"others write the key":       {key, mode(key, 0o602), "without permissions 0007"},
		"others write certificates":  {cert, mode(cert, 0o646), "without permissions 0002"},
		"others write authorities":   {ca, mode(ca, 0o646), "without permissions 0002"},
		"key of another certificate": {key, func(s *site) { s.write(s.config.KeyFile, 0o600, keyPEM(s.t, s.root.issue(withNames(serverName)))) }, "does not match"},
		"key that is none":           {key, func(s *site) { s.write(s.config.KeyFile, 0o600, []byte("secret words")) }, "PEM"},
		"certificate that is none":   {cert, func(s *site) { s.write(s.config.CertFile, 0o600, nil) }, "PEM"},
		"early certificate":          {cert, pair(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "not valid before"},
		"empty CA file":              {ca, bundle(func(*site, []byte) []byte { return nil }), "no certificate in it"},
		"blank CA file":              {ca, bundle(func(*site, []byte) []byte { return []byte(" \n") }), "no certificate in it"},
		"words before":               {ca, bundle(func(_ *site, good []byte) []byte { return append([]byte("# root\n"), good...) }), "certificate 1 is not PEM"},
		"words after":                {ca, bundle(func(_ *site, good []byte) []byte { return append(good, "end"...) }), "certificate 2 is not PEM"},
		"damaged block": {ca, bundle(func(s *site, good []byte) []byte {
			return append(bytes.Replace(pemOf("CERTIFICATE", s.root.cert.Raw), []byte("END"), []byte("ENB"), 1), good...)
		}), "certificate 1 is not PEM"},
		"damaged second block": {ca, bundle(func(s *site, good []byte) []byte {
			return append(good, bytes.Replace(pemOf("CERTIFICATE", s.root.cert.Raw), []byte("END"), []byte("ENB"), 1)...)
		}), "certificate 2 is not PEM"},
		"damaged certificate": {ca, bundle(func(s *site, good []byte) []byte {
			return append(good, pemOf("CERTIFICATE", s.root.cert.Raw[:100])...)
		}), "certificate 2"},
		"key among authorities": {ca, bundle(func(s *site, good []byte) []byte {
			return append(good, keyPEM(s.t, s.root.issue(withNames(serverName)))...)
		}), `is a "PRIVATE KEY"`},
		"client among authorities": {ca, bundle(func(s *site, good []byte) []byte {
			return append(good, pemOf("CERTIFICATE", s.clients.issue(withNames(dnsName)).Certificate[0])...)
		}), "certificate 2 is not an authority's"},
		"long CA file": {ca, bundle(func(_ *site, good []byte) []byte {
			return append(good, bytes.Repeat([]byte("\n"), 1<<20)...)
		}), "is over 1048576 bytes"},
		"directory": {ca, func(s *site) {
			remove(ca)(s)
			if err := os.Mkdir(s.config.ClientCAFile, 0o755); err != nil {
				s.t.Fatal(err)
			}
		}, "regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "")
			source := s.open()
			l := serve(t, source, listen(t))
			cfg := s.clientConfig(s.clients.issue(withNames(dnsName)))
			live := l.dial(t, cfg)
			l.admitted(t, live)

			test.damage(s)
			_, startErr := identity.NewCertificates(s.config)
			for _, err := range []error{source.Reload(), startErr} {
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.file(s.config)) {
					t.Fatalf("error is %v: it needs %q and %s", err, test.want, filepath.Base(test.file(s.config)))
				}
				if strings.Contains(err.Error(), "secret words") {
					t.Errorf("error repeats the file: %v", err)
				}
			}
			l.admitted(t, live)
			l.admitted(t, l.dial(t, cfg))
		})
	}
}

// TestExpiredCertificate has a certificate of its own that is expired, which does
// not keep an authority trusted that was taken out. Nothing starts with it.
func TestExpiredCertificate(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	live := l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName))))
	l.admitted(t, live)

	ended := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	s.writePair(s.root.issue(func(c *x509.Certificate) { c.DNSNames, c.NotAfter = []string{serverName}, ended }))
	s.writeCAs(newRoot(t, "another"))
	if err := source.Reload(); err != nil {
		t.Fatalf("Reload: %v", err)
	}
	line, at := s.log.wait(t), ended.Format(time.RFC3339)
	if !strings.Contains(line, "level=WARN") || !strings.Contains(line, s.config.CertFile) || !strings.Contains(line, at) {
		t.Errorf("the log has %q: it needs WARN, %s and %s", line, s.config.CertFile, at)
	}
	l.refused(t, live, codes.Unauthenticated, "no authority of the client CA file")

	c, err := identity.NewCertificates(s.config)
	if c != nil || err == nil || !strings.Contains(err.Error(), s.config.CertFile+" expired at "+at) {
		t.Errorf("NewCertificates: %v, %v", c, err)
	}
	s.writePair(s.root.issue(withNames(serverName)))
	s.writeCAs(s.clients)
	if err := source.Reload(); err != nil || len(s.log) > 0 {
		t.Errorf("with a new certificate: %v, %d lines in the log", err, len(s.log))
	}
	l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName)))))
}

// TestBadReloadChangesNothing has a good and a bad file: neither is taken.
func TestBadReloadChangesNothing(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	live := l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName))))
	l.admitted(t, live)
	s.writePair(newRoot(t, "another").issue(withNames(serverName)))
	s.write(s.config.ClientCAFile, 0o644, nil)
	if err := source.Reload(); err == nil {
		t.Fatal("an empty CA file was taken")
	}
	l.admitted(t, live)
	l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName)))))
}

func TestBadConfig(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*identity.CertificatesConfig)
		want   string
	}{
		"no certificate": {func(c *identity.CertificatesConfig) { c.CertFile = "" }, "need a certificate"},
		"no key":         {func(c *identity.CertificatesConfig) { c.KeyFile = "" }, "need a certificate"},
		"no CA file":     {func(c *identity.CertificatesConfig) { c.ClientCAFile = "" }, "need a certificate"},
		"no logger":      {func(c *identity.CertificatesConfig) { c.Logger = nil }, "need a certificate"},
		"negative age":   {func(c *identity.CertificatesConfig) { c.MaxAge = -1 }, "negative"},
		"upper case":     {func(c *identity.CertificatesConfig) { c.TrustDomain = "Example.org" }, "lowercase"},
		"SPIFFE ID":      {func(c *identity.CertificatesConfig) { c.TrustDomain = workload }, `use "example.org"`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newSite(t, "").config
			test.change(&cfg)
			if c, err := identity.NewCertificates(cfg); c != nil || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v: want %q", c, err, test.want)
			}
		})
	}
}

// TestVerifiedOncePerReload lets many calls meet a new bundle at once: all get
// the very same verdict.
func TestVerifiedOncePerReload(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	_, info := l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName)))))
	s.writeCAs(newRoot(t, "another"))
	for range 50 {
		if err := source.Reload(); err != nil {
			t.Fatal(err)
		}
		start := make(chan struct{})
		verdicts := make([]error, 16)
		var calls sync.WaitGroup
		for i := range verdicts {
			calls.Go(func() {
				<-start
				_, err := source.Caller(with(info))
				verdicts[i] = errors.Unwrap(err)
			})
		}
		close(start)
		calls.Wait()
		for _, v := range verdicts {
			if v == nil || v != verdicts[0] {
				t.Fatalf("verdicts %p and %p: %v", v, verdicts[0], v)
			}
		}
	}
}

// TestReloadDuringCalls is for the race detector.
func TestReloadDuringCalls(t *testing.T) {
	s := newSite(t, trustDomain)
	source := s.open()
	l := serve(t, source, listen(t))
	_, info := l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(withURIs(workload)))))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 200 {
				if c, err := source.Caller(with(info)); err != nil || c.Name != workload {
					t.Errorf("got %v, %v", c, err)
					return
				}
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for range 20 {
				if err := source.Reload(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// TestCallersCertificateRotates shows that a caller whose identity ended gets
// back in by itself: it is told, its connection is closed, and the next one
// brings the certificate that the caller has by then.
func TestCallersCertificateRotates(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	renewed := newRoot(t, "renewed")
	certs := make(chan tls.Certificate, 2)
	certs <- s.clients.issue(withNames(dnsName))
	certs <- renewed.issue(withNames(dnsName))
	cfg := s.clientConfig()
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert := <-certs
		return &cert, nil
	}
	cc := l.dial(t, cfg)
	l.admitted(t, cc)
	s.writeCAs(renewed)
	if err := source.Reload(); err != nil {
		t.Fatal(err)
	}
	l.refused(t, cc, codes.Unauthenticated, "caller dns:"+dnsName)
	if !cc.WaitForStateChange(t.Context(), connectivity.Ready) {
		t.Fatal("the connection stays open")
	}
	l.admitted(t, cc, grpc.WaitForReady(true))
}

func TestCallerDoesNotAllocate(t *testing.T) {
	for _, td := range []string{"", trustDomain} {
		s := newSite(t, td)
		source := s.open()
		l := serve(t, source, listen(t))
		_, info := l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(name(td)))))
		if err := source.Reload(); err != nil {
			t.Fatal(err)
		}
		ctx := with(info)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := source.Caller(ctx); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("trust domain %q: %v allocations a call", td, n)
		}
	}
}
