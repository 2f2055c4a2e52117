package sidecar_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/keysidecar/keysidecar/internal/secret"
)

// A form is how a secret may stand in a text: parts of it, each written, and
// what is between two of them.
type form struct {
	name, between string
	parts         []string
	// run is how many parts in a row are enough to be found by, and step how
	// far apart those runs begin.
	run, step int
	// lost is what a part is written as of which nothing is left.
	lost string
}

// eachByte writes every byte by itself, by a verb of package fmt.
func eachByte(raw []byte, verb string) []string {
	parts := make([]string, len(raw))
	for i, b := range raw {
		parts[i] = fmt.Sprintf(verb, b)
	}
	return parts
}

// eachRune writes what UTF-8 takes for a character, and bytes that are none by
// themselves.
func eachRune(raw []byte, write func(string) string) []string {
	var parts []string
	for len(raw) > 0 {
		_, n := utf8.DecodeRune(raw)
		parts = append(parts, write(string(raw[:n])))
		raw = raw[n:]
	}
	return parts
}

func unquoted(write func(string) string) func(string) string {
	return func(s string) string {
		s = write(s)
		return s[1 : len(s)-1]
	}
}

// inJSON writes s as encoding/json does.
func inJSON(html bool) func(string) string {
	return func(s string) string {
		var out bytes.Buffer
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(html)
		_ = e.Encode(s) // of a string, to memory
		return strings.TrimSuffix(out.String(), "\n")
	}
}

// inSlog writes s as log/slog does.
func inSlog(s string) string {
	return strings.NewReplacer(`\b`, `\u0008`, `\f`, `\u000c`).Replace(inJSON(false)(s))
}

// enough bytes in a row are no coincidence. Of those that dumps write in groups
// of eight, and of those that a goroutine dump writes before it stops, there
// are fewer; JSON loses half of them.
const enough, group, lossy, kept = 12, 7, 16, 3

// forms are the ways in which raw may be printed.
func forms(raw []byte) []form {
	same := func(s string) string { return s }
	const lost = `\ufffd`
	return []form{
		{"as it is", "", eachRune(raw, same), enough - 2, 1, ""},
		{"URL", "", eachRune(raw, url.QueryEscape), enough - 2, 1, ""},
		{"Go string", "", eachRune(raw, unquoted(strconv.Quote)), enough - 2, 1, ""},
		{"Go string, ASCII", "", eachRune(raw, unquoted(strconv.QuoteToASCII)), enough - 2, 1, ""},
		{"JSON string", "", eachRune(raw, unquoted(inJSON(true))), lossy, 1, lost},
		{"JSON string, no HTML", "", eachRune(raw, unquoted(inJSON(false))), lossy, 1, lost},
		{"JSON string, slog", "", eachRune(raw, unquoted(inSlog)), lossy, 1, lost},
		{"Latin-1 as UTF-8", "", eachByte(raw, "%c"), enough, 4, ""},
		{"hex", "", eachByte(raw, "%02x"), enough, 4, ""},
		{"HEX", "", eachByte(raw, "%02X"), enough, 4, ""},
		{"spaced hex", " ", eachByte(raw, "%02x"), group, 1, ""},
		{"spaced HEX", " ", eachByte(raw, "%02X"), group, 1, ""},
		{"0x hex", " ", eachByte(raw, "0x%02x"), enough, 4, ""},
		{"0x HEX", " ", eachByte(raw, "0X%02X"), enough, 4, ""},
		{"Go bytes, and arrays in goroutine dumps", ", ", eachByte(raw, "0x%x"), group, 4, ""},
		{"decimal", " ", eachByte(raw, "%d"), enough, 4, ""},
		{"decimal list", ", ", eachByte(raw, "%d"), enough, 4, ""},
		{"JSON list", ",", eachByte(raw, "%d"), enough, 4, ""},
		{"octal", "", eachByte(raw, `\%03o`), enough, 4, ""},
	}
}

// base64s are raw in base64, wherever in the encoded text it begins: less the
// characters that what stands beside it has a part in.
func base64s(raw []byte) []string {
	var all []string
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			text := encoding.EncodeToString(append(make([]byte, before), raw...))
			all = append(all, text[(before*8+5)/6:(before+len(raw))*8/6])
		}
	}
	return all
}

// needleSize is how much of a needle finds it. None is shorter.
const needleSize = 8

// A needle is a secret, or a part of it, in one of its forms.
type needle struct{ secret, form, text string }

// A search knows what may be nowhere.
type search struct{ needles map[[needleSize]byte][]needle }

func (s *search) addNeedle(secret, form, text string) {
	if s.needles == nil {
		s.needles = make(map[[needleSize]byte][]needle)
	}
	key := [needleSize]byte([]byte(text))
	s.needles[key] = append(s.needles[key], needle{secret, form, text})
}

// add makes raw a secret: 16 bytes of it in a row are found anywhere, and where
// JSON leaves half of them out, 32.
func (s *search) add(secret string, raw []byte) {
	for _, f := range forms(raw) {
		for i := 0; i+f.run <= len(f.parts); i += f.step {
			text := strings.Join(f.parts[i:i+f.run], f.between)
			if f.lost == "" || strings.Count(text, f.lost) <= f.run-kept {
				s.addNeedle(secret, f.name, text)
			}
		}
	}
	for i := 0; i+enough <= len(raw); i += 4 {
		for _, text := range base64s(raw[i : i+enough]) {
			s.addNeedle(secret, "base64", text)
		}
	}
}

// addDEK makes a DEK a secret, and what HMAC-SHA-512 makes of it: the DEK with
// each byte changed, in the pads that it hashes first (RFC 2104).
func (s *search) addDEK(name string, dek [secret.Size]byte) {
	s.add(name, dek[:])
	s.add(name+", inner HMAC pad", xor(dek[:], 0x36))
	s.add(name+", outer HMAC pad", xor(dek[:], 0x5c))
}

func xor(b []byte, pad byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ pad
	}
	return out
}

// in returns what of the secrets text has, quoted up to two times more than
// its form is: a log in JSON quotes an error that quotes a value.
func (s *search) in(text []byte) []string {
	var found []string
	unquote := strings.NewReplacer(`\\`, `\`, `\"`, `"`)
	for range 3 {
		found = s.inAsIs(found, text)
		text = []byte(unquote.Replace(string(text)))
	}
	return found
}

func (s *search) inAsIs(found []string, text []byte) []string {
	for i := 0; i+needleSize <= len(text); i++ {
		for _, n := range s.needles[[needleSize]byte(text[i:])] {
			if what := n.secret + " (" + n.form + ")"; bytes.HasPrefix(text[i:], []byte(n.text)) && !slices.Contains(found, what) {
				found = append(found, what)
			}
		}
	}
	return found
}

// places are what a sidecar has left behind, by where it was.
type places map[string][]byte

// addDir adds the name and the bytes of every file below dir, and the targets
// of links.
func (p places) addDir(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		content := []byte(path)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			content = append(content, target...)
			if err != nil {
				return err
			}
		case d.Type().IsRegular():
			file, err := os.ReadFile(path)
			content = append(append(content, '\n'), file...)
			if err != nil {
				return err
			}
		}
		p[path] = content
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wantNothing fails for every secret in one of the places.
func (p places) wantNothing(t *testing.T, s *search) {
	t.Helper()
	for name, text := range p {
		for _, what := range s.in(text) {
			t.Errorf("%s has %s", name, what)
		}
	}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// prints writes raw to a text as programs do, each in its way, without any of
// what the search is made of.
func prints() map[string]func(raw []byte) string {
	logged := func(handler func(*bytes.Buffer) slog.Handler, attr func([]byte) slog.Attr) func([]byte) string {
		return func(raw []byte) string {
			var out bytes.Buffer
			slog.New(handler(&out)).LogAttrs(context.Background(), slog.LevelInfo, "message", attr(raw))
			return out.String()
		}
	}
	asJSON := func(out *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(out, nil) }
	asText := func(out *bytes.Buffer) slog.Handler { return slog.NewTextHandler(out, nil) }
	asBytes := func(raw []byte) slog.Attr { return slog.Any("request", raw) }
	asString := func(raw []byte) slog.Attr { return slog.String("error", "bad value "+string(raw)) }
	all := map[string]func([]byte) string{
		"slog JSON, bytes": logged(asJSON, asBytes), "slog, JSON string": logged(asJSON, asString),
		"slog text, bytes": logged(asText, asBytes), "slog text, string": logged(asText, asString),
		"slog JSON, %q":   logged(asJSON, func(raw []byte) slog.Attr { return slog.String("error", fmt.Sprintf("%q", raw)) }),
		"slog text, %q":   logged(asText, func(raw []byte) slog.Attr { return slog.String("error", fmt.Sprintf("%q", raw)) }),
		"%q of %q of %q":  func(raw []byte) string { return fmt.Sprintf("%q", fmt.Sprintf("%q", fmt.Sprintf("%q", raw))) },
		"hex.Dump":        hex.Dump,
		"url.QueryEscape": func(raw []byte) string { return url.QueryEscape(string(raw)) },
		"JSON bytes": func(raw []byte) string {
			text, _ := json.Marshal(struct{ B []byte }{raw})
			return string(text)
		},
		"JSON string": func(raw []byte) string {
			text, _ := json.Marshal(struct{ S string }{string(raw)})
			return string(text)
		},
		"JSON array": func(raw []byte) string {
			numbers := make([]int, len(raw))
			for i, b := range raw {
				numbers[i] = int(b)
			}
			text, _ := json.Marshal(numbers)
			return string(text)
		},
		"goroutine dump": func(raw []byte) string {
			return fmt.Sprintf("main.f({0x%x, 0x%x, 0x%x, 0x%x, 0x%x, 0x%x, 0x%x, 0x%x, ...})",
				raw[0], raw[1], raw[2], raw[3], raw[4], raw[5], raw[6], raw[7])
		},
		"Latin-1": func(raw []byte) string {
			var out strings.Builder
			for _, b := range raw {
				out.WriteRune(rune(b))
			}
			return out.String()
		},
		"octal": func(raw []byte) string {
			var out strings.Builder
			for _, b := range raw {
				fmt.Fprintf(&out, `\%03o`, b)
			}
			return out.String()
		},
	}
	for _, verb := range []string{"%s", "%q", "%+q", "%x", "%X", "% x", "% X", "%#x", "% #x", "%v", "%+v", "%#v", "%d"} {
		all[verb] = func(raw []byte) string { return fmt.Sprintf("bad request: "+verb+", or so", raw) }
	}
	for before := range 3 {
		for name, encoding := range map[string]*base64.Encoding{"std": base64.StdEncoding, "URL": base64.URLEncoding} {
			all[fmt.Sprintf("base64 %s, %d bytes before", name, before)] = func(raw []byte) string {
				return encoding.EncodeToString(slices.Concat([]byte("ab")[:before], raw, []byte("cd")))
			}
		}
	}
	return all
}

// A search that sees nothing would pass: here each kind of secret lies in a
// file, whole and in part, as each way of printing leaves it.
func TestSearchFinds(t *testing.T) {
	var s search
	marker, dek := random(t, 64), random(t, secret.Size)
	s.add("marker", marker)
	s.addDEK("DEK", [secret.Size]byte(dek))
	dir := shortDir(t)
	for how, write := range prints() {
		for name, raw := range map[string][]byte{
			"marker": marker, "DEK": dek, "DEK, inner HMAC pad": xor(dek, 0x36), "DEK, outer HMAC pad": xor(dek, 0x5c),
		} {
			parts := map[string][]byte{"whole": raw, "first 16": raw[:16], "last 16": raw[len(raw)-16:], "from the middle": raw[7:27]}
			for which, part := range parts {
				if (how == "goroutine dump" && which == "from the middle") || (strings.Contains(how, "JSON string") && which != "whole") {
					continue // an array is printed from its start, and so is a part of a secret if half of it is lost
				}
				wantFound(t, &s, dir, name, fmt.Sprintf("%s, %s", how, which), write(part))
			}
		}
		if found := s.in([]byte(write(random(t, 64)))); len(found) > 0 {
			t.Errorf("%s: something else is taken for %q", how, found)
		}
	}
}

// wantFound writes a text with a secret to a file.
func wantFound(t *testing.T, s *search, dir, secret, how, text string) {
	t.Helper()
	file, p := filepath.Join(dir, "scratch"), make(places)
	if err := os.WriteFile(file, []byte("a line\n"+text+"\nand another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.addDir(t, dir)
	found := s.in(p[file])
	if !slices.ContainsFunc(found, func(what string) bool { return strings.HasPrefix(what, secret+" (") }) {
		t.Errorf("%s, %s: found %q in %q", secret, how, found, p[file])
	}
}
