package azurekv

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/keysidecar/keysidecar/kek/azurekv/challenge"
)

// The types of credentials.
const (
	// WorkloadIdentity is a Kubernetes service-account token federated with
	// Entra.
	WorkloadIdentity = "workload_identity"
	// ManagedIdentity is the identity of the virtual machine or pod.
	ManagedIdentity = "managed_identity"
	// ClientCertificate is an Entra application with a certificate.
	ClientCertificate = "client_certificate"
	// DevVaultToken is the static token of the embedded vault. It is never
	// sent to any other.
	DevVaultToken = "devvault"
)

const (
	// tokenTimeout bounds one request for a token, retry included.
	tokenTimeout = 10 * time.Second
	// staticTokenLife is how long a static token is used before its file is
	// read again. A 401 makes the SDK ask again at once.
	staticTokenLife = time.Hour
	maxSecretFile   = 1 << 20
)

// CredentialConfig describes one credential. A field that Type does not use
// must be zero.
type CredentialConfig struct {
	// Type is one of the constants above; required.
	Type string
	// Cloud is the cloud whose Entra issues tokens; empty is "public".
	Cloud string
	// TenantID is the GUID of the Entra tenant that the application is in.
	// For WorkloadIdentity, empty is AZURE_TENANT_ID, which the Azure webhook
	// sets in the pod. Required for ClientCertificate.
	TenantID string
	// AllowedTenants are the GUIDs of further Entra tenants for which tokens
	// may be asked: the vaults' tenants, where they are not TenantID.
	AllowedTenants []string
	// ClientID is the application's, or the user-assigned managed identity's.
	// For WorkloadIdentity, empty is AZURE_CLIENT_ID; for ManagedIdentity,
	// empty is the system-assigned identity. Required for ClientCertificate.
	ClientID string
	// TokenFile holds the service-account token, or the embedded vault's
	// token; it is read again when it changes. For WorkloadIdentity, empty is
	// AZURE_FEDERATED_TOKEN_FILE. Required for DevVaultToken.
	TokenFile string
	// CertificateFile holds a PEM certificate chain and its private key. It is
	// read once. Required for ClientCertificate.
	CertificateFile string
	// SendCertificateChain sends the chain with each token request, for
	// applications that trust a subject name and issuer.
	SendCertificateChain bool
	// DisableInstanceDiscovery leaves out the question to Entra whether its
	// authority is genuine. Set it only where that host cannot be reached.
	DisableInstanceDiscovery bool
	// Proxy, as in http.Transport, is for Entra; nil is no proxy. A managed
	// identity's endpoint is local and never proxied.
	Proxy func(*http.Request) (*url.URL, error)
}

// NewCredential builds exactly the credential that cfg names, and never looks
// for another. It reads files, but asks nobody for a token.
func NewCredential(cfg CredentialConfig) (azcore.TokenCredential, error) {
	proxy := cfg.Proxy
	if cfg.Type == ManagedIdentity {
		proxy = nil
	}
	return newCredential(cfg, newHTTPClient(nil, "", proxy))
}

// newCredential is NewCredential with Entra, or a managed identity's endpoint,
// behind client.
func newCredential(cfg CredentialConfig, client *http.Client) (azcore.TokenCredential, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	spec, err := findCloud(cfg.Cloud)
	if err != nil {
		return nil, err
	}
	options := azcore.ClientOptions{
		Cloud:     spec.entra,
		Retry:     policy.RetryOptions{MaxRetries: 1, TryTimeout: 3 * time.Second, MaxRetryDelay: time.Second},
		Transport: client,

		PerRetryPolicies: []policy.Policy{tokenRecorder{}},
	}
	switch cfg.Type {
	case WorkloadIdentity:
		return newWorkloadIdentity(cfg, options)
	case ManagedIdentity:
		return newManagedIdentity(cfg, options)
	case ClientCertificate:
		return newClientCertificate(cfg, options)
	}
	return newStaticToken(cfg.TokenFile)
}

// check finds missing, superfluous and malformed fields.
func (cfg *CredentialConfig) check() error {
	const tenant, client, token, cert = "Entra tenant ID", "client ID", "token file", "certificate file"
	var required, allowed []string
	switch cfg.Type {
	case WorkloadIdentity:
		allowed = []string{tenant, client, token}
	case ManagedIdentity:
		allowed = []string{client}
	case ClientCertificate:
		required = []string{tenant, client, cert}
	case DevVaultToken:
		required = []string{token}
	default:
		return fmt.Errorf("credential type %q is not workload_identity, managed_identity, client_certificate or devvault",
			cfg.Type)
	}
	fields := map[string]string{tenant: cfg.TenantID, client: cfg.ClientID, token: cfg.TokenFile, cert: cfg.CertificateFile}
	for _, name := range required {
		if fields[name] == "" {
			return fmt.Errorf("%s credential lacks its %s", cfg.Type, name)
		}
		delete(fields, name)
	}
	for _, name := range allowed {
		delete(fields, name)
	}
	for name, value := range fields {
		if value != "" {
			return fmt.Errorf("%s credential does not take a %s", cfg.Type, name)
		}
	}
	return cfg.checkTenants()
}

func (cfg *CredentialConfig) checkTenants() error {
	if cfg.TenantID != "" && !challenge.IsGUID(cfg.TenantID) {
		return fmt.Errorf("Entra tenant ID %q is not a GUID", cfg.TenantID)
	}
	for _, id := range cfg.AllowedTenants {
		if !challenge.IsGUID(id) {
			return fmt.Errorf("allowed Entra tenant ID %q is not a GUID", id)
		}
	}
	if cfg.Type == WorkloadIdentity || cfg.Type == ClientCertificate {
		return nil
	}
	if len(cfg.AllowedTenants) > 0 || cfg.SendCertificateChain || cfg.DisableInstanceDiscovery {
		return fmt.Errorf("%s credential does not ask Entra itself", cfg.Type)
	}
	return nil
}

// allowedTenants returns them in the spelling in which azidentity will
// compare them with what the vetted challenge names.
func (cfg *CredentialConfig) allowedTenants() []string {
	var out []string
	for _, id := range cfg.AllowedTenants {
		out = append(out, strings.ToLower(id))
	}
	return out
}

func newWorkloadIdentity(cfg CredentialConfig, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	tenant := cfg.TenantID
	if tenant == "" {
		tenant = os.Getenv("AZURE_TENANT_ID")
	}
	if !challenge.IsGUID(tenant) {
		return nil, errors.New("workload_identity credential lacks its Entra tenant ID, and AZURE_TENANT_ID holds none")
	}
	file := cfg.TokenFile
	if file == "" {
		file = os.Getenv("AZURE_FEDERATED_TOKEN_FILE")
	}
	c, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions:              options,
		AdditionallyAllowedTenants: cfg.allowedTenants(),
		ClientID:                   cfg.ClientID,
		DisableInstanceDiscovery:   cfg.DisableInstanceDiscovery,
		TenantID:                   strings.ToLower(tenant),
		TokenFilePath:              cfg.TokenFile,
	})
	if err != nil {
		return nil, fmt.Errorf("making the workload_identity credential: %w", err)
	}
	return fileCredential{TokenCredential: c, file: file}, nil
}

func newManagedIdentity(cfg CredentialConfig, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
	if cfg.ClientID != "" {
		o.ID = azidentity.ClientID(cfg.ClientID)
	}
	c, err := azidentity.NewManagedIdentityCredential(o)
	if err != nil {
		return nil, fmt.Errorf("making the managed_identity credential: %w", err)
	}
	return c, nil
}

func newClientCertificate(cfg CredentialConfig, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	pem, err := readSecretFile(cfg.CertificateFile)
	if err != nil {
		return nil, fmt.Errorf("reading certificate file: %w", err)
	}
	defer clear(pem)
	certs, key, err := azidentity.ParseCertificates(pem, nil)
	if err != nil {
		// The parser's text may quote what it parsed.
		return nil, fmt.Errorf("certificate file %s holds no PEM certificate with its private key", cfg.CertificateFile)
	}
	c, err := azidentity.NewClientCertificateCredential(strings.ToLower(cfg.TenantID), cfg.ClientID, certs, key,
		&azidentity.ClientCertificateCredentialOptions{
			ClientOptions:              options,
			AdditionallyAllowedTenants: cfg.allowedTenants(),
			DisableInstanceDiscovery:   cfg.DisableInstanceDiscovery,
			SendCertificateChain:       cfg.SendCertificateChain,
		})
	if err != nil {
		return nil, fmt.Errorf("making the client_certificate credential: %w", err)
	}
	return c, nil
}

// staticToken is the embedded vault's credential.
type staticToken struct{ file string }

// maxToken bounds the embedded vault's token, in bytes.
const maxToken = 4096

func newStaticToken(file string) (*staticToken, error) {
	s := &staticToken{file: file}
	if _, err := s.read(); err != nil {
		return nil, err
	}
	return s, nil
}

// GetToken implements azcore.TokenCredential.
func (s *staticToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := s.read()
	if err != nil {
		return azcore.AccessToken{}, err
	}
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(staticTokenLife)}, nil
}

func (s *staticToken) read() (string, error) {
	b, err := readSecretFile(s.file)
	if err != nil {
		return "", fmt.Errorf("reading token file: %w", &tokenFileError{err})
	}
	token := strings.TrimSpace(string(b))
	if token == "" || len(token) > maxToken || !challenge.IsPrintable(token) || strings.Contains(token, " ") {
		return "", fmt.Errorf("%s: %w", s.file, errNoToken)
	}
	return token, nil
}

func readSecretFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecretFile {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", name, maxSecretFile)
	}
	return os.ReadFile(name)
}
