package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/policy"
)

func TestVerbs(t *testing.T) {
	var names, admin []string
	for i, v := range policy.Verbs() {
		if got, err := policy.ParseVerb(v.String()); got != v || err != nil || int(v) != i+1 {
			t.Errorf("verb %d: ParseVerb(%s) = %d, %v", i+1, v, got, err)
		}
		names = append(names, v.String())
		if v.Admin() {
			admin = append(admin, v.String())
		}
	}
	want := []string{"seal", "unseal", "admin.status", "admin.reload", "admin.evict", "admin.policy", "admin.tenants", "admin.suspend"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("Verbs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[2:], admin); diff != "" {
		t.Errorf("admin verbs (-want +got):\n%s", diff)
	}
	for _, v := range []policy.Verb{0, 9, 255} {
		if v.String() != "unknown verb" || v.Admin() {
			t.Errorf("verb %d = %s, Admin %v", v, v, v.Admin())
		}
	}
}

func TestParseVerbNamesTheNearest(t *testing.T) {
	for text, nearest := range map[string]string{
		"":                                 "seal",
		"Seal":                             "seal",
		"UNSEAL":                           "unseal",
		"sael":                             "seal",
		"unsael":                           "unseal",
		"un-seal":                          "unseal",
		"decrypt":                          "seal",
		"admin.state":                      "admin.status",
		"admin_suspend":                    "admin.suspend",
		"adminpolicy":                      "admin.policy",
		"tenants":                          "admin.tenants",
		"reload":                           "admin.reload",
		"seal ":                            "seal",
		"unseal\x00":                       "unseal",
		strings.Repeat("admin.status", 99): "admin.status",
	} {
		v, err := policy.ParseVerb(text)
		if v != 0 || err == nil {
			t.Errorf("ParseVerb(%q) = %s, %v", text, v, err)
			continue
		}
		if got := err.Error(); !strings.HasSuffix(got, "the nearest is "+nearest) || len(got) > 200 {
			t.Errorf("ParseVerb(%q): %s, want %s", text, got, nearest)
		}
	}
}
