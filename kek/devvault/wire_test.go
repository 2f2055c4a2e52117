package devvault_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

const apiVersion = "?api-version=7.4"

func TestChallengeHeaderIsExact(t *testing.T) {
	s := start(t, devvault.Config{})
	resource := strings.Replace(s.URL(vault), vault+".", "", 1)
	want := `Bearer authorization="https://login.microsoftonline.com/` + s.EntraTenant() + `", resource="` + resource + `"`
	for _, tc := range []struct{ name, method, path, bearer string }{
		{"GET", "GET", "/keys/kek" + apiVersion, ""},
		{"POST with an empty body", "POST", "/keys/kek/wrapkey" + apiVersion, ""},
		{"before api-version", "GET", "/keys/kek", ""},
		{"before the path", "GET", "/nowhere", ""},
		{"bad token", "GET", "/keys/kek" + apiVersion, "wrong"},
		{"token with a tail", "GET", "/keys/kek" + apiVersion, token(t, s) + "x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := raw(t, s, tc.method, s.URL(vault)+tc.path, tc.bearer, "")
			if r.status != 401 || r.header.Get("WWW-Authenticate") != want {
				t.Errorf("status %d, header %q; want %q", r.status, r.header.Get("WWW-Authenticate"), want)
			}
			if code := r.code(t); code != "Unauthorized" {
				t.Errorf("body %s", r.body)
			}
		})
	}
	kinds := s.Counters().Kinds
	if kinds[devvault.CountChallenge] != 4 || kinds[devvault.CountBadToken] != 2 {
		t.Errorf("counters %v", kinds)
	}
	if guid := regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`); !guid.MatchString(s.EntraTenant()) {
		t.Errorf("tenant %q", s.EntraTenant())
	}
}

func TestPaths(t *testing.T) {
	s := start(t, devvault.Config{})
	v := create(t, s, "kek", oct())
	tok := token(t, s)
	value := `{"alg":"A256KW","value":"` + strings.Repeat("A", 43) + `"}`
	for _, tc := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/keys/kek", "", 200, ""},
		{"GET", "/keys/kek/", "", 200, ""},
		{"GET", "/keys/kek//", "", 200, ""},
		{"GET", "/keys/kek/" + v, "", 200, ""},
		{"GET", "/keys/kek/" + v + "/", "", 200, ""},
		{"GET", "/keys/KEK", "", 200, ""},
		{"GET", "/keys/%6bek", "", 200, ""},
		{"GET", "/keys/kek/versions", "", 200, ""},
		{"GET", "/keys", "", 200, ""},
		{"GET", "/keys/", "", 200, ""},
		{"GET", "/deletedkeys", "", 200, ""},
		{"POST", "/keys/kek/wrapkey", value, 200, ""},
		{"POST", "/keys/kek//wrapkey", value, 200, ""},
		{"POST", "/keys/kek/" + v + "/wrapkey", value, 200, ""},
		{"POST", "/keys/kek/" + v + "/WrapKey", value, 200, ""},
		{"PATCH", "/keys/kek/", "{}", 200, ""},
		{"PATCH", "/keys/kek/" + v, "{}", 200, ""},
		{"POST", "/keys/kek/rotate", "", 200, ""},
		{"GET", "/keys/kek/" + strings.ToUpper(v), "", 400, "BadParameter"},
		{"GET", "/keys/k_k", "", 400, "BadParameter"},
		{"GET", "/keys/" + strings.Repeat("k", 128), "", 400, "BadParameter"},
		{"GET", "/keys/..%2fkek", "", 400, "BadParameter"},
		{"GET", "/keys//wrapkey", "", 400, "BadParameter"},
		{"DELETE", "/keys/kek/" + v, "", 400, "BadParameter"},
		{"PUT", "/keys/kek", "{}", 400, "BadParameter"},
		{"GET", "/keys/kek/" + v + "/wrapkey", "", 400, "BadParameter"},
		{"POST", "/keys/kek/" + v + "/verify", "{}", 400, "BadParameter"},
		{"POST", "/keys/kek/zzz/wrapkey", value, 400, "BadParameter"},
		{"POST", "/keys/kek/" + v, "", 400, "BadParameter"},
		{"POST", "/keys", "", 400, "BadParameter"},
		{"POST", "/deletedkeys/kek/destroy", "", 400, "BadParameter"},
		{"GET", "/deletedkeys/kek", "", 404, "KeyNotFound"},
		{"GET", "/secrets/kek", "", 404, "NotFound"},
		{"GET", "/", "", 404, "NotFound"},
		{"GET", "/keys/kek/" + v + "/wrapkey/more", "", 404, "NotFound"},
	} {
		r := raw(t, s, tc.method, s.URL(vault)+tc.path+apiVersion, tok, tc.body)
		code := r.code(t)
		if r.status != tc.status || code != tc.code {
			t.Errorf("%s %s: %d %s, want %d %s", tc.method, tc.path, r.status, code, tc.status, tc.code)
		}
	}
}

func TestAPIVersionIsRequired(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	for query, want := range map[string]int{
		"": 400, "?api-version=": 400, "?api-version=7.4": 200, "?api-version=2025-07-01": 200, "?api-version=7.4&a=%zz": 400,
	} {
		r := raw(t, s, "GET", s.URL(vault)+"/keys/kek"+query, token(t, s), "")
		if r.status != want {
			t.Errorf("%q: %d, want %d", query, r.status, want)
		}
	}
}

func TestBodies(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	tok := token(t, s)
	key := strings.Repeat("A", 43)
	for body, want := range map[string]int{
		`{"alg":"A256KW","value":"` + key + `"}`:              200,
		`{"alg":"A256KW","value":"` + key + `","other":[{}]}`: 200,
		`{"alg":"A256KW","value":"` + key + `="}`:             400, // padded
		`{"alg":"A256KW","value":"` + key[1:] + `B"}`:         400, // bits behind the last byte
		`{"alg":"A256KW","value":"` + key[1:] + `+"}`:         400, // not the URL alphabet
		`{"alg":"A256KW","value":""}`:                         400,
		`{"alg":"A256KW"}`:                                    400,
		`{"value":"` + key + `"}`:                             400,
		`{"alg":"A256KW","value":1}`:                          400,
		`[]`:                                                  400,
		``:                                                    400,
		`{"alg":"A256KW","value":"` + key + `"}{}`:            400,
		strings.Repeat(" ", 64<<10) + `{}`:                    413,
	} {
		r := raw(t, s, "POST", s.URL(vault)+"/keys/kek/wrapkey"+apiVersion, tok, body)
		if r.status != want {
			t.Errorf("%.60q: %d %s, want %d", body, r.status, r.body, want)
		}
		if code := r.code(t); want != 200 && code != "BadParameter" {
			t.Errorf("%.60q: code %s", body, code)
		}
	}
	for _, body := range []string{
		`{"attributes":{"exp":0}}`, `{"attributes":{"nbf":-1}}`, `{"attributes":{"exp":1.5}}`, `{"attributes":{"enabled":"no"}}`,
		`{"key_ops":["bake"]}`,
	} {
		if r := raw(t, s, "PATCH", s.URL(vault)+"/keys/kek"+apiVersion, tok, body); r.status != 400 {
			t.Errorf("%s: %d, want 400", body, r.status)
		}
	}
	for _, query := range []string{"&maxresults=0", "&maxresults=26", "&maxresults=x", "&$skiptoken=%2b"} {
		if r := raw(t, s, "GET", s.URL(vault)+"/keys"+apiVersion+query, tok, ""); r.status != 400 {
			t.Errorf("%s: %d, want 400", query, r.status)
		}
	}
}

func TestResponseHeadersAndEncoding(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", devvault.KeySpec{})
	c := httpClient(t, s)
	seen := map[string]bool{}
	for range 2 {
		r := rawWith(t, c, "GET", s.URL(vault)+"/keys/kek"+apiVersion, token(t, s), "")
		id := r.header.Get("X-Ms-Request-Id")
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) || seen[id] {
			t.Errorf("request id %q", id)
		}
		seen[id] = true
		for _, h := range []string{"X-Ms-Keyvault-Region", "X-Ms-Keyvault-Service-Version"} {
			if r.header.Get(h) == "" {
				t.Errorf("no %s", h)
			}
		}
		if got := r.header.Get("Content-Type"); got != "application/json; charset=utf-8" {
			t.Errorf("content type %q", got)
		}
		var body struct {
			Key        struct{ Kid, N, E string }
			Attributes struct{ Created, Updated json.Number }
		}
		if err := json.Unmarshal([]byte(r.body), &body); err != nil {
			t.Fatal(err)
		}
		if len(body.Key.N) != 342 || strings.ContainsAny(body.Key.N, "+/=") || body.Key.E != "AQAB" {
			t.Errorf("n %q, e %q", body.Key.N, body.Key.E)
		}
		if !regexp.MustCompile(`^\d{10}$`).MatchString(body.Attributes.Created.String()) {
			t.Errorf("created %s", body.Attributes.Created)
		}
		if !regexp.MustCompile(`^` + regexp.QuoteMeta(s.URL(vault)) + `/keys/kek/[0-9a-f]{32}$`).MatchString(body.Key.Kid) {
			t.Errorf("kid %q", body.Key.Kid)
		}
	}
}

func TestNextLinkIsAbsolute(t *testing.T) {
	s := start(t, devvault.Config{})
	for i := range 4 {
		create(t, s, fmt.Sprint("k", i), oct())
	}
	var page struct {
		Value    []struct{ Kid string }
		NextLink *string
	}
	url := s.URL(vault) + "/keys/?api-version=7.4&maxresults=2"
	for i := range 2 {
		r := raw(t, s, "GET", url, token(t, s), "")
		page.NextLink = nil
		if err := json.Unmarshal([]byte(r.body), &page); err != nil || len(page.Value) != 2 {
			t.Fatalf("page %s, %v", r.body, err)
		}
		if i == 0 {
			if page.NextLink == nil || !strings.HasPrefix(*page.NextLink, s.URL(vault)+"/keys?") ||
				!strings.Contains(*page.NextLink, "api-version=7.4") {
				t.Fatalf("next link in %s", r.body)
			}
			url = *page.NextLink
		} else if page.NextLink != nil || !strings.Contains(r.body, `"nextLink":null`) {
			t.Errorf("next link on the last page: %s", r.body)
		}
	}
}

// TestUnknownVaults: what DNS would not resolve is 421.
func TestUnknownVaults(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	for host, want := range map[string]int{
		"acme.vault.localhost:1": 401, "ACME.Vault.Localhost:1": 401, "acme.vault.localhost": 401, "acme.vault.localhost.": 401,
		"globex.vault.localhost:1": 421, "vault.localhost:1": 421, "x.acme.vault.localhost:1": 421, "localhost:1": 421,
		"127.0.0.1:1": 421, "acme.vault.example": 421, "acmevault.localhost": 421, "": 421, "[::1]:1": 421,
	} {
		req := httptest.NewRequest("GET", "https://x/keys/kek"+apiVersion, nil)
		req.Host = host
		rec := httptest.NewRecorder()
		s.Handle(rec, req)
		if rec.Code != want {
			t.Errorf("%q: %d, want %d", host, rec.Code, want)
		}
	}
	if got := s.Counters().Kinds[devvault.CountUnknownVault]; got != 9 {
		t.Errorf("unknown vault %d, want 9", got)
	}
	for _, name := range []string{"ab", "1ab", "a--b", "ab-", "-ab", "Abc", "a.b", "a_b", strings.Repeat("a", 25)} {
		if err := s.CreateVault(name); err == nil {
			t.Errorf("vault %q was created", name)
		}
	}
}

// TestResourceHasNoPortAt443: a client that sends no port gets none.
func TestResourceHasNoPortAt443(t *testing.T) {
	s := start(t, devvault.Config{Suffix: "kv.test"})
	req := httptest.NewRequest("GET", "https://acme.kv.test/keys", nil)
	rec := httptest.NewRecorder()
	s.Handle(rec, req)
	if got := rec.Header().Get("WWW-Authenticate"); !strings.HasSuffix(got, ` resource="https://kv.test"`) {
		t.Errorf("challenge %q", got)
	}
}

func TestProtocols(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	for _, tc := range []struct {
		h2      bool
		version uint16
	}{{true, tls.VersionTLS12}, {true, tls.VersionTLS13}, {false, tls.VersionTLS12}, {false, tls.VersionTLS13}} {
		c := httpClient(t, s)
		tr := c.Transport.(*http.Transport)
		tr.ForceAttemptHTTP2 = tc.h2
		tr.TLSClientConfig.MinVersion, tr.TLSClientConfig.MaxVersion = tc.version, tc.version
		resp, err := c.Get(s.URL(vault) + "/keys/kek" + apiVersion)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 401 || resp.ProtoMajor == 2 != tc.h2 || resp.TLS.Version != tc.version {
			t.Errorf("%+v: %s, status %d, TLS %x", tc, resp.Proto, resp.StatusCode, resp.TLS.Version)
		}
	}
	c := httpClient(t, s)
	tr := c.Transport.(*http.Transport)
	tr.TLSClientConfig.MinVersion, tr.TLSClientConfig.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
	if resp, err := c.Get(s.URL(vault) + "/"); err == nil {
		_ = resp.Body.Close()
		t.Error("TLS 1.1 is accepted")
	}
}

// FuzzRequest: whatever comes with a good token is answered in JSON, and never
// by an internal error.
func FuzzRequest(f *testing.F) {
	s := start(f, devvault.Config{})
	if _, err := s.CreateKey(vault, "kek", oct()); err != nil {
		f.Fatal(err)
	}
	if _, err := s.CreateKey(vault, "audit", devvault.KeySpec{Type: "EC"}); err != nil {
		f.Fatal(err)
	}
	tok := token(f, s)
	key := strings.Repeat("A", 43)
	f.Add("POST", "/keys/kek/wrapkey", "api-version=7.4", `{"alg":"A256KW","value":"`+key+`"}`)
	f.Add("POST", "/keys/kek/unwrapkey", "api-version=7.4", `{"alg":"A256KW","value":"`+key+`AAAAAAAAAAA"}`)
	f.Add("POST", "/keys/k/create", "api-version=7.4", `{"kty":"oct-HSM","key_size":256,"attributes":{"exp":2000000000}}`)
	f.Add("POST", "/keys/audit/sign", "api-version=7.4", `{"alg":"ES256","value":"`+key+`"}`)
	f.Add("POST", "/keys/s/create", "api-version=7.4", `{"kty":"EC","crv":"P-256","key_ops":["sign"]}`)
	f.Add("PATCH", "/keys/kek/", "api-version=7.4", `{"attributes":{"enabled":false,"exp":null},"key_ops":["wrapKey"]}`)
	f.Add("PUT", "/keys/kek/rotationpolicy", "api-version=7.4", `{"lifetimeActions":[{}],"attributes":{"expiryTime":"P90D"}}`)
	f.Add("GET", "/keys/kek/versions", "api-version=7.4&$skiptoken=QQ&maxresults=2", "")
	f.Add("GET", "/deletedkeys", "api-version=7.4", "")
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		if strings.Contains(body, "RSA") && strings.Contains(strings.ToLower(path), "create") {
			body = "" // slow, and nothing new
		}
		req := httptest.NewRequest("GET", "https://acme.vault.localhost/", strings.NewReader(body))
		req.Method, req.URL.Path, req.URL.RawPath, req.URL.RawQuery = method, path, "", query
		req.Header.Set("Authorization", "Bearer "+tok)
		rec := httptest.NewRecorder()
		s.Handle(rec, req)
		if rec.Code >= 500 {
			t.Errorf("%s %q %q %q: %d %s", method, path, query, body, rec.Code, rec.Body)
		}
		if rec.Code != http.StatusNoContent && !json.Valid(rec.Body.Bytes()) {
			t.Errorf("body %q", rec.Body)
		}
	})
}
