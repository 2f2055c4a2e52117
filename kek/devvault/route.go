package devvault

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// route is what a request line asks for.
type route struct {
	op      string // an Op constant
	name    string // valid key name, or empty where op has none
	version string // 32 hex digits, or empty for the newest
}

// parseRoute reads a method and an escaped path. It does by hand what
// http.ServeMux does not allow: "//wrapkey" is an empty version, no redirect.
// With an error the route's op is OpOther and its other fields are empty.
func parseRoute(method, path string) (route, error) {
	segs := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(segs) > 1 && segs[len(segs)-1] == "" {
		segs = segs[:len(segs)-1] // GET /keys/NAME/ is how azkeys asks for no version
	}
	var r route
	var err error
	switch segs[0] {
	case "keys":
		r, err = parseKeys(method, segs[1:])
	case "deletedkeys":
		r, err = parseDeleted(method, segs[1:])
	default:
		err = noResource()
	}
	if err != nil {
		return route{op: OpOther}, err
	}
	return r, nil
}

func parseKeys(method string, segs []string) (route, error) {
	if len(segs) == 0 {
		return collection(method, OpListKeys)
	}
	name, err := parseName(segs[0])
	if err != nil {
		return route{}, err
	}
	switch len(segs) {
	case 1:
		return keyRoute(method, name, "")
	case 2:
		if op := action(method, segs[1]); op != "" {
			return route{op: op, name: name}, nil
		}
		if method == http.MethodPost {
			return route{}, notAllowed(method, segs[1])
		}
		return versionRoute(method, name, segs[1])
	case 3:
		op := cryptoOp(segs[2])
		if op == "" || method != http.MethodPost {
			return route{}, notAllowed(method, segs[2])
		}
		if segs[1] != "" && !state.ValidVersion(segs[1]) {
			return route{}, state.InvalidName(segs[1])
		}
		return route{op: op, name: name, version: segs[1]}, nil
	}
	return route{}, noResource()
}

// versionRoute is what can be done with /keys/NAME/VERSION. An empty version
// is the newest.
func versionRoute(method, name, version string) (route, error) {
	if version != "" && !state.ValidVersion(version) {
		return route{}, state.InvalidName(version)
	}
	if method == http.MethodDelete {
		return route{}, notAllowed(method, name+"/"+version)
	}
	return keyRoute(method, name, version)
}

func keyRoute(method, name, version string) (route, error) {
	switch method {
	case http.MethodGet:
		return route{op: OpGet, name: name, version: version}, nil
	case http.MethodPatch:
		return route{op: OpUpdate, name: name, version: version}, nil
	case http.MethodDelete:
		return route{op: OpDelete, name: name}, nil
	}
	return route{}, notAllowed(method, name)
}

// action names what follows the key's name directly and is no version.
func action(method, seg string) string {
	switch method + " " + strings.ToLower(seg) {
	case "GET versions":
		return OpListVersions
	case "GET rotationpolicy":
		return OpGetPolicy
	case "PUT rotationpolicy":
		return OpSetPolicy
	case "POST create":
		return OpCreate
	case "POST rotate":
		return OpRotate
	}
	if method == http.MethodPost {
		return cryptoOp(seg) // an empty version that the client collapsed
	}
	return ""
}

func cryptoOp(seg string) string {
	switch strings.ToLower(seg) {
	case "wrapkey":
		return OpWrap
	case "unwrapkey":
		return OpUnwrap
	case "encrypt":
		return OpEncrypt
	case "decrypt":
		return OpDecrypt
	}
	return ""
}

func parseDeleted(method string, segs []string) (route, error) {
	if len(segs) == 0 {
		return collection(method, OpListDeleted)
	}
	name, err := parseName(segs[0])
	if err != nil {
		return route{}, err
	}
	switch what := method + " " + strings.ToLower(strings.Join(segs[1:], "/")); what {
	case "GET ":
		return route{op: OpGetDeleted, name: name}, nil
	case "DELETE ":
		return route{op: OpPurge, name: name}, nil
	case "POST recover":
		return route{op: OpRecover, name: name}, nil
	}
	return route{}, notAllowed(method, strings.Join(segs[1:], "/"))
}

func collection(method, op string) (route, error) {
	if method != http.MethodGet {
		return route{}, notAllowed(method, "")
	}
	return route{op: op}, nil
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

func noResource() error {
	return &Error{Status: http.StatusNotFound, Code: "NotFound", Message: "The resource does not exist."}
}
