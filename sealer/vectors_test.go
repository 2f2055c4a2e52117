package sealer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// The vector files of test/vectors, as far as a Sealer needs them; package
// envelope checks them strictly.
type (
	hexBytes []byte

	keyFile struct {
		KEKs []struct {
			Ref, Alg            string
			Version, PKCS8, Key hexBytes
		}
		Signers []struct {
			Name     string
			ID, SPKI hexBytes
		}
	}

	openVector struct {
		Name, Warm, Cold, Tenant string
		Context                  [][2]contextText
		KEKs, Signers            []string
		DEK, Sealed              hexBytes
		Plaintext                struct {
			Hex     hexBytes
			Pattern int
		}
	}

	flips struct {
		Offset, Length int
		Mask           hexBytes
		Warm, Cold     string
	}

	mutationVector struct {
		Base     string
		Prefixes []struct {
			From, To   int
			Warm, Cold string
		}
		Fields []struct {
			Name  string
			Flips []flips
		}
	}
)

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// contextText is a string, or {"hex": "..."} for what is not UTF-8.
type contextText string

func (c *contextText) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return json.Unmarshal(b, (*string)(c))
	}
	var raw struct{ Hex hexBytes }
	err := json.Unmarshal(b, &raw)
	*c = contextText(raw.Hex)
	return err
}

func loadVectors[T any](t *testing.T, name string) T {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../test/vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	var out T
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func loadOpen(t *testing.T, name string) []openVector {
	t.Helper()
	file := loadVectors[struct{ Vectors []openVector }](t, name)
	if len(file.Vectors) == 0 {
		t.Fatalf("%s has no vectors", name)
	}
	return file.Vectors
}

// bench opens vectors: a vault with the vectors' KEKs, and a slab.
type bench struct {
	vault   *kektest.Memory
	keks    map[string]kek.Key
	signers map[string]*ecdsa.PublicKey
	slab    *secret.Slab
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{vault: kektest.NewMemory(), keks: make(map[string]kek.Key), signers: make(map[string]*ecdsa.PublicKey)}
	file := loadVectors[keyFile](t, "keys.json")
	for _, k := range file.KEKs {
		alg, err := kek.ParseAlg(k.Alg)
		if err != nil {
			t.Fatal(err)
		}
		key := kek.Key{Ref: k.Ref, Vault: "https://vectors.vault.localhost", Name: k.Ref, Alg: alg}
		b.keks[k.Ref] = key
		if alg == kek.A256KW {
			b.vault.ImportAES(key, kek.Version(k.Version), [32]byte(k.Key))
			continue
		}
		private, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
		if err != nil {
			t.Fatal(err)
		}
		b.vault.ImportRSA(key, kek.Version(k.Version), private.(*rsa.PrivateKey))
	}
	for _, s := range file.Signers {
		pub, err := x509.ParsePKIXPublicKey(s.SPKI)
		if err != nil {
			t.Fatal(err)
		}
		b.signers[s.Name] = pub.(*ecdsa.PublicKey)
	}
	var err error
	if b.slab, err = secret.New(secret.Config{Slots: 64}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := b.slab.InUse(); n != 0 {
			t.Errorf("%d keys are left in the slab", n)
		}
		if err := b.slab.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// reader is a Sealer configured as a vector says.
type reader struct {
	*sealer.Sealer
	b     *bench
	v     *openVector
	entry *tenant.Entry
	close func()
}

func (b *bench) reader(t *testing.T, v *openVector) *reader {
	t.Helper()
	r := &reader{b: b, v: v}
	deks, err := dek.New(dek.Config{KEKs: b.vault, Slab: b.slab, Logger: slog.New(slog.DiscardHandler), CacheEntries: 8, TenantShare: 1})
	if err != nil {
		t.Fatal(err)
	}
	r.close = deks.Close
	signers := make(map[envelope.ID]*ecdsa.PublicKey)
	for _, name := range v.Signers {
		id, err := envelope.SignerID(b.signers[name])
		if err != nil {
			t.Fatal(err)
		}
		signers[id] = b.signers[name]
	}
	admitted := admitMe(t)
	r.Sealer, err = sealer.New(sealer.Config{
		DEKs: deks, Signers: signers, Limits: noLimits(t),
		Rules: func() *sealer.Rules {
			return &sealer.Rules{Policy: admitted, Tenants: func(id tenant.ID) (*tenant.Entry, error) {
				entry := &tenant.Entry{ID: id}
				for _, ref := range v.KEKs {
					entry.KEKs = append(entry.KEKs, b.keks[ref])
				}
				if r.entry != nil {
					entry = r.entry
				}
				return entry, nil
			}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// warm makes the reader hold the vector's DEK, by a complete open of something
// else that is sealed under it. A tenant that is ill-formed has no DEK.
func (r *reader) warm(t *testing.T) {
	t.Helper()
	id, err := tenant.Parse(r.v.Tenant)
	if err != nil {
		return
	}
	k := r.b.keks["oct"]
	if len(r.v.KEKs) > 0 {
		k.Ref = r.v.KEKs[0] // the tenant has to have the KEK still
	}
	r.entry = &tenant.Entry{ID: id, KEKs: []kek.Key{k}}
	raw := [32]byte(r.v.DEK)
	version, err := r.b.vault.Newest(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := r.b.vault.Wrap(t.Context(), k, version, &raw)
	if err != nil {
		t.Fatal(err)
	}
	key, err := r.b.slab.Put(&raw)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	block := envelope.Block{Kind: envelope.KindDEK, Purpose: envelope.PurposeSeal, Alg: envelope.AlgA256KW,
		KeyID: envelope.DEKID(key, envelope.PurposeSeal, id), Tenant: []byte(id.String()), KEKRef: []byte(k.Ref),
		Parent: envelope.ID(version), Wrapped: wrapped}
	encoded, err := block.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := envelope.AppendBundleHeader(nil, encoded)
	if err != nil {
		t.Fatal(err)
	}
	bundle = envelope.Seal(bundle, key, block.KeyID, id, envelope.Context{}, nil)
	if _, err := r.Unseal(t.Context(), request(r.v.Tenant, bundle)); err != nil {
		t.Fatalf("%s: warming: %v", r.v.Name, err)
	}
	r.entry = nil
}

// open returns the class of what the reader does with sealed.
func (r *reader) open(ctx context.Context, sealed []byte) (string, []byte) {
	pairs := make(map[string]string, len(r.v.Context))
	for _, p := range r.v.Context {
		pairs[string(p[0])] = string(p[1])
	}
	res, err := r.Unseal(ctx, sealer.Request{Caller: me(), CallerName: "me", Tenant: r.v.Tenant, Context: pairs, Data: sealed})
	switch reason := reasonOf(err); {
	case err == nil:
		return "ok", res.Data
	case reason == sealer.MalformedEnvelope:
		return "malformed", nil
	case reason == sealer.UnsupportedFormat:
		return "unsupported", nil
	default:
		return strings.ToLower(strings.ReplaceAll(reason.String(), "_", "-")), nil
	}
}

// free are the classes that may not cost a Key Vault call.
var free = []string{"malformed", "unsupported", "invalid-tenant", "invalid-context", "kek-not-allowed"}

// check opens sealed and compares. A Sealer without a registry answers every
// well-formed envelope alone with needs-registry, warm or cold.
func (r *reader) check(t *testing.T, what, want string, sealed []byte) []byte {
	t.Helper()
	if bytes.HasPrefix(r.v.Sealed, []byte("KSE")) && !slices.Contains(free, want) {
		want = "needs-registry"
	}
	before := r.b.vault.Counts()
	got, plaintext := r.open(t.Context(), sealed)
	if got != want {
		t.Errorf("%s: %s: %s, want %s", r.v.Name, what, got, want)
	}
	if after := r.b.vault.Counts(); after != before && slices.Contains(free, want) {
		t.Errorf("%s: %s: cost Key Vault calls: %+v, then %+v", r.v.Name, what, before, after)
	}
	return plaintext
}

// repeats reports whether the context has a key twice: no request can.
func (v *openVector) repeats() bool {
	seen := make(map[contextText]bool)
	for _, p := range v.Context {
		if seen[p[0]] {
			return true
		}
		seen[p[0]] = true
	}
	return false
}

func (v *openVector) plaintext() []byte {
	if v.Plaintext.Pattern == 0 {
		return v.Plaintext.Hex
	}
	b := make([]byte, v.Plaintext.Pattern)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

func TestVectors(t *testing.T) {
	b := newBench(t)
	ran := 0
	for _, file := range []string{"open.json", "refuse.json"} {
		for _, v := range loadOpen(t, file) {
			if v.repeats() {
				continue // protobuf maps have each key once
			}
			ran++
			cold := b.reader(t, &v)
			opened := [][]byte{cold.check(t, "cold", v.Cold, v.Sealed)}
			cold.close()
			warm := b.reader(t, &v)
			warm.warm(t)
			opened = append(opened, warm.check(t, "warm", v.Warm, v.Sealed))
			warm.close()
			for _, plaintext := range opened {
				if plaintext != nil && !bytes.Equal(plaintext, v.plaintext()) {
					t.Errorf("%s: another plaintext", v.Name)
				}
			}
		}
	}
	if ran < 200 {
		t.Errorf("%d vectors ran", ran)
	}
}

// Every prefix, and every flipped bit, has the class that the vectors state: on
// a reader that holds the DEK, and on one that holds nothing. To save RSA
// operations a cold reader gets one flipped bit of each byte of an RSA-wrapped
// key; package envelope flips them all.
func TestMutations(t *testing.T) {
	b := newBench(t)
	bases := make(map[string]openVector)
	for _, v := range loadOpen(t, "open.json") {
		bases[v.Name] = v
	}
	file := loadVectors[struct{ Vectors []mutationVector }](t, "mutations.json")
	if len(file.Vectors) == 0 {
		t.Fatal("mutations.json has no vectors")
	}
	for _, m := range file.Vectors {
		v := bases[m.Base]
		warm := b.reader(t, &v)
		warm.warm(t)
		cold := func(what, want string, sealed []byte) {
			r := b.reader(t, &v)
			defer r.close()
			r.check(t, what, want, sealed)
		}
		m.eachPrefix(&v, warm, t, cold)
		m.eachFlip(&v, warm, t, cold)
		warm.close()
	}
}

func (m *mutationVector) eachPrefix(v *openVector, warm *reader, t *testing.T, cold func(what, want string, sealed []byte)) {
	for _, p := range m.Prefixes {
		step := 1
		if p.To-p.From > 2000 {
			step = 97 // a long body: package envelope takes every prefix
		}
		for n := p.From; n <= p.To; n += step {
			warm.check(t, "warm prefix", p.Warm, v.Sealed[:n])
			cold("cold prefix", p.Cold, v.Sealed[:n])
		}
	}
}

func (m *mutationVector) eachFlip(v *openVector, warm *reader, t *testing.T, cold func(what, want string, sealed []byte)) {
	for _, field := range m.Fields {
		for _, f := range field.Flips {
			for i := f.Offset; i < f.Offset+f.Length; i++ {
				for bit := byte(1); bit != 0; bit <<= 1 {
					if f.Mask[0]&bit == 0 {
						continue
					}
					flipped := bytes.Clone(v.Sealed)
					flipped[i] ^= bit
					warm.check(t, "warm flip of "+field.Name, f.Warm, flipped)
					if f.Length >= 256 && bit != 1<<(i%8) {
						continue
					}
					cold("cold flip of "+field.Name, f.Cold, flipped)
				}
			}
		}
	}
}
