package envelope_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestVectorsOpen(t *testing.T) {
	v := mustLoad(t)
	seen := map[string]bool{}
	for _, o := range v.opens {
		if seen[o.Name] || o.Name == "" {
			t.Errorf("vector %q is not the only one of its name", o.Name)
		}
		seen[o.Name] = true
		t.Run(o.Name, func(t *testing.T) {
			slab := newSlab(t)
			for mode, want := range map[string]class{"warm": o.Warm, "cold": o.Cold} {
				got, c := o.reader(slab, &v.keys, mode == "warm").open(o.Tenant, o.Context, o.Sealed)
				if c != want {
					t.Errorf("%s: %s, want %s", mode, c, want)
				}
				if c == ok && !bytes.Equal(got, o.Plaintext.bytes()) {
					t.Errorf("%s: plaintext differs", mode)
				}
				if c != ok && got != nil {
					t.Errorf("%s: plaintext with %s", mode, c)
				}
			}
		})
	}
}

// TestVectorsEncode builds the open vectors from their steps with the
// package's encoders.
func TestVectorsEncode(t *testing.T) {
	v := mustLoad(t)
	slab := newSlab(t)
	n := 0
	for _, o := range v.opens {
		if o.Steps == nil {
			continue
		}
		n++
		key := putKey(t, slab, o.DEK)
		id := must(tenant.Parse(o.Tenant))
		if got := envelope.DEKID(key, envelope.PurposeSeal, id); !bytes.Equal(got[:], o.Steps.DEKID) {
			t.Errorf("%s: dek_id %s", o.Name, got)
		}
		key.Wipe()
		if got := must(parsePairs(o.Context)).Encoded(); !bytes.Equal(got, o.Steps.Context) {
			t.Errorf("%s: context %x", o.Name, got)
		}
		if got := encodeBundle(t, o); !bytes.Equal(got, o.Sealed) {
			t.Errorf("%s: bundle %x", o.Name, got)
		}
	}
	if n == 0 {
		t.Error("no vector has steps")
	}
}

func encodeBundle(t *testing.T, o *openVector) []byte {
	t.Helper()
	s, err := envelope.Parse(o.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	if s.N != len(o.Steps.Blocks) || !bytes.Equal(s.DEKID[:], o.Steps.DEKID) {
		t.Errorf("%s: %d blocks, dek_id %s", o.Name, s.N, s.DEKID)
	}
	if s.N == 0 {
		return s.Envelope
	}
	var blocks [][]byte
	for i, b := range s.Blocks() {
		want := o.Steps.Blocks[i]
		blocks = append(blocks, must(b.Append(nil)))
		if !bytes.Equal(s.RawBlock(i), want.Block) || !bytes.Equal(blocks[i], want.Block) {
			t.Errorf("%s: block %d: %x", o.Name, i, blocks[i])
		}
		if len(want.Signed) > 0 && !bytes.Equal(b.SignedBytes(nil), want.Signed) {
			t.Errorf("%s: block %d: signed bytes %x", o.Name, i, b.SignedBytes(nil))
		}
	}
	return append(must(envelope.AppendBundleHeader(nil, blocks...)), s.Envelope...)
}

func TestVectorsContext(t *testing.T) {
	for _, v := range mustLoad(t).contexts {
		c, err := parsePairs(v.Pairs)
		switch {
		case v.Expect == ok && err != nil:
			t.Errorf("%s: %v", v.Name, err)
		case v.Expect == ok && !bytes.Equal(c.Encoded(), v.Encoded):
			t.Errorf("%s: %x, want %x", v.Name, c.Encoded(), v.Encoded)
		case v.Expect != ok && err == nil:
			t.Errorf("%s: accepted", v.Name)
		}
	}
}

// TestVectorsMutations tries every prefix and every flipped bit that
// mutations.json lists, and that it lists all of them once.
func TestVectorsMutations(t *testing.T) {
	v := mustLoad(t)
	for _, m := range v.mutations {
		t.Run(m.Base, func(t *testing.T) {
			base := v.open(m.Base)
			j := newJudge(t, base, &v.keys)
			next := 0
			for _, p := range m.Prefixes {
				for n := p.From; n <= p.To; n++ {
					if n != next {
						t.Fatalf("prefix %d stands where %d should", n, next)
					}
					next++
					if got := j.verdict(t, base.Sealed[:n]); got != (verdict{p.Warm, p.Cold}) {
						t.Errorf("prefix %d: %v, want %v", n, got, p)
					}
				}
			}
			if next != len(base.Sealed) {
				t.Errorf("prefixes up to %d of %d bytes", next, len(base.Sealed))
			}
			if len(m.Fields) > 0 {
				j.checkFields(t, m.Fields)
			}
		})
	}
}

func (j *judge) checkFields(t *testing.T, fields []flipsField) {
	seen := make([]byte, len(j.v.Sealed))
	for _, f := range fields {
		for _, fl := range f.Flips {
			for i := fl.Offset; i < fl.Offset+fl.Length; i++ {
				if seen[i]&fl.Mask[0] != 0 || i < f.Offset || i >= f.Offset+f.Length {
					t.Errorf("%s: byte %d twice or not in the field", f.Name, i)
				}
				seen[i] |= fl.Mask[0]
				for bit := range 8 {
					if fl.Mask[0]>>bit&1 == 0 {
						continue
					}
					if got := j.verdict(t, flipped(j.v.Sealed, i, bit)); got != (verdict{fl.Warm, fl.Cold}) {
						t.Errorf("%s: byte %d bit %d: %v, want %v", f.Name, i, bit, got, fl)
					}
				}
			}
		}
	}
	if i := slices.IndexFunc(seen, func(b byte) bool { return b != 0xff }); i >= 0 {
		t.Errorf("byte %d: not every bit is listed", i)
	}
}

// fieldClasses is what flipping a bit of a field may lead to: the classes of
// a warm reader, and those of a cold one where they differ. SPEC.md, section
// 13, explains each "ok". "used" is the block that a cold reader unwraps.
var fieldClasses = map[string]string{
	"bundle.magic":         "malformed",
	"bundle.version":       "unsupported",
	"bundle.n":             "malformed",
	"block.length":         "malformed",
	"block.version":        "unsupported",
	"block.kind":           "unsupported",
	"block.purpose":        "unsupported malformed",
	"block.alg":            "unsupported malformed",
	"block.key_id":         "authentication-failed",
	"block.tenant.length":  "malformed",
	"block.tenant":         "malformed authentication-failed",
	"block.kek_ref.length": "malformed",
	"block.kek_ref":        "malformed kek-not-allowed",
	"block.wrapped.length": "malformed",
	"block.proof.length":   "malformed",
	"header.magic":         "malformed",
	"header.version":       "unsupported",
	"header.suite":         "unsupported",
	"header.flags":         "unsupported",
	"header.dek_id":        "authentication-failed",
	"body.salt":            "authentication-failed",
	"body.commitment":      "authentication-failed",
	"body.chunks":          "authentication-failed",
	// Not "block.": these depend on the block.
	"alg3 used.created":   "ok / authentication-failed",
	"alg3 used.parent":    "malformed", // the branch block is no longer named
	"alg3 used.wrapped":   "ok / authentication-failed",
	"alg3 unused.created": "ok",
	"alg3 unused.parent":  "malformed",
	"alg3 unused.wrapped": "ok",
	"kek used.created":    "ok",
	"kek used.parent":     "ok / kek-not-found",
	"kek used.wrapped":    "ok / authentication-failed",
	"kek unused.created":  "ok",
	"kek unused.parent":   "ok",
	"kek unused.wrapped":  "ok",
	"proof.created":       "authentication-failed",
	"proof.proof":         "unsupported authentication-failed",
	"branch.key_id":       "malformed",
	"branch.purpose":      "unsupported malformed",
}

// usedBlocks are the blocks that a cold reader unwraps.
var usedBlocks = map[string]string{
	"bare": "", "full-oct-first": "block0", "full-rsa-first": "block0", "full-branch-first": "block0 block1",
}

// TestFieldClasses holds mutations.json, whose classes are computed, to the
// table above.
func TestFieldClasses(t *testing.T) {
	v := mustLoad(t)
	n := 0
	for _, m := range v.mutations {
		for _, f := range m.Fields {
			n++
			want := expectedClasses(t, must(envelope.Parse(v.open(m.Base).Sealed)), m.Base, f.Name)
			warm, cold, both := strings.Cut(want, " / ")
			if !both {
				cold = warm
			}
			if m.Base == "bare" && cold == string(unauthentic) {
				cold = string(needsRegistry)
			}
			for _, fl := range f.Flips {
				if !listed(warm, fl.Warm) || !listed(cold, fl.Cold) {
					t.Errorf("%s: %s at %d: %s, %s; want %s", m.Base, f.Name, fl.Offset, fl.Warm, fl.Cold, want)
				}
			}
		}
	}
	if n == 0 {
		t.Error("no field")
	}
}

func listed(list string, c class) bool { return slices.Contains(strings.Fields(list), string(c)) }

func expectedClasses(t *testing.T, s *envelope.Sealed, base, name string) string {
	t.Helper()
	prefix, what, _ := strings.Cut(name, ".")
	i := strings.TrimPrefix(prefix, "block")
	if i == prefix {
		return fieldClasses[name]
	}
	b := s.Blocks()[i[0]-'0']
	use := " unused"
	if strings.Contains(usedBlocks[base], prefix) {
		use = " used"
	}
	how := "kek"
	if b.Alg == envelope.AlgBranch {
		how = "alg3"
	}
	names := []string{how + use + "." + what, "block." + what}
	if len(b.Proof) > 0 {
		names = slices.Insert(names, 0, "proof."+what)
	}
	if b.Kind == envelope.KindBranch {
		names = slices.Insert(names, 0, "branch."+what)
	}
	for _, n := range names {
		if c := fieldClasses[n]; c != "" {
			return c
		}
	}
	t.Fatalf("no classes for %s of %s", name, base)
	return ""
}
