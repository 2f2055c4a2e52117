// Package route reads the request lines of a vault's REST API.
package route

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// What a request asks.
const (
	Get          = "get"
	ListKeys     = "list keys"
	ListVersions = "list versions"
	Create       = "create"
	Rotate       = "rotate"
	Update       = "update"
	Wrap         = "wrap"
	Unwrap       = "unwrap"
	Encrypt      = "encrypt"
	Decrypt      = "decrypt"
	Sign         = "sign"
	GetPolicy    = "get rotation policy"
	SetPolicy    = "set rotation policy"
	Delete       = "delete"
	ListDeleted  = "list deleted"
	GetDeleted   = "get deleted"
	Recover      = "recover"
	Purge        = "purge"
	// Other is everything that is not implemented or not a key operation.
	Other = "other"
)

// Valid reports whether op is one of the constants.
func Valid(op string) bool {
	switch op {
	case Get, ListKeys, ListVersions, Create, Rotate, Update, GetPolicy, SetPolicy, Delete, ListDeleted, GetDeleted, Recover,
		Purge, Other:
		return true
	}
	return Crypto(op)
}

// Crypto reports whether op works with a key on bytes.
func Crypto(op string) bool {
	switch op {
	case Wrap, Unwrap, Encrypt, Decrypt, Sign:
		return true
	}
	return false
}

// Route is what a request line asks for.
type Route struct {
	// Op is one of the constants.
	Op string
	// Name is a valid key name, or empty where Op has none.
	Name string
	// Version is 32 hex digits, or empty for the newest.
	Version string
}

// Parse reads a method and an escaped path. It does by hand what
// http.ServeMux does not allow: "//wrapkey" is an empty version, no redirect.
// With an error the route's Op is Other and its other fields are empty.
func Parse(method, path string) (Route, error) {
	segs := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(segs) > 1 && segs[len(segs)-1] == "" {
		segs = segs[:len(segs)-1] // GET /keys/NAME/ is how azkeys asks for no version
	}
	var r Route
	var err error
	switch segs[0] {
	case "keys":
		r, err = parseKeys(method, segs[1:])
	case "deletedkeys":
		r, err = parseDeleted(method, segs[1:])
	default:
		err = NotFound()
	}
	if err != nil {
		return Route{Op: Other}, err
	}
	return r, nil
}

func parseKeys(method string, segs []string) (Route, error) {
	if len(segs) == 0 {
		return collection(method, ListKeys)
	}
	name, err := parseName(segs[0])
	if err != nil {
		return Route{}, err
	}
	switch len(segs) {
	case 1:
		return keyRoute(method, name, "")
	case 2:
		if op := action(method, segs[1]); op != "" {
			return Route{Op: op, Name: name}, nil
		}
		if method == http.MethodPost {
			return Route{}, notAllowed(method, segs[1])
		}
		return versionRoute(method, name, segs[1])
	case 3:
		op := cryptoOp(segs[2])
		if op == "" || method != http.MethodPost {
			return Route{}, notAllowed(method, segs[2])
		}
		if segs[1] != "" && !state.ValidVersion(segs[1]) {
			return Route{}, state.InvalidName(segs[1])
		}
		return Route{Op: op, Name: name, Version: segs[1]}, nil
	}
	return Route{}, NotFound()
}

// versionRoute is what can be done with /keys/NAME/VERSION. An empty version
// is the newest.
func versionRoute(method, name, version string) (Route, error) {
	if version != "" && !state.ValidVersion(version) {
		return Route{}, state.InvalidName(version)
	}
	if method == http.MethodDelete {
		return Route{}, notAllowed(method, name+"/"+version)
	}
	return keyRoute(method, name, version)
}

func keyRoute(method, name, version string) (Route, error) {
	switch method {
	case http.MethodGet:
		return Route{Op: Get, Name: name, Version: version}, nil
	case http.MethodPatch:
		return Route{Op: Update, Name: name, Version: version}, nil
	case http.MethodDelete:
		return Route{Op: Delete, Name: name}, nil
	}
	return Route{}, notAllowed(method, name)
}

// action names what follows the key's name directly and is no version.
func action(method, seg string) string {
	switch method + " " + strings.ToLower(seg) {
	case "GET versions":
		return ListVersions
	case "GET rotationpolicy":
		return GetPolicy
	case "PUT rotationpolicy":
		return SetPolicy
	case "POST create":
		return Create
	case "POST rotate":
		return Rotate
	}
	if method == http.MethodPost {
		return cryptoOp(seg) // an empty version that the client collapsed
	}
	return ""
}

func cryptoOp(seg string) string {
	switch strings.ToLower(seg) {
	case "wrapkey":
		return Wrap
	case "unwrapkey":
		return Unwrap
	case "encrypt":
		return Encrypt
	case "decrypt":
		return Decrypt
	case "sign":
		return Sign
	}
	return ""
}

func parseDeleted(method string, segs []string) (Route, error) {
	if len(segs) == 0 {
		return collection(method, ListDeleted)
	}
	name, err := parseName(segs[0])
	if err != nil {
		return Route{}, err
	}
	switch what := method + " " + strings.ToLower(strings.Join(segs[1:], "/")); what {
	case "GET ":
		return Route{Op: GetDeleted, Name: name}, nil
	case "DELETE ":
		return Route{Op: Purge, Name: name}, nil
	case "POST recover":
		return Route{Op: Recover, Name: name}, nil
	}
	return Route{}, notAllowed(method, strings.Join(segs[1:], "/"))
}

func collection(method, op string) (Route, error) {
	if method != http.MethodGet {
		return Route{}, notAllowed(method, "")
	}
	return Route{Op: op}, nil
}

func parseName(seg string) (string, error) {
	name, err := url.PathUnescape(seg)
	if err != nil || !state.ValidKeyName(name) {
		return "", state.InvalidName(seg)
	}
	return name, nil
}

func notAllowed(method, what string) error {
	return state.BadParameter("Method %s does not allow operation '%s'", method, what)
}

// NotFound is a 404 for what is not there at all.
func NotFound() error {
	return &state.Error{Status: http.StatusNotFound, Code: "NotFound", Message: "The resource does not exist."}
}
