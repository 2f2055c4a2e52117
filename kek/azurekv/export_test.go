package azurekv

import (
	"crypto/x509"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/keysidecar/keysidecar/kek"
)

// NewCredentialWith is NewCredential with Entra behind client.
func NewCredentialWith(cfg CredentialConfig, client *http.Client) (azcore.TokenCredential, error) {
	return newCredential(cfg, client)
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
