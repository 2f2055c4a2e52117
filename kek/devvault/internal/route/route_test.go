package route_test

import (
	"regexp"
	"testing"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/route"
)

func TestParse(t *testing.T) {
	const version = "0123456789abcdef0123456789abcdef"
	for _, tc := range []struct {
		method, path string
		want         route.Route
	}{
		{"GET", "/keys/kek/", route.Route{Op: route.Get, Name: "kek"}},
		{"GET", "/keys/kek/" + version, route.Route{Op: route.Get, Name: "kek", Version: version}},
		{"POST", "/keys/kek/" + version + "/sign", route.Route{Op: route.Sign, Name: "kek", Version: version}},
		{"POST", "/keys/kek//Sign", route.Route{Op: route.Sign, Name: "kek"}},
		{"POST", "/keys/kek/sign", route.Route{Op: route.Sign, Name: "kek"}},
		{"POST", "/keys/kek//unwrapkey", route.Route{Op: route.Unwrap, Name: "kek"}},
		{"DELETE", "/deletedkeys/kek", route.Route{Op: route.Purge, Name: "kek"}},
	} {
		if got, err := route.Parse(tc.method, tc.path); err != nil || got != tc.want {
			t.Errorf("%s %s: %+v, %v, want %+v", tc.method, tc.path, got, err, tc.want)
		}
	}
	for _, path := range []string{"/keys/kek/sign", "/keys/kek/" + version + "/sign"} {
		if got, err := route.Parse("PUT", path); err == nil || got != (route.Route{Op: route.Other}) {
			t.Errorf("PUT %s: %+v, %v", path, got, err)
		}
	}
	if route.Valid("bake") || route.Valid("") || route.Crypto(route.Get) || !route.Crypto(route.Sign) {
		t.Error("Valid or Crypto is wrong")
	}
}

// FuzzParse: no input panics, and what is accepted is well formed.
func FuzzParse(f *testing.F) {
	for _, p := range []string{
		"/keys", "/keys/kek", "/keys/kek/", "/keys/kek//wrapkey", "/keys/kek/unwrapkey", "/keys/kek/Sign", "/keys/%6bek/versions",
		"/keys/kek/0123456789abcdef0123456789abcdef/wrapkey", "/deletedkeys/kek/recover", "//", "*", "",
	} {
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			f.Add(m, p)
		}
	}
	name := regexp.MustCompile(`^[0-9A-Za-z-]{0,127}$`)
	version := regexp.MustCompile(`^([0-9a-f]{32})?$`)
	f.Fuzz(func(t *testing.T, method, path string) {
		r, err := route.Parse(method, path)
		if !name.MatchString(r.Name) || !version.MatchString(r.Version) || !route.Valid(r.Op) {
			t.Errorf("%s %q: %+v", method, path, r)
		}
		if err != nil && r != (route.Route{Op: route.Other}) {
			t.Errorf("%s %q: %+v with %v", method, path, r, err)
		}
	})
}
