package envelope_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

var update = flag.Bool("update", false, "write the vector files instead of comparing them")

// TestVectorsCurrent makes the vector files again, from SPEC.md as
// reference_test.go has it, and compares. With -update it writes them, and
// mutations.json too, which otherwise TestVectorsMutations checks.
func TestVectorsCurrent(t *testing.T) {
	g := newGenerator(t)
	g.positives()
	g.negatives()
	files := map[string]any{
		"context.json": contextFile{g.head("context", "Encodings of encryption contexts."), g.contexts()},
		"open.json":    openFile{g.head("open", "Sealed values that open, with every intermediate value."), g.opens},
		"refuse.json":  openFile{g.head("open", "Sealed values that a reader refuses, and a few that open nevertheless."), g.refusals},
	}
	if *update {
		files["mutations.json"] = mutationFile{
			g.head("mutations", "Every prefix and every flipped bit of some values of open.json."), g.mutations(t)}
	}
	for name, content := range files {
		want := marshal(t, content)
		path := filepath.Join(vectorDir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what go test ./envelope -run TestVectorsCurrent -update writes (%v)", name, err)
		}
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type generator struct {
	keys     keyFile
	opens    []*openVector
	refusals []*openVector
	built    map[string]*message
}

func newGenerator(t *testing.T) *generator {
	t.Helper()
	g := &generator{built: map[string]*message{}}
	b, err := os.ReadFile(filepath.Join(vectorDir, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := strict(b, &g.keys); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *generator) head(kind, note string) head {
	return head{vectorSchema, kind, note + " Made by envelope/generate_test.go; see README.md."}
}

// derive returns n bytes that look random and are the same in every run.
func derive(label string, n int) []byte {
	seed := sha512.Sum512([]byte("keysidecar test vectors: " + label))
	return expand(seed[:], nil, n)
}

// message is a sealed value in the making. Fields may be changed until sealed
// is called.
type message struct {
	openVector
	salt   []byte
	blocks []madeBlock
	// header, if not nil, replaces the right one.
	header []byte
}

type madeBlock struct {
	refBlock
	steps blockSteps
}

const created = 1_764_000_000

func (g *generator) message(name string) *message {
	empty := hexBytes{}
	m := &message{
		openVector: openVector{
			Name: name, Warm: ok, Cold: ok, Tenant: "tenant-a",
			Context: []pair{{"table", "users"}, {"column", "email"}, {"id", "17"}},
			KEKs:    []string{"rsa-2048", "rsa-3072", "rsa-4096", "oct"}, Signers: []string{},
			DEK: derive(name+" dek", 32), Plaintext: &plaintext{Hex: &empty},
		},
		salt: derive(name+" salt", 24),
	}
	return m.text("hello, keysidecar")
}

func (m *message) text(s string) *message {
	b := hexBytes(s)
	m.Plaintext = &plaintext{Hex: &b}
	return m
}

func (m *message) pattern(n int) *message {
	m.Plaintext = &plaintext{Pattern: &n}
	return m
}

// envelope seals the message and notes the steps.
func (m *message) envelope() []byte {
	s := &steps{DEKIDInfo: refDEKIDInfo(m.Tenant), DEKID: refDEKID(m.DEK, m.Tenant), Salt: m.salt}
	s.Context = refContext(m.Context)
	if s.Header = m.header; s.Header == nil {
		s.Header = refHeader(s.DEKID)
	}
	s.Binding = refBinding(s.Header, m.Tenant, s.Context)
	s.Info = refInfo(m.salt, s.Binding)
	body, okm := refBody(m.DEK, m.salt, s.Binding, m.Plaintext.bytes())
	s.OKM, s.MessageKey, s.BaseNonce, s.Commitment = okm, okm[:32], okm[32:44], okm[44:]
	for _, b := range m.blocks {
		s.Blocks = append(s.Blocks, b.finish())
	}
	m.Steps = s
	return cat(s.Header, body)
}

func (b madeBlock) finish() blockSteps {
	s := b.steps
	s.Kind, s.Alg, s.Purpose, s.KeyID = b.kind, b.alg, b.purpose, b.keyID
	s.Created, s.Tenant, s.KEKRef = strconv.FormatUint(b.created, 10), b.tenant, b.kekRef
	s.Parent, s.Wrapped, s.Proof, s.Block = b.parent, b.wrapped, b.proof, b.encode()
	if len(b.proof) > 0 {
		s.Signed = b.signed()
	}
	return s
}

func (m *message) sealed() []byte {
	e := m.envelope()
	if len(m.blocks) == 0 {
		return e
	}
	var encoded [][]byte
	for _, b := range m.blocks {
		encoded = append(encoded, b.encode())
	}
	return refBundle(e, encoded...)
}

// dekBlock appends a DEK block for the message's DEK under a KEK.
func (g *generator) dekBlock(m *message, ref string) *madeBlock {
	b := g.wrapped(ref, fmt.Sprint(m.Name, " block ", len(m.blocks)), m.DEK)
	b.kind, b.purpose, b.tenant, b.keyID = 1, 1, m.Tenant, refDEKID(m.DEK, m.Tenant)
	m.blocks = append(m.blocks, b)
	return &m.blocks[len(m.blocks)-1]
}

// branchBlock appends a branch block under a KEK, signed by the control plane.
func (g *generator) branchBlock(m *message, ref, branch string) *madeBlock {
	key := derive("branch "+branch, 32)
	b := g.wrapped(ref, fmt.Sprint(m.Name, " block ", len(m.blocks)), key)
	b.kind, b.keyID, b.steps.BranchKey = 2, refBranchID(key), key
	m.Signers = []string{"control-plane"}
	m.blocks = append(m.blocks, g.signed(b, "control-plane"))
	return &m.blocks[len(m.blocks)-1]
}

// branchDEKBlock appends a DEK block for the message's DEK under a branch key.
func (g *generator) branchDEKBlock(m *message, branch string) {
	key := derive("branch "+branch, 32)
	dekID := refDEKID(m.DEK, m.Tenant)
	b := madeBlock{refBlock: refBlock{version: 1, kind: 1, purpose: 1, alg: 3, keyID: dekID, created: created,
		tenant: m.Tenant, parent: refBranchID(key)}}
	b.steps.BranchKey = key
	b.steps.WrappingKey = refWrappingKey(key, m.Tenant, b.created, dekID)
	b.steps.WrapNonce = derive(fmt.Sprint(m.Name, " block ", len(m.blocks), " nonce"), 12)
	b.wrapped = refBranchWrap(b.steps.WrappingKey, b.steps.WrapNonce, m.DEK)
	m.blocks = append(m.blocks, b)
}

// wrapped returns the part of a block that depends on the KEK.
func (g *generator) wrapped(ref, label string, key []byte) madeBlock {
	k := g.keys.kek(ref)
	b := madeBlock{refBlock: refBlock{version: 1, created: created, kekRef: ref, parent: k.Version}}
	if k.Alg == "A256KW" {
		b.alg, b.wrapped = 2, refKeyWrap(k.Key, key)
		return b
	}
	b.steps.OAEPSeed = derive(label+" oaep", 32)
	b.alg, b.wrapped = 1, refOAEP(&k.rsa().PublicKey, b.steps.OAEPSeed, key)
	return b
}

func (g *generator) signed(b madeBlock, signer string) madeBlock {
	b.proof = refProof(g.keys.signer(signer).private(), b.signed())
	return b
}

// add finishes a value that opens, and keeps it for others to start from.
func (g *generator) add(m *message) {
	if len(m.blocks) == 0 {
		m.Cold = needsRegistry
	}
	m.Sealed = m.sealed()
	g.built[m.Name] = m
	g.opens = append(g.opens, &m.openVector)
}

// from returns a copy of a value that add has finished.
func (g *generator) from(name string) *message {
	m := *g.built[name]
	m.Context, m.KEKs, m.Signers = slices.Clone(m.Context), slices.Clone(m.KEKs), slices.Clone(m.Signers)
	m.blocks = slices.Clone(m.blocks)
	return &m
}

// refuse keeps a value that does not open as it should: warm and cold say so.
func (g *generator) refuse(name string, m *message, sealed []byte, warm, cold class) {
	v := m.openVector
	v.Name, v.Sealed, v.Warm, v.Cold, v.Steps = name, sealed, warm, cold, nil
	if warm != ok && cold != ok {
		v.Plaintext = nil
	}
	g.refusals = append(g.refusals, &v)
}
