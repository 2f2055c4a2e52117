package azurekv_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
)

// hostile is a vault whose answers the test writes itself, at an address of
// Azure's. It must not be trusted, and certificate and name are all it has.
type hostile struct {
	*azurekv.Vaults
	key  kek.Key
	cred *credential
	log  *strings.Builder

	mu       sync.Mutex
	requests []string // "METHOD path auth|anonymous"
}

const (
	hostileHost    = "tenants.vault.azure.net"
	hostileVersion = "00112233445566778899aabbccddeeff"
	kid            = "https://" + hostileHost + "/keys/kek/" + hostileVersion
)

// credential counts tokens and remembers what they were for.
type credential struct {
	mu     sync.Mutex
	asked  []policy.TokenRequestOptions
	before func(context.Context) error
}

func (c *credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	c.mu.Lock()
	c.asked = append(c.asked, o)
	c.mu.Unlock()
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return azcore.AccessToken{}, err
		}
	}
	return azcore.AccessToken{Token: "secret-token", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func (c *credential) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked)
}

// openHostile serves answer, after the challenge to requests without a token.
func openHostile(t *testing.T, challenge string, answer http.HandlerFunc) *hostile {
	t.Helper()
	h := &hostile{cred: &credential{}, log: &strings.Builder{}}
	h.key = kek.Key{
		Ref: "main", Vault: "https://" + hostileHost, Name: "kek", Alg: kek.RSAOAEP256,
		Credential: "c", EntraTenant: strings.ToUpper(entraTenant),
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorised := r.Header.Get("Authorization") != ""
		h.note(r, authorised)
		if !authorised && challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer(w, r)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t, hostileHost, "other.vault.azure.net")}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	h.Vaults = newVaults(t, azurekv.Config{
		Credentials: map[string]azcore.TokenCredential{"c": h.cred},
		Logger:      slog.New(slog.NewTextHandler(h.log, nil)),
	})
	roots := x509.NewCertPool()
	roots.AddCert(server.TLS.Certificates[0].Leaf)
	h.Redirect(server.Listener.Addr().String(), roots)
	return h
}

func (h *hostile) note(r *http.Request, authorised bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	who := "anonymous"
	if authorised {
		who = "auth"
	}
	h.requests = append(h.requests, r.Method+" "+r.Host+r.URL.Path+" "+who)
}

func certificate(t *testing.T, hosts ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: hosts, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// unwrap unwraps 256 bytes and returns the error, which must be there.
func (h *hostile) unwrap(t *testing.T, ctx context.Context) *kek.Error {
	t.Helper()
	dek := [kek.Size]byte{1}
	err := h.Unwrap(ctx, h.key, parse(t, hostileVersion), make([]byte, 256), &dek)
	e, ok := errors.AsType[*kek.Error](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	if dek != ([kek.Size]byte{}) {
		t.Error("DEK is not zero after an error")
	}
	if text := e.Error() + h.log.String(); strings.Contains(text, "azure.net/") || strings.Contains(text, "secret") {
		t.Errorf("error or log quotes the SDK: %s", text)
	}
	return e
}

func (h *hostile) newest(t *testing.T) *kek.Error {
	t.Helper()
	_, err := h.Newest(t.Context(), h.key)
	e, ok := errors.AsType[*kek.Error](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	return e
}

func writes(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

func result(kid string, n int) string {
	return fmt.Sprintf(`{"kid":%q,"value":%q}`, kid, base64.RawURLEncoding.EncodeToString(make([]byte, n)))
}

// writeFile writes a file in a fresh directory and returns its path.
func writeFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func pemOf(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}
