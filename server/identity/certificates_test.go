package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/server/identity"
)

// infoFrom returns what the server has about a call's connection.
func infoFrom(ctx context.Context) identity.Info {
	p, _ := peer.FromContext(ctx)
	info, _ := p.AuthInfo.(identity.Info)
	return info
}

// with returns a context of a call on the connection that info is about.
func with(info credentials.AuthInfo) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info})
}

func TestCertificateNamesCaller(t *testing.T) {
	both := func(c *x509.Certificate) {
		withURIs(workload)(c)
		withNames("ignored.internal", "by.the.standard")(c)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	for name, test := range map[string]struct {
		trustDomain string
		change      func(*x509.Certificate)
		want        policy.Caller
	}{
		"SPIFFE ID":               {trustDomain, withURIs(workload), policy.Caller{Name: workload, Source: policy.SPIFFE}},
		"SPIFFE ID and DNS names": {trustDomain, both, policy.Caller{Name: workload, Source: policy.SPIFFE}},
		"DNS name":                {"", withNames(dnsName), policy.Caller{Name: "dns:" + dnsName, Source: policy.DNS}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, test.trustDomain)
			l := serve(t, s.open(), listen(t))
			for kind, signer := range map[string]*authority{
				"root": s.clients, "intermediate": s.clients.intermediate(time.Now().Add(time.Hour)),
			} {
				caller, info := l.admitted(t, l.dial(t, s.clientConfig(signer.issue(test.change))))
				if caller != test.want || info.Caller() != caller {
					t.Errorf("%s: caller is %+v, on a connection of %+v, not %+v", kind, caller, info.Caller(), test.want)
				}
				if info.AuthType() != "certificate" || info.SecurityLevel != credentials.PrivacyAndIntegrity {
					t.Errorf("%s: connection is %s, level %v", kind, info.AuthType(), info.SecurityLevel)
				}
			}
		})
	}
}

// namesID identifies the extension that has the subject alternative names.
var namesID = asn1.ObjectIdentifier{2, 5, 29, 17}

// otherName is a subject alternative name of a kind that crypto/x509 skips,
// besides a DNS name.
func otherName(c *x509.Certificate) {
	value, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(dnsName)},
		{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{42, 3}}, // registeredID
	})
	if err != nil {
		panic("identity: internal error: " + err.Error())
	}
	c.ExtraExtensions = []pkix.Extension{{Id: namesID, Value: value}}
}

// refusedCertificates are those that no call gets past. Without a trust domain
// unless they say so; signed by the clients' authority unless they say so.
func refusedCertificates() map[string]struct {
	trustDomain string
	make        func(s *site) tls.Certificate
	want        string
} {
	type row = struct {
		trustDomain string
		make        func(s *site) tls.Certificate
		want        string
	}
	issue := func(changes ...func(*x509.Certificate)) func(s *site) tls.Certificate {
		return func(s *site) tls.Certificate {
			return s.clients.issue(func(c *x509.Certificate) {
				for _, change := range changes {
					change(c)
				}
			})
		}
	}
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	early := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	serverOnly := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	unknownUse := func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }
	ca := func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }
	withIP := func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }
	withMail := func(c *x509.Certificate) { c.EmailAddresses = []string{"a@batch.internal"} }
	dns, id := withNames(dnsName), withURIs(workload)
	unknown := func(change func(*x509.Certificate)) func(*site) tls.Certificate {
		return func(s *site) tls.Certificate { return newRoot(s.t, "client root").issue(change) }
	}
	selfSigned := func(change func(*x509.Certificate)) func(*site) tls.Certificate {
		return func(s *site) tls.Certificate {
			c, key := template(), newKey(s.t)
			change(c)
			return tls.Certificate{Certificate: [][]byte{sign(s.t, c, c, &key.PublicKey, key).Raw}, PrivateKey: key}
		}
	}
	below := func(change func(*x509.Certificate)) func(*site) tls.Certificate {
		return func(s *site) tls.Certificate {
			c, key := authorityTemplate("constrained"), newKey(s.t)
			change(c)
			cert := sign(s.t, c, s.clients.cert, &key.PublicKey, s.clients.key)
			return (&authority{t: s.t, cert: cert, key: key, chain: [][]byte{cert.Raw}}).issue(dns)
		}
	}
	return map[string]row{
		"expired":                    {"", issue(dns, expired), "not valid now: current time"},
		"expired SPIFFE":             {trustDomain, issue(id, expired), "not valid now: current time"},
		"not yet valid":              {"", issue(dns, early), "is before"},
		"not yet valid SPIFFE":       {trustDomain, issue(id, early), "is before"},
		"unknown authority":          {"", unknown(dns), "no authority of the client CA file"},
		"unknown authority SPIFFE":   {trustDomain, unknown(id), "no authority of the client CA file"},
		"self-signed":                {"", selfSigned(dns), "no authority of the client CA file"},
		"self-signed SPIFFE":         {trustDomain, selfSigned(id), "no authority of the client CA file"},
		"authority":                  {"", issue(dns, ca), "an authority's"},
		"authority SPIFFE":           {trustDomain, issue(id, ca), "an authority's"},
		"for servers":                {"", issue(dns, serverOnly), "client authentication"},
		"for servers SPIFFE":         {trustDomain, issue(id, serverOnly), "client authentication"},
		"for something else SPIFFE":  {trustDomain, issue(id, unknownUse), "client authentication"},
		"no name":                    {"", issue(), "has 0 subject alternative names"},
		"no name SPIFFE":             {trustDomain, issue(dns), "no URI SAN"},
		"two DNS names":              {"", issue(withNames(dnsName, "other.internal")), "2 of them DNS names"},
		"wildcard":                   {"", issue(withNames("*.internal")), "DNS name"},
		"upper case":                 {"", issue(withNames("Batch.internal")), "DNS name"},
		"URI besides a DNS name":     {"", issue(dns, id), "has 2 subject alternative names"},
		"URI instead of a DNS name":  {"", issue(id), "0 of them DNS names"},
		"IP address":                 {"", issue(dns, withIP), "has 2 subject alternative names"},
		"mail address":               {"", issue(dns, withMail), "has 2 subject alternative names"},
		"name of an unknown kind":    {"", issue(otherName), "has 2 subject alternative names"},
		"other trust domain":         {trustDomain, issue(withURIs("spiffe://evil.example/billing")), `of trust domain \"evil.example\"`},
		"longer trust domain":        {trustDomain, issue(withURIs("spiffe://example.org.evil/billing")), "trust domain"},
		"two SPIFFE IDs":             {trustDomain, issue(withURIs(workload, "spiffe://example.org/other")), "more than one URI SAN"},
		"SPIFFE ID and URI":          {trustDomain, issue(withURIs(workload, "https://example.org/")), "more than one URI SAN"},
		"https URI":                  {trustDomain, issue(withURIs("https://example.org/billing")), "scheme"},
		"trust domain alone":         {trustDomain, issue(withURIs("spiffe://example.org")), "path"},
		"dots in the SPIFFE ID":      {trustDomain, issue(withURIs("spiffe://example.org/a/../billing")), "dot segments"},
		"query in the SPIFFE ID":     {trustDomain, issue(withURIs("spiffe://example.org/billing?a=b")), "path segment"},
		"user in the SPIFFE ID":      {trustDomain, issue(withURIs("spiffe://me@example.org/billing")), "trust domain characters"},
		"percent code in the SPIFFE": {trustDomain, issue(withURIs("spiffe://example.org/%62illing")), "path segment"},
		"intermediate not sent": {"", func(s *site) tls.Certificate {
			cert := s.clients.intermediate(time.Now().Add(time.Hour)).issue(dns)
			cert.Certificate = cert.Certificate[:1]
			return cert
		}, "no authority of the client CA file"},
		"expired intermediate": {"", func(s *site) tls.Certificate {
			return s.clients.intermediate(time.Now().Add(-time.Minute)).issue(dns)
		}, "not valid now"},
		"name that its authority may not give": {"", below(func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"other.internal"}, true
		}), "verifying the certificate chain"},
		"authority of servers": {"", below(serverOnly), "verifying the certificate chain"},
		"somebody else's": {"", func(s *site) tls.Certificate {
			cert := s.clients.issue(dns)
			cert.PrivateKey = newKey(s.t)
			return cert
		}, "invalid signature"},
	}
}

func TestRefusedCertificates(t *testing.T) {
	for name, test := range refusedCertificates() {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, test.trustDomain)
			l := serve(t, s.open(), listen(t))
			l.refused(t, l.dial(t, s.clientConfig(test.make(s))), codes.Unavailable, "")
			line := s.log.wait(t)
			for _, want := range []string{"level=WARN", `msg="handshake refused"`, "remote=127.0.0.1:", "suppressed=0", test.want} {
				if !strings.Contains(line, want) {
					t.Errorf("log has no %q: %s", want, line)
				}
			}
		})
	}
}

// TestRefusedHandshakes is about peers whose certificate is good, if they have
// one.
func TestRefusedHandshakes(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*tls.Config)
		want   string
	}{
		"TLS 1.2":        {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "unsupported versions"},
		"no certificate": {func(c *tls.Config) { c.Certificates = nil }, "didn't provide a certificate"},
		"no ALPN":        {func(c *tls.Config) { c.NextProtos = nil }, "does not offer HTTP/2"},
		"long list of protocols": {func(c *tls.Config) {
			c.NextProtos = slices.Repeat([]string{strings.Repeat("x", 255)}, 200)
		}, "unsupported application protocols"},
		"HTTP/1.1": {func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }, "does not offer HTTP/2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "")
			l := serve(t, s.open(), listen(t))
			cfg := s.clientConfig(s.clients.issue(withNames(dnsName)))
			cfg.NextProtos = []string{"h2"}
			test.change(cfg)
			conn, err := net.Dial("tcp", l.addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := tls.Client(conn, cfg)
			// The server has the last word after the client's handshake.
			if err := client.Handshake(); err == nil {
				if n, err := client.Read(make([]byte, 1)); err == nil {
					t.Errorf("server sent %d bytes", n)
				}
			}
			if line := s.log.wait(t); !strings.Contains(line, test.want) || len(line) > 600 {
				t.Errorf("log has no %q, or too much: %s", test.want, line)
			}
		})
	}
}

// TestPlainText shows that nobody gets in without TLS.
func TestPlainText(t *testing.T) {
	s := newSite(t, "")
	l := serve(t, s.open(), listen(t))
	conn, err := net.Dial("tcp", l.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if line := s.log.wait(t); !strings.Contains(line, "does not look like a TLS handshake") {
		t.Errorf("log: %s", line)
	}
}

// sessions is a cache that remembers whether it got anything to keep.
type sessions struct {
	tls.ClientSessionCache
	kept chan string
}

func (s sessions) Put(key string, state *tls.ClientSessionState) {
	s.kept <- key
	s.ClientSessionCache.Put(key, state)
}

// TestNoResumption connects twice with a session cache: the second handshake
// is a whole one, and is refused once the authority has left.
func TestNoResumption(t *testing.T) {
	s := newSite(t, trustDomain)
	source := s.open()
	l := serve(t, source, listen(t))
	cache := sessions{tls.NewLRUClientSessionCache(10), make(chan string, 10)}
	resumed := make(chan bool, 10)
	cfg := s.clientConfig(s.clients.issue(withURIs(workload)))
	cfg.ClientSessionCache = cache
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		resumed <- state.DidResume
		return nil
	}
	for range 2 {
		cc := l.dial(t, cfg)
		l.admitted(t, cc)
		_ = cc.Close()
		if <-resumed {
			t.Error("a session was resumed")
		}
	}
	s.writeCAs(newRoot(t, "another"))
	if err := source.Reload(); err != nil {
		t.Fatal(err)
	}
	l.refused(t, l.dial(t, cfg), codes.Unavailable, "")
	if <-resumed {
		t.Error("a session was resumed")
	}
	if len(cache.kept) > 0 {
		t.Errorf("the server gave a ticket for %s", <-cache.kept)
	}
}

// TestCallerNeedsOwnConnection asks Sources about connections that are not
// theirs.
func TestCallerNeedsOwnConnection(t *testing.T) {
	s := newSite(t, "")
	source, other := s.open(), s.open()
	l := serve(t, source, listen(t))
	_, info := l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName)))))
	if c, err := source.Caller(with(info)); err != nil || c != info.Caller() {
		t.Fatalf("its own connection: %v, %v", c, err)
	}
	for name, ask := range map[string]func() (policy.Caller, error){
		"no connection":             func() (policy.Caller, error) { return source.Caller(t.Context()) },
		"no credentials":            func() (policy.Caller, error) { return source.Caller(with(nil)) },
		"other credentials":         func() (policy.Caller, error) { return source.Caller(with(credentials.TLSInfo{})) },
		"zero Info":                 func() (policy.Caller, error) { return source.Caller(with(identity.Info{})) },
		"other Certificates":        func() (policy.Caller, error) { return other.Caller(with(info)) },
		"Peers, a certificate's":    func() (policy.Caller, error) { return identity.NewPeers().Caller(with(info)) },
		"Peers, zero Info":          func() (policy.Caller, error) { return identity.NewPeers().Caller(with(identity.Info{})) },
		"Peers, without connection": func() (policy.Caller, error) { return identity.NewPeers().Caller(t.Context()) },
	} {
		if c, err := ask(); err == nil || c != (policy.Caller{}) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

func TestServerCredentialsAreNoClients(t *testing.T) {
	for name, source := range map[string]identity.Source{"tls": newSite(t, "").open(), "peer": identity.NewPeers()} {
		creds := source.Credentials().Clone()
		if _, _, err := creds.ClientHandshake(t.Context(), "", nil); err == nil {
			t.Errorf("%s: connected as a client", name)
		}
		if err := creds.OverrideServerName("x"); err == nil { //nolint:staticcheck // deprecated, and part of the interface
			t.Errorf("%s: took a server name", name)
		}
		if got := creds.Info().SecurityProtocol; got != name {
			t.Errorf("%s: protocol %s", name, got)
		}
	}
}
