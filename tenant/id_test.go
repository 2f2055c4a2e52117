package tenant_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/tenant"
)

func TestParseEveryByte(t *testing.T) {
	const alnum = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for b := range 256 {
		c := string([]byte{byte(b)})
		edge := strings.Contains(alnum, c)
		middle := edge || strings.Contains("._:-", c)
		for s, want := range map[string]bool{c + "aa": edge, "a" + c + "a": middle, "aa" + c: edge, c: edge} {
			id, err := tenant.Parse(s)
			if (err == nil) != want {
				t.Errorf("Parse(%q) = %v, want ok %t", s, err, want)
			}
			if err == nil && id.String() != s {
				t.Errorf("Parse(%q).String() = %q", s, id)
			}
		}
	}
}

func TestParseLengthAndDots(t *testing.T) {
	for s, want := range map[string]bool{
		"":                                  false,
		strings.Repeat("a", tenant.MaxID):   true,
		strings.Repeat("a", tenant.MaxID+1): false,
		"a.b.c":                             true,
		"a..b":                              false,
		"a.:.b":                             true,
		"\xff":                              false,
		"a\x00b":                            false,
		"tenant:eu-west.prod_1":             true,
		"téa":                               false,
		strings.Repeat("a", tenant.MaxID-1) + "-": false,
	} {
		id, err := tenant.Parse(s)
		if (err == nil) != want {
			t.Errorf("Parse(%q) = %v, want ok %t", s, err, want)
		}
		if err != nil && (!errors.Is(err, tenant.ErrInvalidID) || id != tenant.ID{}) {
			t.Errorf("Parse(%q) = %v, %v, want the zero ID and ErrInvalidID", s, id, err)
		}
	}
}
