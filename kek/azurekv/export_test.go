package azurekv

import (
	"crypto/x509"
	"net/http"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// Vet is a vetter with the given expectations.
func Vet(tenant string, authorities, resources, challenge []string, authorised bool) (string, error) {
	return vetter{tenant: tenant, authorities: authorities, resources: resources}.vet(challenge, authorised)
}

// Reason classifies an answer.
func Reason(op string, status int, challenged bool, body string) (reason kek.Reason, code string) {
	f := fault{status: status, challenged: challenged}
	f.outer, f.code = errorCodes([]byte(body))
	return f.reason(op), f.code
}

var (
	RetryAfter = retryAfter
	ErrorCodes = errorCodes
)

// Redirect sends what is for Azure to address, under other roots.
func (v *Vaults) Redirect(address string, roots *x509.CertPool) {
	v.client = newHTTPClient(roots, address, nil)
}

// Clients returns how many vault clients are kept.
func (v *Vaults) Clients() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.clients.Len()
}

// HTTPClient is the client for Azure's vaults.
func (v *Vaults) HTTPClient() *http.Client { return v.client }

// VersionTTL is for tests of the age of public keys.
const VersionTTL time.Duration = versionTTL
