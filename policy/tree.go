package policy

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// grant is one pattern of a rule for one caller, before it is in its tree.
type grant struct {
	text  string // the tenant ID, or the prefix without its star
	rule  int
	verbs verbSet
	below bool // a prefix: every tenant whose ID begins with text
}

// newGrant reads a checked pattern.
func newGrant(pattern string, rule int, verbs verbSet) grant {
	text, below := strings.CutSuffix(pattern, star)
	return grant{text: text, rule: rule, verbs: verbs, below: below}
}

// sameTenants reports whether two grants have the same pattern.
func (g *grant) sameTenants(o *grant) bool { return g.below == o.below && g.text == o.text }

// pattern returns the pattern as the rule has it.
func (g *grant) pattern() string {
	if g.below {
		return g.text + star
	}
	return g.text
}

// sortGrants sorts by text, IDs before prefixes, and then by rule.
func sortGrants(grants []grant) {
	slices.SortFunc(grants, func(a, b grant) int {
		if c := strings.Compare(a.text, b.text); c != 0 {
			return c
		}
		if a.below != b.below {
			if b.below {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.rule, b.rule)
	})
}

// forest has what is granted to each caller: for IDs, in a map; for prefixes,
// in a compressed radix tree over tenant IDs, where what is granted for an ID's
// prefixes is on the path to it. Grants that end are all in the tree.
//
// A walk visits at most one node for each byte of the ID and the root, however
// many grants there are. It looks only at the bytes where the tree branches;
// what it skipped it compares once, before it grants.
//
// The nodes and texts of all trees are in one slice each, and a cache line
// holds two nodes: a walk takes few of them.
type forest struct {
	exact []map[string]verbSet // of each root
	nodes []node               // the roots first; an empty tree is a zero node
	texts string               // of the nodes that grant something, one after the other
	ends  map[uint32][]end     // of the few nodes that have some, by index
}

// node is one node, 32 bytes.
type node struct {
	// branches has a bit for each next byte that leads to a child: tenant IDs
	// are ASCII. The children are next to each other, in the order of the bits.
	branches [2]uint64
	children uint32 // where they begin
	text     uint32 // where the node's text begins, if it grants something
	below    verbSet
	depth    uint8 // bytes of the text, which a tenant ID begins with: at most tenant.MaxID
	ending   bool  // there are ends
}

// child returns which of the children the byte leads to.
func (n *node) child(b byte) (i uint32, ok bool) {
	// The word of the byte and the children before it, without a jump: whether
	// a letter or a digit comes next cannot be predicted.
	low, high := n.branches[0], -uint64(b>>6&1)
	word, bit := low^(low^n.branches[1])&high, uint64(1)<<(b&63)
	before := bits.OnesCount64(word&(bit-1)) + bits.OnesCount64(low&high)
	return uint32(before), word&bit != 0 //nolint:gosec // at most 128
}

// end is a part of a node's grants that ends.
type end struct {
	notAfter time.Time
	verbs    verbSet
	below    bool
}

// stillHolds reports whether a grant that ends holds. If now is zero, somebody
// forgot the clock: better no grant than one for ever.
func stillHolds(notAfter, now time.Time) bool { return !now.IsZero() && now.Before(notAfter) }

// addEnd adds e to ends, of which it keeps for each verb, and for below or not,
// only the latest: however many grants there are, the ends are few.
func addEnd(ends []end, e end) []end {
	for i := range ends {
		o := &ends[i]
		switch {
		case o.below != e.below:
		case o.notAfter.Before(e.notAfter):
			o.verbs &^= e.verbs
		default:
			e.verbs &^= o.verbs
		}
	}
	return slices.DeleteFunc(append(ends, e), func(o end) bool { return o.verbs == 0 })
}

// allow reports whether what is granted to the caller of that root has v for id.
func (f *forest) allow(root uint32, id string, v verbSet, now time.Time) bool {
	if f.exact[root][id]&v != 0 {
		return true
	}
	i := root
	for {
		n := &f.nodes[i]
		depth := int(n.depth)
		if n.below&v != 0 || n.ending && f.allowUntil(i, len(id) == depth, v, now) {
			return f.begins(id, n) // if not, then neither with the texts from here on
		}
		if len(id) <= depth {
			return false
		}
		branch, ok := n.child(id[depth])
		if !ok {
			return false
		}
		i = n.children + branch
	}
}

// begins reports whether id begins with the text of a node that grants
// something.
func (f *forest) begins(id string, n *node) bool {
	return strings.HasPrefix(id, f.texts[n.text:][:n.depth])
}

// allowUntil reports whether a grant of node i that ends grants v: for all IDs
// that begin with its text, or for that which is the whole text.
func (f *forest) allowUntil(i uint32, whole bool, v verbSet, now time.Time) bool {
	for _, e := range f.ends[i] {
		if (e.below || whole) && e.verbs&v != 0 && stillHolds(e.notAfter, now) {
			return true
		}
	}
	return false
}

// allowAll reports whether the tree of that root grants v for the prefix "":
// for every tenant.
func (f *forest) allowAll(root uint32, v verbSet, now time.Time) bool {
	n := &f.nodes[root]
	return n.depth == 0 && (n.below&v != 0 || n.ending && f.allowUntil(root, false, v, now))
}

// newForest returns a tree for each of granted: sorted grants, each with the
// end that its rule has.
func newForest(granted [][]grant, rules []Rule) forest {
	b := builder{rules: rules, nodes: make([]node, len(granted)), ends: map[uint32][]end{}}
	exact := make([]map[string]verbSet, len(granted))
	for root, grants := range granted {
		var rest []grant
		exact[root], rest = b.takeExact(grants)
		if len(rest) > 0 {
			b.fill(uint32(root), rest, 0)
		}
	}
	return forest{exact: exact, nodes: slices.Clip(b.nodes), texts: b.texts.String(), ends: b.ends}
}

type builder struct {
	rules []Rule
	nodes []node
	texts strings.Builder
	ends  map[uint32][]end
}

// takeExact returns the verbs of each ID that is granted something without an
// end, and the grants that are left.
func (b *builder) takeExact(grants []grant) (exact map[string]verbSet, rest []grant) {
	exact = make(map[string]verbSet)
	for _, g := range grants {
		if g.below || !b.rules[g.rule].NotAfter.IsZero() {
			rest = append(rest, g)
		} else {
			exact[g.text] |= g.verbs
		}
	}
	return exact, rest
}

// fill makes node i of grants that share at least their first depth bytes.
func (b *builder) fill(i uint32, grants []grant, depth int) {
	depth += common(grants[0].text[depth:], grants[len(grants)-1].text[depth:])
	n := node{depth: uint8(depth)} //nolint:gosec // at most tenant.MaxID
	if len(grants[0].text) == depth {
		n.text = uint32(b.texts.Len()) //nolint:gosec // at most MaxGrants x tenant.MaxID
		b.texts.WriteString(grants[0].text)
	}
	for len(grants) > 0 && len(grants[0].text) == depth {
		b.add(i, &n, &grants[0])
		grants = grants[1:]
	}
	groups := split(grants, depth)
	for _, g := range groups {
		next := g[0].text[depth]
		n.branches[next>>6&1] |= 1 << (next & 63)
	}
	n.children = uint32(len(b.nodes)) //nolint:gosec // at most 2 x MaxGrants
	b.nodes = append(b.nodes, make([]node, len(groups))...)
	b.nodes[i] = n
	for j, g := range groups {
		b.fill(n.children+uint32(j), g, depth+1)
	}
}

// add adds a grant whose text ends at node i.
func (b *builder) add(i uint32, n *node, g *grant) {
	if notAfter := b.rules[g.rule].NotAfter; !notAfter.IsZero() {
		b.ends[i] = addEnd(b.ends[i], end{notAfter: notAfter, verbs: g.verbs, below: g.below})
		n.ending = true
		return
	}
	n.below |= g.verbs
}

// split returns runs of grants with the same byte at depth.
func split(grants []grant, depth int) [][]grant {
	var groups [][]grant
	for len(grants) > 0 {
		n := 1
		for n < len(grants) && grants[n].text[depth] == grants[0].text[depth] {
			n++
		}
		groups = append(groups, grants[:n])
		grants = grants[n:]
	}
	return groups
}

// common returns how many first bytes a and b share.
func common(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
