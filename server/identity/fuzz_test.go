package identity_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/server/identity"
)

// FuzzCertificate reads callers out of certificates. Whoever is named, is named
// by the canonical text of a caller of the kind asked for, and by a name that
// the certificate has; and what is refused leaves no long or raw text behind.
func FuzzCertificate(f *testing.F) {
	key := newKey(f)
	for _, change := range []func(*x509.Certificate){
		withURIs(workload), withNames(dnsName), withURIs(), withNames(dnsName, "other.internal"), otherName,
		withURIs(workload, "spiffe://example.org/other"), withURIs("spiffe://evil.example/"), withNames("*.internal"),
		func(c *x509.Certificate) { withURIs(workload)(c); withNames(dnsName)(c) },
		func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
		func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		withNames(strings.Repeat("a", 1000)), withNames("\x1b[31m"),
		withURIs("spiffe://" + strings.Repeat("a", 2000) + "/billing"),
	} {
		c := template()
		change(c)
		f.Add(sign(f, c, c, &key.PublicKey, key).Raw)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if leaf, err := x509.ParseCertificate(der); err == nil {
			checkIdentify(t, leaf)
		}
	})
}

// FuzzNames is FuzzCertificate for the subject alternative names alone, which
// most changes to a whole certificate do not reach.
func FuzzNames(f *testing.F) {
	key := newKey(f)
	for _, change := range []func(*x509.Certificate){
		withURIs(workload), withNames(dnsName), withNames(dnsName, "other.internal"), otherName,
		withURIs("spiffe://evil.example/"), withNames("*.internal"),
		func(c *x509.Certificate) { withURIs(workload)(c); withNames(dnsName)(c) },
	} {
		c := template()
		change(c)
		for _, e := range sign(f, c, c, &key.PublicKey, key).Extensions {
			if e.Id.Equal(namesID) {
				f.Add(e.Value)
			}
		}
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		c := template()
		c.ExtraExtensions = []pkix.Extension{{Id: namesID, Value: value}}
		der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
		if err != nil {
			return
		}
		if leaf, err := x509.ParseCertificate(der); err == nil {
			checkIdentify(t, leaf)
		}
	})
}

func checkIdentify(t *testing.T, leaf *x509.Certificate) {
	t.Helper()
	for _, td := range []string{"", trustDomain} {
		c, err := identity.Identify(leaf, td)
		if err != nil {
			if c != (policy.Caller{}) {
				t.Errorf("%v, and %v", c, err)
			}
			checkText(t, err.Error())
			continue
		}
		if again, err := policy.ParseCaller(c.Name); err != nil || again != c {
			t.Errorf("caller %+v reads back as %+v, %v", c, again, err)
		}
		switch {
		case td == "" && (c.Source != policy.DNS || len(leaf.DNSNames) != 1 || c.Name != "dns:"+leaf.DNSNames[0]):
			t.Errorf("certificate of %q is %+v", leaf.DNSNames, c)
		case td == "" && len(leaf.URIs)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
			t.Errorf("certificate with other names is %+v", c)
		case td != "" && (c.Source != policy.SPIFFE || len(leaf.URIs) != 1 || !strings.HasPrefix(c.Name, "spiffe://"+td+"/")):
			t.Errorf("certificate of %v is %+v", leaf.URIs, c)
		case leaf.IsCA:
			t.Errorf("an authority is %+v", c)
		}
	}
}

// checkText checks that an error can stand in a log line.
func checkText(t *testing.T, text string) {
	t.Helper()
	if len(text) > 600 {
		t.Errorf("error of %d bytes: %s", len(text), text)
	}
	for _, r := range text {
		if r < ' ' || r > '~' {
			t.Errorf("error has %q in it: %q", r, text)
		}
	}
}
