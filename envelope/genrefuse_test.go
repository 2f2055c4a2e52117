package envelope_test

import (
	"bytes"
	"slices"
	"strings"
)

// negatives makes refuse.json. Every class is written here by hand.
func (g *generator) negatives() {
	g.badArguments()
	g.badEnvelopes()
	g.badBodies()
	g.badBundles()
	g.badBlocks()
	g.badOrder()
	g.badChecks()
	g.badKEKs()
	g.badProofs()
	g.badWraps()
	g.opensNevertheless()
}

func (g *generator) badArguments() {
	tenants := map[string]string{
		"empty": "", "129-bytes": strings.Repeat("a", 129), "first": "-a", "last": "a.", "two-dots": "a..b",
		"slash": "a/b", "space": "a b", "not-ascii": "ténant", "nul": "a\x00b",
	}
	for _, name := range sorted(tenants) {
		m := g.from("size-1")
		m.Tenant = tenants[name]
		g.refuse("tenant-"+name, m, m.Sealed, invalidTenant, invalidTenant)
	}
	for _, name := range badContextNames {
		m := g.from("size-1")
		m.Context = badContexts()[name]
		g.refuse("context-"+name, m, m.Sealed, invalidContext, invalidContext)
	}
	m := g.from("size-1")
	m.Tenant, m.Context = "", badContexts()["reserved"]
	g.refuse("order-tenant-before-context", m, nil, invalidTenant, invalidTenant)
	m.Tenant = "tenant-a"
	g.refuse("order-context-before-parse", m, nil, invalidContext, invalidContext)
}

// edit returns b with s written at offset i.
func edit(b []byte, i int, s string) []byte {
	b = slices.Clone(b)
	copy(b[i:], s)
	return b
}

func (g *generator) badEnvelopes() {
	m := g.from("bare")
	e := m.Sealed
	for _, c := range []struct {
		name   string
		sealed []byte
		class  class
	}{
		{"empty", []byte{}, malformed},
		{"two-bytes", []byte("KS"), malformed},
		{"magic", edit(e, 0, "KSX"), malformed},
		{"magic-lower", edit(e, 0, "kse"), malformed},
		{"magic-only", e[:3], malformed},
		{"version-0", edit(e, 3, "\x00"), unsupported},
		{"version-2", edit(e, 3, "\x02"), unsupported},
		{"version-2-only", []byte("KSE\x02"), unsupported},
		{"version-only", e[:4], malformed},
		{"suite-0", edit(e, 4, "\x00"), unsupported},
		{"suite-2", edit(e, 4, "\x02"), unsupported},
		{"suite-2-short-header", edit(e, 4, "\x02")[:21], malformed},
		{"suite-2-short-body", edit(e, 4, "\x02")[:22], unsupported},
		{"flag", edit(e, 5, "\x80"), unsupported},
		{"flag-short-body", edit(e, 5, "\x01")[:40], unsupported},
		{"header-only", e[:22], malformed},
		{"body-71", e[:22+71], malformed},
		{"body-72", e[:22+72], unauthentic},
		{"leading-byte", cat([]byte{0}, e), malformed},
	} {
		cold := c.class
		if cold == unauthentic {
			cold = needsRegistry
		}
		g.refuse("envelope-"+c.name, m, c.sealed, c.class, cold)
	}
}

func (g *generator) badBodies() {
	m := g.from("bare")
	g.refuse("body-trailing-byte", m, append(slices.Clone(m.Sealed), 0), unauthentic, needsRegistry)
	other := g.message("bare")
	other.DEK, other.salt = m.DEK, derive("another salt", 24)
	e := other.envelope()
	g.refuse("body-salt-of-another", m, edit(m.Sealed, 22, string(e[22:46])), unauthentic, needsRegistry)
	g.refuse("body-prefix-of-another", m, edit(m.Sealed, 22, string(e[22:78])), unauthentic, needsRegistry)

	m = g.from("bare-chunks")
	const prefix, chunk = 22 + 56, 16384 + 16
	head, chunks := m.Sealed[:prefix], m.Sealed[prefix:]
	a, b, last := chunks[:chunk], chunks[chunk:2*chunk], chunks[2*chunk:]
	g.refuse("chunks-swapped", m, cat(head, b, a, last), unauthentic, needsRegistry)
	g.refuse("chunks-first-dropped", m, cat(head, b, last), unauthentic, needsRegistry)
	g.refuse("chunks-last-dropped", m, cat(head, a, b), malformed, malformed)
	g.refuse("chunks-last-first", m, cat(head, last), unauthentic, needsRegistry)
	g.refuse("chunks-15-bytes-after", m, cat(head, a, last[:15]), malformed, malformed)
	g.refuse("chunks-16-bytes-after", m, cat(head, a, last[:16]), unauthentic, needsRegistry)
}

// parts returns the encoded blocks and the envelope of a value.
func (m *message) parts() (blocks [][]byte, envelope []byte) {
	for _, b := range m.blocks {
		blocks = append(blocks, b.encode())
	}
	return blocks, m.envelope()
}

func (g *generator) badBundles() {
	m := g.from("four-two-branches")
	b, e := m.parts()
	oct, _ := g.from("size-1").parts()
	bad := func(name string, sealed []byte) { g.refuse("bundle-"+name, m, sealed, malformed, malformed) }
	bad("magic-only", []byte("KSB"))
	bad("version-only", []byte("KSB\x01"))
	bad("n-0", cat([]byte("KSB\x01\x00"), e))
	bad("n-5", refBundle(e, b[0], b[1], oct[0], b[2], b[3]))
	bad("n-too-large", edit(refBundle(e, b[0]), 4, "\x02"))
	bad("n-too-small", edit(refBundle(e, b[0], b[1]), 4, "\x01"))
	bad("no-envelope", refBundle(nil, b[0], b[1], b[2], b[3]))
	bad("in-bundle", refBundle(m.Sealed, b[0]))
	bad("block-too-long", edit(refBundle(e, b[0]), 5, "\xff\xff"))
	bad("block-empty", refBundle(e, nil))
	bad("branch-first", refBundle(e, b[2], b[0], b[1], b[3]))
	bad("branch-only", refBundle(e, b[2]))
	bad("three-deks", refBundle(e, b[0], b[1], oct[0]))
	bad("dek-after-branch", refBundle(e, b[0], b[2], b[1]))
	named := g.from("size-1").blocks[0]
	named.keyID = m.blocks[3].keyID
	bad("dek-after-branch-named", refBundle(e, b[0], b[1], b[2], named.encode()))
	bad("branches-swapped", refBundle(e, b[0], b[1], b[3], b[2]))
	bad("branch-not-named", refBundle(e, b[0], b[3]))
	bad("second-branch-not-named", refBundle(e, b[0], b[2], b[3]))
	bad("branch-named-by-kek-block", g.branchNamedByKEKBlock(m))
	bad("duplicate-branch", refBundle(e, b[0], b[2], b[2]))
	bad("duplicate-alg3", refBundle(e, b[0], b[0], b[2]))
	g.refuse("bundle-version-0", m, edit(m.Sealed, 3, "\x00"), unsupported, unsupported)
	g.refuse("bundle-version-2", m, []byte("KSB\x02"), unsupported, unsupported)

	m = g.from("three-one-branch-two-keks")
	b, e = m.parts()
	third := g.branchBlock(m, "rsa-3072", "1")
	bad("three-branches", refBundle(e, b[0], b[1], b[2], third.encode()))

	m = g.from("two-deks")
	b, e = m.parts()
	bad("duplicate-dek", refBundle(e, b[0], b[0]))
	twin := m.blocks[0]
	twin.created++
	twin.wrapped = bytes.Repeat([]byte{1}, 384)
	bad("duplicate-dek-other-bytes", refBundle(e, b[0], twin.encode()))
	g.refuse("bundle-deks-swapped", m, refBundle(e, b[1], b[0]), ok, ok)
}

// branchNamedByKEKBlock has a branch block whose branch_id is the parent of a
// DEK block that is wrapped by a KEK: that is no name.
func (g *generator) branchNamedByKEKBlock(m *message) []byte {
	b, e := m.parts()
	c := g.from("size-1").blocks[0]
	c.parent = m.blocks[2].keyID
	return refBundle(e, c.encode(), b[2])
}

// badBlocks changes one thing in one block of a bundle.
func (g *generator) badBlocks() {
	change := func(base string, i int, name string, c class, f func(b *refBlock)) {
		m := g.from(base)
		f(&m.blocks[i].refBlock)
		g.refuse("block-"+name, m, m.sealed(), c, c)
	}
	kek := func(name string, c class, f func(b *refBlock)) { change("two-deks-proof", 1, name, c, f) }
	alg3 := func(name string, f func(b *refBlock)) { change("branch", 0, "alg3-"+name, malformed, f) }
	branch := func(name string, c class, f func(b *refBlock)) { change("branch", 1, "branch-"+name, c, f) }

	kek("version-0", unsupported, func(b *refBlock) { b.version = 0 })
	kek("version-2", unsupported, func(b *refBlock) { b.version = 2 })
	kek("kind-0", unsupported, func(b *refBlock) { b.kind = 0 })
	kek("kind-3", unsupported, func(b *refBlock) { b.kind = 3 })
	kek("purpose-0", malformed, func(b *refBlock) { b.purpose = 0 })
	kek("purpose-2", unsupported, func(b *refBlock) { b.purpose = 2 })
	kek("alg-0", unsupported, func(b *refBlock) { b.alg = 0 })
	kek("alg-4", unsupported, func(b *refBlock) { b.alg = 4 })
	kek("alg-2-with-256-bytes", malformed, func(b *refBlock) { b.alg = 2 })
	kek("alg-3-with-kek_ref", malformed, func(b *refBlock) { b.alg, b.wrapped, b.proof = 3, make([]byte, 60), nil })
	kek("trailing-byte", malformed, func(b *refBlock) { b.tail = []byte{0} })
	kek("tenant-empty", malformed, func(b *refBlock) { b.tenant = "" })
	kek("tenant-129-bytes", malformed, func(b *refBlock) { b.tenant = strings.Repeat("a", 129) })
	kek("tenant-two-dots", malformed, func(b *refBlock) { b.tenant = "tenant..a" })
	kek("tenant-not-ascii", malformed, func(b *refBlock) { b.tenant = "tenant-\xff" })
	kek("kek_ref-empty", malformed, func(b *refBlock) { b.kekRef = "" })
	kek("kek_ref-64-bytes", malformed, func(b *refBlock) { b.kekRef = strings.Repeat("a", 64) })
	kek("kek_ref-upper", malformed, func(b *refBlock) { b.kekRef = "RSA-2048" })
	kek("kek_ref-last", malformed, func(b *refBlock) { b.kekRef = "rsa-" })
	kek("kek_ref-url", malformed, func(b *refBlock) { b.kekRef = "https://vault.example" })
	kek("wrapped-empty", malformed, func(b *refBlock) { b.wrapped = nil })
	kek("wrapped-255", malformed, func(b *refBlock) { b.wrapped = b.wrapped[1:] })
	kek("wrapped-1024", malformed, func(b *refBlock) { b.wrapped = make([]byte, 1024) })
	kek("proof-version-0", unsupported, func(b *refBlock) { b.proof = edit(b.proof, 0, "\x00") })
	kek("proof-version-2", unsupported, func(b *refBlock) { b.proof = edit(b.proof, 0, "\x02") })
	kek("proof-version-2-short", unsupported, func(b *refBlock) { b.proof = []byte{2} })
	kek("proof-version-only", malformed, func(b *refBlock) { b.proof = []byte{1} })
	kek("proof-80", malformed, func(b *refBlock) { b.proof = b.proof[:80] })
	kek("proof-82", malformed, func(b *refBlock) { b.proof = append(slices.Clone(b.proof), 0) })
	change("two-deks", 1, "alg-2-wrapped-48", malformed, func(b *refBlock) {
		b.wrapped = append(slices.Clone(b.wrapped), make([]byte, 8)...)
	})

	alg3("kek_ref", func(b *refBlock) { b.kekRef = "oct" })
	alg3("wrapped-59", func(b *refBlock) { b.wrapped = b.wrapped[1:] })
	alg3("wrapped-61", func(b *refBlock) { b.wrapped = append(slices.Clone(b.wrapped), 0) })
	alg3("proof", func(b *refBlock) { b.proof = cat([]byte{1}, make([]byte, 80)) })
	alg3("proof-version-2", func(b *refBlock) { b.proof = []byte{2} })

	branch("purpose-1", malformed, func(b *refBlock) { b.purpose = 1 })
	branch("purpose-2", unsupported, func(b *refBlock) { b.purpose = 2 })
	branch("alg-3", malformed, func(b *refBlock) { b.alg, b.wrapped, b.kekRef = 3, make([]byte, 60), "" })
	branch("proof-missing", malformed, func(b *refBlock) { b.proof = nil })
	branch("tenant-ill-formed", malformed, func(b *refBlock) { b.tenant = "-" })
	branch("kek_ref-empty", malformed, func(b *refBlock) { b.kekRef = "" })
}

// badOrder has two faults each; the class says which one counts.
func (g *generator) badOrder() {
	m := g.from("two-deks")
	b, e := m.parts()
	unknownAlg, badTenant := m.blocks[0], m.blocks[1]
	unknownAlg.alg, badTenant.tenant = 9, ""
	add := func(name string, sealed []byte, c class) { g.refuse("order-"+name, m, sealed, c, c) }
	add("framing-before-block", edit(refBundle(e, unknownAlg.encode(), b[1]), 4, "\x03"), malformed)
	add("first-block-unsupported", refBundle(e, unknownAlg.encode(), badTenant.encode()), unsupported)
	add("first-block-malformed", refBundle(e, badTenant.encode(), unknownAlg.encode()), malformed)
	add("block-before-bundle", refBundle(e, b[1], b[1], unknownAlg.encode()), unsupported)
	add("bundle-before-envelope", refBundle(edit(e, 3, "\x09"), b[0], b[0]), malformed)
	add("block-before-envelope", refBundle([]byte("?"), unknownAlg.encode()), unsupported)

	cut := m.blocks[0].encode()
	cut = edit(cut[:len(cut)-1], 1, "\x07")
	add("block-length-before-kind", refBundle(e, cut), malformed)
	add("block-version-before-length", refBundle(e, []byte{9}), unsupported)
	k := m.blocks[0]
	k.tenant, k.kind = "", 7
	add("kind-before-tenant", refBundle(e, k.encode()), unsupported)
	k = m.blocks[0]
	k.purpose, k.alg = 0, 9
	add("alg-before-purpose-of-kind", refBundle(e, k.encode()), unsupported)
	k = m.blocks[0]
	k.tenant, k.proof = "", []byte{2}
	add("tenant-before-proof-version", refBundle(e, k.encode()), malformed)
}
