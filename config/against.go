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
	// TenantTemplateNarrower: a tenant ID that fitted the URLs of its KEKs does
	// not fit the URL template of one that its rule names now, so that the
	// directory refuses it.
	TenantTemplateNarrower Kind = "tenant-template-narrower"
	// TenantRemoved: a tenant has no rule any more.
	TenantRemoved Kind = "tenant-removed"
	// TenantSuspended: an active tenant is suspended.
	TenantSuspended Kind = "tenant-suspended"
	// TenantRegion: a tenant that the sidecar served may not be served in the
	// sidecar's region any more.
	TenantRegion Kind = "tenant-region"
	// TenantAudit: a tenant's calls are only counted that got a record each.
	TenantAudit Kind = "tenant-audit"
	// AuditOff: nothing is recorded any more.
	AuditOff Kind = "audit-off"
)

// Refuses reports whether the change is never right. The other findings are
// warnings: the change takes data away, or records of it, and may be meant to.
func (k Kind) Refuses() bool {
	switch k {
	case TenantRemoved, TenantSuspended, TenantRegion, TenantAudit, AuditOff:
		return false
	}
	return true
}

// maxTemplateID is the longest tenant ID that fits a URL template, in bytes.
const maxTemplateID = 24

// Finding is one thing that a new configuration takes away from data which was
// sealed under an old one, or from the audit log.
type Finding struct {
	// Kind is what it is about.
	Kind Kind
	// Name is the KEK's ref, the tenant's ID, or "prefix" and the prefix in quotes;
	// for AuditOff "audit.sink".
	Name string
	// File and Line are where: in the new tenants file, or in the old one for
	// what is gone; for AuditOff in the new config.yaml.
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
// the old one, and from the audit log: KEKs first, in the order of the old file,
// config.yaml last. Both have to come from Load or Reload.
func Check(old, now *Config) []Finding {
	a := against{old: newSide(old), new: newSide(now)}
	a.checkKEKs()
	a.checkRules()
	if old.Audit.Sink != "none" && now.Audit.Sink == "none" {
		a.findings = append(a.findings, Finding{Kind: AuditOff, Name: "audit.sink", File: now.Path, Line: now.Audit.sinkLine,
			Text: "is none: nothing is recorded any more"})
	}
	return a.findings
}

type against struct {
	old, new side
	findings []Finding
}

func (a *against) add(kind Kind, name string, in side, line int, format string, args ...any) {
	f := Finding{Kind: kind, Name: name, File: in.Path, Line: line, Text: fmt.Sprintf(format, args...)}
	a.findings = append(a.findings, f)
}

func (a *against) checkKEKs() {
	byURL := map[string]string{}
	for _, k := range a.new.Config.KEKs {
		byURL[strings.ToLower(k.URL)] = k.Ref
	}
	for i, k := range a.old.Config.KEKs {
		j, ok := a.new.keks[k.Ref]
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
// that either names. Between those, neither makes a difference: the rule for
// the ID, or for all IDs that begin with the prefix and with no longer one, is
// the same.
func (a *against) checkRules() {
	oldRules, newRules := index(a.old.Tenants), index(a.new.Tenants)
	seen := map[string]bool{}
	for _, t := range []*Tenants{a.old.Tenants, a.new.Tenants} {
		for i := range t.Config.Tenants {
			r := &t.Config.Tenants[i]
			name := ruleName(r)
			if seen[name] {
				continue
			}
			seen[name] = true
			if was := oldRules.about(r); was >= 0 {
				a.checkRule(name, r, was, newRules.about(r))
			}
		}
	}
}

// checkRule compares the old rule was with the new one, -1 for none, as rules
// about what r is about.
func (a *against) checkRule(name string, r *tenant.Rule, was, now int) {
	old := &a.old.Config.Tenants[was]
	served := a.old.taken(old, samples(r))
	if len(served) == 0 {
		return // a template refuses every ID that r is about
	}
	if now < 0 {
		a.add(TenantRemoved, name, a.old, a.old.ruleLines[was], "is gone, and its data does not open: suspend it instead")
		return
	}
	rule, line := &a.new.Config.Tenants[now], a.new.ruleLines[now]
	for _, ref := range refs(old) {
		if !slices.Contains(refs(rule), ref) {
			a.add(TenantKEKRemoved, name, a.new, line, "KEK %s no longer opens: add it to also_opens", ref)
		}
	}
	if still := a.new.taken(rule, served); len(still) < len(served) {
		gone := slices.IndexFunc(served, func(id string) bool { return !slices.Contains(still, id) })
		a.add(TenantTemplateNarrower, name, a.new, line,
			"tenant ID %q no longer fits a KEK's URL template, and its data does not open: leave as much room", served[gone])
	}
	if rule.Suspended && !old.Suspended {
		a.add(TenantSuspended, name, a.new, line, "is suspended: nothing is sealed or unsealed")
	}
	if a.old.allows(old) && !a.new.allows(rule) {
		a.add(TenantRegion, name, a.new, line,
			"the sidecar's region %q is not one of its regions: nothing is sealed or unsealed here", a.new.region)
	}
	if a.old.audit(old) == tenant.AuditFull && a.new.audit(rule) == tenant.AuditAggregate {
		a.add(TenantAudit, name, a.new, line, "its calls are no longer recorded one by one")
	}
}

// refs are the refs of a rule's KEKs.
func refs(r *tenant.Rule) []string { return append([]string{r.KEK}, r.AlsoOpens...) }

// samples returns IDs that r is about: its own, or enough that begin with its
// prefix to find every difference between two rules. What a rule takes depends
// on how long an ID is, where it has a KEK with a template, and then on its
// looking like a vault's name.
func samples(r *tenant.Rule) []string {
	if r.Prefix == nil {
		return []string{r.ID}
	}
	ids := []string{*r.Prefix, *r.Prefix + "A"}
	for n := 1; len(*r.Prefix)+n <= maxTemplateID; n++ {
		ids = append(ids, *r.Prefix+strings.Repeat("a", n))
	}
	return slices.DeleteFunc(ids, func(id string) bool { _, err := tenant.Parse(id); return err != nil })
}

// side is one of the two configurations that are compared.
type side struct {
	*Tenants

	region  string
	keks    map[string]int   // where each ref is in Config.KEKs
	audited tenant.AuditMode // without a word about it in a rule; AuditDefault: nothing is recorded
}

func newSide(c *Config) side {
	s := side{Tenants: c.Tenants, region: c.Region, keks: map[string]int{}}
	if c.Audit.Sink != "none" {
		s.audited = c.Audit.Mode()
	}
	for i, k := range c.Tenants.Config.KEKs {
		s.keks[k.Ref] = i
	}
	return s
}

// allows reports whether r lets this side's sidecar serve its tenants.
func (s *side) allows(r *tenant.Rule) bool {
	e := tenant.Entry{Regions: r.Regions}
	return e.Allows(s.region)
}

// audit returns how this side's sidecar records the calls for r's tenants;
// AuditDefault if it records nothing.
func (s *side) audit(r *tenant.Rule) tenant.AuditMode {
	if s.audited == tenant.AuditDefault || r.Audit == tenant.AuditDefault {
		return s.audited
	}
	return r.Audit
}

// taken returns those of ids that r takes, whichever of the rules they fall
// to: all of them, unless the URL of one of its KEKs has a template.
func (s *side) taken(r *tenant.Rule, ids []string) []string {
	alone := tenant.Config{Hosts: s.Config.Hosts, Tenants: []tenant.Rule{{Prefix: new(""), KEK: r.KEK, AlsoOpens: r.AlsoOpens}}}
	template := false
	for _, ref := range refs(r) {
		k := s.Config.KEKs[s.keks[ref]]
		alone.KEKs = append(alone.KEKs, k)
		template = template || strings.Contains(k.URL, "{")
	}
	if !template {
		return ids
	}
	d, err := tenant.New(alone)
	if err != nil {
		panic("config: internal error: rule of a checked file: " + err.Error())
	}
	var out []string
	for _, s := range ids {
		if id, err := tenant.Parse(s); err == nil {
			if _, err := d.Lookup(id); err == nil {
				out = append(out, s)
			}
		}
	}
	return out
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
