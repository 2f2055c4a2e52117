package azurekv_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
)

func TestTokenRequest(t *testing.T) {
	h := openHostile(t, good, writes(result(kid, 32)))
	var dek [kek.Size]byte
	for range 2 {
		if err := h.Unwrap(t.Context(), h.key, parse(t, hostileVersion), make([]byte, 256), &dek); err != nil {
			t.Fatal(err)
		}
	}
	want := []policy.TokenRequestOptions{{TenantID: entraTenant, Scopes: []string{vaultNet + "/.default"}, EnableCAE: true}}
	if diff := cmp.Diff(want, h.cred.asked); diff != "" {
		t.Error(diff)
	}
	path := "POST " + hostileHost + "/keys/kek/" + hostileVersion + "/unwrapkey "
	if diff := cmp.Diff([]string{path + "anonymous", path + "auth", path + "auth"}, h.requests); diff != "" {
		t.Error(diff)
	}
}

// TestChallengeRefused sends each challenge to a cold client: an error, no
// token, no panic.
func TestChallengeRefused(t *testing.T) {
	for _, test := range []struct{ name, challenge string }{
		{"panics azkeys", `Bearer authorization="https://localhost", resource="` + vaultNet + `"`},
		{"another tenant", strings.ReplaceAll(good, "72f9", "0000")},
		{"another authority", strings.ReplaceAll(good, "login", "l0gin")},
		{"another resource", strings.ReplaceAll(good, "vault.azure", "graph.azure")},
		{"garbage", "Bearer ="},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openHostile(t, test.challenge, writes(result(kid, 32)))
			e := h.unwrap(t, t.Context())
			if e.Reason != kek.Unreachable || h.cred.count() != 0 || len(h.requests) != 1 {
				t.Errorf("%v after %d tokens and %q", e, h.cred.count(), h.requests)
			}
			if !strings.Contains(h.log.String(), "answer of a vault refused") {
				t.Errorf("log is %q", h.log)
			}
		})
	}
}

func TestAnswerRefused(t *testing.T) {
	other := strings.ReplaceAll(kid, "eeff", "eefe")
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		reason kek.Reason
	}{
		{"empty", writes(""), kek.Unreachable},
		{"no JSON", writes("<html>"), kek.Unreachable},
		{"no object", writes("[]"), kek.Unreachable},
		{"no kid", writes(`{"value":"AAAA"}`), kek.Unreachable},
		{"another version", writes(result(other, 32)), kek.Unreachable},
		{"another name", writes(result(strings.ReplaceAll(kid, "/kek/", "/kek2/"), 32)), kek.Unreachable},
		{"another vault", writes(result(strings.ReplaceAll(kid, "tenants", "other"), 32)), kek.Unreachable},
		{"no version", writes(result(strings.TrimSuffix(kid, hostileVersion), 32)), kek.Unreachable},
		{"no slash", writes(result(strings.TrimSuffix(kid, "/"+hostileVersion), 32)), kek.Unreachable},
		{"something behind the version", writes(result(kid+"/", 32)), kek.Unreachable},
		{"host in upper case", writes(result(strings.ReplaceAll(kid, "tenants", "Tenants"), 32)), kek.Unreachable},
		{"path in upper case", writes(result(strings.ReplaceAll(kid, "/keys/", "/Keys/"), 32)), kek.Unreachable},
		{"secret instead of a key", writes(result(strings.ReplaceAll(kid, "/keys/", "/secrets/"), 32)), kek.Unreachable},
		{"upper-case version", writes(result(strings.ReplaceAll(kid, "eeff", "EEFF"), 32)), kek.Unreachable},
		{"Kelvin sign in the name", writes(result(strings.ReplaceAll(kid, "/kek/", "/\u212aek/"), 32)), kek.Unreachable},
		{"name and more", writes(result(strings.ReplaceAll(kid, "/kek/", "/kek/kek/"), 32)), kek.Unreachable},
		{"31 bytes", writes(result(kid, 31)), kek.Rejected},
		{"33 bytes", writes(result(kid, 33)), kek.Rejected},
		{"no bytes", writes(result(kid, 0)), kek.Rejected},
		{"not base64", writes(`{"kid":"` + kid + `","value":"*secret*"}`), kek.Unreachable},
		{"too long", writes(`{"kid":"` + kid + `","x":"` + strings.Repeat("x", 300<<10) + `"}`), kek.Unreachable},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://other.vault.azure.net/", http.StatusTemporaryRedirect)
		}, kek.Unreachable},
		{"201", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, result(kid, 32))
		}, kek.Unreachable},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "{")
		}, kek.Unreachable},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openHostile(t, good, test.answer)
			if e := h.unwrap(t, t.Context()); e.Reason != test.reason {
				t.Errorf("got %v, want %s", e, test.reason)
			}
			if n := len(h.requests); n != 2 {
				t.Errorf("%d requests: %q", n, h.requests)
			}
		})
	}
}

// TestNameOfAnotherCase has a vault that writes the key's name as it was made.
func TestNameOfAnotherCase(t *testing.T) {
	for _, name := range []string{"KEK", "Kek"} {
		kid := strings.ReplaceAll(kid, "/kek/", "/"+name+"/")
		h := openHostile(t, good, func(w http.ResponseWriter, r *http.Request) {
			switch path := r.URL.Path; {
			case strings.HasSuffix(path, "/wrapkey"):
				io.WriteString(w, result(kid, 40))
			case strings.HasSuffix(path, "/unwrapkey"):
				io.WriteString(w, result(kid, 32))
			case strings.HasSuffix(path, "/versions"):
				io.WriteString(w, listPage("", `{"kid":"`+kid+`","attributes":{"enabled":true,"created":1}}`))
			case strings.HasSuffix(path, hostileVersion):
				io.WriteString(w, keyJSON(kid, `,"kty":"oct-HSM"`, `{"enabled":true}`))
			default:
				disabledKey(w) // so that the versions are listed
			}
		})
		h.key.Alg = kek.A256KW
		version, err := h.Newest(t.Context(), h.key)
		if err != nil || version != parse(t, hostileVersion) {
			t.Fatalf("%s: newest: %s, %v", name, version, err)
		}
		if _, err := h.Wrap(t.Context(), h.key, version, new([kek.Size]byte)); err != nil {
			t.Errorf("%s: wrap: %v", name, err)
		}
		if err := h.Unwrap(t.Context(), h.key, version, make([]byte, 40), new([kek.Size]byte)); err != nil {
			t.Errorf("%s: unwrap: %v", name, err)
		}
	}
}

// TestAnonymousAnswer is a vault that answers the request that azkeys strips
// to provoke a challenge.
func TestAnonymousAnswer(t *testing.T) {
	for _, status := range []int{200, 302, 400, 403, 404} {
		h := openHostile(t, "", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, errorBody("BadParameter", ""))
		})
		if e := h.unwrap(t, t.Context()); e.Reason != kek.Unreachable || h.cred.count() != 0 {
			t.Errorf("status %d: %v", status, e)
		}
	}
}

func TestTokenRefused(t *testing.T) {
	h := openHostile(t, good, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", good+`, error="invalid_token"`)
		w.Header().Set("x-ms-request-id", "request-1")
		w.WriteHeader(http.StatusUnauthorized)
	})
	e := h.unwrap(t, t.Context())
	if e.Reason != kek.Forbidden || e.Status != 401 || e.RequestID != "request-1" {
		t.Errorf("got %v", e)
	}
}

// TestClaims revokes a token by a claims challenge (continuous access
// evaluation): the claims, and nothing else of the challenge, reach Entra.
func TestClaims(t *testing.T) {
	var asked bool
	h := openHostile(t, good, func(w http.ResponseWriter, _ *http.Request) {
		if asked {
			io.WriteString(w, result(kid, 32))
			return
		}
		asked = true
		w.Header().Set("WWW-Authenticate", good+`, error="insufficient_claims", claims="`+claims+`"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	var dek [kek.Size]byte
	if err := h.Unwrap(t.Context(), h.key, parse(t, hostileVersion), make([]byte, 256), &dek); err != nil {
		t.Fatal(err)
	}
	if n := h.cred.count(); n != 2 || h.cred.asked[1].Claims != `{"access_token":{}}` || h.cred.asked[1].TenantID != entraTenant {
		t.Errorf("tokens asked for: %+v", h.cred.asked)
	}
}

func listPage(next string, items ...string) string {
	return fmt.Sprintf(`{"value":[%s],"nextLink":%q}`, strings.Join(items, ","), next)
}

func disabledKey(w http.ResponseWriter) {
	w.WriteHeader(http.StatusForbidden)
	io.WriteString(w, errorBody("Forbidden", "KeyDisabled"))
}

// TestNextLink leads the list of versions to another vault, which the SDK
// would follow with the token.
func TestNextLink(t *testing.T) {
	h := openHostile(t, good, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/versions") {
			disabledKey(w)
			return
		}
		io.WriteString(w, listPage("https://other.vault.azure.net/keys/kek/versions?x=1"))
	})
	if e := h.newest(t); e.Reason != kek.Unreachable {
		t.Errorf("got %v", e)
	}
	for _, r := range h.requests {
		if strings.Contains(r, "other.vault") {
			t.Errorf("request got out: %s", r)
		}
	}
}

func TestEndlessPages(t *testing.T) {
	h := openHostile(t, good, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/versions") {
			disabledKey(w)
			return
		}
		io.WriteString(w, listPage("https://"+hostileHost+"/keys/kek/versions?more"))
	})
	if e := h.newest(t); e.Reason != kek.Unreachable || len(h.requests) > 50 {
		t.Errorf("%v after %d requests", e, len(h.requests))
	}
}

func keyJSON(kid, key, attributes string) string {
	return `{"key":{"kid":"` + kid + `"` + key + `},"attributes":` + attributes + `}`
}

func TestKeyRefused(t *testing.T) {
	n := base64.RawURLEncoding.EncodeToString(append([]byte{0x80}, append(make([]byte, 254), 1)...))
	even := base64.RawURLEncoding.EncodeToString(append([]byte{0x80}, make([]byte, 255)...))
	short := base64.RawURLEncoding.EncodeToString(append([]byte{0x80}, append(make([]byte, 126), 1)...))
	rsaKey := func(n, e string) string { return `,"kty":"RSA","n":"` + n + `","e":"` + e + `"` }
	const enabled = `{"enabled":true,"created":1}`
	for _, test := range []struct {
		name, body string
		reason     kek.Reason
	}{
		{"no key", `{}`, kek.Unreachable},
		{"no type", keyJSON(kid, "", enabled), kek.Unreachable},
		{"no attributes", keyJSON(kid, rsaKey(n, "AQAB"), "null"), kek.Unreachable},
		{"not said whether enabled", keyJSON(kid, rsaKey(n, "AQAB"), "{}"), kek.Unreachable},
		{"another name", keyJSON(strings.ReplaceAll(kid, "/kek/", "/x/"), rsaKey(n, "AQAB"), enabled), kek.Unreachable},
		{"version not hex", keyJSON(strings.ReplaceAll(kid, "eeff", "EEFF"), rsaKey(n, "AQAB"), enabled), kek.Unreachable},
		{"elliptic curve", keyJSON(kid, `,"kty":"EC"`, enabled), kek.Unusable},
		{"AES", keyJSON(kid, `,"kty":"oct-HSM"`, enabled), kek.Unusable},
		{"1024 bits", keyJSON(kid, rsaKey(short, "AQAB"), enabled), kek.Unusable},
		{"even modulus", keyJSON(kid, rsaKey(even, "AQAB"), enabled), kek.Unusable},
		{"no modulus", keyJSON(kid, rsaKey("", "AQAB"), enabled), kek.Unusable},
		{"exponent 1", keyJSON(kid, rsaKey(n, "AQ"), enabled), kek.Unusable},
		{"even exponent", keyJSON(kid, rsaKey(n, "AQAA"), enabled), kek.Unusable},
		{"exponent of 32 bits", keyJSON(kid, rsaKey(n, "_____w"), enabled), kek.Unusable},
		{"no unwrap", keyJSON(kid, rsaKey(n, "AQAB")+`,"key_ops":["wrapKey"]`, enabled), kek.Unusable},
		{"no operations", keyJSON(kid, rsaKey(n, "AQAB")+`,"key_ops":[]`, enabled), kek.Unusable},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := openHostile(t, good, writes(test.body))
			if e := h.newest(t); e.Reason != test.reason {
				t.Errorf("newest: %v, want %s", e, test.reason)
			}
			_, err := h.Wrap(t.Context(), h.key, parse(t, hostileVersion), new([kek.Size]byte))
			if !failed(err, test.reason) {
				t.Errorf("wrap: %v, want %s", err, test.reason)
			}
		})
	}
	h := openHostile(t, good, writes(keyJSON(kid, rsaKey(n, "AQAB")+`,"key_ops":["wrapKey","unwrapKey"]`, enabled)))
	if v, err := h.Newest(t.Context(), h.key); err != nil || v.String() != hostileVersion {
		t.Errorf("the key that all others vary: %s, %v", v, err)
	}
	if _, err := h.Wrap(t.Context(), h.key, parse(t, strings.Repeat("ab", 16)), new([kek.Size]byte)); !failed(err, kek.Unreachable) {
		t.Errorf("another version than asked for: %v", err)
	}
}

// TestDisabledMeanwhile disables the version between the list and the GET.
func TestDisabledMeanwhile(t *testing.T) {
	h := openHostile(t, good, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/versions") {
			io.WriteString(w, keyJSON(kid, `,"kty":"oct-HSM"`, `{"enabled":false}`))
			return
		}
		io.WriteString(w, listPage("", `{"kid":"`+kid+`","attributes":{"enabled":true,"created":1}}`))
	})
	h.key.Alg = kek.A256KW
	if e := h.newest(t); e.Reason != kek.Disabled {
		t.Errorf("got %v", e)
	}
	before := len(h.requests)
	if _, err := h.Wrap(t.Context(), h.key, parse(t, hostileVersion), new([kek.Size]byte)); !failed(err, kek.Disabled) {
		t.Errorf("wrap: %v", err)
	}
	if len(h.requests) != before {
		t.Error("DEK was sent to be wrapped under a version known to be disabled")
	}
}

func TestListRefused(t *testing.T) {
	for _, item := range []string{
		`null`, `{}`, `{"kid":"` + kid + `"}`, `{"kid":"` + kid + `","attributes":{"enabled":true}}`,
		`{"kid":"` + strings.ReplaceAll(kid, "/kek/", "/x/") + `","attributes":{"enabled":true,"created":1}}`,
	} {
		h := openHostile(t, good, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/versions") {
				disabledKey(w)
				return
			}
			io.WriteString(w, listPage("", item))
		})
		if e := h.newest(t); e.Reason != kek.Unreachable {
			t.Errorf("%s: %v", item, e)
		}
	}
}

func TestRemoteWrapRefused(t *testing.T) {
	for _, body := range []string{result(kid, 39), result(kid, 41), result(strings.ReplaceAll(kid, "eeff", "0000"), 40), "{}"} {
		h := openHostile(t, good, writes(body))
		h.key.Alg = kek.A256KW
		wrapped, err := h.Wrap(t.Context(), h.key, parse(t, hostileVersion), new([kek.Size]byte))
		if wrapped != nil || !failed(err, kek.Unreachable) {
			t.Errorf("%s: %x, %v", body, wrapped, err)
		}
	}
}

// TestCertificate has a vault whose certificate we do not trust.
func TestCertificate(t *testing.T) {
	h := openHostile(t, good, writes(result(kid, 32)))
	h.key.Vault = "https://unknown.vault.azure.net"
	e := h.unwrap(t, t.Context())
	if e.Reason != kek.Unreachable || e.Err.Error() != "vault's certificate does not verify" || len(h.requests) != 0 {
		t.Errorf("got %v", e)
	}
}

func TestNoListener(t *testing.T) {
	h := openHostile(t, good, writes(""))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	h.Redirect(l.Addr().String(), nil)
	if e := h.unwrap(t, t.Context()); e.Reason != kek.Unreachable || e.Err.Error() != "vault: connection refused" {
		t.Errorf("got %v", e)
	}
}

// TestNoHost resolves a name that cannot exist (RFC 6761).
func TestNoHost(t *testing.T) {
	h := openHostile(t, good, writes(""))
	h.Redirect("vault.invalid:443", nil)
	if e := h.unwrap(t, t.Context()); e.Reason != kek.Unreachable || e.Err.Error() != "vault's host name does not resolve" {
		t.Errorf("got %v", e)
	}
}

// TestProxy asks for the vault by name, at the proxy that is configured.
func TestProxy(t *testing.T) {
	asked := make(chan string, 2)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(proxy.Close)
	transport, ok := newVaults(t, azurekv.Config{}).HTTPClient().Transport.(*http.Transport)
	if !ok || transport.Proxy != nil {
		t.Error("proxy by default")
	}
	v := newVaults(t, azurekv.Config{
		Credentials: map[string]azcore.TokenCredential{"c": &credential{}},
		Proxy:       http.ProxyURL(parseURL(t, proxy.URL)),
	})
	k := kek.Key{Ref: "main", Vault: "https://" + hostileHost, Name: "kek", Alg: kek.A256KW, Credential: "c", EntraTenant: entraTenant}
	if _, err := v.Newest(t.Context(), k); !failed(err, kek.Unreachable) {
		t.Errorf("got %v", err)
	}
	if got := <-asked; got != "CONNECT "+hostileHost+":443" {
		t.Errorf("proxy was asked %q", got)
	}
}
