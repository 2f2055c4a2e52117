package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/keysidecar/keysidecar/policy"
)

// authorities sign clients' certificates.
type authorities struct {
	bundle *x509bundle.Bundle // of a trust domain; nil without one
	pool   *x509.CertPool     // without a trust domain
}

func newAuthorities(certs []*x509.Certificate, td spiffeid.TrustDomain) authorities {
	if !td.IsZero() {
		return authorities{bundle: x509bundle.FromX509Authorities(td, certs)}
	}
	return authorities{pool: poolOf(certs)}
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// verify returns whose certificate certs[0] is, and until when that holds. now
// and the end are microseconds since 1970. Without a certificate, the caller is
// nobody.
func (a authorities) verify(certs []*x509.Certificate, now int64) (policy.Caller, int64, error) {
	if len(certs) == 0 {
		return policy.Caller{}, 0, errors.New("peer has no certificate")
	}
	caller, err := identify(certs[0], a.trustDomain())
	if err != nil {
		return policy.Caller{}, 0, err
	}
	chains, err := a.chains(certs, time.UnixMicro(now))
	if err != nil {
		return policy.Caller{}, 0, chainError(err)
	}
	return caller, end(chains), nil
}

// trustDomain returns the zero TrustDomain if callers are known by DNS names.
func (a authorities) trustDomain() spiffeid.TrustDomain {
	if a.bundle == nil {
		return spiffeid.TrustDomain{}
	}
	return a.bundle.TrustDomain()
}

// chains returns the valid chains from certs[0] to an authority.
func (a authorities) chains(certs []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if a.bundle != nil {
		_, chains, err := x509svid.Verify(certs, a.bundle, x509svid.WithTime(now))
		return chains, err
	}
	return certs[0].Verify(x509.VerifyOptions{
		Roots:         a.pool,
		Intermediates: poolOf(certs[1:]),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		CurrentTime:   now,
	})
}

// end returns when the last of the chains ceases to be valid: each does with
// the first of its certificates.
func end(chains [][]*x509.Certificate) int64 {
	var last int64
	for _, chain := range chains {
		first := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		last = max(last, first.UnixMicro())
	}
	return last
}

// identify returns whom a certificate names, if its chain is valid and the peer
// has its key. It is all that is read of a certificate to that end.
func identify(leaf *x509.Certificate, td spiffeid.TrustDomain) (policy.Caller, error) {
	if leaf.IsCA {
		return policy.Caller{}, errors.New("certificate is an authority's, not a client's")
	}
	if !forClients(leaf) {
		return policy.Caller{}, errors.New("certificate's extended key usages do not include client authentication")
	}
	if td.IsZero() {
		return identifyDNS(leaf)
	}
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return policy.Caller{}, fmt.Errorf("reading the certificate's SPIFFE ID: %w", err)
	}
	if !id.MemberOf(td) {
		return policy.Caller{}, fmt.Errorf("certificate is of trust domain %s, not of %s", short(id.TrustDomain().Name()), td.Name())
	}
	return policy.SPIFFECaller(id.String())
}

// forClients reports whether a certificate may be a client's (RFC 5280, section
// 4.2.1.12; X509-SVID, section 4.4, which go-spiffe does not check).
func forClients(leaf *x509.Certificate) bool {
	return len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// identifyDNS takes a certificate that names nothing but one DNS name. Of two
// names neither would be the caller's, and what a name of another kind means
// here nobody has said.
func identifyDNS(leaf *x509.Certificate) (policy.Caller, error) {
	names, err := countNames(leaf)
	if err != nil {
		return policy.Caller{}, err
	}
	if names != 1 || len(leaf.DNSNames) != 1 {
		return policy.Caller{}, fmt.Errorf(
			"certificate has %d subject alternative names, %d of them DNS names: it needs one, which is a DNS name",
			names, len(leaf.DNSNames))
	}
	return policy.DNSCaller(leaf.DNSNames[0])
}

// countNames counts the subject alternative names of all kinds. crypto/x509
// leaves out those that it does not know.
func countNames(leaf *x509.Certificate) (int, error) {
	san := asn1.ObjectIdentifier{2, 5, 29, 17} // RFC 5280, section 4.2.1.6
	i := slices.IndexFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(san) })
	if i < 0 {
		return 0, nil
	}
	var names []asn1.RawValue
	rest, err := asn1.Unmarshal(leaf.Extensions[i].Value, &names)
	if err != nil || len(rest) > 0 {
		return 0, errors.New("certificate's subject alternative names are malformed")
	}
	return len(names), nil
}

// chainError says why there is no chain, without the names that crypto/x509
// quotes from certificates nobody vouched for.
func chainError(err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Errorf("certificate chain is not valid now: %s", invalid.Detail)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return errors.New("certificate is signed by no authority of the client CA file")
	}
	return fmt.Errorf("verifying the certificate chain: %s", short(err.Error()))
}

// short quotes text that a peer chose.
func short(s string) string { return strconv.QuoteToASCII(clip(s, 100)) }

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "..."
}
