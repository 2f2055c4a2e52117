package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/internal/secret"
)

// holders returns the key in every kind of value that code may print.
func holders(k *secret.Key, s *secret.Slab) map[string]any {
	type open struct{ K *secret.Key }
	type hidden struct {
		k *secret.Key
		s *secret.Slab
	}
	return map[string]any{
		"key":             k,
		"nil key":         (*secret.Key)(nil),
		"struct":          open{k},
		"struct pointer":  &open{k},
		"unexported":      hidden{k, s},
		"pointer to that": &hidden{k, s},
		"slice":           []*secret.Key{k, k},
		"map":             map[string]*secret.Key{"k": k},
		"map key":         map[*secret.Key]int{k: 1},
		"any":             []any{k, s},
		"error":           fmt.Errorf("using %v: %w", k, errors.ErrUnsupported),
		"slab":            s,
		"nil slab":        (*secret.Slab)(nil),
		"struct of slab":  struct{ S *secret.Slab }{s},
	}
}

func TestRedaction(t *testing.T) {
	for _, level := range levels(t) {
		s, err := secret.NewAt(level, 2)
		if err != nil {
			t.Fatal(err)
		}
		key := tellingKey()
		copied := key
		k, err := s.Put(&copied)
		if err != nil {
			t.Fatal(err)
		}
		forms := needles(key)
		for name, v := range holders(k, s) {
			for form, out := range printed(t, v) {
				if leak := leaked(out, forms); leak != "" {
					t.Errorf("%s: %s as %s shows %s: %s", level, name, form, leak, out)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// printed returns v in every form in which a program writes values.
func printed(t *testing.T, v any) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, verb := range []string{
		"%v", "%+v", "%#v", "%x", "%X", "% x", "%#x", "%s", "%q", "%+q", "%d", "%08d",
		"%o", "%b", "%c", "%U", "%e", "%t", "%p", "%T",
	} {
		out[verb] = fmt.Sprintf(verb, v)
	}
	var text, jsonOut bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("m", "v", v, slog.Group("g", slog.Any("v", v)))
	slog.New(slog.NewJSONHandler(&jsonOut, nil)).Info("m", "v", v, slog.Group("g", slog.Any("v", v)))
	out["slog text"], out["slog JSON"] = text.String(), jsonOut.String()
	if b, err := json.Marshal(v); err == nil {
		out["encoding/json"] = string(b)
	}
	out["Sprint"], out["Errorf"] = fmt.Sprint(v), fmt.Errorf("%w %v", errors.ErrUnsupported, v).Error()
	return out
}

// tellingKey returns a key whose bytes are neither text nor small numbers, and
// in no regular order: no accident prints three of them.
func tellingKey() [secret.Size]byte {
	var k [secret.Size]byte
	for i := range k {
		k[i] = byte(129 + i*59%127)
	}
	return k
}

// needles returns, for every three adjacent key bytes, the forms in which
// they may be printed. Three are few enough to catch a key that is cut short.
func needles(key [secret.Size]byte) map[string]string {
	forms := map[string]string{}
	for i := range len(key) - 2 {
		p := key[i : i+3]
		for form, n := range map[string]string{
			"bytes":        string(p),
			"quoted":       strings.Trim(fmt.Sprintf("%+q", p), `"`),
			"hex":          hex.EncodeToString(p),
			"spaced hex":   fmt.Sprintf("% x", p),
			"Go hex":       fmt.Sprintf("%#x, %#x, %#x", p[0], p[1], p[2]),
			"long hex":     fmt.Sprintf("%#x %#x %#x", p[0], p[1], p[2]),
			"decimal":      fmt.Sprintf("%d %d %d", p[0], p[1], p[2]),
			"JSON decimal": fmt.Sprintf("%d,%d,%d", p[0], p[1], p[2]),
			"padded":       fmt.Sprintf("%08d %08d %08d", p[0], p[1], p[2]),
			"octal":        fmt.Sprintf("%o %o %o", p[0], p[1], p[2]),
			"binary":       fmt.Sprintf("%b %b %b", p[0], p[1], p[2]),
			"characters":   fmt.Sprintf("%c %c %c", p[0], p[1], p[2]),
			"code points":  fmt.Sprintf("%U %U %U", p[0], p[1], p[2]),
			"wrong verb":   fmt.Sprintf("(uint8=%d)", p[0]),
		} {
			forms[strings.ToLower(n)] = form
			forms[n] = form
		}
	}
	forms[base64.StdEncoding.EncodeToString(key[:])[:40]] = "base64"
	return forms
}

// leaked says in which form key bytes stand in out, or "".
func leaked(out string, forms map[string]string) string {
	lower := strings.ToLower(out)
	for n, form := range forms {
		if strings.Contains(out, n) || strings.Contains(lower, n) {
			return form + " " + n
		}
	}
	return ""
}

func TestRedactedForms(t *testing.T) {
	s := newSlab(t, 1)
	k, _ := put(t, s)
	for verb := range strings.FieldsSeq("%v %+v %#v %x %s %q %d") {
		if got := fmt.Sprintf(verb, k); got != "REDACTED" {
			t.Errorf("%s = %q", verb, got)
		}
	}
	b, err := json.Marshal(map[string]any{"k": k})
	if err != nil || string(b) != `{"k":"REDACTED"}` {
		t.Errorf("JSON = %s, %v", b, err)
	}
	text, err := k.MarshalText()
	if err != nil || string(text) != "REDACTED" || k.String() != "REDACTED" || k.GoString() != "REDACTED" {
		t.Errorf("text = %s, %v; %s, %s", text, err, k.String(), k.GoString())
	}
	if got := k.LogValue().String(); got != "REDACTED" {
		t.Errorf("LogValue = %q", got)
	}
}

// TestLeakedFinds keeps the test above honest: it must see a leak wherever
// fmt prints a bare array.
func TestLeakedFinds(t *testing.T) {
	key := tellingKey()
	forms := needles(key)
	for form, out := range printed(t, struct{ K [secret.Size]byte }{key}) {
		switch form {
		case "%p", "%T": // These print no contents.
			continue
		}
		if leaked(out, forms) == "" {
			t.Errorf("%s hides the key from this test: %s", form, out)
		}
	}
}
