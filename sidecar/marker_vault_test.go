package sidecar_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// An echo stands between sidecars and their vaults. It knows every DEK, and
// what the vaults of some tenants answer holds all that it must not tell: the
// token, what was asked, and the vault's own answer, with the DEK.
type echo struct {
	*httptest.Server
	mu      sync.Mutex
	armed   bool
	deks    map[[secret.Size]byte]bool
	damaged map[string]int // answers, by tenant
}

// A damage makes a vault's answer bad. told is what it may tell with it.
type damage func(resp *http.Response, body []byte, told string) []byte

// damages are by the name that begins a tenant's, after "v-".
func damages() map[string]damage {
	status := func(code int, header ...string) damage {
		return func(resp *http.Response, _ []byte, told string) []byte {
			resp.StatusCode, resp.Status = code, strconv.Itoa(code)+" "+told
			for _, name := range header {
				resp.Header.Set(name, told)
			}
			return must(json.Marshal(map[string]any{"error": map[string]any{
				"code": "BadParameter", "message": told, "innererror": map[string]any{"code": told, "message": told},
			}}))
		}
	}
	text := func(body func(body []byte, told string) string) damage {
		return func(_ *http.Response, old []byte, told string) []byte { return []byte(body(old, told)) }
	}
	return map[string]damage{
		"400": status(400), "403": status(403), "404": status(404), "409": status(409), "500": status(500, "X-Ms-Request-Id"),
		"429": status(429, "Retry-After"), "307": status(307, "Location"),
		"401": func(resp *http.Response, body []byte, told string) []byte {
			word := base64.RawURLEncoding.EncodeToString([]byte(told))
			resp.Header.Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization="https://%s/%s", resource="https://%s"`, word, word, word))
			return status(401)(resp, body, told)
		},
		"words": func(resp *http.Response, _ []byte, told string) []byte {
			token, _, _ := strings.Cut(strings.TrimPrefix(told, "Bearer "), ";")
			resp.StatusCode = 403
			resp.Header.Set("X-Ms-Request-Id", token)
			return fmt.Appendf(nil, `{"error":{"code":%q,"innererror":{"code":%q}}}`, token, token)
		},
		"500html": func(resp *http.Response, _ []byte, told string) []byte {
			resp.StatusCode = 500
			return []byte("<html><body>" + told + "</body></html>")
		},
		"html":  text(func(_ []byte, told string) string { return "<html><body>" + told + "</body></html>" }),
		"after": text(func(body []byte, told string) string { return string(body) + told }),
		"cut":   text(func(body []byte, _ string) string { return string(body[:len(body)-2]) }),
		"types": text(func(_ []byte, told string) string {
			return fmt.Sprintf(`{"kid":{%q:1},"key":[%q],"value":[%q]}`, told, told, told)
		}),
		"names": text(func(_ []byte, told string) string {
			return fmt.Sprintf(`{"kid":%q,"value":%q,"key":{"kid":%q,"kty":%q}}`, told, told, told, told)
		}),
		"huge": text(func(body []byte, told string) string { return string(body) + strings.Repeat(told, 300<<10/len(told)) }),
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic("sidecar_test: internal error: " + err.Error())
	}
	return v
}

// operation says what a request asks for.
func operation(r *http.Request) string {
	switch path.Base(r.URL.Path) {
	case "wrapkey":
		return devvault.OpWrap
	case "unwrapkey":
		return devvault.OpUnwrap
	}
	return devvault.OpGet
}

// openEcho serves the vaults of s, by a certificate of p's.
func openEcho(t *testing.T, s *site, p *pki) *echo {
	t.Helper()
	client := s.Client()
	e := &echo{deks: make(map[[secret.Size]byte]bool), damaged: make(map[string]int)}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	proxy := &httputil.ReverseProxy{
		Transport: client.Transport, ErrorLog: quiet, ModifyResponse: e.answer,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", r.In.Host, r.In.Host
			sent, err := io.ReadAll(r.In.Body)
			if err != nil {
				sent = nil // the request ends with it
			}
			r.Out.Body = io.NopCloser(bytes.NewReader(sent))
			if len(sent) == 0 {
				r.Out.Body = nil
			}
			r.Out = r.Out.WithContext(context.WithValue(r.Out.Context(), sentKey{}, sent))
		},
	}
	e.Server = httptest.NewUnstartedServer(proxy)
	e.TLS, e.EnableHTTP2, e.Config.ErrorLog = p.trusting(p.server.issue(t, "*.vault.localhost")), true, quiet
	e.StartTLS()
	t.Cleanup(func() {
		e.Close()
		client.CloseIdleConnections()
	})
	return e
}

// sentKey is the context key of a request's body.
type sentKey struct{}

// answer reads a vault's answer, and damages it if the tenant's name says so:
// "v-", the damage, and the operation.
func (e *echo) answer(resp *http.Response) error {
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	r := resp.Request
	sent, _ := r.Context().Value(sentKey{}).([]byte)
	dek := e.learn(r, sent, resp, body)
	e.mu.Lock()
	defer e.mu.Unlock()
	tenant, _, _ := strings.Cut(r.Host, ".")
	kind, op, _ := strings.Cut(strings.TrimPrefix(tenant, "v-"), "-")
	token := r.Header.Get("Authorization")
	if damage := damages()[kind]; damage != nil && e.armed && op == operation(r) && token != "" {
		e.damaged[tenant]++
		told := fmt.Sprintf("%s; %s; %s; %x", token, sent, body, dek)
		body = damage(resp, body, told)
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// learn remembers a DEK that travels in clear: to be wrapped by the vault, or
// unwrapped by it.
func (e *echo) learn(r *http.Request, sent []byte, resp *http.Response, body []byte) []byte {
	text := body
	switch op := operation(r); {
	case op == devvault.OpWrap:
		text = sent
	case op != devvault.OpUnwrap || resp.StatusCode != http.StatusOK:
		return nil
	}
	var with struct{ Value string }
	if err := json.Unmarshal(text, &with); err != nil {
		return nil // the first request to a vault has no body
	}
	dek, err := base64.RawURLEncoding.DecodeString(with.Value)
	if err != nil || len(dek) != secret.Size {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deks[[secret.Size]byte(dek)] = true
	return dek
}

// arm makes the answers bad from now on.
func (e *echo) arm(armed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.armed = armed
}

// seen returns the DEKs, and how many answers were bad, by tenant.
func (e *echo) seen() (deks map[[secret.Size]byte]bool, damaged map[string]int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.deks), maps.Clone(e.damaged)
}

// files are those that a sidecar needs to use the vaults: who signs for them,
// and the token, which it returns too.
func (e *echo) files(t *testing.T, s *site, p *pki) (files map[string]string, token []byte) {
	t.Helper()
	token, err := os.ReadFile(s.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"ca.pem": bundleOf(p.server), "token": string(token)}, token
}
