package azurekv_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
)

func TestNewCredential(t *testing.T) {
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	cert := writeFile(t, pemOf(t, certificate(t, "x")))
	token := writeFile(t, "token")
	absent := filepath.Join(t.TempDir(), "absent")
	for _, test := range []struct {
		name string
		cfg  azurekv.CredentialConfig
		kind string // Go type
		want string // part of the error
	}{
		{"workload identity", azurekv.CredentialConfig{Type: "workload_identity", TenantID: entraTenant, ClientID: "c", TokenFile: token, AllowedTenants: []string{entraTenant}},
			"azurekv.fileCredential", ""},
		{"managed identity", azurekv.CredentialConfig{Type: "managed_identity", ClientID: "c"}, "*azidentity.ManagedIdentityCredential", ""},
		{"system-assigned", azurekv.CredentialConfig{Type: "managed_identity", Cloud: "china"}, "*azidentity.ManagedIdentityCredential", ""},
		{"certificate", azurekv.CredentialConfig{Type: "client_certificate", TenantID: entraTenant, ClientID: "c", CertificateFile: rsaCertificate(t), Cloud: "us_government"},
			"*azidentity.ClientCertificateCredential", ""},
		{"embedded", azurekv.CredentialConfig{Type: "devvault", TokenFile: token}, "*azurekv.staticToken", ""},

		{"no type", azurekv.CredentialConfig{}, "", "credential type"},
		{"default chain", azurekv.CredentialConfig{Type: "default"}, "", "credential type"},
		{"cloud", azurekv.CredentialConfig{Type: "managed_identity", Cloud: "x"}, "", "cloud"},
		{"no tenant", azurekv.CredentialConfig{Type: "workload_identity", ClientID: "c", TokenFile: token}, "", "AZURE_TENANT_ID"},
		{"no client", azurekv.CredentialConfig{Type: "workload_identity", TenantID: entraTenant, TokenFile: token}, "", "workload_identity"},
		{"no token file", azurekv.CredentialConfig{Type: "workload_identity", TenantID: entraTenant, ClientID: "c"}, "", "workload_identity"},
		{"tenant", azurekv.CredentialConfig{Type: "workload_identity", TenantID: "example.com", ClientID: "c", TokenFile: token}, "", "GUID"},
		{"allowed tenant", azurekv.CredentialConfig{Type: "workload_identity", TenantID: entraTenant, ClientID: "c", TokenFile: token, AllowedTenants: []string{"*"}}, "", "GUID"},
		{"managed identity with tenant", azurekv.CredentialConfig{Type: "managed_identity", TenantID: entraTenant}, "", "does not take a Entra tenant ID"},
		{"managed identity with file", azurekv.CredentialConfig{Type: "managed_identity", TokenFile: token}, "", "does not take a token file"},
		{"managed identity with tenants", azurekv.CredentialConfig{Type: "managed_identity", AllowedTenants: []string{entraTenant}}, "", "does not ask Entra"},
		{"no certificate", azurekv.CredentialConfig{Type: "client_certificate", TenantID: entraTenant, ClientID: "c"}, "", "lacks its certificate file"},
		{"absent certificate", azurekv.CredentialConfig{Type: "client_certificate", TenantID: entraTenant, ClientID: "c", CertificateFile: absent}, "", "reading certificate file"},
		{"certificate file without one", azurekv.CredentialConfig{Type: "client_certificate", TenantID: entraTenant, ClientID: "c", CertificateFile: token}, "", "holds no PEM certificate"},
		{"certificate of another kind", azurekv.CredentialConfig{Type: "client_certificate", TenantID: entraTenant, ClientID: "c", CertificateFile: cert}, "", "client_certificate"},
		{"embedded without token", azurekv.CredentialConfig{Type: "devvault"}, "", "lacks its token file"},
		{"embedded with client", azurekv.CredentialConfig{Type: "devvault", TokenFile: token, ClientID: "c"}, "", "does not take a client ID"},
		{"embedded, token of two lines", azurekv.CredentialConfig{Type: "devvault", TokenFile: writeFile(t, "a\nb")}, "", "holds no token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := azurekv.NewCredential(test.cfg)
			checkText(t, err, test.want)
			if err == nil && fmt.Sprintf("%T", c) != test.kind {
				t.Errorf("got a %T", c)
			}
		})
	}
}

// TestWorkloadIdentityEnvironment takes everything from what the webhook sets.
func TestWorkloadIdentityEnvironment(t *testing.T) {
	t.Setenv("AZURE_TENANT_ID", strings.ToUpper(entraTenant))
	t.Setenv("AZURE_CLIENT_ID", "c")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", writeFile(t, "token"))
	if _, err := azurekv.NewCredential(azurekv.CredentialConfig{Type: azurekv.WorkloadIdentity}); err != nil {
		t.Error(err)
	}
}

func TestStaticTokenIsReadAgain(t *testing.T) {
	file := writeFile(t, "one\n")
	c, err := azurekv.NewCredential(azurekv.CredentialConfig{Type: azurekv.DevVaultToken, TokenFile: file})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := c.GetToken(t.Context(), policy.TokenRequestOptions{})
		if err != nil || got.Token != want {
			t.Errorf("got %q, %v, want %q", got.Token, err, want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got, err := c.GetToken(t.Context(), policy.TokenRequestOptions{}); err == nil || got.Token != "" {
		t.Errorf("token %q without its file", got.Token)
	}
}

// TestEntraRefuses tells a credential that Entra refuses from an Entra that
// does not answer.
func TestEntraRefuses(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		reason kek.Reason
		code   string
	}{
		{401, `{"error":"invalid_client","error_description":"secret"}`, kek.Forbidden, "invalid_client"},
		{400, `{"error":"unauthorized_client"}`, kek.Forbidden, "unauthorized_client"},
		{400, `{"error":"temporarily_unavailable"}`, kek.Unreachable, ""},
		{503, `<html>`, kek.Unreachable, ""},
	} {
		h := openHostile(t, good, writes(result(kid, 32)))
		h.cred.before = func(context.Context) error {
			return &azidentity.AuthenticationFailedError{RawResponse: response(test.status, test.body)}
		}
		if e := h.unwrap(t, t.Context()); e.Reason != test.reason || e.Code != test.code {
			t.Errorf("%s: %v", test.body, e)
		}
	}
}

func response(status int, body string) *http.Response {
	w := httptest.NewRecorder()
	w.WriteHeader(status)
	io.WriteString(w, body)
	return w.Result()
}
