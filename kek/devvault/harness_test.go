package devvault_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

const vault = "acme"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start opens a Server that the test closes.
func start(t testing.TB, cfg devvault.Config) *devvault.Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := devvault.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	if err := s.CreateVault(vault); err != nil {
		t.Fatal(err)
	}
	return s
}

// create creates a key and returns its version.
func create(t testing.TB, s *devvault.Server, name string, spec devvault.KeySpec) string {
	t.Helper()
	v, err := s.CreateKey(vault, name, spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// oct is the spec of a key that costs nothing to create.
func oct() devvault.KeySpec { return devvault.KeySpec{Type: "oct-HSM"} }

// credential hands out one token and remembers what for.
type credential struct {
	token  string
	asked  atomic.Int32
	scope  atomic.Pointer[string]
	tenant atomic.Pointer[string]
}

func (c *credential) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	c.asked.Add(1)
	c.tenant.Store(&o.TenantID)
	c.scope.Store(&o.Scopes[0])
	return azcore.AccessToken{Token: c.token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func token(t testing.TB, s *devvault.Server) string {
	t.Helper()
	raw, err := os.ReadFile(s.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// httpClient is a client whose connections end with the test.
func httpClient(t testing.TB, s *devvault.Server) *http.Client {
	c := s.Client()
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// azure returns the real client, as a program would use it: over TLS, with the
// challenge verified.
func azure(t testing.TB, s *devvault.Server) *azkeys.Client {
	t.Helper()
	return azureWith(t, s, &credential{token: token(t, s)}, httpClient(t, s), policy.RetryOptions{MaxRetries: -1})
}

func azureWith(
	t testing.TB, s *devvault.Server, cred azcore.TokenCredential, h *http.Client, retry policy.RetryOptions,
) *azkeys.Client {
	t.Helper()
	c, err := azkeys.NewClient(s.URL(vault), cred, &azkeys.ClientOptions{
		ClientOptions: azcore.ClientOptions{Transport: h, Retry: retry},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func params(alg azkeys.EncryptionAlgorithm, value []byte) azkeys.KeyOperationParameters {
	return azkeys.KeyOperationParameters{Algorithm: &alg, Value: value}
}

const (
	oaep256 = azkeys.EncryptionAlgorithmRSAOAEP256
	a256kw  = azkeys.EncryptionAlgorithmA256KW
)

func newDEK() []byte {
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	return dek
}

// wantCode checks the status and codes of an answer through azkeys.
func wantCode(t testing.TB, err error, status int, code, inner string) {
	t.Helper()
	var re *azcore.ResponseError
	if !errors.As(err, &re) {
		t.Errorf("got %v, want status %d", err, status)
		return
	}
	var body struct {
		Error struct {
			Code, Message string
			InnerError    struct{ Code string }
		}
	}
	raw, err := io.ReadAll(re.RawResponse.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Errorf("body %q: %v", raw, err)
	}
	if re.StatusCode != status || re.ErrorCode != code || body.Error.InnerError.Code != inner {
		t.Errorf("got %d %s (%s), want %d %s (%s)", re.StatusCode, re.ErrorCode, body.Error.InnerError.Code,
			status, code, inner)
	}
	if body.Error.Message == "" {
		t.Error("no message")
	}
}

// reply is an answer without the SDK.
type reply struct {
	status int
	header http.Header
	body   string
}

// code returns error.code.
func (r reply) code(t testing.TB) string {
	t.Helper()
	var b struct{ Error struct{ Code string } }
	if err := json.Unmarshal([]byte(r.body), &b); err != nil {
		t.Fatalf("body %q: %v", r.body, err)
	}
	return b.Error.Code
}

// raw sends a request exactly as given: path and query unchanged. An empty
// bearer sends none.
func raw(t testing.TB, s *devvault.Server, method, url, bearer, body string) reply {
	t.Helper()
	return rawWith(t, httpClient(t, s), method, url, bearer, body)
}

func rawWith(t testing.TB, c *http.Client, method, url, bearer, body string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, b.String()}
}

// await polls until ok holds or the test ends.
func await(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("waited in vain")
		}
	}
}
