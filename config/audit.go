package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/keysidecar/keysidecar/config/internal/strict"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// Audit is the section "audit".
type Audit struct {
	// Sink is where the audit log goes: "stdout", for a collector to keep, or
	// "dir", files in a directory. "none": nothing is recorded, and nobody can
	// tell afterwards who did what; for development.
	Sink string `yaml:"sink" enum:"stdout dir none"`
	// Dir is the path of the directory for the files, which exists and to which
	// nobody but the sidecar writes. Required with sink dir; not allowed with
	// others.
	Dir string `yaml:"dir" kind:"path" example:"/var/lib/keysidecar-audit"`
	// Name says in each record which sidecar wrote it: 1 to 64 of
	// [A-Za-z0-9._-]. Empty: the host's name.
	Name string `yaml:"name" example:"orders-eu-1"`
	// Data is how calls of Seal and Unseal are recorded: "aggregate" counts those
	// that are alike, "full" writes a record of each before its caller gets the
	// answer. tenants.yaml may say otherwise about a tenant.
	Data string `yaml:"data" enum:"aggregate full"`
	// Interval is how often the counts are written: what a crash loses of them.
	Interval time.Duration `yaml:"interval" min:"1s" max:"10m"`
	// Rows is how many counts are kept apart in an interval, a quarter of them of
	// one caller. Calls beyond them are counted without their tenant.
	Rows int `yaml:"rows" min:"16" max:"100000"`
	// CheckpointInterval is how often a checkpoint is written, where there is
	// anything new: a record cannot be changed unseen once somebody else has a
	// later checkpoint.
	CheckpointInterval time.Duration `yaml:"checkpoint_interval" min:"100ms" max:"10m"`
	// SyncInterval is how long after its caller got the answer the record of a
	// call is safe from a crash of the machine, with sink dir; it is safe from
	// the end of the sidecar before. 0s: before the answer, which costs a sync
	// of the disk for each group of calls. Other records always are.
	SyncInterval time.Duration `yaml:"sync_interval" min:"0s" max:"10s"`
	// WriteTimeout is how long an operation that needs a record of its own waits
	// for it. Then it is refused. What is only counted does not wait.
	WriteTimeout time.Duration `yaml:"write_timeout" min:"100ms" max:"30s"`
	// DenialsPerMinute is how many denials of each caller get a record each;
	// further ones are counted.
	DenialsPerMinute int `yaml:"denials_per_minute" min:"1" max:"1000000"`
	// Context are the keys of the encryption context, 16 at most, whose values
	// are recorded with calls that get a record each. Empty: no values are.
	Context []string `yaml:"context" example:"purpose"`
	// SegmentBytes is how long a file becomes, with sink dir, before the next one
	// is begun.
	SegmentBytes Size `yaml:"segment_bytes" min:"1MiB" max:"1GiB"`
	// MaxBytes is how long all files are together, at least 4 times
	// segment_bytes. Beyond it, what needs a record is refused until there is
	// room.
	MaxBytes Size `yaml:"max_bytes" min:"16MiB" max:"1TiB"`
	// Retention says how long the files keep records, each class its own time: 0s
	// is for ever, otherwise 1h at least. With sink stdout that is up to the
	// collector.
	Retention Retention `yaml:"retention"`
	// Signer is a Key Vault key that certifies the log's own key when the sidecar
	// starts. Without it, verifying needs the log's key from elsewhere.
	Signer Signer `yaml:"signer"`

	sinkLine  int     `yaml:"-"` // where Sink is set
	signerKey kek.Key `yaml:"-"` // what Signer says; zero: nothing
}

// Retention is the section "audit.retention".
type Retention struct {
	// Keys is for what happens to keys and configuration, what operators do, and
	// the log itself.
	Keys time.Duration `yaml:"keys" min:"0s" max:"3660d"`
	// Denials is for what was refused.
	Denials time.Duration `yaml:"denials" min:"0s" max:"3660d"`
	// Data is for calls of Seal and Unseal.
	Data time.Duration `yaml:"data" min:"0s" max:"3660d"`
}

// Signer is the section "audit.signer".
type Signer struct {
	// URL is "https://host/keys/name", without a version, of an EC key on the
	// curve P-256. The host has to be one of the cloud's or of key_vault.hosts.
	// Empty: none; then no other key of this section may be set.
	URL string `yaml:"url" show:"empty"`
	// Credential is the name of one of key_vault.credentials. Required with a
	// url.
	Credential string `yaml:"credential" example:"main"`
	// EntraTenant is the Entra tenant ID, a GUID in lower case, that the vault
	// belongs to. Required with a url.
	EntraTenant string `yaml:"entra_tenant" example:"11111111-2222-3333-4444-555555555555"`
}

func defaultAudit() Audit {
	return Audit{
		Sink: "stdout", Data: "aggregate", Interval: time.Minute, Rows: 10_000, CheckpointInterval: 10 * time.Second,
		SyncInterval: 50 * time.Millisecond, WriteTimeout: 2 * time.Second, DenialsPerMinute: 600,
		SegmentBytes: 64 * MiB, MaxBytes: 4 * GiB,
		Retention: Retention{Keys: 400 * day, Denials: 400 * day, Data: 90 * day},
	}
}

// Mode is Data as package tenant calls it.
func (a *Audit) Mode() tenant.AuditMode {
	m, err := tenant.ParseAuditMode(a.Data)
	if err != nil {
		panic("config: internal error: data: " + err.Error()) // the enum tag lists tenant's names
	}
	return m
}

// signerRef is the signer's Ref. No KEK can be called that.
const signerRef = "audit.signer"

// SignerKey returns the key that Signer is about; false if there is none. Its Ref
// is "audit.signer", for errors and logs, and it has no Alg. It is for a Config
// from Load.
func (a *Audit) SignerKey() (kek.Key, bool) { return a.signerKey, a.signerKey != kek.Key{} }

// Bounds of the section "audit".
const (
	maxAuditName    = 64
	maxAuditContext = 16
	maxContextKey   = 128
	minRetention    = time.Hour
)

func (c *Config) checkAudit(f *strict.File) {
	a := &c.Audit
	a.sinkLine = f.Line("audit.sink")
	switch dir := a.Sink == "dir"; {
	case dir && a.Dir == "":
		f.Addf("audit.dir", "is required with sink dir")
	case !dir && a.Dir != "":
		f.Addf("audit.dir", "goes with sink dir only")
	case dir && c.StateDir != "" && filepath.Clean(a.Dir) == filepath.Clean(c.StateDir):
		f.Addf("audit.dir", "%s is the path of state_dir: each needs one of its own", a.Dir)
	}
	if a.Name != "" && !validAuditName(a.Name) {
		f.Addf("audit.name", "%q is not 1 to %d of [A-Za-z0-9._-]", a.Name, maxAuditName)
	}
	if need := 4 * a.SegmentBytes; a.MaxBytes < need {
		f.Addf("audit.max_bytes", "%s is under %s, 4 times segment_bytes", a.MaxBytes, need)
	}
	for _, r := range []struct {
		key  string
		kept time.Duration
	}{{"keys", a.Retention.Keys}, {"denials", a.Retention.Denials}, {"data", a.Retention.Data}} {
		if r.kept > 0 && r.kept < minRetention {
			f.Addf("audit.retention."+r.key, "%s is neither 0s nor %s or more",
				strict.FormatDuration(r.kept), strict.FormatDuration(minRetention))
		}
	}
	a.checkContext(f)
	c.checkSigner(f)
}

func (a *Audit) checkContext(f *strict.File) {
	if n := len(a.Context); n > maxAuditContext {
		f.Addf("audit.context", "has %d keys, over %d", n, maxAuditContext)
	}
	for i, key := range a.Context {
		at := fmt.Sprintf("audit.context[%d]", i)
		switch {
		case key == "" || len(key) > maxContextKey:
			f.Addf(at, "has %d bytes, not 1 to %d", len(key), maxContextKey)
		case strings.ContainsFunc(key, unicode.IsControl):
			f.Addf(at, "%q has a control character", key)
		case slices.Contains(a.Context[:i], key):
			f.Addf(at, "%q is given twice", key)
		}
	}
}

// checkSigner sets signerKey.
func (c *Config) checkSigner(f *strict.File) {
	s := &c.Audit.Signer
	for _, k := range []struct{ key, value string }{{"credential", s.Credential}, {"entra_tenant", s.EntraTenant}} {
		switch at := "audit.signer." + k.key; {
		case s.URL == "" && k.value != "":
			f.Addf(at, "goes with a url only")
		case s.URL != "" && k.value == "":
			f.Addf(at, "is required with a url")
		}
	}
	if s.URL == "" {
		return
	}
	vault, name, err := tenant.ParseKeyURL(s.URL, c.KeyVault.AllowedHosts())
	if err != nil {
		f.Addf("audit.signer.url", "%s", err)
	}
	if s.EntraTenant != "" && !tenant.IsGUID(s.EntraTenant) {
		f.Addf("audit.signer.entra_tenant", "%q is not a GUID in lower case", s.EntraTenant)
	} else if s.Credential != "" && s.EntraTenant != "" {
		c.checkReaches(f, "audit.signer", s.Credential, s.EntraTenant)
	}
	c.Audit.signerKey = kek.Key{Ref: signerRef, Vault: vault, Name: name, Credential: s.Credential, EntraTenant: s.EntraTenant}
}

// checkReaches checks that a credential of that name may ask for tokens of that
// Entra tenant: what the section at that path says of a key.
func (c *Config) checkReaches(f *strict.File, at, credential, entraTenant string) {
	i := slices.IndexFunc(c.KeyVault.Credentials, func(cred Credential) bool { return cred.Name == credential })
	if i < 0 {
		f.Addf(at+".credential", "%q is not the name of one of key_vault.credentials", credential)
	} else if !c.KeyVault.Credentials[i].reaches(entraTenant) {
		f.Addf(at+".entra_tenant", "is neither tenant_id nor one of allowed_tenants of credential %s", credential)
	}
}

func validAuditName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", rune(c)) {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= maxAuditName
}

// Warnings returns a line of text about each thing in config.yaml that is
// allowed and wrong for production.
func (c *Config) Warnings() []string {
	if c.Audit.Sink != "none" {
		return nil
	}
	return []string{fmt.Sprintf("%s:%d: audit.sink is none: nothing is recorded", c.Path, c.Audit.sinkLine)}
}
