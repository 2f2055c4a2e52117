package envelope_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// field is a named range of bytes of a sealed value.
type field struct {
	name           string
	offset, length int
}

// fieldsOf names every byte of a well-formed sealed value.
func fieldsOf(sealed []byte) []field {
	w := walker{sealed: sealed}
	if string(sealed[:3]) == "KSB" {
		w.fixed("bundle.magic", 3)
		w.fixed("bundle.version", 1)
		n := int(sealed[w.at])
		w.fixed("bundle.n", 1)
		for i := range n {
			w.block(fmt.Sprintf("block%d.", i))
		}
	}
	for _, f := range []field{{"magic", 0, 3}, {"version", 0, 1}, {"suite", 0, 1}, {"flags", 0, 1}, {"dek_id", 0, 16}} {
		w.fixed("header."+f.name, f.length)
	}
	w.fixed("body.salt", 24)
	w.fixed("body.commitment", 32)
	w.fixed("body.chunks", len(sealed)-w.at)
	return w.fields
}

type walker struct {
	sealed []byte
	at     int
	fields []field
}

func (w *walker) fixed(name string, n int) {
	if n > 0 {
		w.fields = append(w.fields, field{name, w.at, n})
	}
	w.at += n
}

// prefixed is a length of size bytes, and what it counts.
func (w *walker) prefixed(name string, size int) {
	var b [8]byte
	copy(b[8-size:], w.sealed[w.at:w.at+size])
	w.fixed(name+".length", size)
	w.fixed(name, int(binary.BigEndian.Uint64(b[:])))
}

func (w *walker) block(p string) {
	w.fixed(p+"length", 2)
	for _, name := range []string{"version", "kind", "purpose", "alg"} {
		w.fixed(p+name, 1)
	}
	w.fixed(p+"key_id", 16)
	w.fixed(p+"created", 8)
	w.prefixed(p+"tenant", 1)
	w.prefixed(p+"kek_ref", 1)
	w.fixed(p+"parent", 16)
	w.prefixed(p+"wrapped", 2)
	w.prefixed(p+"proof", 2)
}

// verdict is what a reader does, warm and cold.
type verdict struct{ warm, cold class }

// judge opens sealed with the readers of v.
type judge struct {
	v          *openVector
	warm, cold *refReader
}

func newJudge(t testing.TB, v *openVector, keys *keyFile) *judge {
	slab := newSlab(t)
	return &judge{v, v.reader(slab, keys, true), v.reader(slab, keys, false)}
}

func (j *judge) verdict(t testing.TB, sealed []byte) verdict {
	t.Helper()
	var out verdict
	for _, r := range []struct {
		reader *refReader
		class  *class
	}{{j.warm, &out.warm}, {j.cold, &out.cold}} {
		plaintext, c := r.reader.open(j.v.Tenant, j.v.Context, sealed)
		*r.class = c
		if (c == ok) != slices.Equal(plaintext, j.v.Plaintext.bytes()) || c != ok && plaintext != nil {
			t.Fatalf("%s: class %s with plaintext %x", j.v.Name, c, plaintext)
		}
	}
	return out
}

// mutations makes mutations.json from what the package does. It is the one
// file whose classes are computed; TestFieldClasses holds them to a table, and
// open.mjs to SPEC.md.
func (g *generator) mutations(t *testing.T) []*mutationVector {
	var out []*mutationVector
	for _, name := range []string{"bare", "full-oct-first", "full-rsa-first", "full-branch-first", "size-16385"} {
		v := &g.built[name].openVector
		j := newJudge(t, v, &g.keys)
		m := &mutationVector{Base: name, Prefixes: j.prefixes(t), Fields: []flipsField{}}
		if len(v.Sealed) < 4096 {
			for _, f := range fieldsOf(v.Sealed) {
				m.Fields = append(m.Fields, flipsField{f.name, f.offset, f.length, j.flips(t, f)})
			}
		}
		out = append(out, m)
	}
	return out
}

func (j *judge) prefixes(t *testing.T) []prefixes {
	var out []prefixes
	for n := range len(j.v.Sealed) {
		v := j.verdict(t, j.v.Sealed[:n])
		if i := len(out) - 1; i >= 0 && out[i].Warm == v.warm && out[i].Cold == v.cold {
			out[i].To = n
			continue
		}
		out = append(out, prefixes{n, n, v.warm, v.cold})
	}
	return out
}

// flips joins neighbouring bytes whose bits fare the same.
func (j *judge) flips(t *testing.T, f field) []flips {
	var out []flips
	var last [8]verdict
	run := 0 // where in out the flips of the last byte begin
	for i := f.offset; i < f.offset+f.length; i++ {
		var now [8]verdict
		for bit := range now {
			now[bit] = j.verdict(t, flipped(j.v.Sealed, i, bit))
		}
		if i > f.offset && now == last {
			for k := run; k < len(out); k++ {
				out[k].Length++
			}
			continue
		}
		run, last = len(out), now
		out = append(out, byVerdict(i, now)...)
	}
	return out
}

func byVerdict(offset int, bits [8]verdict) []flips {
	var out []flips
	for bit, v := range bits {
		i := slices.IndexFunc(out, func(f flips) bool { return f.Warm == v.warm && f.Cold == v.cold })
		if i < 0 {
			i = len(out)
			out = append(out, flips{offset, 1, hexBytes{0}, v.warm, v.cold})
		}
		out[i].Mask[0] |= 1 << bit
	}
	return out
}

func flipped(b []byte, i, bit int) []byte {
	b = slices.Clone(b)
	b[i] ^= 1 << bit
	return b
}
