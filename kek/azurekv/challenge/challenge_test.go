package challenge_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/kek/azurekv/challenge"
)

const (
	entraTenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	authority   = "https://login.microsoftonline.com"
	vaultNet    = "https://vault.azure.net"
	claims      = "eyJhY2Nlc3NfdG9rZW4iOnt9fQ==" // {"access_token":{}}
	good        = `Bearer authorization="` + authority + "/" + entraTenant + `", resource="` + vaultNet + `"`
)

var (
	authorities = []string{authority, "https://login.windows.net"}
	resources   = []string{vaultNet}
)

// vet vets with the expectations of these tests.
func vet(tenant string, values []string, authorised bool) (string, error) {
	return challenge.Vetter{Tenant: tenant, Authorities: authorities, Resources: resources}.Vet(values, authorised)
}

func TestVet(t *testing.T) {
	const auth = `authorization="` + authority + "/" + entraTenant + `"`
	upper := strings.ReplaceAll(good, entraTenant, strings.ToUpper(entraTenant))
	withClaims := good + `, error="insufficient_claims", claims="` + claims + `"`
	for _, test := range []struct {
		name       string
		values     []string
		authorised bool
		want       string // empty: refused
	}{
		{"Key Vault's", []string{good}, false, good},
		{"again after a token", []string{good}, true, good},
		{"tenant in capitals", []string{upper}, false, good},
		{"old authority", []string{strings.ReplaceAll(good, "login.microsoftonline.com", "login.windows.net")}, false, good},
		{"no space", []string{strings.ReplaceAll(good, ", ", ",")}, false, good},
		{"no comma", []string{strings.ReplaceAll(good, ", ", " ")}, false, good},
		{"scope", []string{`Bearer ` + auth + `, scope="` + vaultNet + `/.default"`}, false, good},
		{"scope and resource", []string{good + `, scope="` + vaultNet + `/.default"`}, false, good},
		{"expired token", []string{good + `, error="invalid_token", error_description="AKV10017: expired = yes, really"`}, true, good},
		{"another scheme beside it", []string{`PoP nonce="x"`, good}, false, good},
		{"claims", []string{withClaims}, true, withClaims},
		{"claims alone", []string{`Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", error="insufficient_claims", claims="` + claims + `"`}, true,
			`Bearer error="insufficient_claims", claims="` + claims + `"`},

		{"claims before a token", []string{withClaims}, false, ""},
		{"claims that are no JSON", []string{good + `, error="insufficient_claims", claims="dGVzdA=="`}, true, ""},
		{"claims that are no object", []string{good + `, error="insufficient_claims", claims="W10="`}, true, ""},
		{"claims that are no base64", []string{good + `, error="insufficient_claims", claims="!"`}, true, ""},
		{"claims of another tenant", []string{strings.ReplaceAll(withClaims, "72f9", "0000")}, true, ""},
		{"none", nil, false, ""},
		{"empty", []string{""}, false, ""},
		{"Bearer alone", []string{"Bearer "}, false, ""},
		{"Basic", []string{`Basic realm="x"`}, false, ""},
		{"lower case", []string{strings.ToLower(good[:1]) + good[1:]}, false, ""},
		{"twice", []string{good, good}, false, ""},
		{"no path, which panics azkeys", []string{`Bearer authorization="` + authority + `", resource="` + vaultNet + `"`}, false, ""},
		{"empty path", []string{`Bearer authorization="` + authority + `/", resource="` + vaultNet + `"`}, false, ""},
		{"authorization_uri", []string{strings.ReplaceAll(good, "authorization=", "authorization_uri=")}, false, ""},
		{"tenant by domain", []string{strings.ReplaceAll(good, entraTenant, "example.onmicrosoft.com")}, false, ""},
		{"another tenant", []string{strings.ReplaceAll(good, "72f9", "0000")}, false, ""},
		{"longer path", []string{strings.ReplaceAll(good, entraTenant, entraTenant+"/oauth2")}, false, ""},
		{"path before the tenant", []string{strings.ReplaceAll(good, entraTenant, "x/"+entraTenant)}, false, ""},
		{"another authority", []string{strings.ReplaceAll(good, "microsoftonline.com", "microsoftonline.example")}, false, ""},
		{"authority over http", []string{strings.ReplaceAll(good, "https://login", "http://login")}, false, ""},
		{"authority with user", []string{strings.ReplaceAll(good, "login.", "x@login.")}, false, ""},
		{"another resource", []string{strings.ReplaceAll(good, vaultNet, "https://graph.microsoft.com")}, false, ""},
		{"wider resource", []string{strings.ReplaceAll(good, vaultNet, "https://azure.net")}, false, ""},
		{"resource with a slash", []string{strings.ReplaceAll(good, vaultNet, vaultNet+"/")}, false, ""},
		{"no resource", []string{"Bearer " + auth}, false, ""},
		{"scope and resource differ", []string{good + `, scope="https://managedhsm.azure.net/.default"`}, false, ""},
		{"parameter twice", []string{good + `, resource="` + vaultNet + `"`}, false, ""},
		{"second scheme inside", []string{good + `, PoP nonce="x"`}, false, ""},
		{"unquoted", []string{strings.ReplaceAll(good, `"`, "")}, false, ""},
		{"open quote", []string{good[:len(good)-1]}, false, ""},
		{"backslash", []string{strings.ReplaceAll(good, "https://v", `https:\"//v`)}, false, ""},
		{"control byte", []string{good + ", x=\"\x01\""}, false, ""},
		{"run together", []string{good + `x="y"`}, false, ""},
		{"too long", []string{good + `, x="` + strings.Repeat("x", 4096) + `"`}, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := vet(entraTenant, test.values, test.authorised)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestVetAnyTenant(t *testing.T) {
	for _, test := range []struct{ tenant, want string }{
		{entraTenant, good},
		{strings.ToUpper(entraTenant), good},
		{"", ""},
		{"example.com", ""},
	} {
		got, err := vet("", []string{strings.ReplaceAll(good, entraTenant, test.tenant)}, false)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q: got %q, %v", test.tenant, got, err)
		}
	}
}

// FuzzChallenge reads what was vetted as azkeys does: it must not panic there,
// and find nothing but the expected tenant and resource.
func FuzzChallenge(f *testing.F) {
	f.Add(good, false)
	f.Add(good+`, error="insufficient_claims", claims="`+claims+`"`, true)
	f.Add(`Bearer error="insufficient_claims",claims="`+claims+`"`, true)
	f.Add(`Bearer authorization="https://localhost" resource="`+vaultNet+`"`, false)
	f.Add(`Bearer scope="x",authorization="`+authority+"/"+entraTenant+`"`, false)
	f.Fuzz(func(t *testing.T, challenge string, authorised bool) {
		vetted, err := vet(entraTenant, []string{challenge}, authorised)
		if err != nil {
			if vetted != "" {
				t.Errorf("%q with %v", vetted, err)
			}
			return
		}
		values := crude(vetted)
		if strings.Contains(vetted, "insufficient_claims") {
			if !authorised {
				t.Errorf("claims asked for before a token: %q", vetted)
			}
			if strings.HasPrefix(vetted, "Bearer error=") {
				return // azcore handles claims, and azkeys never sees them
			}
		}
		if tenant := strings.Split(values["authorization"], "/")[3]; tenant != entraTenant {
			t.Errorf("tenant %q", tenant)
		}
		if u, err := url.Parse(values["authorization"]); err != nil || "https://"+u.Host != authority {
			t.Errorf("authority %q", values["authorization"])
		}
		if values["scope"] != "" || !slices.Contains(resources, values["resource"]) {
			t.Errorf("scope %q, resource %q", values["scope"], values["resource"])
		}
		again, err := vet(entraTenant, []string{vetted}, authorised)
		if err != nil || again != vetted {
			t.Errorf("vetted again: %q, %v", again, err)
		}
	})
}

// crude takes a challenge apart as azkeys does.
func crude(challenge string) map[string]string {
	values := make(map[string]string)
	for part := range strings.SplitSeq(strings.ReplaceAll(challenge, "Bearer ", ""), " ") {
		if pair := strings.Split(part, "="); len(pair) == 2 {
			values[pair[0]] = strings.TrimSuffix(strings.ReplaceAll(pair[1], `"`, ""), ",")
		}
	}
	return values
}
