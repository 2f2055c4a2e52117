package config

import (
	"errors"
	"fmt"
	"time"

	"github.com/keysidecar/keysidecar/config/internal/strict"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// Tenants is a tenants file, loaded and checked.
type Tenants struct {
	// Path is the file's path.
	Path string
	// Config is what the file says.
	Config tenant.Config
	// Directory is the directory made from Config.
	Directory *tenant.Directory

	kekLines  []int // where each of Config.KEKs begins
	ruleLines []int // where each of Config.Tenants begins
}

// tenantsFile is tenants.yaml: which tenants there are, and which KEKs. A
// change needs a reload.
type tenantsFile struct {
	// APIVersion names this format.
	APIVersion string `yaml:"apiVersion" enum:"keysidecar/v1" required:"true"`
	// KEKs are all KEKs that there ever were. A KEK is never removed and its
	// URL and alg never change, because sealed data names its ref: it is
	// retired instead.
	KEKs []kekEntry `yaml:"keks" required:"true"`
	// Tenants are the rules by which a tenant ID finds its KEKs. The rule of
	// exactly this ID wins, then that of the longest prefix.
	Tenants []tenantEntry `yaml:"tenants" required:"true"`
}

// kekEntry is an element of "keks".
type kekEntry struct {
	// Ref is the KEK's name in sealed data, for ever: 1 to 63 of [a-z0-9-],
	// the last a letter or digit.
	Ref string `yaml:"ref" required:"true" example:"acme"`
	// URL is "https://host/keys/name", without a version. The host has to be
	// one of the cloud's or of key_vault.hosts. "{tenant}" may stand once, as
	// the vault's name or the key's name or a part of it; then there is one
	// key for each tenant, and a tenant ID has to match
	// [a-z][a-z0-9-]{1,22}[a-z0-9] without "--" and to give a legal vault
	// name of 3 to 24 characters. Two KEKs may not have the same URL.
	URL string `yaml:"url" required:"true" example:"https://kv-acme.vault.azure.net/keys/kek"`
	// Alg is the wrapping algorithm: RSA-OAEP-256 for an RSA key, A256KW for
	// an oct key. RSA wrapping authenticates nobody; A256KW does.
	Alg string `yaml:"alg" required:"true" enum:"RSA-OAEP-256 A256KW" example:"RSA-OAEP-256"`
	// Region is where the vault is, in your own words, for the tenants'
	// "regions". Empty: not stated.
	Region string `yaml:"region" example:"westeurope" show:"true"`
	// Credential is the name of one of key_vault.credentials.
	Credential string `yaml:"credential" required:"true" example:"main"`
	// EntraTenant is the Entra tenant ID, a GUID in lower case, that the
	// vault belongs to. No token goes to a vault that asks for another.
	EntraTenant string `yaml:"entra_tenant" required:"true" example:"11111111-2222-3333-4444-555555555555"`
	// Retired says that nothing new is wrapped with this KEK: it may stand in
	// "also_opens" only.
	Retired bool `yaml:"retired"`
}

// tenantEntry is an element of "tenants".
type tenantEntry struct {
	// ID is the tenant ID, for a rule about one tenant. Tenant IDs are
	// written in clear in sealed data and logs.
	ID string `yaml:"id" example:"acme" show:"true"`
	// Prefix is what the tenant IDs begin with, instead of id, for a rule
	// about many. "" is all of them: then every ID is a tenant.
	Prefix *string `yaml:"prefix" example:"c-"`
	// KEK is the ref of the KEK that new DEKs are wrapped with.
	KEK string `yaml:"kek" required:"true" example:"acme"`
	// AlsoOpens are the refs of other KEKs, 15 at most, that the tenant's
	// data may be wrapped with. Empty: kek only.
	AlsoOpens []string `yaml:"also_opens" example:"acme-2024"`
	// Regions are where the tenant's data may be processed. Every KEK of the
	// rule has to be in one of them, and a sidecar elsewhere refuses. Empty:
	// anywhere.
	Regions []string `yaml:"regions" example:"westeurope" show:"true"`
	// State is "active", or "suspended": nothing is sealed or unsealed.
	State string `yaml:"state" enum:"active suspended" default:"active"`
	// Rate is how many calls for each of these tenants begin in a second, for
	// long. 0 is what limits.tenant of config.yaml says.
	Rate float64 `yaml:"rate" min:"0" max:"10000000"`
	// Burst is how many begin at once after a pause. 0 is as many as rate, or
	// without a rate what limits.tenant says.
	Burst int `yaml:"burst" min:"0" max:"10000000"`
	// Calls is how many are in flight at a time. 0 is what limits.tenant says.
	Calls int `yaml:"calls" min:"0" max:"1000000"`
	// Audit is how calls for these tenants are recorded: "aggregate" counts those
	// that are alike, "full" writes a record of each. Empty: what audit.data of
	// config.yaml says.
	Audit string `yaml:"audit" enum:"aggregate full" example:"full"`
	// OutageGrace is for how long after its lease these tenants' DEKs are used
	// while Key Vault does not answer. 0s is for who holds the KEK: nobody can
	// keep DEKs in use by cutting the way to it. Left out: what
	// key_vault.outage_grace says.
	OutageGrace *time.Duration `yaml:"outage_grace" min:"0s" max:"24h" example:"0s"`
}

// loadTenants returns nil if there are problems.
func (c *Config) loadTenants(ps *strict.Problems) *Tenants {
	data := c.read(c.TenantsFile, MaxTenantsFile, ps)
	if len(*ps) > 0 {
		return nil
	}
	return parseTenants(c.TenantsFile, data, c, ps)
}

func parseTenants(name string, data []byte, c *Config, ps *strict.Problems) *Tenants {
	f := strict.Parse(name, data, ps)
	var tf tenantsFile
	f.Decode(&tf)
	if len(*ps) > 0 {
		return nil
	}
	t := &Tenants{Path: name, Config: tf.config(c), kekLines: f.Lines("keks"), ruleLines: f.Lines("tenants")}
	d, err := tenant.New(t.Config)
	if bad, ok := errors.AsType[*tenant.ConfigError](err); ok {
		for _, m := range bad.Mistakes {
			f.Addf(m.Path, "%s", m.Text)
		}
	} else if err != nil {
		f.Addf("", "%s", err)
	}
	c.checkTenants(f, &t.Config)
	t.Directory = d
	return t
}

// config returns what the file says, and what c adds to it.
func (tf *tenantsFile) config(c *Config) tenant.Config {
	out := tenant.Config{
		Hosts:         c.KeyVault.AllowedHosts(),
		TemplateCache: c.Cache.Entries,
		OutageGrace:   c.KeyVault.OutageGrace,
		KEKs:          make([]tenant.KEK, len(tf.KEKs)),
		Tenants:       make([]tenant.Rule, len(tf.Tenants)),
	}
	for i, k := range tf.KEKs {
		alg, err := kek.ParseAlg(k.Alg)
		if err != nil {
			panic("config: internal error: alg: " + err.Error()) // the enum tag lists kek's names
		}
		out.KEKs[i] = tenant.KEK{Ref: k.Ref, URL: k.URL, Alg: alg, Region: k.Region, Credential: k.Credential,
			EntraTenant: k.EntraTenant, Retired: k.Retired}
	}
	for i, t := range tf.Tenants {
		audit, err := tenant.ParseAuditMode(t.Audit)
		if err != nil {
			panic("config: internal error: audit: " + err.Error()) // the enum tag lists tenant's names
		}
		out.Tenants[i] = tenant.Rule{ID: t.ID, Prefix: t.Prefix, KEK: t.KEK, AlsoOpens: t.AlsoOpens,
			Regions: t.Regions, Suspended: t.State == "suspended",
			Limits: tenant.Limits{Rate: t.Rate, Burst: t.Burst, Calls: t.Calls}, Audit: audit,
			OutageGrace: t.OutageGrace}
	}
	return out
}

// checkTenants checks t against what only c knows.
func (c *Config) checkTenants(f *strict.File, t *tenant.Config) {
	for i, k := range t.KEKs {
		c.checkReaches(f, fmt.Sprintf("keks[%d]", i), k.Credential, k.EntraTenant)
	}
	for i, r := range t.Tenants {
		if len(r.Regions) > 0 && c.Region == "" {
			f.Addf(fmt.Sprintf("tenants[%d].regions", i), "needs the sidecar's own region in config.yaml")
			return
		}
	}
}
