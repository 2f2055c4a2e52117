package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/tenant"
)

// Decision is what Allow says, and why.
type Decision struct {
	// Allowed is what Allow returns.
	Allowed bool
	// Rule is the index in Config.Rules of the first rule that grants it; if
	// none does, of the first that did until it ended; -1 if none did.
	Rule int
	// CallerName is what the Config calls the caller, else its own Name.
	CallerName string
	// Why is one plain sentence.
	Why string
}

// Explain says what Allow says, and why. It reads the rules one by one, as
// they were given to New: that is slow, and a check on Allow.
func (p *Policy) Explain(c Caller, v Verb, t tenant.ID, now time.Time) Decision {
	if t == (tenant.ID{}) {
		return Decision{Rule: -1, CallerName: p.nameOf(c), Why: "no tenant is given"}
	}
	return p.explain(c, v, t.String(), now, func(pattern string) bool { return covers(pattern, t.String()) })
}

// ExplainAll says what AllowAll says, and why.
func (p *Policy) ExplainAll(c Caller, v Verb, now time.Time) Decision {
	return p.explain(c, v, "every tenant", now, func(pattern string) bool { return pattern == star })
}

// covers reports whether a pattern of Rule.Tenants is about the tenant.
func covers(pattern, id string) bool {
	if prefix, ok := strings.CutSuffix(pattern, star); ok {
		return strings.HasPrefix(id, prefix)
	}
	return pattern == id
}

func (p *Policy) explain(c Caller, v Verb, asked string, now time.Time, about func(pattern string) bool) Decision {
	d := Decision{Rule: -1, CallerName: p.nameOf(c)}
	for i := range p.cfg.Rules {
		r := &p.cfg.Rules[i]
		pattern := slices.IndexFunc(r.Tenants, about)
		if pattern < 0 || !slices.Contains(r.Verbs, v.String()) || !p.isFor(r, c) {
			continue
		}
		if r.NotAfter.IsZero() || stillHolds(r.NotAfter, now) {
			d.Allowed, d.Rule = true, i
			d.Why = fmt.Sprintf("rules[%d] grants %s for %q to %s%s", i, v, r.Tenants[pattern], r.to(d.CallerName), r.until())
			return d
		}
		if d.Rule < 0 {
			d.Rule, d.Why = i, fmt.Sprintf("rules[%d] granted it%s: it has expired", i, r.until())
		}
	}
	if d.Rule < 0 {
		d.Why = fmt.Sprintf("no rule grants %s for %s to %s", v, asked, p.whom(c))
	}
	return d
}

// isFor reports whether a rule is for c.
func (p *Policy) isFor(r *Rule, c Caller) bool {
	if slices.Contains(r.Callers, star) {
		return proved(c) && !(c.Source == Peer && !ordinary(c.UID))
	}
	listed := p.listed(c)
	return listed != nil && slices.Contains(r.Callers, listed.Name)
}

// proved reports whether c is somebody.
func proved(c Caller) bool { return Peer <= c.Source && c.Source <= DNS }

// listed returns the CallerRule that c is, the most specific, nil if none.
func (p *Policy) listed(c Caller) *CallerRule {
	var best *CallerRule
	most := 0
	for i := range p.cfg.Callers {
		r := &p.cfg.Callers[i]
		if n := r.match(c); n > most {
			best, most = r, n
		}
	}
	return best
}

// match returns how specifically a CallerRule matches c: 0 if it does not, 1
// by the group, 2 by the user, 3 by all there is.
func (r *CallerRule) match(c Caller) int {
	user := r.UID != nil && *r.UID == c.UID
	group := r.GID != nil && c.HasGID && *r.GID == c.GID
	switch {
	case c.Source == SPIFFE && r.SPIFFE != "" && r.SPIFFE == c.Name,
		c.Source == DNS && r.DNS != "" && dnsScheme+r.DNS == c.Name,
		c.Source == Peer && user && group:
		return 3
	case c.Source == Peer && user && r.GID == nil:
		return 2
	case c.Source == Peer && group && r.UID == nil && ordinary(c.UID):
		return 1
	}
	return 0
}

// nameOf returns what the Config calls c, else its own name.
func (p *Policy) nameOf(c Caller) string {
	if r := p.listed(c); r != nil {
		return r.Name
	}
	return c.Name
}

// whom says who was denied.
func (p *Policy) whom(c Caller) string {
	switch listed := p.listed(c); {
	case !proved(c):
		return "nobody"
	case listed != nil:
		return listed.Name
	case c.Source == Peer && !ordinary(c.UID):
		return fmt.Sprintf(`%s (it is not one of callers, and user %d is neither in "*" nor in a group)`, c.Name, c.UID)
	}
	return c.Name + " (it is not one of callers)"
}

// to says to whom a rule grants, as it does to the named caller.
func (r *Rule) to(name string) string {
	if slices.Contains(r.Callers, star) {
		return "every caller"
	}
	return name
}

// until says when and why a rule ends, "" if it does not.
func (r *Rule) until() string {
	if r.NotAfter.IsZero() {
		return ""
	}
	return fmt.Sprintf(" until %s (ticket %s)", r.NotAfter.UTC().Format(time.RFC3339Nano), r.Ticket)
}
