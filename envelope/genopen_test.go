package envelope_test

import (
	"fmt"
	"strings"
)

const longRef = "oct-0123456789-0123456789-0123456789-0123456789-0123456789-abcd"

// positives makes open.json.
func (g *generator) positives() {
	first := g.message("bare")
	first.Note = "The worked example of SPEC.md."
	first.DEK = []byte(strings.Repeat("\x42", 32))
	g.add(first)
	g.sizes()
	g.tenants()
	g.contextMessages()
	g.singleBlocks()
	g.branches()
	g.full()
}

func (g *generator) sizes() {
	for _, n := range []int{0, 1, 16383, 16384, 16385} {
		m := g.message(fmt.Sprint("size-", n)).pattern(n)
		g.dekBlock(m, "oct")
		g.add(m)
	}
	g.add(g.message("bare-chunks").pattern(2*16384 + 5))
}

func (g *generator) tenants() {
	for i, t := range []string{"T", "a.b_c:d-e", strings.Repeat("0123456789abcdef", 8)} {
		m := g.message(fmt.Sprint("tenant-", i))
		m.Tenant = t
		g.dekBlock(m, "oct")
		g.add(m)
	}
}

// messageContexts are contexts that are allowed, at and below every limit.
func messageContexts() map[string][]pair {
	var many, most []pair
	for i := range 32 {
		many = append(many, pair{fmt.Sprintf("key-%02d", 31-i), fmt.Sprint("value ", i)})
	}
	for i := range 8 {
		most = append(most, pair{string(rune('a' + i)), strings.Repeat("v", 1023)})
	}
	return map[string][]pair{
		"none":        {},
		"empty-value": {{"k", ""}},
		"unicode":     {{"ключ", "значение"}, {"é", "precomposed"}, {"e\u0301", "decomposed"}, {"z", "\U0001f511"}, {"鍵", "値"}},
		"order":       {{"ab", "2"}, {"a.b", "1"}, {"a", "0"}, {"a-b", "3"}, {"B", "4"}, {"a\x00", "5"}},
		"32-pairs":    many,
		"8192-bytes":  most,
		"long":        {{strings.Repeat("k", 255), strings.Repeat("v", 1024)}},
		"near-names":  {{"keysidecar", "1"}, {"Keysidecar.x", "2"}, {"keysidecarx", "3"}, {" keysidecar.x", "4"}},
	}
}

var contextNames = []string{"none", "empty-value", "unicode", "order", "32-pairs", "8192-bytes", "long", "near-names"}

func (g *generator) contextMessages() {
	for _, name := range contextNames {
		m := g.message("context-" + name)
		m.Context = messageContexts()[name]
		g.dekBlock(m, "oct")
		g.add(m)
	}
}

func badContexts() map[string][]pair {
	over := messageContexts()["8192-bytes"]
	return map[string][]pair{
		"33-pairs":         append(messageContexts()["32-pairs"], pair{"one", "more"}),
		"8193-bytes":       append(over, pair{"z", ""}),
		"empty-key":        {{"", "v"}},
		"key-256":          {{strings.Repeat("k", 256), ""}},
		"value-1025":       {{"k", strings.Repeat("v", 1025)}},
		"duplicate":        {{"k", "1"}, {"k", "2"}},
		"reserved":         {{"a", ""}, {"keysidecar.x", "v"}},
		"reserved-bare":    {{"keysidecar.", ""}},
		"key-not-utf8":     {{"a\xff", "v"}},
		"value-not-utf8":   {{"k", "\xc3"}},
		"surrogate-in-key": {{"\xed\xa0\x80", "v"}},
	}
}

var badContextNames = []string{"33-pairs", "8193-bytes", "empty-key", "key-256", "value-1025", "duplicate", "reserved",
	"reserved-bare", "key-not-utf8", "value-not-utf8", "surrogate-in-key"}

// contexts makes context.json.
func (g *generator) contexts() []contextVector {
	var out []contextVector
	for _, name := range contextNames {
		p := messageContexts()[name]
		out = append(out, contextVector{name, p, ok, refContext(p)})
	}
	for _, name := range badContextNames {
		out = append(out, contextVector{Name: name, Pairs: badContexts()[name], Expect: invalidContext})
	}
	return out
}

func (g *generator) singleBlocks() {
	for _, ref := range []string{"rsa-2048", "rsa-3072", "rsa-4096", "oct", "k", longRef} {
		m := g.message("one-" + ref)
		m.KEKs = []string{ref}
		b := g.dekBlock(m, ref)
		switch ref {
		case "k":
			b.created = 0
		case longRef:
			b.created = 1<<64 - 1
		}
		g.add(m)
	}
	m := g.message("one-proof")
	m.Signers = []string{"control-plane", "second"}
	b := g.dekBlock(m, "rsa-2048")
	*b = g.signed(*b, "second")
	g.add(m)

	m = g.message("two-deks")
	g.dekBlock(m, "rsa-2048")
	g.dekBlock(m, "oct")
	g.add(m)

	m = g.message("two-deks-proof")
	m.Signers = []string{"control-plane"}
	g.dekBlock(m, "oct")
	b = g.dekBlock(m, "rsa-2048")
	*b = g.signed(*b, "control-plane")
	g.add(m)
}

func (g *generator) branches() {
	m := g.message("branch-absent")
	m.Note = "An alg 3 block alone: its branch block is in a registry."
	m.Cold = needsRegistry
	g.branchDEKBlock(m, "1")
	g.add(m)

	m = g.message("branch-absent-then-oct")
	m.Note = "The first block cannot be tried without a registry; the second opens."
	g.branchDEKBlock(m, "1")
	g.dekBlock(m, "oct")
	g.add(m)

	m = g.message("branch")
	g.branchDEKBlock(m, "1")
	g.branchBlock(m, "oct", "1")
	g.add(m)

	m = g.message("branch-of-tenant")
	m.Note = "The branch block names the tenant for whom its kek_ref was filled in."
	g.branchDEKBlock(m, "1")
	b := g.branchBlock(m, "rsa-3072", "1")
	b.tenant = m.Tenant
	*b = g.signed(*b, "control-plane")
	g.add(m)

	m = g.message("three-oct-branch")
	g.dekBlock(m, "oct")
	g.branchDEKBlock(m, "1")
	g.branchBlock(m, "rsa-2048", "1")
	g.add(m)

	m = g.message("three-one-branch-two-keks")
	m.Note = "One branch key under two KEKs: two branch blocks that one DEK block names."
	g.branchDEKBlock(m, "1")
	g.branchBlock(m, "rsa-2048", "1")
	g.branchBlock(m, "oct", "1")
	g.add(m)

	m = g.message("four-two-branches")
	g.branchDEKBlock(m, "2")
	g.branchDEKBlock(m, "1")
	g.branchBlock(m, "oct", "2")
	g.branchBlock(m, "rsa-2048", "1")
	g.add(m)
}

// full makes the values that mutations.json takes apart: between them they
// have every field of the format in every form.
func (g *generator) full() {
	m := g.message("full-oct-first").text("5 bts")
	g.dekBlock(m, "oct")
	g.branchDEKBlock(m, "1")
	b := g.branchBlock(m, "oct", "1")
	b.tenant = m.Tenant
	*b = g.signed(*b, "control-plane")
	g.branchBlock(m, "rsa-2048", "1")
	g.add(m)

	m = g.message("full-rsa-first").text("5 bts")
	m.Signers = []string{"control-plane"}
	b = g.dekBlock(m, "rsa-2048")
	*b = g.signed(*b, "control-plane")
	g.dekBlock(m, "oct")
	g.add(m)

	m = g.message("full-branch-first").text("5 bts")
	g.branchDEKBlock(m, "1")
	g.branchBlock(m, "oct", "1")
	g.add(m)
}
