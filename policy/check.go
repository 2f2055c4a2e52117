package policy

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/keysidecar/keysidecar/tenant"
)

const (
	maxMistakes = 10 // how many mistakes New looks for before it gives up
	maxName     = 63 // bytes of CallerRule.Name
	maxTicket   = 64 // bytes of Rule.Ticket
)

// ConfigError holds the mistakes of a Config.
type ConfigError struct {
	// Mistakes are one or more, in the order in which they were found.
	Mistakes []Mistake
}

// Mistake is one thing wrong with a Config.
type Mistake struct {
	// Path names the field as the policy file does, such as "callers[2].uid"
	// or "rules[3].verbs[0]".
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
	names    map[string]uint32 // the number of each caller by CallerRule.Name
	granted  [][]grant         // to each number
	mistakes []Mistake
}

func newChecker(cfg Config) *checker {
	return &checker{cfg: cfg, names: make(map[string]uint32, len(cfg.Callers)), granted: make([][]grant, 1+len(cfg.Callers))}
}

func (c *checker) full() bool { return len(c.mistakes) >= maxMistakes }

func (c *checker) addf(path, format string, args ...any) {
	if !c.full() {
		c.mistakes = append(c.mistakes, Mistake{Path: path, Text: fmt.Sprintf(format, args...)})
	}
}

func (c *checker) checkCallers() {
	if n := len(c.cfg.Callers); n > MaxCallers {
		c.addf("callers", "are %d, over %d", n, MaxCallers)
	}
	identities := make(map[string]int, len(c.cfg.Callers))
	for i := range c.cfg.Callers {
		if c.full() {
			return
		}
		r, path := &c.cfg.Callers[i], fmt.Sprintf("callers[%d]", i)
		c.checkName(i, path+".name")
		c.checkLimits(r.Limits, path)
		identity, field := c.checkIdentity(r, path)
		if identity == "" {
			continue
		}
		if other, ok := identities[identity]; ok {
			c.addf(path+field, "%s is callers[%d] (%s) already: an identity is one caller", identity, other, c.cfg.Callers[other].Name)
			continue
		}
		identities[identity] = i
	}
}

// number returns the number of a caller by its index. The index of one beyond
// MaxCallers is a mistake already.
func number(i int) uint32 { return 1 + uint32(i) } //nolint:gosec // see above

func (c *checker) checkName(i int, path string) {
	name := c.cfg.Callers[i].Name
	if name == "" || len(name) > maxName || !only(name, nameByte) {
		c.addf(path, "%.80q is not 1 to %d of [a-z0-9-]", name, maxName)
		return
	}
	if other, ok := c.names[name]; ok {
		c.addf(path, "%q is the name of callers[%d] already", name, other-1)
		return
	}
	c.names[name] = number(i)
}

func (c *checker) checkLimits(l tenant.Limits, path string) {
	if l.Rate < 0 || math.IsNaN(l.Rate) || math.IsInf(l.Rate, 0) {
		c.addf(path+".rate", "%v is not a number from 0 up", l.Rate)
	}
	if l.Burst < 0 {
		c.addf(path+".burst", "%d is negative", l.Burst)
	}
	if l.Calls < 0 {
		c.addf(path+".calls", "%d is negative", l.Calls)
	}
}

// checkIdentity returns what the rule matches, as one text, and the field to
// blame if that is taken; no text if there is a mistake.
func (c *checker) checkIdentity(r *CallerRule, path string) (identity, field string) {
	var caller Caller
	var err error
	peer := r.UID != nil || r.GID != nil
	switch {
	case peer && r.SPIFFE == "" && r.DNS == "":
		return c.checkPeer(r, path)
	case !peer && r.SPIFFE != "" && r.DNS == "":
		field = ".spiffe"
		caller, err = SPIFFECaller(r.SPIFFE)
	case !peer && r.SPIFFE == "" && r.DNS != "":
		field = ".dns"
		caller, err = DNSCaller(r.DNS)
	default:
		c.addf(path, "needs exactly one identity: uid, gid or both, or spiffe, or dns")
	}
	if err != nil {
		c.addf(path+field, "%s", err)
	}
	return caller.Name, field
}

func (c *checker) checkPeer(r *CallerRule, path string) (identity, field string) {
	var parts []string
	if r.UID != nil {
		parts, field = append(parts, uidName(*r.UID)), ".uid"
		if *r.UID == noID {
			c.addf(path+".uid", "%d is no user", *r.UID)
		}
	}
	if r.GID != nil {
		parts, field = append(parts, "gid:"+decimal(*r.GID)), ".gid"
		if *r.GID == noID {
			c.addf(path+".gid", "%d is no group", *r.GID)
		}
		if *r.GID == overflow && r.UID == nil {
			c.addf(path+".gid", "%d needs a uid: it is also every group that the kernel cannot map", *r.GID)
		}
	}
	return strings.Join(parts, "/"), field
}

// countGrants reports whether the rules grant at most MaxGrants, so that going
// through them is bounded.
func (c *checker) countGrants() bool {
	room := MaxGrants
	for i := range c.cfg.Rules {
		r := &c.cfg.Rules[i]
		n, tenants, verbs := len(r.Callers), len(r.Tenants), len(r.Verbs)
		// Without a product that can overflow.
		if n > room || tenants > room || verbs > room || n*tenants > room || n*tenants*verbs > room {
			c.addf(fmt.Sprintf("rules[%d]", i), "takes the grants to over %d, counted as callers x tenants x verbs of each rule", MaxGrants)
			return false
		}
		room -= n * tenants * verbs
	}
	return true
}

func (c *checker) checkRules() {
	for i := range c.cfg.Rules {
		if c.full() {
			return
		}
		r, path, before := &c.cfg.Rules[i], fmt.Sprintf("rules[%d]", i), len(c.mistakes)
		callers := c.checkRuleCallers(r, path)
		starred := slices.Contains(callers, everybody)
		all := c.checkTenants(r, path)
		verbs := c.checkVerbs(r, path, starred, all)
		c.checkEnd(r, path)
		c.checkAcknowledge(r, path, starred && all && verbs&(Seal.bit()|Unseal.bit()) != 0)
		if len(c.mistakes) > before {
			continue
		}
		for _, n := range callers {
			c.granted[n] = appendGrants(c.granted[n], r, i, verbs)
		}
	}
}

func appendGrants(grants []grant, r *Rule, i int, verbs verbSet) []grant {
	for _, pattern := range r.Tenants {
		grants = append(grants, newGrant(pattern, i, verbs))
	}
	return grants
}

// checkRuleCallers returns the numbers of the rule's callers.
func (c *checker) checkRuleCallers(r *Rule, path string) []uint32 {
	if len(r.Callers) == 0 {
		c.addf(path+".callers", "is empty: a rule without callers grants nothing")
	}
	callers := make([]uint32, 0, len(r.Callers))
	for j, name := range r.Callers {
		n, ok := c.names[name]
		if !ok && name != star {
			c.addf(fmt.Sprintf("%s.callers[%d]", path, j), "%.80q is not the name of one of callers", name)
			continue
		}
		if !ok && len(r.Callers) > 1 {
			c.addf(fmt.Sprintf("%s.callers[%d]", path, j), `"*" has to be alone: it is every caller`)
		}
		callers = append(callers, n) // everybody if it is "*"
	}
	return callers
}

// checkTenants reports whether the rule is for every tenant.
func (c *checker) checkTenants(r *Rule, path string) (all bool) {
	if len(r.Tenants) == 0 {
		c.addf(path+".tenants", "is empty: a rule without tenants grants nothing")
	}
	for j, pattern := range r.Tenants {
		if pattern == star {
			all = true
		} else if err := checkPattern(pattern); err != nil {
			c.addf(fmt.Sprintf("%s.tenants[%d]", path, j), "%s", err)
		}
	}
	return all
}

func checkPattern(pattern string) error {
	prefix, ok := strings.CutSuffix(pattern, star)
	if !ok {
		if _, err := tenant.Parse(pattern); err != nil {
			return fmt.Errorf("%.140q: %w; a prefix has a * last", pattern, err)
		}
		return nil
	}
	// The shortest ID that begins with the prefix and goes on.
	next := prefix
	if len(prefix) < tenant.MaxID {
		next += "0"
	}
	if _, err := tenant.Parse(next); err != nil {
		return fmt.Errorf("no tenant ID can begin with %.140q", prefix)
	}
	return nil
}

// checkVerbs returns the rule's verbs. The rule is for every caller if starred
// is true, and for every tenant if all is.
func (c *checker) checkVerbs(r *Rule, path string, starred, all bool) verbSet {
	if len(r.Verbs) == 0 {
		c.addf(path+".verbs", "is empty: a rule without verbs grants nothing")
	}
	var verbs verbSet
	for j, name := range r.Verbs {
		at := fmt.Sprintf("%s.verbs[%d]", path, j)
		v, err := ParseVerb(name)
		switch {
		case err != nil:
			c.addf(at, "%s", err)
		case verbs&v.bit() != 0:
			c.addf(at, "%s is given twice", v)
		case starred && v.Admin():
			c.addf(at, `%s cannot be granted to "*": name the callers`, v)
		case !all && v.whole():
			c.addf(at, `%s needs tenants "*": it is about the sidecar as a whole`, v)
		}
		verbs |= v.bit()
	}
	return verbs
}

func (c *checker) checkEnd(r *Rule, path string) {
	switch {
	case r.Ticket == "" && !r.NotAfter.IsZero():
		c.addf(path+".ticket", "is required with not_after: say why there is a grant that ends")
	case r.Ticket != "" && r.NotAfter.IsZero():
		c.addf(path+".not_after", "is required with ticket: a grant with a ticket has to end")
	}
	printable := func(b byte) bool { return '!' <= b && b <= '~' }
	if len(r.Ticket) > maxTicket || !only(r.Ticket, printable) {
		c.addf(path+".ticket", "%.80q is not 1 to %d of printable ASCII without spaces", r.Ticket, maxTicket)
	}
}

func (c *checker) checkAcknowledge(r *Rule, path string, everything bool) {
	path += ".acknowledge"
	switch {
	case everything && r.Acknowledge == "":
		c.addf(path, "is required: the rule lets every caller use every tenant's data; say %q if that is meant", Acknowledgement)
	case everything && r.Acknowledge != Acknowledgement:
		c.addf(path, "%.80q is not %q", r.Acknowledge, Acknowledgement)
	case !everything && r.Acknowledge != "":
		c.addf(path, `has no place here: the rule does not grant seal or unseal for the tenants "*" to the callers "*"`)
	}
}

// checkDuplicates sorts what is granted and finds what is granted twice without
// an end: one mistake a rule. A rule that ends may repeat others: somebody adds
// it in a hurry, above one that has ended or will.
func (c *checker) checkDuplicates() {
	told := make(map[int]bool)
	c.checkTwice("every caller", c.granted[everybody], told)
	for i := range c.cfg.Callers {
		c.checkTwice(c.cfg.Callers[i].Name, c.granted[1+i], told)
	}
}

func (c *checker) checkTwice(who string, grants []grant, told map[int]bool) {
	sortGrants(grants)
	first, verbs := 0, verbSet(0) // those with the same tenants so far
	for i := range grants {
		g := &grants[i]
		if !g.sameTenants(&grants[first]) {
			first, verbs = i, 0
		}
		if c.ends(g) {
			continue
		}
		if twice := verbs & g.verbs; twice != 0 && !told[g.rule] && !c.full() {
			told[g.rule] = true
			c.addTwice(who, grants[first:i], g, twice.first())
		}
		verbs |= g.verbs
	}
}

func (c *checker) ends(g *grant) bool { return !c.cfg.Rules[g.rule].NotAfter.IsZero() }

// addTwice says that one of the earlier grants, of lower or the same rules,
// has v already.
func (c *checker) addTwice(who string, earlier []grant, g *grant, v Verb) {
	other := slices.IndexFunc(earlier, func(o grant) bool { return o.verbs&v.bit() != 0 && !c.ends(&o) })
	path, by := fmt.Sprintf("rules[%d]", g.rule), earlier[other].rule
	if by == g.rule {
		c.addf(path, "grants %s for %q to %s twice", v, g.pattern(), who)
		return
	}
	c.addf(path, "grants %s for %q to %s, as rules[%d] does already", v, g.pattern(), who, by)
}

// policy returns the Policy of a Config without mistakes.
func (c *checker) policy() *Policy {
	cfg := clone(c.cfg)
	p := &Policy{
		cfg: cfg, grants: newForest(c.granted, cfg.Rules), anywhere: newAnywhere(c.granted, cfg.Rules),
		pairs: map[uint64]uint32{}, users: map[uint32]uint32{}, groups: map[uint32]uint32{}, names: map[string]uint32{},
	}
	for i := range cfg.Callers {
		p.add(&cfg.Callers[i], number(i))
	}
	return p
}

// clone returns a copy that shares nothing that can change, and whose times
// have no monotonic clock reading: ends are compared by the wall clock.
func clone(cfg Config) Config {
	cfg.Callers, cfg.Rules = slices.Clone(cfg.Callers), slices.Clone(cfg.Rules)
	for i := range cfg.Callers {
		c := &cfg.Callers[i]
		c.UID, c.GID = cloneID(c.UID), cloneID(c.GID)
	}
	for i := range cfg.Rules {
		r := &cfg.Rules[i]
		r.Callers, r.Tenants, r.Verbs = slices.Clone(r.Callers), slices.Clone(r.Tenants), slices.Clone(r.Verbs)
		r.NotAfter = r.NotAfter.Round(0)
	}
	return cfg
}

func cloneID(id *uint32) *uint32 {
	if id == nil {
		return nil
	}
	return new(*id)
}

// add makes a caller findable by its one identity.
func (p *Policy) add(r *CallerRule, n uint32) {
	switch {
	case r.UID != nil && r.GID != nil:
		p.pairs[pair(*r.UID, *r.GID)] = n
	case r.UID != nil:
		p.users[*r.UID] = n
	case r.GID != nil:
		p.groups[*r.GID] = n
	case r.SPIFFE != "":
		p.names[r.SPIFFE] = n
	default:
		p.names[dnsScheme+r.DNS] = n
	}
}
