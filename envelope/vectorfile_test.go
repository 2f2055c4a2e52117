package envelope_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	vectorDir    = "../test/vectors"
	vectorSchema = "keysidecar/vectors/1"
	crypto256    = crypto.SHA256
)

// class is what a reader does with an input (SPEC.md, section 11).
type class string

const (
	ok             class = "ok"
	malformed      class = "malformed"
	unsupported    class = "unsupported"
	unauthentic    class = "authentication-failed"
	kekNotAllowed  class = "kek-not-allowed"
	kekNotFound    class = "kek-not-found"
	needsRegistry  class = "needs-registry"
	invalidTenant  class = "invalid-tenant"
	invalidContext class = "invalid-context"
)

var classes = []class{
	ok, malformed, unsupported, unauthentic, kekNotAllowed, kekNotFound, needsRegistry, invalidTenant, invalidContext,
}

func (c *class) UnmarshalText(b []byte) error {
	if *c = class(b); !slices.Contains(classes, *c) {
		return fmt.Errorf("unknown class %q", b)
	}
	return nil
}

// hexBytes is lower-case hex in the files.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func unhex(s string) []byte { return must(hex.DecodeString(s)) }

// pair is ["key", "value"], or [{"hex": "ff"}, ...] for what is not UTF-8.
type pair struct{ Key, Value string }

func (p pair) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{jsonText(p.Key), jsonText(p.Value)})
}

func jsonText(s string) any {
	if utf8.ValidString(s) {
		return s
	}
	return map[string]hexBytes{"hex": hexBytes(s)}
}

func (p *pair) UnmarshalJSON(b []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(b, &parts); err != nil || len(parts) != 2 {
		return fmt.Errorf("context pair %s: not two elements: %w", b, err)
	}
	for i, s := range []*string{&p.Key, &p.Value} {
		var raw struct{ Hex hexBytes }
		if json.Unmarshal(parts[i], s) == nil {
			continue
		}
		if err := strict(parts[i], &raw); err != nil {
			return err
		}
		*s = string(raw.Hex)
	}
	return nil
}

type head struct {
	Schema string `json:"schema"`
	Type   string `json:"type"`
	Note   string `json:"note"`
}

type keyFile struct {
	head
	KEKs    []kekVector    `json:"keks"`
	Signers []signerVector `json:"signers"`
}

type kekVector struct {
	Ref     string   `json:"ref"`
	Alg     string   `json:"alg"`
	Version hexBytes `json:"version"`
	PKCS8   hexBytes `json:"pkcs8,omitempty"`
	Key     hexBytes `json:"key,omitempty"`

	// The parsed key, and what was unwrapped so far: RSA is slow, and flips
	// repeat.
	private   *rsa.PrivateKey
	unwrapped map[string][]byte
}

type signerVector struct {
	Name  string   `json:"name"`
	ID    hexBytes `json:"id"`
	SPKI  hexBytes `json:"spki"`
	PKCS8 hexBytes `json:"pkcs8"`
}

type contextFile struct {
	head
	Vectors []contextVector `json:"vectors"`
}

type contextVector struct {
	Name    string   `json:"name"`
	Pairs   []pair   `json:"pairs"`
	Expect  class    `json:"expect"`
	Encoded hexBytes `json:"encoded,omitempty"`
}

type openFile struct {
	head
	Vectors []*openVector `json:"vectors"`
}

// openVector is one input to a reader, and what the reader does. Warm: the
// reader holds the proven DEK. Cold: it has KEKs and pinned signers only.
type openVector struct {
	Name      string     `json:"name"`
	Note      string     `json:"note,omitempty"`
	Warm      class      `json:"warm"`
	Cold      class      `json:"cold"`
	Tenant    string     `json:"tenant"`
	Context   []pair     `json:"context"`
	KEKs      []string   `json:"keks"`
	Signers   []string   `json:"signers"`
	DEK       hexBytes   `json:"dek"`
	Plaintext *plaintext `json:"plaintext,omitempty"`
	Steps     *steps     `json:"steps,omitempty"`
	Sealed    hexBytes   `json:"sealed"`
}

// plaintext is bytes, or the length of the pattern in which byte i is i mod 251.
type plaintext struct {
	Hex     *hexBytes `json:"hex,omitempty"`
	Pattern *int      `json:"pattern,omitempty"`
}

func (p *plaintext) bytes() []byte {
	if p.Hex != nil {
		return *p.Hex
	}
	b := make([]byte, *p.Pattern)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

type steps struct {
	DEKIDInfo  hexBytes     `json:"dek_id_info"`
	DEKID      hexBytes     `json:"dek_id"`
	Header     hexBytes     `json:"header"`
	Salt       hexBytes     `json:"salt"`
	Context    hexBytes     `json:"context"`
	Binding    hexBytes     `json:"binding"`
	Info       hexBytes     `json:"info"`
	OKM        hexBytes     `json:"okm"`
	MessageKey hexBytes     `json:"message_key"`
	BaseNonce  hexBytes     `json:"base_nonce"`
	Commitment hexBytes     `json:"commitment"`
	Blocks     []blockSteps `json:"blocks,omitempty"`
}

type blockSteps struct {
	Kind        byte     `json:"kind"`
	Alg         byte     `json:"alg"`
	Purpose     byte     `json:"purpose"`
	KeyID       hexBytes `json:"key_id"`
	Created     string   `json:"created"` // decimal: JSON numbers end at 2^53
	Tenant      string   `json:"tenant"`
	KEKRef      string   `json:"kek_ref"`
	Parent      hexBytes `json:"parent"`
	OAEPSeed    hexBytes `json:"oaep_seed,omitempty"`
	BranchKey   hexBytes `json:"branch_key,omitempty"`
	WrappingKey hexBytes `json:"wrapping_key,omitempty"`
	WrapNonce   hexBytes `json:"wrap_nonce,omitempty"`
	Wrapped     hexBytes `json:"wrapped"`
	Signed      hexBytes `json:"signed,omitempty"`
	Proof       hexBytes `json:"proof,omitempty"`
	Block       hexBytes `json:"block"`
}

type mutationFile struct {
	head
	Vectors []*mutationVector `json:"vectors"`
}

// mutationVector says what a reader does with every prefix of one sealed
// value, and with every value that differs from it in one bit.
type mutationVector struct {
	Base     string       `json:"base"`
	Prefixes []prefixes   `json:"prefixes"`
	Fields   []flipsField `json:"fields"`
}

// prefixes are those of From to To bytes, both included.
type prefixes struct {
	From int   `json:"from"`
	To   int   `json:"to"`
	Warm class `json:"warm"`
	Cold class `json:"cold"`
}

type flipsField struct {
	Name   string  `json:"name"`
	Offset int     `json:"offset"`
	Length int     `json:"length"`
	Flips  []flips `json:"flips"`
}

// flips are those of every bit in Mask of each of Length bytes from Offset.
type flips struct {
	Offset int      `json:"offset"`
	Length int      `json:"length"`
	Mask   hexBytes `json:"mask"`
	Warm   class    `json:"warm"`
	Cold   class    `json:"cold"`
}

// vectors is everything in the directory.
type vectors struct {
	keys      keyFile
	contexts  []contextVector
	opens     []*openVector
	mutations []*mutationVector
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("data after the JSON value")
	}
	return nil
}

// loadVectors reads dir. It refuses an empty directory, an unknown type, key
// or class, and a type of which there is nothing.
func loadVectors(dir string) (*vectors, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(names) == 0 {
		return nil, fmt.Errorf("no vector files in %s: %w", dir, err)
	}
	v := new(vectors)
	for _, name := range names {
		if err := v.load(name); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
	}
	if len(v.keys.KEKs) == 0 || len(v.contexts) == 0 || len(v.opens) == 0 || len(v.mutations) == 0 {
		return nil, fmt.Errorf("%s lacks a type of vectors", dir)
	}
	return v, nil
}

func (v *vectors) load(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var h head
	if err := json.Unmarshal(b, &h); err != nil {
		return err
	}
	if h.Schema != vectorSchema {
		return fmt.Errorf("schema %q", h.Schema)
	}
	var contexts contextFile
	var opens openFile
	var mutations mutationFile
	switch h.Type {
	case "keys":
		return strict(b, &v.keys)
	case "context":
		err = strict(b, &contexts)
	case "open":
		err = strict(b, &opens)
	case "mutations":
		err = strict(b, &mutations)
	default:
		err = fmt.Errorf("type %q", h.Type)
	}
	v.contexts = append(v.contexts, contexts.Vectors...)
	v.opens = append(v.opens, opens.Vectors...)
	v.mutations = append(v.mutations, mutations.Vectors...)
	return err
}

func mustLoad(t testing.TB) *vectors {
	t.Helper()
	v, err := loadVectors(vectorDir)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vectors) open(name string) *openVector {
	i := slices.IndexFunc(v.opens, func(o *openVector) bool { return o.Name == name })
	if i < 0 {
		return nil
	}
	return v.opens[i]
}

func (f *keyFile) kek(ref string) *kekVector {
	i := slices.IndexFunc(f.KEKs, func(k kekVector) bool { return k.Ref == ref })
	if i < 0 {
		return nil
	}
	return &f.KEKs[i]
}

func (f *keyFile) signer(name string) *signerVector {
	i := slices.IndexFunc(f.Signers, func(s signerVector) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &f.Signers[i]
}

func (k *kekVector) rsa() *rsa.PrivateKey {
	if k.private == nil {
		k.private = must(x509.ParsePKCS8PrivateKey(k.PKCS8)).(*rsa.PrivateKey)
	}
	return k.private
}

func (s *signerVector) private() *ecdsa.PrivateKey {
	return must(x509.ParsePKCS8PrivateKey(s.PKCS8)).(*ecdsa.PrivateKey)
}

func TestLoadVectorsRefuses(t *testing.T) {
	good := `{"schema":"keysidecar/vectors/1","type":"open","note":"","vectors":[]}`
	for name, content := range map[string]string{
		"no file":       "",
		"wrong schema":  strings.Replace(good, "vectors/1", "vectors/2", 1),
		"unknown type":  strings.Replace(good, `"open"`, `"opens"`, 1),
		"unknown key":   strings.Replace(good, `"note"`, `"notes"`, 1),
		"unknown class": strings.Replace(good, "[]", `[{"warm":"fine"}]`, 1),
		"nothing in it": good,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if content != "" {
				if err := os.WriteFile(filepath.Join(dir, "v.json"), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := loadVectors(dir); err == nil {
				t.Error("loaded")
			}
		})
	}
}
