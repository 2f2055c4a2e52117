package identity

import (
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keysidecar/keysidecar/policy"
)

// NewCertificatesAt is NewCertificates with other clocks.
func NewCertificatesAt(cfg CertificatesConfig, read func() (time.Time, time.Duration)) (*Certificates, error) {
	return newCertificates(cfg, read)
}

// NewClock returns what tells the time by the clocks that read reads.
func NewClock(read func() (time.Time, time.Duration)) func() int64 { return (&clock{read: read}).now }

// Identify is identify. An empty trust domain is none.
func Identify(leaf *x509.Certificate, trustDomain string) (policy.Caller, error) {
	var td spiffeid.TrustDomain
	if trustDomain != "" {
		td = spiffeid.RequireTrustDomainFromString(trustDomain)
	}
	return identify(leaf, td)
}
