package tenant

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/keysidecar/keysidecar/kek"
)

// maxMistakes bounds how many mistakes New looks for before it gives up.
const maxMistakes = 10

// ConfigError holds the mistakes of a Config.
type ConfigError struct {
	// Mistakes are one or more, in the order in which they were found.
	Mistakes []Mistake
}

// Mistake is one thing wrong with a Config.
type Mistake struct {
	// Path names the field as the tenants file does, such as "keks[3].url"
	// or "tenants[0].also_opens[1]".
	Path string
	// Text says what is wrong with it.
	Text string
}

// Error returns the mistakes, one a line.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.Path + ": " + m.Text
	}
	return strings.Join(lines, "\n")
}

// checker goes through a Config once.
type checker struct {
	cfg      Config
	hosts    map[string]bool
	keks     map[string]checked
	mistakes []Mistake
}

type checked struct {
	template
	ok      bool // false: there is a mistake in it; do not report it again where it is used
	retired bool
}

func newChecker(cfg Config) *checker {
	return &checker{cfg: cfg, hosts: make(map[string]bool, len(cfg.Hosts)), keks: make(map[string]checked, len(cfg.KEKs))}
}

func (c *checker) full() bool { return len(c.mistakes) >= maxMistakes }

func (c *checker) addf(path, format string, args ...any) {
	if !c.full() {
		c.mistakes = append(c.mistakes, Mistake{Path: path, Text: fmt.Sprintf(format, args...)})
	}
}

func (c *checker) checkHosts() {
	for i, h := range c.cfg.Hosts {
		if err := CheckHost(h); err != nil {
			c.addf(fmt.Sprintf("hosts[%d]", i), "%s", err)
		}
		c.hosts[h] = true
	}
}

func (c *checker) checkKEKs() {
	urls := make(map[string]string, len(c.cfg.KEKs))
	for i := range c.cfg.KEKs {
		if c.full() {
			return
		}
		k, path := &c.cfg.KEKs[i], fmt.Sprintf("keks[%d]", i)
		before := len(c.mistakes)
		t := c.checkKEK(k, path)
		// Key Vault does not tell apart the case of key names.
		if other, ok := urls[strings.ToLower(k.URL)]; ok && k.URL != "" {
			c.addf(path+".url", "is the key of %s already: a key has one ref, or a revocation under one leaves the other", other)
		}
		if _, ok := c.keks[k.Ref]; ok {
			c.addf(path+".ref", "%q is given twice", k.Ref)
		}
		urls[strings.ToLower(k.URL)] = k.Ref
		c.keks[k.Ref] = checked{template: t, ok: len(c.mistakes) == before, retired: k.Retired}
	}
}

func (c *checker) checkKEK(k *KEK, path string) template {
	t := template{key: kek.Key{
		Ref: k.Ref, Alg: k.Alg, Region: k.Region, Credential: k.Credential, EntraTenant: k.EntraTenant}}
	if !validRef(k.Ref) {
		c.addf(path+".ref", "%q is not 1 to 63 of [a-z0-9-] with a letter or digit last", k.Ref)
	}
	if k.Alg != kek.RSAOAEP256 && k.Alg != kek.A256KW {
		c.addf(path+".alg", "%s is not RSA-OAEP-256 or A256KW", k.Alg)
	}
	if k.Credential == "" {
		c.addf(path+".credential", "is required")
	}
	if !IsGUID(k.EntraTenant) {
		c.addf(path+".entra_tenant", "%q is not a GUID in lower case", k.EntraTenant)
	}
	if err := t.parseURL(k.URL); err != nil {
		c.addf(path+".url", "%s", err)
	} else if err := c.checkAllowed(&t); err != nil {
		c.addf(path+".url", "%s", err)
	}
	return t
}

// checkAllowed checks that every host of the URL is one of Config.Hosts.
func (c *checker) checkAllowed(t *template) error {
	pattern := t.pattern()
	if _, rest, _ := strings.Cut(pattern, "."); !c.hosts[pattern] && !c.hosts["*."+rest] {
		return fmt.Errorf("host %s is not one of the allowed vault hosts", pattern)
	}
	return nil
}

// ParseKeyURL returns the vault and the name, as in kek.Key, of the one key that
// url is about: a URL as in KEK, without "{tenant}". Its host has to be one of
// hosts, which are as in Config.
func ParseKeyURL(url string, hosts []string) (vault, name string, err error) {
	c := newChecker(Config{Hosts: hosts})
	c.checkHosts()
	var t template
	if err := t.parseURL(url); err != nil {
		return "", "", err
	}
	if t.inHost || t.inName {
		return "", "", fmt.Errorf("has %s: it has to be one key's", hole)
	}
	if err := c.checkAllowed(&t); err != nil {
		return "", "", err
	}
	return t.key.Vault, t.key.Name, nil
}

func (c *checker) checkRules() *Directory {
	d := &Directory{exact: map[ID]*Entry{}, prefixes: map[string]*rule{}}
	for i := range c.cfg.Tenants {
		if c.full() {
			break
		}
		r, path := &c.cfg.Tenants[i], fmt.Sprintf("tenants[%d]", i)
		switch {
		case r.ID != "" && r.Prefix != nil:
			c.addf(path, "has both id and prefix")
		case r.Prefix != nil:
			c.addPrefix(d, r, path)
		default:
			c.addExact(d, r, path)
		}
	}
	for p := range d.prefixes {
		d.lengths = append(d.lengths, len(p))
	}
	slices.Sort(d.lengths)
	d.lengths = slices.Compact(d.lengths)
	slices.Reverse(d.lengths)
	return d
}

func (c *checker) addExact(d *Directory, r *Rule, path string) {
	if r.ID == "" {
		c.addf(path, "has neither id nor prefix")
		return
	}
	id, err := Parse(r.ID)
	if err != nil {
		c.addf(path+".id", "%s", err)
		return
	}
	if d.exact[id] != nil {
		c.addf(path+".id", "%q is given twice", r.ID)
	}
	checked, ok := c.checkRule(r, path)
	if !ok {
		return
	}
	e, err := checked.entry(id)
	if err != nil {
		c.addf(path+".id", "%s", err)
		return
	}
	d.exact[id] = e
}

func (c *checker) addPrefix(d *Directory, r *Rule, path string) {
	prefix := *r.Prefix
	if !validPrefix(prefix) {
		c.addf(path+".prefix", "no tenant ID can begin with %q", prefix)
		return
	}
	if d.prefixes[prefix] != nil {
		c.addf(path+".prefix", "%q is given twice", prefix)
	}
	checked, ok := c.checkRule(r, path)
	if !ok {
		return
	}
	for i := range checked.keks {
		if t := &checked.keks[i]; !t.takes(prefix) {
			c.addf(path+".prefix", "no tenant ID that begins with %q fits the URL template of KEK %s", prefix, t.key.Ref)
		}
	}
	d.prefixes[prefix] = checked
}

// checkRule resolves a rule's KEKs; false if it cannot be used.
func (c *checker) checkRule(r *Rule, path string) (*rule, bool) {
	before := len(c.mistakes)
	c.checkLimits(r.Limits, path)
	if r.Audit > AuditFull {
		c.addf(path+".audit", "%s is not a mode", r.Audit)
	}
	out := &rule{regions: slices.Clone(r.Regions), suspended: r.Suspended, limits: r.Limits, audit: r.Audit, grace: c.cfg.OutageGrace}
	if r.OutageGrace != nil {
		if out.grace = *r.OutageGrace; out.grace < 0 || out.grace > MaxOutageGrace {
			c.addf(path+".outage_grace", "%s is not from 0 to %s", out.grace, MaxOutageGrace)
		}
	}
	for i, region := range r.Regions {
		if region == "" {
			c.addf(fmt.Sprintf("%s.regions[%d]", path, i), "is empty")
		}
	}
	if 1+len(r.AlsoOpens) > maxKEKs {
		c.addf(path+".also_opens", "has %d KEKs, over %d", len(r.AlsoOpens), maxKEKs-1)
		return nil, false
	}
	ok := c.addKEK(out, r.KEK, path+".kek", false)
	for i, ref := range r.AlsoOpens {
		ok = c.addKEK(out, ref, fmt.Sprintf("%s.also_opens[%d]", path, i), true) && ok
	}
	return out, ok && len(c.mistakes) == before
}

func (c *checker) checkLimits(l Limits, path string) {
	if !(l.Rate >= 0) || math.IsInf(l.Rate, 1) { // not <, which NaN is not
		c.addf(path+".rate", "%v is not a finite number of calls per second, 0 (the default) or more", l.Rate)
	}
	if l.Burst < 0 {
		c.addf(path+".burst", "%d is negative", l.Burst)
	}
	if l.Calls < 0 {
		c.addf(path+".calls", "%d is negative", l.Calls)
	}
}

// addKEK appends the KEK of that ref to out; false if it cannot be used.
func (c *checker) addKEK(out *rule, ref, path string, retiredToo bool) bool {
	k, ok := c.keks[ref]
	switch {
	case !ok:
		c.addf(path, "%q is not the ref of a KEK", ref)
		return false
	case !k.ok:
		return false
	case k.retired && !retiredToo:
		c.addf(path, "KEK %s is retired: it may be in also_opens only", ref)
	case slices.ContainsFunc(out.keks, func(t template) bool { return t.key.Ref == ref }):
		c.addf(path, "KEK %s is given twice", ref)
	case len(out.regions) > 0 && !slices.Contains(out.regions, k.key.Region):
		c.addf(path, "KEK %s is in region %q, not in one of this rule's regions", ref, k.key.Region)
	}
	out.keks = append(out.keks, k.template)
	return true
}

// validRef reports whether s is a kek_ref as key blocks carry it (SPEC.md).
func validRef(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= 63 && s[len(s)-1] != '-'
}

// IsGUID reports whether s is 8-4-4-4-12 lower-case hex digits, as Entra writes
// the IDs of tenants and applications.
func IsGUID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == 36
}

// validPrefix reports whether a tenant ID can begin with s.
func validPrefix(s string) bool {
	if len(s) < MaxID {
		s += "0"
	}
	_, err := Parse(s)
	return err == nil
}
