package envelope_test

import (
	"bytes"
	"slices"
)

func (g *generator) badChecks() {
	wrong := map[string]func(m *message){
		"tenant":          func(m *message) { m.Tenant = "tenant-b" },
		"tenant-case":     func(m *message) { m.Tenant = "Tenant-a" },
		"context-value":   func(m *message) { m.Context[0].Value = "Users" },
		"context-missing": func(m *message) { m.Context = m.Context[:2] },
		"context-none":    func(m *message) { m.Context = []pair{} },
		"context-more":    func(m *message) { m.Context = append(m.Context, pair{"x", ""}) },
		"context-moved":   func(m *message) { m.Context[0].Value, m.Context[1].Value = "email", "users" },
	}
	for _, what := range sorted(wrong) {
		bare, bundle := g.from("bare"), g.from("one-oct")
		wrong[what](bare)
		wrong[what](bundle)
		g.refuse("bare-wrong-"+what, bare, bare.Sealed, unauthentic, needsRegistry)
		g.refuse("bundle-wrong-"+what, bundle, bundle.Sealed, unauthentic, unauthentic)
	}

	m := g.from("bare")
	m.DEK = derive("another dek", 32)
	g.refuse("bare-wrong-dek", m, m.Sealed, unauthentic, needsRegistry)
	m = g.from("context-unicode")
	m.Context[1].Key = "e\u0301\u200b"
	g.refuse("context-not-normalised", m, m.Sealed, unauthentic, unauthentic)

	m = g.from("two-deks")
	m.blocks[1].tenant = "tenant-b"
	g.refuse("check-second-tenant", m, m.sealed(), unauthentic, unauthentic)
	m = g.from("two-deks")
	m.blocks[1].keyID = derive("another id", 16)
	g.refuse("check-second-key_id", m, m.sealed(), unauthentic, unauthentic)
	m = g.from("branch-of-tenant")
	m.blocks[1].tenant = "tenant-b"
	m.blocks[1] = g.signed(m.blocks[1], "control-plane")
	g.refuse("check-branch-tenant", m, m.sealed(), unauthentic, unauthentic)
	m = g.from("one-oct")
	m.blocks = g.from("size-1").blocks
	g.refuse("check-blocks-of-another", m, m.sealed(), unauthentic, unauthentic)

	m = g.from("one-oct")
	m.blocks[0].keyID = derive("another id", 16)
	m.header = refHeader(m.blocks[0].keyID)
	g.refuse("check-dek_id-not-of-dek", m, m.sealed(), unauthentic, unauthentic)
	m = g.from("one-oct")
	foreign := refDEKID(m.DEK, "tenant-b")
	m.blocks[0].keyID, m.header = foreign, refHeader(foreign)
	g.refuse("check-dek_id-of-other-tenant", m, m.sealed(), unauthentic, unauthentic)
}

func (g *generator) badKEKs() {
	add := func(name string, m *message) {
		g.refuse("kek-"+name, m, m.sealed(), kekNotAllowed, kekNotAllowed)
	}
	m := g.from("one-oct")
	m.blocks[0].kekRef = "no-such-kek"
	add("unknown", m)
	m = g.from("one-oct")
	m.KEKs = []string{"rsa-2048"}
	add("of-other-tenants", m)
	m = g.from("two-deks")
	m.KEKs = []string{"rsa-2048"}
	add("second-block", m)
	m = g.from("branch")
	m.KEKs = []string{"rsa-2048"}
	add("of-branch", m)
	m = g.from("one-oct")
	m.blocks[0].kekRef = "rsa-2048"
	add("alg-2-for-rsa", m)
	m = g.from("one-rsa-2048")
	m.KEKs = []string{"rsa-2048", "oct"}
	m.blocks[0].kekRef = "oct"
	add("alg-1-for-oct", m)
	m = g.from("one-proof")
	m.KEKs, m.Signers = []string{"oct"}, []string{}
	add("before-proof", m)

	m = g.from("one-oct")
	m.KEKs = []string{}
	m.Tenant = "tenant-b"
	g.refuse("order-tenant-before-kek", m, m.Sealed, unauthentic, unauthentic)
	m = g.from("two-deks")
	m.blocks[0].kekRef, m.blocks[1].tenant = "no-such-kek", "tenant-b"
	g.refuse("order-all-tenants-before-keks", m, m.sealed(), unauthentic, unauthentic)
}

func (g *generator) badProofs() {
	add := func(name string, m *message) {
		g.refuse("proof-"+name, m, m.sealed(), unauthentic, unauthentic)
	}
	m := g.from("one-proof")
	m.Signers = []string{}
	add("nobody-pinned", m)
	m = g.from("one-proof")
	m.Signers = []string{"control-plane"}
	add("signer-not-pinned", m)
	m = g.from("two-deks-proof")
	m.Signers = []string{}
	add("second-block-not-pinned", m)
	m = g.from("branch-of-tenant")
	m.Signers = []string{}
	add("branch-not-pinned", m)

	m = g.from("one-proof")
	forged := g.signed(m.blocks[0], "stranger")
	m.blocks[0].proof = edit(m.blocks[0].proof, 17, string(forged.proof[17:]))
	add("forged", m)
	m = g.from("one-proof")
	m.blocks[0].created++
	add("created", m)
	m = g.from("branch")
	m.blocks[1].tenant = m.Tenant
	add("branch-tenant", m)
	m = g.from("one-proof")
	m.blocks[0].proof = cat(m.blocks[0].proof[:17], make([]byte, 64))
	add("zero-signature", m)
	m = g.from("one-proof")
	m.blocks[0].proof = cat(m.blocks[0].proof[:17], m.blocks[0].proof[49:], m.blocks[0].proof[17:49])
	add("r-s-swapped", m)
	m = g.from("branch")
	m.blocks[1].proof = g.from("four-two-branches").blocks[2].proof
	add("of-another-block", m)
}

// badWraps are refused cold, where the wrapped key is looked at, and open
// warm, where the DEK was proven before.
func (g *generator) badWraps() {
	add := func(name string, m *message, cold class) {
		g.refuse("wrapped-"+name, m, m.sealed(), ok, cold)
	}
	other := derive("planted dek", 32)
	rsa := g.keys.kek("rsa-2048")
	keys := map[string][]byte{
		"31-bytes": derive("dek", 31), "33-bytes": append(slices.Clone(g.from("one-rsa-2048").DEK), 0),
		"foreign-dek": other, "no-bytes": {},
	}
	for _, name := range sorted(keys) {
		m := g.from("one-rsa-2048")
		m.blocks[0].wrapped = refOAEP(&rsa.rsa().PublicKey, derive(name, 32), keys[name])
		add(name, m, unauthentic)
	}
	m := g.from("one-rsa-2048")
	m.blocks[0].wrapped = refPKCS1(&rsa.rsa().PublicKey, m.DEK)
	add("rsa1_5", m, unauthentic)
	m = g.from("one-rsa-2048")
	m.blocks[0].wrapped = bytes.Repeat([]byte{0xff}, 256)
	add("not-below-modulus", m, unauthentic)
	m = g.from("one-rsa-2048")
	m.blocks[0].wrapped = make([]byte, 384)
	add("of-other-modulus-size", m, unauthentic)
	m = g.from("one-oct")
	m.blocks[0].wrapped = refKeyWrap(g.keys.kek("other").Key, m.DEK)
	add("oct-of-another-kek", m, unauthentic)
	m = g.from("one-oct")
	m.blocks[0].wrapped = refKeyWrap(g.keys.kek("oct").Key, other)
	add("oct-foreign-dek", m, unauthentic)
	m = g.from("one-oct")
	m.blocks[0].parent = derive("no such version", 16)
	add("version-unknown", m, kekNotFound)
	m = g.from("two-deks")
	m.blocks[0].parent = derive("no such version", 16)
	add("version-unknown-no-second-try", m, kekNotFound)
	m = g.from("two-deks")
	m.blocks[0].wrapped = refOAEP(&rsa.rsa().PublicKey, derive("seed", 32), other)
	add("foreign-no-second-try", m, unauthentic)
	g.badBranchWraps()
}

func (g *generator) badBranchWraps() {
	add := func(name string, m *message, cold class) {
		g.refuse("wrapped-branch-"+name, m, m.sealed(), ok, cold)
	}
	m := g.from("branch")
	m.blocks[0].created++
	add("dek-created", m, unauthentic)
	m = g.from("branch")
	m.blocks[0].wrapped = refBranchWrap(m.blocks[0].steps.WrappingKey, derive("nonce", 12), derive("planted dek", 32))
	add("foreign-dek", m, unauthentic)
	m = g.from("branch")
	m.blocks[0].wrapped = g.from("four-two-branches").blocks[1].wrapped
	add("dek-of-another", m, unauthentic)
	m = g.from("branch")
	m.blocks[1].wrapped = refKeyWrap(g.keys.kek("oct").Key, derive("planted branch", 32))
	add("foreign-branch", m, unauthentic)
	m = g.from("branch")
	m.blocks[1].parent = derive("no such version", 16)
	add("version-unknown", m, kekNotFound)
}

// opensNevertheless changes what nothing protects (SPEC.md, section 13).
func (g *generator) opensNevertheless() {
	m := g.from("one-oct")
	m.blocks[0].created += 1000
	g.refuse("opens-created-without-proof", m, m.sealed(), ok, ok)
	m = g.from("two-deks")
	m.blocks[1].wrapped = make([]byte, 40)
	m.blocks[1].parent = make([]byte, 16)
	g.refuse("opens-second-block-garbage", m, m.sealed(), ok, ok)
	m = g.from("three-oct-branch")
	m.blocks = m.blocks[:2]
	g.refuse("opens-branch-block-removed", m, m.sealed(), ok, ok)
	m = g.from("one-proof")
	m.blocks[0].proof = nil
	g.refuse("opens-proof-removed", m, m.sealed(), ok, ok)
	m = g.from("size-1")
	m.Cold = needsRegistry
	g.refuse("opens-without-blocks", m, m.envelope(), ok, needsRegistry)
}
