package envelope_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

// Small vectors are the seeds: what opens and what is refused.
func addSeeds(f *testing.F, add func(o *openVector)) {
	f.Helper()
	n := 0
	for _, o := range mustLoad(f).opens {
		if len(o.Sealed) < 4096 {
			n++
			add(o)
		}
	}
	if n < 100 {
		f.Fatalf("only %d seeds", n)
	}
}

func checkClass(t *testing.T, err error) {
	t.Helper()
	if c := classOf(err); c != malformed && c != unsupported {
		t.Fatalf("class %s", c)
	}
}

func FuzzParse(f *testing.F) {
	addSeeds(f, func(o *openVector) { f.Add([]byte(o.Sealed)) })
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := envelope.Parse(in)
		if err != nil {
			if s != nil {
				t.Fatal("result with an error")
			}
			checkClass(t, err)
			return
		}
		var out []byte
		if s.N > 0 {
			var blocks [][]byte
			for i, b := range s.Blocks() {
				blocks = append(blocks, must(b.Append(nil)))
				if !bytes.Equal(blocks[i], s.RawBlock(i)) {
					t.Fatalf("block %d: %x", i, blocks[i])
				}
			}
			out = must(envelope.AppendBundleHeader(nil, blocks...))
		}
		if out = append(out, s.Envelope...); !bytes.Equal(in, out) {
			t.Fatalf("encoded %x", out)
		}
	})
}

func FuzzParseBlock(f *testing.F) {
	addSeeds(f, func(o *openVector) {
		if blocks, _, framed := split(o.Sealed); framed {
			for _, b := range blocks {
				f.Add(b)
			}
		}
	})
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := envelope.ParseBlock(in)
		if err != nil {
			if b != nil {
				t.Fatal("result with an error")
			}
			checkClass(t, err)
			return
		}
		if out := must(b.Append(nil)); !bytes.Equal(in, out) {
			t.Fatalf("encoded %x", out)
		}
	})
}

func FuzzContext(f *testing.F) {
	for _, v := range mustLoad(f).contexts {
		var in []string
		for _, p := range append(v.Pairs, pair{}, pair{}, pair{})[:3] {
			in = append(in, p.Key, p.Value)
		}
		f.Add(in[0], in[1], in[2], in[3], in[4], in[5])
	}
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		checkContext(t, map[string]string{k1: v1, k2: v2, k3: v3})
		checkContext(t, map[string]string{k1: v1})
	})
}

// FuzzOpen looks for bytes that open and were not sealed.
func FuzzOpen(f *testing.F) {
	base := mustLoad(f).open("bare")
	key := putKey(f, newSlab(f), base.DEK)
	context := must(parsePairs(base.Context))
	f.Add([]byte(base.Sealed), base.Tenant)
	addSeeds(f, func(o *openVector) { f.Add([]byte(o.Sealed), o.Tenant) })
	f.Fuzz(func(t *testing.T, in []byte, tenantID string) {
		id, err := tenant.Parse(tenantID)
		if err != nil {
			return
		}
		dst := []byte("dst")
		out, err := envelope.Open(dst, key, id, context, in)
		genuine := slices.Equal(in, base.Sealed) && tenantID == base.Tenant
		if genuine != (err == nil) || err != nil && out != nil {
			t.Fatalf("opened %q: %v", out, err)
		}
		if err == nil && string(out) != "dst"+string(base.Plaintext.bytes()) {
			t.Fatalf("opened as %q", out)
		}
	})
}
