package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keysidecar/keysidecar/tenant"
)

// Kind is what a Finding is about. Its text is part of the command's output.
type Kind string

// The kinds of findings.
const (
	// KEKRemoved: a KEK is gone. Data that names its ref no longer opens.
	KEKRemoved Kind = "kek-removed"
	// KEKRenamed: a KEK is gone, and its URL has another ref.
	KEKRenamed Kind = "kek-renamed"
	// KEKURLChanged: a ref names another key.
	KEKURLChanged Kind = "kek-url-changed"
	// KEKAlgChanged: a ref has another algorithm.
	KEKAlgChanged Kind = "kek-alg-changed"
	// KEKUnretired: a retired KEK is in use again, although somebody may have
	// made sure that nothing is left under it.
	KEKUnretired Kind = "kek-unretired"
	// TenantKEKRemoved: a tenant lost a KEK that its data may be wrapped with.
	TenantKEKRemoved Kind = "tenant-kek-removed"
	// TenantRemoved: a tenant has no rule any more.
	TenantRemoved Kind = "tenant-removed"
)

// Refuses reports whether the change is never right. The other findings are
// warnings: the change takes data away, and may be meant to.
func (k Kind) Refuses() bool { return k != TenantRemoved }

// Finding is one thing that a new configuration takes away from data which was
// sealed under an old one.
type Finding struct {
	// Kind is what it is about.
	Kind Kind
	// Name is the KEK's ref, the tenant's ID, or "prefix" and the prefix in quotes.
	Name string
	// File and Line are where: in the new tenants file, or in the old one for
	// what is gone.
	File string
	Line int
	// Text says what is wrong and what to do.
	Text string
}

// String returns "file:line: name: text (kind)".
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s (%s)", f.File, f.Line, f.Name, f.Text, f.Kind)
}

// Check returns what the new configuration takes away from data sealed under
// the old one, KEKs first, in the order of the old file. Both have to come
// from Load, or to have Tenants from LoadTenants.
func Check(old, now *Config) []Finding {
	a := against{old: old.Tenants, new: now.Tenants}
	a.checkKEKs()
	a.checkRules()
	return a.findings
}

type against struct {
	old, new *Tenants
	findings []Finding
}

func (a *against) add(kind Kind, name string, t *Tenants, line int, format string, args ...any) {
	f := Finding{Kind: kind, Name: name, File: t.Path, Line: line, Text: fmt.Sprintf(format, args...)}
	a.findings = append(a.findings, f)
}

func (a *against) checkKEKs() {
	byRef, byURL := map[string]int{}, map[string]string{}
	for i, k := range a.new.Config.KEKs {
		byRef[k.Ref], byURL[strings.ToLower(k.URL)] = i, k.Ref
	}
	for i, k := range a.old.Config.KEKs {
		j, ok := byRef[k.Ref]
		if !ok {
			if other, ok := byURL[strings.ToLower(k.URL)]; ok {
				a.add(KEKRenamed, k.Ref, a.old, a.old.kekLines[i],
					"is now called %s: sealed data names it by its ref, for ever", other)
			} else {
				a.add(KEKRemoved, k.Ref, a.old, a.old.kekLines[i], "is gone: set \"retired: true\" instead")
			}
			continue
		}
		now, line := a.new.Config.KEKs[j], a.new.kekLines[j]
		if !strings.EqualFold(now.URL, k.URL) {
			a.add(KEKURLChanged, k.Ref, a.new, line, "was %s: another key needs another ref", k.URL)
		}
		if now.Alg != k.Alg {
			a.add(KEKAlgChanged, k.Ref, a.new, line, "was %s: a ref has one algorithm, for ever", k.Alg)
		}
		if k.Retired && !now.Retired {
			a.add(KEKUnretired, k.Ref, a.new, line, "was retired: use a new key and ref")
		}
	}
}

// checkRules compares what old and new say about every ID and every prefix
// that either names. Between those, neither makes a difference.
func (a *against) checkRules() {
	oldRules, newRules := index(a.old), index(a.new)
	seen := map[string]bool{}
	for _, t := range []*Tenants{a.old, a.new} {
		for i := range t.Config.Tenants {
			r := &t.Config.Tenants[i]
			name := ruleName(r)
			if seen[name] {
				continue
			}
			seen[name] = true
			if was := oldRules.about(r); was >= 0 && a.usable(r) {
				a.checkRule(name, was, newRules.about(r))
			}
		}
	}
}

// usable reports whether the old rules served any ID that r is about: a
// template may have refused them all.
func (a *against) usable(r *tenant.Rule) bool {
	ids := []string{r.ID}
	if r.Prefix != nil {
		ids = []string{*r.Prefix, *r.Prefix + "a", *r.Prefix + "aa", *r.Prefix + "aaa"}
	}
	return slices.ContainsFunc(ids, func(s string) bool {
		id, err := tenant.Parse(s)
		if err != nil {
			return false
		}
		_, err = a.old.Directory.Lookup(id)
		return err == nil
	})
}

// checkRule compares the old rule was with the new one, -1 for none.
func (a *against) checkRule(name string, was, now int) {
	old := &a.old.Config.Tenants[was]
	if now < 0 {
		a.add(TenantRemoved, name, a.old, a.old.ruleLines[was], "is gone, and its data does not open: suspend it instead")
		return
	}
	rule := &a.new.Config.Tenants[now]
	for _, ref := range append([]string{old.KEK}, old.AlsoOpens...) {
		if ref != rule.KEK && !slices.Contains(rule.AlsoOpens, ref) {
			a.add(TenantKEKRemoved, name, a.new, a.new.ruleLines[now], "KEK %s no longer opens: add it to also_opens", ref)
		}
	}
}

func ruleName(r *tenant.Rule) string {
	if r.Prefix != nil {
		return fmt.Sprintf("prefix %q", *r.Prefix)
	}
	return r.ID
}

// rules are the indices of a file's rules.
type rules struct {
	exact, prefix map[string]int
	longest       int
}

func index(t *Tenants) rules {
	out := rules{exact: map[string]int{}, prefix: map[string]int{}}
	for i, r := range t.Config.Tenants {
		if r.Prefix != nil {
			out.prefix[*r.Prefix] = i
			out.longest = max(out.longest, len(*r.Prefix))
		} else {
			out.exact[r.ID] = i
		}
	}
	return out
}

// about returns the rule about r's ID, or about most IDs with r's prefix; -1
// for none.
func (rs *rules) about(r *tenant.Rule) int {
	name := r.ID
	if r.Prefix != nil {
		name = *r.Prefix
	} else if i, ok := rs.exact[name]; ok {
		return i
	}
	for n := min(len(name), rs.longest); n >= 0; n-- {
		if i, ok := rs.prefix[name[:n]]; ok {
			return i
		}
	}
	return -1
}
