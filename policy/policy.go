// Package policy says who calls, and what a caller may do for which tenant.
package policy

import (
	"time"

	"github.com/keysidecar/keysidecar/tenant"
)

const (
	// MaxCallers is how many Callers a Config may have.
	MaxCallers = 10_000
	// MaxGrants is how much the Rules of a Config may grant in all, counted
	// as caller x tenant x verb of each: a rule's lists multiply.
	MaxGrants = 1_000_000
	// Acknowledgement is what Rule.Acknowledge says.
	Acknowledgement = "grants-everything"
)

// star stands for every caller and for every tenant, and ends a prefix.
const star = "*"

// Config is what a Policy is made of.
type Config struct {
	// Callers are the callers that rules can name, at most MaxCallers. None
	// means that only rules for "*" can be given.
	Callers []CallerRule
	// Rules grant. A caller may do what at least one of them grants it; their
	// order means nothing. None means that nobody may do anything.
	Rules []Rule
}

// CallerRule names a caller. It has one identity, which no other CallerRule
// has: a UID, a GID or both; or SPIFFE; or DNS.
//
// A process is the caller with its user and group, else the one with its user,
// else the one with its group: that one only, whatever the others are granted.
// User 0 (root) and user 65534 (nobody, and all users whom the kernel cannot
// map) are never callers by their group alone.
type CallerRule struct {
	// Name is how rules, limits and logs call it: 1 to 63 bytes [a-z0-9-],
	// unique. Required.
	Name string
	// UID is the user ID of a process that connects to a Unix socket. Nil:
	// any, if there is a GID.
	UID *uint32
	// GID is its primary group ID. 0 is that of any container that sets only
	// its user. 65534 is also every group that the kernel cannot map: it needs
	// a UID. Nil: any, if there is a UID.
	GID *uint32
	// SPIFFE is the SPIFFE ID of its certificate, as SPIFFECaller takes it.
	SPIFFE string
	// DNS is the DNS name of its certificate, as DNSCaller takes it.
	DNS string
	// Limits are the caller's. A zero field means the sidecar's default.
	Limits tenant.Limits
}

// Rule grants every one of Verbs for every one of Tenants to every one of
// Callers. No list may be empty. Without NotAfter, to grant the same verb for
// the same text in Tenants to the same caller twice, by one rule or by two, is
// a mistake. Texts that overlap, such as "eu-*" and "eu-1", are not the same.
type Rule struct {
	// Callers are names of Config.Callers; or "*" alone, which is whomever a
	// listener proved, listed or not. Users 0 and 65534 are not in "*", even
	// if they are listed: a rule has to name them.
	Callers []string
	// Tenants are tenant IDs; or prefixes of them followed by "*", as in
	// "eu-*"; or "*", which is every tenant.
	Tenants []string
	// Verbs are what is granted, as Verb.String writes it. The admin verbs
	// cannot be granted to the callers "*", and AdminStatus, AdminReload,
	// AdminPolicy and AdminTenants only for the tenants "*".
	Verbs []string
	// NotAfter ends the grant: it holds until then, exclusive, by the clock
	// that Allow is given. After that the rule is inert, not a mistake. Zero:
	// no end. It goes together with Ticket.
	NotAfter time.Time
	// Ticket says why there is a grant that ends: 1 to 64 bytes of printable
	// ASCII without spaces. Empty: the grant has no end.
	Ticket string
	// Acknowledge is Acknowledgement for a rule that grants seal or unseal
	// for the tenants "*" to the callers "*", and empty for all others.
	Acknowledge string
}

// Policy decides. The zero Policy denies everything. What it says depends on
// nothing but the time that it is given: a reload makes another Policy. It is
// safe for concurrent use.
type Policy struct {
	cfg Config // our copy

	// The number of each caller, 1 more than its index in cfg.Callers.
	pairs  map[uint64]uint32 // by user and group
	users  map[uint32]uint32
	groups map[uint32]uint32
	names  map[string]uint32 // by Caller.Name: SPIFFE IDs and DNS names

	// The tree of everybody's number is what rules for "*" grant, that of a
	// caller's number what rules grant that name it.
	grants forest
	// What each number is granted for any tenant.
	anywhere []anywhere
}

// everybody is the number of the callers "*", and of callers not listed.
const everybody = 0

// New checks cfg as a whole and returns its Policy. The error is a
// *ConfigError that names every mistake, the first maxMistakes of them.
func New(cfg Config) (*Policy, error) {
	c := newChecker(cfg)
	c.checkCallers()
	if c.countGrants() {
		c.checkRules()
		c.checkDuplicates()
	}
	if len(c.mistakes) > 0 {
		return nil, &ConfigError{Mistakes: c.mistakes}
	}
	return c.policy(), nil
}

// Allow reports whether c may do v for t at that time. Nobody may do
// anything, the zero Verb is allowed to nobody, and nothing for the zero ID.
// If now is zero, no grant that ends holds. It does not allocate.
func (p *Policy) Allow(c Caller, v Verb, t tenant.ID, now time.Time) bool {
	if t == (tenant.ID{}) {
		return false
	}
	n, starred := p.find(&c)
	return n != everybody && p.grants.allow(n, t.String(), v.bit(), now) ||
		starred && p.grants.allow(everybody, t.String(), v.bit(), now)
}

// AllowAll reports whether c may do v for every tenant at that time: what
// verbs about the sidecar as a whole need. Only a rule with the tenants "*"
// grants that. It does not allocate.
func (p *Policy) AllowAll(c Caller, v Verb, now time.Time) bool {
	n, starred := p.find(&c)
	return n != everybody && p.grants.allowAll(n, v.bit(), now) || starred && p.grants.allowAll(everybody, v.bit(), now)
}

// Any reports whether c may do v for any tenant at all at that time, whether or
// not there is such a tenant. False means that Allow and AllowAll are false
// too, so a call can be refused before it is known which tenant it is about;
// true says nothing about any one tenant. It does not allocate, and its cost
// does not depend on the rules.
func (p *Policy) Any(c Caller, v Verb, now time.Time) bool {
	n, starred := p.find(&c)
	return n != everybody && p.anywhere[n].allow(v.bit(), now) || starred && p.anywhere[everybody].allow(v.bit(), now)
}

// Who returns the name that the Config gives c, and its limits; c.Name and
// no limits if it gives none. It does not allocate.
func (p *Policy) Who(c Caller) (name string, limits tenant.Limits) {
	n, _ := p.find(&c)
	if n == everybody {
		return c.Name, tenant.Limits{}
	}
	r := &p.cfg.Callers[n-1]
	return r.Name, r.Limits
}

// find returns the number of c, everybody if it is not listed, and whether it
// is one of "*".
func (p *Policy) find(c *Caller) (n uint32, starred bool) {
	if len(p.grants.nodes) == 0 { // the zero Policy
		return everybody, false
	}
	switch c.Source {
	case Peer:
		return p.findPeer(c), ordinary(c.UID)
	case SPIFFE, DNS:
		return p.names[c.Name], true
	}
	return everybody, false
}

// findPeer returns the number of the most specific caller that the process is.
func (p *Policy) findPeer(c *Caller) uint32 {
	if c.HasGID {
		if n := p.pairs[pair(c.UID, c.GID)]; n != everybody {
			return n
		}
	}
	if n := p.users[c.UID]; n != everybody {
		return n
	}
	if c.HasGID && ordinary(c.UID) {
		return p.groups[c.GID]
	}
	return everybody
}

// pair returns a user and a group as one key.
func pair(uid, gid uint32) uint64 { return uint64(uid)<<32 | uint64(gid) }

// ordinary reports whether a user can be granted something without being
// named.
func ordinary(uid uint32) bool { return uid != root && uid != overflow && uid != noID }

// Named returns a Caller that the CallerRule of that name matches, for Explain;
// false if there is no such rule. For a rule with a GID only it is a process of
// that group and of a user that no other rule names.
func (p *Policy) Named(name string) (Caller, bool) {
	for i := range p.cfg.Callers {
		if p.cfg.Callers[i].Name == name {
			return p.callerOf(&p.cfg.Callers[i]), true
		}
	}
	return Caller{}, false
}

// callerOf returns a Caller that a checked CallerRule matches.
func (p *Policy) callerOf(r *CallerRule) Caller {
	switch {
	case r.SPIFFE != "":
		return Caller{Name: r.SPIFFE, Source: SPIFFE}
	case r.DNS != "":
		return Caller{Name: dnsScheme + r.DNS, Source: DNS}
	case r.GID == nil:
		return uidCaller(*r.UID)
	case r.UID != nil:
		return PeerCaller(*r.UID, *r.GID, 0)
	}
	uid := uint32(1)
	for p.users[uid] != everybody || p.pairs[pair(uid, *r.GID)] != everybody {
		uid++ // there are more users than MaxCallers below 65534
	}
	return PeerCaller(uid, *r.GID, 0)
}
