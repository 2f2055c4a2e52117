package policy

import (
	"fmt"
	"strings"
)

// Verb is something a caller may be allowed to do. The zero Verb is nothing.
type Verb uint8

// The verbs: first those of the data plane, then those of the admin plane.
const (
	Seal Verb = 1 + iota
	Unseal
	AdminStatus
	AdminReload
	AdminEvict
	AdminPolicy
	AdminTenants
	AdminSuspend
)

// verbNames is indexed by Verb.
var verbNames = [...]string{
	Seal:         "seal",
	Unseal:       "unseal",
	AdminStatus:  "admin.status",
	AdminReload:  "admin.reload",
	AdminEvict:   "admin.evict",
	AdminPolicy:  "admin.policy",
	AdminTenants: "admin.tenants",
	AdminSuspend: "admin.suspend",
}

// Verbs returns every verb, in the order of the constants.
func Verbs() []Verb {
	all := make([]Verb, 0, len(verbNames)-1)
	for v := Seal; int(v) < len(verbNames); v++ {
		all = append(all, v)
	}
	return all
}

// ParseVerb returns the verb of that name, as String writes it. The error
// names the nearest verb.
func ParseVerb(s string) (Verb, error) {
	for _, v := range Verbs() {
		if verbNames[v] == s {
			return v, nil
		}
	}
	return 0, fmt.Errorf("verb %.40q is not known; the nearest is %s", s, nearestVerb(s))
}

// String returns the verb as policies and logs write it.
func (v Verb) String() string {
	if v == 0 || int(v) >= len(verbNames) {
		return "unknown verb"
	}
	return verbNames[v]
}

// Admin reports whether the verb is about the sidecar, not about data.
func (v Verb) Admin() bool { return v >= AdminStatus && int(v) < len(verbNames) }

// whole reports whether the verb is only ever about the sidecar as a whole.
// The other admin verbs can also be about a tenant.
func (v Verb) whole() bool {
	return v == AdminStatus || v == AdminReload || v == AdminPolicy || v == AdminTenants
}

// verbSet is a set of verbs, each by its bit.
type verbSet uint16

// bit returns the set of v alone. No set of a Policy has the bit of the zero
// Verb or that of an unknown one.
func (v Verb) bit() verbSet { return 1 << v }

// first returns the first verb of the set, 0 if it is empty.
func (s verbSet) first() Verb {
	for _, v := range Verbs() {
		if s&v.bit() != 0 {
			return v
		}
	}
	return 0
}

// nearestVerb returns the verb whose name takes the fewest edits to get to
// from s; to leave out "admin." is one.
func nearestVerb(s string) Verb {
	s = strings.ToLower(s[:min(len(s), 40)])
	var best Verb
	fewest := len(s) + 40
	for _, v := range Verbs() {
		name := verbNames[v]
		if n := min(edits(s, name), 1+edits(s, strings.TrimPrefix(name, "admin."))); n < fewest {
			best, fewest = v, n
		}
	}
	return best
}

// edits returns how many bytes have to be inserted, deleted or replaced to
// turn a into b (the Levenshtein distance).
func edits(a, b string) int {
	row := make([]int, len(b)+1) // from the part of a so far to each prefix of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
