package tenant

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/keysidecar/keysidecar/kek"
)

// The errors of Lookup.
var (
	// ErrUnknown says that no rule is about the tenant.
	ErrUnknown = errors.New("tenant is not in the directory")
	// ErrTemplate says that a rule is about the tenant, and that its ID does
	// not fit the URL template of one of the rule's KEKs. The text of the
	// error names the KEK, never a host.
	ErrTemplate = errors.New("tenant ID does not fit the URL template of its KEK")
)

// DefaultTemplateCache is what a zero Config.TemplateCache means.
const DefaultTemplateCache = 10_000

// Config is what a Directory is made of.
type Config struct {
	// KEKs are all KEKs that there ever were: a KEK is retired, not removed.
	// None means that no tenant can be configured.
	KEKs []KEK
	// Tenants are the rules, in any order. None means no tenants.
	Tenants []Rule
	// Hosts are the only vault hosts that KEK URLs may name, literal ones and
	// those that a template becomes: "kv1.example.com", with ":8443" for a
	// port other than 443; or "*.example.com" for exactly one label before
	// ".example.com". None means that no KEK can be configured.
	Hosts []string
	// TemplateCache bounds the entries that prefix rules have made and that
	// are kept for the next Lookup. Zero means DefaultTemplateCache. Entries
	// of exact rules are made by New and are not counted.
	TemplateCache int
	// OutageGrace is that of tenants whose rule says nothing. Zero is none: a
	// DEK is not used beyond its lease.
	OutageGrace time.Duration
}

// KEK is one key-encryption key, or with a template in its URL one for each
// tenant. What a KEK's Ref means never changes: URL and Alg stay as they are.
type KEK struct {
	// Ref is the logical name that key blocks carry: 1 to 63 bytes
	// [a-z0-9-], the last alphanumeric, unique. Required.
	Ref string
	// URL is "https://host[:port]/keys/name", without a version; the host in
	// lower case. Required, unique.
	//
	// It may contain "{tenant}" once, in the host's first label (the vault's
	// name) or in the key's name, alone or as a part of it, as in
	// "https://kv-{tenant}.vault.azure.net/keys/kek". Such a KEK takes only
	// tenant IDs that match [a-z][a-z0-9-]{1,22}[a-z0-9] as a whole, without
	// "--", and for which the label is a legal vault name: 3 to 24 bytes.
	URL string
	// Alg is the only wrapping algorithm of the KEK. Required.
	Alg kek.Alg
	// Region is where the vault keeps the key, in the operator's words, as
	// rules name it in Regions. Empty: not stated, so that no rule with
	// Regions may use the KEK.
	Region string
	// Credential is the configured name of the credential. Required.
	Credential string
	// EntraTenant is the Entra tenant ID (a GUID in lower case) whose tokens
	// the vault accepts. Required.
	EntraTenant string
	// Retired says that nothing new is wrapped with this KEK: it may be in
	// AlsoOpens only. False means in use.
	Retired bool
}

// Rule is about one tenant, or about every tenant whose ID begins with a
// prefix. The rule of an exact ID wins, then that of the longest prefix.
// Exactly one of ID and Prefix has to be set.
type Rule struct {
	// ID is the tenant ID, for a rule about one tenant.
	ID string
	// Prefix is what the tenant IDs begin with, for a rule about many; ""
	// is every tenant ID. Nil: a rule about ID.
	Prefix *string
	// KEK is the ref of the KEK that wraps new DEKs. Required, not retired.
	KEK string
	// AlsoOpens are the refs of other KEKs that the tenant's data may be
	// wrapped with: at most 15, without KEK. None means KEK only.
	AlsoOpens []string
	// Regions are the regions in which the tenant's data may be processed.
	// Every KEK of the rule has to be in one. None means any region.
	Regions []string
	// Suspended says that nothing may be sealed or unsealed. False: active.
	Suspended bool
	// Limits bound the tenant's calls. With Prefix every tenant has the same
	// limits, each of its own. The zero Limits are the sidecar's defaults.
	Limits Limits
	// Audit is how the tenant's calls are recorded. Zero is AuditDefault.
	Audit AuditMode
	// OutageGrace is for how long after a lease its DEKs may be used while the
	// vault does not answer. Nil is Config.OutageGrace.
	OutageGrace *time.Duration
}

// MaxOutageGrace is the longest outage of a vault that a tenant can tolerate.
const MaxOutageGrace = 24 * time.Hour

// maxKEKs bounds the KEKs of a rule, because Entry.KEK searches them one by one.
const maxKEKs = 16

// Entry is what the directory knows of one tenant. It is shared and must not
// be changed.
type Entry struct {
	// ID is the tenant.
	ID ID
	// KEKs are the tenant's KEKs, 1 to 16 of them, templates filled. The
	// first wraps new DEKs; all may open.
	KEKs []kek.Key
	// Regions are where its data may be processed; empty: anywhere.
	Regions []string
	// Suspended says that nothing may be sealed or unsealed.
	Suspended bool
	// Limits bound the tenant's calls, as its rule has them.
	Limits Limits
	// Audit is how its calls are recorded, as its rule has it.
	Audit AuditMode
	// OutageGrace is for how long after a lease its DEKs may be used while the
	// vault does not answer.
	OutageGrace time.Duration
}

// KEK returns the tenant's KEK of that ref. It does not allocate.
func (e *Entry) KEK(ref []byte) (kek.Key, bool) {
	for i := range e.KEKs {
		if e.KEKs[i].Ref == string(ref) {
			return e.KEKs[i], true
		}
	}
	return kek.Key{}, false
}

// Allows reports whether a sidecar in that region may process the tenant's
// data. A tenant without Regions is allowed everywhere, one with Regions
// nowhere where the region is "".
func (e *Entry) Allows(region string) bool {
	return len(e.Regions) == 0 || slices.Contains(e.Regions, region)
}

// Directory finds tenants. What it says never changes: a reload makes another
// Directory. It is safe for concurrent use.
type Directory struct {
	exact    map[ID]*Entry
	prefixes map[string]*rule
	lengths  []int // of the prefixes, longest first, each once

	mu   sync.Mutex
	made *simplelru.LRU[ID, *Entry] // entries made from prefix rules
}

// rule is a checked prefix rule.
type rule struct {
	keks      []template
	regions   []string
	suspended bool
	limits    Limits
	audit     AuditMode
	grace     time.Duration
}

// New checks cfg as a whole and returns its Directory. The error is a
// *ConfigError that names every mistake, the first maxMistakes of them.
func New(cfg Config) (*Directory, error) {
	c := newChecker(cfg)
	c.checkHosts()
	c.checkKEKs()
	d := c.checkRules()
	if cfg.TemplateCache < 0 {
		c.addf("template_cache", "%d is negative", cfg.TemplateCache)
	}
	if len(c.mistakes) > 0 {
		return nil, &ConfigError{Mistakes: c.mistakes}
	}
	size := cfg.TemplateCache
	if size == 0 {
		size = DefaultTemplateCache
	}
	made, err := simplelru.NewLRU[ID, *Entry](size, nil)
	if err != nil {
		panic("tenant: internal error: " + err.Error())
	}
	d.made = made
	return d, nil
}

// Lookup returns what the directory knows of id: ErrUnknown if that is
// nothing, ErrTemplate if id does not fit a KEK's URL template. It does not
// allocate for exact rules and entries made before.
func (d *Directory) Lookup(id ID) (*Entry, error) {
	if e, ok := d.exact[id]; ok {
		return e, nil
	}
	r := d.rule(id.s)
	if r == nil {
		return nil, ErrUnknown
	}
	d.mu.Lock()
	e, ok := d.made.Get(id)
	d.mu.Unlock()
	if ok {
		return e, nil
	}
	e, err := r.entry(id)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if older, ok := d.made.Get(id); ok {
		return older, nil
	}
	d.made.Add(id, e)
	return e, nil
}

// rule returns the prefix rule about id, nil if there is none.
func (d *Directory) rule(id string) *rule {
	if id == "" {
		return nil // the zero ID is no tenant
	}
	for _, n := range d.lengths {
		if n > len(id) {
			continue
		}
		if r, ok := d.prefixes[id[:n]]; ok {
			return r
		}
	}
	return nil
}

// entry fills the templates of the rule's KEKs.
func (r *rule) entry(id ID) (*Entry, error) {
	e := &Entry{ID: id, KEKs: make([]kek.Key, len(r.keks)), Regions: r.regions, Suspended: r.suspended,
		Limits: r.limits, Audit: r.audit, OutageGrace: r.grace}
	for i := range r.keks {
		k, err := r.keks[i].fill(id)
		if err != nil {
			return nil, err
		}
		e.KEKs[i] = k
	}
	return e, nil
}
