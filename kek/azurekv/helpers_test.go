package azurekv_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

func decode64(text []byte, to *[]byte) error {
	b, err := base64.RawURLEncoding.DecodeString(string(text))
	*to = b
	return err
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// failed reports whether err is a *kek.Error for reason. kek.ReasonOf takes a
// nil error for Unreachable.
func failed(err error, reason kek.Reason) bool {
	e, ok := errors.AsType[*kek.Error](err)
	return ok && e.Reason == reason
}

// errorBody is Key Vault's error JSON.
func errorBody(code, inner string) string {
	return fmt.Sprintf(`{"error":{"code":%q,"message":"text","innererror":{"code":%q}}}`, code, inner)
}

// rsaCertificate writes a self-signed RSA certificate and its key, in PEM.
func rsaCertificate(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, pemOf(t, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}))
}

// created returns when a version was created, in Unix seconds.
func (h *harness) created(t *testing.T, v kek.Version) int64 {
	t.Helper()
	var answer struct {
		Attributes struct{ Created int64 }
	}
	h.get(t, v, &answer)
	return answer.Attributes.Created
}

// get gets a version, as anybody with keys/read can.
func (h *harness) get(t testing.TB, v kek.Version, answer any) {
	t.Helper()
	token, err := os.ReadFile(h.server.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.key.Vault+"/keys/"+h.key.Name+"/"+v.String()+"?api-version=7.4", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	client := h.server.Client()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		t.Fatal(err)
	}
}
