// Package challenge decides which authentication challenges of a vault reach
// the Azure SDK.
package challenge

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

// maxSize bounds a WWW-Authenticate value, in bytes. A claims challenge
// is the longest that Entra sends, well under a kibibyte.
const maxSize = 4096

// Vetter holds what a vault's challenge has to name.
//
// azkeys cuts the header up at spaces and equals signs, indexes into the
// pieces (a short one panics) and asks for a token for whatever tenant it
// finds. So nothing of the vault's own text gets through: a challenge that
// names what the configuration expects is replaced by one of ours in the form
// that azkeys reads, any other is an error.
type Vetter struct {
	// Tenant is the Entra tenant ID, a lower-case GUID; empty is any, for the
	// embedded vault only.
	Tenant string
	// Authorities are https origins; the first is handed on for any of them.
	Authorities []string
	// Resources are the https origins that tokens may be for.
	Resources []string
}

var errMalformed = errors.New("vault's authentication challenge is malformed")

// Vet returns the one WWW-Authenticate value to hand on. values are all that
// the vault sent; schemes other than Bearer are passed over. authorised says
// whether the request carried a token: only then may claims be asked for.
func (v Vetter) Vet(values []string, authorised bool) (string, error) {
	params, err := bearer(values)
	if err != nil {
		return "", err
	}
	claims := params["error"] == "insufficient_claims"
	var out []string
	if params["authorization"] != "" || !claims {
		authorization, err := v.authorization(params["authorization"])
		if err != nil {
			return "", err
		}
		resource, err := v.resource(params)
		if err != nil {
			return "", err
		}
		out = append(out, `authorization="`+authorization+`"`, `resource="`+resource+`"`)
	}
	if claims {
		if !authorised || !isClaims(params["claims"]) {
			return "", errors.New("vault's authentication challenge asks for claims out of turn or malformed")
		}
		out = append(out, `error="insufficient_claims"`, `claims="`+params["claims"]+`"`)
	}
	return "Bearer " + strings.Join(out, ", "), nil
}

// authorization accepts exactly authority/tenant and returns it in our
// spelling.
func (v Vetter) authorization(s string) (string, error) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 || !IsGUID(s[i+1:]) {
		return "", errors.New("vault's authentication challenge names no Entra tenant")
	}
	authority, tenant := s[:i], strings.ToLower(s[i+1:])
	if v.Tenant != "" && tenant != v.Tenant {
		return "", errors.New("vault's authentication challenge names another Entra tenant")
	}
	if !slices.Contains(v.Authorities, authority) {
		return "", errors.New("vault's authentication challenge names another authority")
	}
	return v.Authorities[0] + "/" + tenant, nil
}

// resource accepts one of the expected resources, by the name of resource or
// scope or both.
func (v Vetter) resource(params map[string]string) (string, error) {
	resource, hasResource := params["resource"]
	scope, hasScope := params["scope"]
	scope = strings.TrimSuffix(scope, "/.default")
	if !hasResource {
		resource = scope
	}
	if !hasScope {
		scope = resource
	}
	if resource != scope || !slices.Contains(v.Resources, resource) {
		return "", errors.New("vault's authentication challenge names another resource")
	}
	return resource, nil
}

// isClaims accepts what azcore decodes: a JSON object in standard base64.
func isClaims(s string) bool {
	b, err := base64.StdEncoding.DecodeString(s)
	return err == nil && json.Valid(b) && b[0] == '{' && !strings.ContainsAny(s, "\r\n")
}

// bearer returns the parameters of the one Bearer challenge among values.
func bearer(values []string) (map[string]string, error) {
	var params map[string]string
	for _, value := range values {
		rest, ok := strings.CutPrefix(value, "Bearer ")
		if !ok {
			continue
		}
		if params != nil {
			return nil, errors.New("vault sent several authentication challenges")
		}
		var err error
		if params, err = parseParams(rest); err != nil {
			return nil, err
		}
	}
	if params == nil {
		return nil, errors.New("vault sent no authentication challenge")
	}
	return params, nil
}

// parseParams parses name="value" pairs between commas, spaces or both; Key
// Vault separates with ", ", others with either. A second scheme in the same
// value does not parse. Values hold no quotes, backslashes or bytes outside
// printable ASCII; names are [a-z_] and come once.
func parseParams(s string) (map[string]string, error) {
	if len(s) > maxSize {
		return nil, errMalformed
	}
	params := make(map[string]string)
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, ", ") {
		name, rest, ok := strings.Cut(s, `="`)
		if !ok || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			return nil, errMalformed
		}
		value, rest, ok := strings.Cut(rest, `"`)
		if _, twice := params[name]; !ok || twice || !IsPrintable(value) {
			return nil, errMalformed
		}
		if rest != "" && rest[0] != ',' && rest[0] != ' ' {
			return nil, errMalformed
		}
		params[name], s = value, rest
	}
	return params, nil
}

// IsPrintable reports whether s is printable ASCII without backslashes.
func IsPrintable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '\\' {
			return false
		}
	}
	return true
}

// IsGUID reports whether s is 8-4-4-4-12 hex digits of either case.
func IsGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}
