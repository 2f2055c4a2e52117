package azurekv_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
)

// entra answers for Entra, and for a managed identity's endpoint.
type entra func(*http.Request) (*http.Response, error)

func (e entra) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := e(req)
	if err != nil {
		return nil, err
	}
	resp.Request = req
	return resp, nil
}

// final is an error that azcore does not try again after.
type final struct{ error }

func (e final) Unwrap() error { return e.error }
func (e final) NonRetriable() {}
func (e final) Timeout() bool { return errors.Is(e.error, os.ErrDeadlineExceeded) }

// use makes the hostile vault's key use what cfg names, with e for Entra.
func (h *hostile) use(t *testing.T, cfg azurekv.CredentialConfig, e entra) {
	t.Helper()
	c, err := azurekv.NewCredentialWith(cfg, &http.Client{Transport: e})
	if err != nil {
		t.Fatal(err)
	}
	h.cred.before = func(ctx context.Context) error {
		_, err := c.GetToken(ctx, policy.TokenRequestOptions{TenantID: entraTenant, Scopes: []string{vaultNet + "/.default"}})
		return err
	}
}

func workload(file string) azurekv.CredentialConfig {
	return azurekv.CredentialConfig{
		Type: azurekv.WorkloadIdentity, TenantID: entraTenant, ClientID: "c", TokenFile: file, DisableInstanceDiscovery: true,
	}
}

// answers answers a request for a token so; what is asked before it, as Entra does.
func answers(status int, body string) entra {
	return func(req *http.Request) (*http.Response, error) {
		if strings.HasSuffix(req.URL.Path, "/openid-configuration") {
			return response(http.StatusOK, `{"authorization_endpoint":"https://login.microsoftonline.com/`+entraTenant+`/a",`+
				`"token_endpoint":"https://login.microsoftonline.com/`+entraTenant+`/t",`+
				`"issuer":"https://login.microsoftonline.com/`+entraTenant+`/v2.0"}`), nil
		}
		return response(status, body), nil
	}
}

func fails(err error) entra {
	return func(*http.Request) (*http.Response, error) { return nil, final{err} }
}

// TestTokenCause has azidentity's own credentials fail in each way. None of
// their texts, which quote URLs and bodies, gets out.
func TestTokenCause(t *testing.T) {
	for _, name := range []string{"IDENTITY_ENDPOINT", "MSI_ENDPOINT"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	dir := t.TempDir()
	ours := workload(writeFile(t, "secret assertion"))
	imds := azurekv.CredentialConfig{Type: azurekv.ManagedIdentity}
	const entraHost = "no token: login.microsoftonline.com"
	for _, test := range []struct {
		name  string
		cfg   azurekv.CredentialConfig
		entra entra
		want  string
	}{
		{"no file", workload(filepath.Join(dir, "secret")), answers(500, ""), "no token: token file does not exist"},
		{"directory", workload(dir), answers(500, ""), "no token: token file cannot be read"},
		{"empty file", workload(writeFile(t, "")), answers(200, "{}"), "no token: token file holds no token"},
		{"DNS", ours, fails(&net.DNSError{Err: "secret", Name: "secret"}), entraHost + "'s host name does not resolve"},
		{"refused", ours, fails(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), entraHost + ": connection refused"},
		{"time-out", ours, fails(os.ErrDeadlineExceeded), entraHost + " did not answer in time"},
		{"other", ours, fails(errors.New("secret")), entraHost + " gave no valid answer"},
		{"no token", ours, answers(200, `{"x":"secret"}`), entraHost + " gave no valid answer"},
		{"refusal", ours, answers(400, `{"error":"invalid_request","error_description":"secret","error_codes":[90014,7,8,9,10]}`),
			entraHost + " answered status 400: invalid_request AADSTS90014 AADSTS7 AADSTS8 AADSTS9"},
		{"codes only", ours, answers(400, `{"error":"two secret words","error_codes":[90014]}`), entraHost + " answered status 400: AADSTS90014"},
		{"codes of another type", ours, answers(400, `{"error":"invalid_request","error_codes":"secret"}`), entraHost + " answered status 400"},
		{"proxy", ours, answers(407, "<html>secret"), entraHost + " answered status 407"},
		{"credential refused", ours, answers(401, `{"error":"invalid_client","error_description":"secret","error_codes":[7000215]}`),
			"Entra refuses the credential: invalid_client AADSTS7000215"},
		{"no identity", imds, answers(400, `{"error":"invalid_request","error_description":"secret"}`),
			"no token: 169.254.169.254 answered status 400: invalid_request"},
		{"no IMDS", imds, fails(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}), "no token: 169.254.169.254: no route to host"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openHostile(t, good, writes(result(kid, 32)))
			h.use(t, test.cfg, test.entra)
			e := h.unwrap(t, t.Context())
			if e.Err == nil || e.Err.Error() != test.want {
				t.Errorf("got %v, want %s", e, test.want)
			}
			if want := strings.HasPrefix(test.want, "Entra refuses"); (e.Reason == kek.Forbidden) != want {
				t.Errorf("reason %s", e.Reason)
			}
			if e.Vault != h.key.Vault || !strings.Contains(e.Error(), h.key.Vault) {
				t.Errorf("%v does not name the vault", e)
			}
		})
	}
}

// TestSilentVault ends the call when there is a token, and the vault is silent.
func TestSilentVault(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := openHostile(t, good, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		cancel()
		<-r.Context().Done()
	})
	e := h.unwrap(t, ctx)
	if e.Reason != kek.Unreachable || !errors.Is(e, context.Canceled) || e.Err.Error() != "context canceled" || h.cred.count() != 1 {
		t.Errorf("got %v", e)
	}
}

// TestTokenFileForbidden is apart because root may read every file.
func TestTokenFileForbidden(t *testing.T) {
	h := openHostile(t, good, writes(result(kid, 32)))
	h.cred.before = func(context.Context) error { return &fs.PathError{Op: "open", Path: "secret", Err: syscall.EACCES} }
	if e := h.unwrap(t, t.Context()); e.Err.Error() != "no token: token file may not be read by this user" {
		t.Errorf("got %v", e)
	}
}

// TestTokenNotYet ends the call while Entra is silent: that is what there is to
// tell, not the context's end alone.
func TestTokenNotYet(t *testing.T) {
	for _, test := range []struct {
		name  string
		first error
		want  string
	}{
		{"first try", nil, "no token yet: context canceled"},
		{"second try", syscall.ECONNREFUSED, "no token yet: login.microsoftonline.com: connection refused: context canceled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openHostile(t, good, writes(result(kid, 32)))
			ctx, cancel := context.WithCancel(t.Context())
			release := make(chan struct{})
			first := test.first
			h.use(t, workload(writeFile(t, "assertion")), func(*http.Request) (*http.Response, error) {
				if err := first; err != nil {
					first = nil
					return nil, err
				}
				cancel()
				<-release
				return response(http.StatusBadRequest, ""), nil
			})
			e := h.unwrap(t, ctx)
			close(release)
			if e.Reason != kek.Unreachable || e.Err.Error() != test.want || !errors.Is(e, context.Canceled) {
				t.Errorf("got %v, want %s", e, test.want)
			}
		})
	}
}
