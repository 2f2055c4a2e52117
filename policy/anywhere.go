package policy

import "time"

// anywhere is what somebody is granted for one tenant or more.
type anywhere struct {
	verbs verbSet // without an end
	ends  []end   // at most one of each verb
}

// newAnywhere returns what each of granted is about, each grant with the end
// that its rule has.
func newAnywhere(granted [][]grant, rules []Rule) []anywhere {
	all := make([]anywhere, len(granted))
	for n, grants := range granted {
		for i := range grants {
			all[n].add(grants[i].verbs, rules[grants[i].rule].NotAfter)
		}
	}
	return all
}

func (a *anywhere) add(verbs verbSet, notAfter time.Time) {
	if notAfter.IsZero() {
		a.verbs |= verbs
	} else {
		a.ends = addEnd(a.ends, end{notAfter: notAfter, verbs: verbs})
	}
}

// allow reports whether v is granted at that time.
func (a *anywhere) allow(v verbSet, now time.Time) bool {
	if a.verbs&v != 0 {
		return true
	}
	for _, e := range a.ends {
		if e.verbs&v != 0 && stillHolds(e.notAfter, now) {
			return true
		}
	}
	return false
}
