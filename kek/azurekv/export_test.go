package azurekv

import (
	"crypto/x509"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
)

// NewCredentialWith is NewCredential with Entra behind client.
func NewCredentialWith(cfg CredentialConfig, client *http.Client) (azcore.TokenCredential, error) {
	return newCredential(cfg, client)
}

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
