// Package config turns the files config.yaml, tenants.yaml and policy.yaml into
// checked values. It is the only YAML in the program.
//
// The files are strict: an unknown or repeated key, a value of another type,
// an anchor, an alias, a merge key, a tag, an empty value, a second document
// are refused, each with its position. Nothing in the environment overrides
// the files, and no secret belongs in them, only paths to files with secrets.
//
// The comments of the structs, and their tags, are the manual: docs/config.md
// and what Reference returns are generated from them. Two tags are for that
// only: "example", where there is no default, and "show", which is "true" where
// the reference has to set the example, and "empty" where it sets "".
package config

import (
	"io/fs"
	"net"
	"net/netip"
	"time"

	"github.com/keysidecar/keysidecar/config/internal/strict"
)

//go:generate go test -run ^TestReferenceIsGenerated$ -update .

// Limits of the files themselves, in bytes.
const (
	MaxConfigFile = 1 << 20
	// A tenants file takes about 60 times its length in memory while it is
	// read, and some 400 bytes a tenant afterwards.
	MaxTenantsFile = 64 << 20
	MaxPolicyFile  = 16 << 20
)

const day = 24 * time.Hour

// Size is a number of bytes, written as "512KiB".
type Size = strict.Size

// The units of a Size.
const (
	KiB = strict.KiB
	MiB = strict.MiB
	GiB = strict.GiB
	TiB = strict.TiB
	PiB = strict.PiB
)

// MaxProblems is how many problems an Error names at most.
const MaxProblems = strict.MaxProblems

// Error is what Load and Reload return for files that are not right.
type Error = strict.Error

// Problem is one thing wrong with a file.
type Problem = strict.Problem

// Config is config.yaml, and the files tenants.yaml and policy.yaml that it
// names. A change of config.yaml needs a restart, a change of the others a
// Reload. All relative paths are resolved already.
//
// The zero Config is not valid: Default has the defaults, Load checks.
type Config struct {
	// APIVersion names this format.
	APIVersion string `yaml:"apiVersion" enum:"keysidecar/v1" required:"true"`
	// Listen says where workloads connect.
	Listen Listen `yaml:"listen"`
	// Region is where this sidecar runs, in the words that tenants.yaml uses
	// in "regions". Empty: not stated; then no tenant may have "regions".
	Region string `yaml:"region" example:"westeurope" show:"true"`
	// TenantsFile is the path of tenants.yaml.
	TenantsFile string `yaml:"tenants_file" kind:"path" required:"true"`
	// PolicyFile is the path of policy.yaml.
	PolicyFile string `yaml:"policy_file" kind:"path" required:"true"`
	// StateDir is the path of a directory that exists, in which the sidecar
	// keeps what has to survive a restart: which tenants are suspended.
	// Empty: nothing can be suspended at run time.
	StateDir string `yaml:"state_dir" kind:"path" example:"/var/lib/keysidecar"`
	// ReloadInterval is how often tenants.yaml, policy.yaml and the files of
	// listen.tcp are looked at for changes, 10ms at least. 0s: they are read
	// again on SIGHUP and "keysidecar sidecar reload" only.
	ReloadInterval time.Duration `yaml:"reload_interval" min:"0s" max:"1h"`
	// KeyVault says which Key Vaults there are and how to reach them.
	KeyVault KeyVault `yaml:"key_vault"`
	// DEK says how long data encryption keys (DEKs) are used.
	DEK DEK `yaml:"dek"`
	// Cache bounds what is kept in memory.
	Cache Cache `yaml:"cache"`
	// Memory says how DEKs have to be kept in memory.
	Memory Memory `yaml:"memory"`
	// Limits bounds what callers can ask.
	Limits Limits `yaml:"limits"`
	// Audit says what is recorded in the audit log, and where.
	Audit Audit `yaml:"audit"`
	// Server has switches of the gRPC server.
	Server Server `yaml:"server"`
	// Metrics says where metrics are served.
	Metrics Metrics `yaml:"metrics"`
	// Log says what is logged to standard error.
	Log Log `yaml:"log"`

	// Path is the path of config.yaml.
	Path string `yaml:"-"`
	// Tenants is the file that TenantsFile names, loaded.
	Tenants *Tenants `yaml:"-"`
	// Policy is the file that PolicyFile names, loaded.
	Policy *Policy `yaml:"-"`

	hashes map[string]string `yaml:"-"` // see Hashes
}

// Listen is the section "listen".
type Listen struct {
	// Socket is the path of the Unix socket, 100 bytes at most. Its directory
	// has to exist, and others may not write to it.
	Socket string `yaml:"socket" kind:"path" required:"true"`
	// Mode is the socket's file mode, four octal digits in quotes. Who may
	// write to the socket may connect: "0600" is this user only, "0660" adds
	// the group, "0666" everybody who reaches the directory. What they may do
	// policy.yaml says.
	Mode fs.FileMode `yaml:"mode"`
	// AdminSocket is the path of the Unix socket for the admin API, as socket.
	// Empty: "admin.sock" in the directory of socket.
	AdminSocket string `yaml:"admin_socket" kind:"path" example:"/run/keysidecar/admin.sock"`
	// AdminMode is its file mode, as mode.
	AdminMode fs.FileMode `yaml:"admin_mode"`
	// TCP is a second listener for workloads, which prove who they are with a
	// client certificate.
	TCP TCP `yaml:"tcp"`
}

// TCP is the section "listen.tcp".
type TCP struct {
	// Address is the IP address and port to listen on: "127.0.0.1:9440".
	// Empty: none; then only allow and max_age may be set.
	Address string `yaml:"address" show:"empty"`
	// Allow are the prefixes of the IP addresses that may connect.
	Allow []string `yaml:"allow"`
	// CertFile is the path of the PEM file with the sidecar's own certificate
	// and what leads from it to its authority. Required with an address.
	CertFile string `yaml:"cert_file" kind:"path" example:"/etc/keysidecar/tls.crt"`
	// KeyFile is the path of the PEM file with the certificate's private key.
	// Required with an address.
	KeyFile string `yaml:"key_file" kind:"path" example:"/etc/keysidecar/tls.key"`
	// ClientCAFile is the path of the PEM file with the authorities of the
	// callers' certificates. Required with an address.
	ClientCAFile string `yaml:"client_ca_file" kind:"path" example:"/etc/keysidecar/callers.pem"`
	// TrustDomain is the SPIFFE trust domain of the callers: each is the
	// SPIFFE ID in its certificate. Empty: each is the DNS name in it.
	TrustDomain string `yaml:"trust_domain" example:"example.org"`
	// MaxAge is how long after it connected a caller is believed to be who it
	// proved to be. Its connection ends then.
	MaxAge time.Duration `yaml:"max_age" min:"1m" max:"24h"`
}

// KeyVault is the section "key_vault".
type KeyVault struct {
	// Cloud is the Azure cloud: the hosts of its vaults and Managed HSMs are
	// those that the KEKs' URLs may name. "devvault" is the embedded
	// Key Vault, for development and tests, and reaches no Azure.
	Cloud string `yaml:"cloud" enum:"public us_government china devvault"`
	// Hosts are further hosts that the URLs may name, each in full:
	// "kv.example.com", with ":8443" for another port than 443. Empty: the
	// cloud's own only.
	Hosts []string `yaml:"hosts" example:"kv.example.com"`
	// DevVault says where the embedded Key Vault is. With cloud "devvault" all
	// of it is required, otherwise none may be set.
	DevVault DevVault `yaml:"devvault"`
	// Credentials are the identities that the sidecar can take, by name. KEKs
	// name them.
	Credentials []Credential `yaml:"credentials"`
	// PollInterval is how often a KEK is asked for a newer version: how long
	// new DEKs may still be wrapped with an old one.
	PollInterval time.Duration `yaml:"poll_interval" min:"1s" max:"8m"`
	// Lease is for how long DEKs are used after their KEK version has said yes:
	// it is asked again in time, by unwrapping one of them. A version that is
	// disabled is obeyed within this time while Key Vault answers.
	Lease time.Duration `yaml:"lease" min:"10s" max:"1h"`
	// OutageGrace is for how long after its lease a tenant's DEKs are used while
	// Key Vault does not answer, for tenants whose rule says nothing. Whoever
	// cuts the way to Key Vault keeps DEKs in use for that long.
	OutageGrace time.Duration `yaml:"outage_grace" min:"0s" max:"24h"`
	// LoadTimeout bounds one mint or unwrap of a DEK in all, retries
	// included. A caller waits no longer than its own deadline.
	LoadTimeout time.Duration `yaml:"load_timeout" min:"100ms" max:"1m"`
}

// DevVault is the section "key_vault.devvault".
type DevVault struct {
	// Address is where the embedded Key Vault listens: "127.0.0.1:8443".
	// Every host under the suffix is dialled there.
	Address string `yaml:"address" example:"127.0.0.1:8443"`
	// Suffix is the part of the vaults' hosts after the vault's name, without
	// a port. URLs have the port of the address, or none.
	Suffix string `yaml:"suffix" example:"vault.localhost"`
	// CAFile is the path of the PEM file with the certificate authority of
	// the embedded Key Vault.
	CAFile string `yaml:"ca_file" kind:"path" example:"devvault/ca.pem"`
	// TokenFile is the path of the file with its access token.
	TokenFile string `yaml:"token_file" kind:"path" example:"devvault/token"`
}

// Credential is an element of "key_vault.credentials". There is no chain of
// guesses: the sidecar uses exactly the type that is named.
type Credential struct {
	// Name is what KEKs call it: 1 to 63 of [a-z0-9-].
	Name string `yaml:"name" required:"true" example:"main"`
	// Type is how it proves itself. "devvault" goes with the cloud
	// "devvault", and only with it.
	Type string `yaml:"type" required:"true" enum:"workload_identity managed_identity client_certificate devvault" example:"workload_identity"`
	// TenantID is the Entra tenant ID, a GUID in lower case. Required for
	// workload_identity and client_certificate; not allowed for others.
	TenantID string `yaml:"tenant_id" example:"11111111-2222-3333-4444-555555555555" show:"true"`
	// AllowedTenants are further Entra tenants, GUIDs in lower case, whose
	// vaults may get a token: those of the KEKs that use this credential, for
	// workload_identity and client_certificate only. Empty: tenant_id only.
	AllowedTenants []string `yaml:"allowed_tenants" example:"aaaaaaaa-2222-3333-4444-555555555555"`
	// ClientID is the ID of the application or managed identity, a GUID in
	// lower case. Required for workload_identity and client_certificate,
	// allowed for managed_identity (empty: the system-assigned identity), not
	// allowed for devvault.
	ClientID string `yaml:"client_id" example:"66666666-7777-8888-9999-000000000000" show:"true"`
	// TokenFile is the path of the projected service-account token, for
	// workload_identity only. Empty: where Azure's webhook puts it.
	TokenFile string `yaml:"token_file" kind:"path" example:"/var/run/secrets/azure/tokens/azure-identity-token"`
	// CertificateFile is the path of a PEM file with certificate and private
	// key. Required for client_certificate; not allowed for others.
	CertificateFile string `yaml:"certificate_file" kind:"path" example:"/etc/keysidecar/client.pem"`
}

// DEK is the section "dek".
type DEK struct {
	// SoftAge is the age at which a tenant's next DEK is minted, less up
	// to a tenth, drawn at random.
	SoftAge time.Duration `yaml:"soft_age" min:"1m" max:"366d"`
	// HardAgeFactor times soft_age is the age after which a DEK seals
	// nothing more, if no new one could be minted. Unseal knows no age.
	HardAgeFactor float64 `yaml:"hard_age_factor" min:"1" max:"10"`
	// MaxMessages is how many messages a DEK seals in this process.
	MaxMessages uint64 `yaml:"max_messages" min:"1" max:"4294967296"`
	// MaxBytes is how many bytes of plaintext a DEK seals in this
	// process.
	MaxBytes Size `yaml:"max_bytes" min:"64MiB" max:"1PiB"`
}

// Cache is the section "cache".
type Cache struct {
	// Entries is how many DEKs are kept unwrapped, least recently used
	// out first. 32 bytes of locked memory each.
	Entries int `yaml:"entries" min:"16" max:"1000000"`
	// TenantShare is the largest part of them that one tenant gets; 1 is no
	// bound.
	TenantShare float64 `yaml:"tenant_share" min:"0.01" max:"1"`
	// Negative says how long failures are remembered, so that repeating a
	// request does not repeat its Key Vault call.
	Negative Negative `yaml:"negative"`
}

// Negative is the section "cache.negative".
type Negative struct {
	// Unknown is for wrapped DEKs that open nothing.
	Unknown time.Duration `yaml:"unknown" min:"1ms" max:"10m"`
	// Unreachable is for a vault that does not answer.
	Unreachable time.Duration `yaml:"unreachable" min:"1ms" max:"10m"`
	// Refused is for a KEK that is disabled, missing or forbidden: how long a
	// tenant waits at most after the key's owner has allowed it again.
	Refused time.Duration `yaml:"refused" min:"1ms" max:"10m"`
	// Entries is how many failures are remembered.
	Entries int `yaml:"entries" min:"16" max:"1000000"`
}

// Memory is the section "memory".
type Memory struct {
	// RequireLocked refuses to start where DEKs cannot be kept in memory
	// that is never swapped or dumped. False: the start-up line says which
	// level was reached.
	RequireLocked bool `yaml:"require_locked"`
}

// Limits is the section "limits".
type Limits struct {
	// UnaryBytes is the longest plaintext of one call.
	UnaryBytes Size `yaml:"unary_bytes" min:"1KiB" max:"64MiB"`
	// CallsPerConnection is how many calls of one connection are in flight.
	CallsPerConnection int `yaml:"calls_per_connection" min:"1" max:"65536"`
	// Connections is how many connections each listener has at a time.
	Connections int `yaml:"connections" min:"1" max:"65536"`
	// ConnectionsPerCaller is how many of them one caller has.
	ConnectionsPerCaller int `yaml:"connections_per_caller" min:"1" max:"65536"`
	// CallTimeout is how long a call takes at most, whatever deadline its
	// caller has.
	CallTimeout time.Duration `yaml:"call_timeout" min:"1s" max:"10m"`
	// BytesInFlight is how many bytes of messages are in memory at a time, at
	// least 4 times unary_bytes. 0B: a quarter of the memory limit.
	BytesInFlight Size `yaml:"bytes_in_flight" min:"0B" max:"1TiB"`
	// BytesShare is the largest part of them that one caller has; 1 is no
	// bound.
	BytesShare float64 `yaml:"bytes_share" min:"0.1" max:"1"`
	// Caller bounds the calls of each caller. policy.yaml may say otherwise
	// about one.
	Caller CallLimit `yaml:"caller"`
	// Tenant bounds the calls for each tenant, of all callers together.
	// tenants.yaml may say otherwise about one.
	Tenant TenantLimit `yaml:"tenant"`
	// Misses bounds the data keys loaded or minted, two or three Key Vault
	// requests each, for each caller and vault.
	Misses MissLimit `yaml:"misses"`
	// Drain is how long calls in flight have to finish when the sidecar
	// stops; 0s ends them at once.
	Drain time.Duration `yaml:"drain" min:"0s" max:"10m"`
}

// CallLimit is the section "limits.caller".
type CallLimit struct {
	// Rate is how many calls begin in a second, for long.
	Rate float64 `yaml:"rate" min:"0.01" max:"10000000"`
	// Burst is how many begin at once after a pause.
	Burst int `yaml:"burst" min:"1" max:"10000000"`
	// Calls is how many are in flight at a time.
	Calls int `yaml:"calls" min:"1" max:"1000000"`
}

// TenantLimit is the section "limits.tenant".
type TenantLimit struct {
	// Rate is how many calls begin in a second, for long.
	Rate float64 `yaml:"rate" min:"0.01" max:"10000000"`
	// Burst is how many begin at once after a pause.
	Burst int `yaml:"burst" min:"1" max:"10000000"`
	// Calls is how many are in flight at a time.
	Calls int `yaml:"calls" min:"1" max:"1000000"`
	// Waiting is how many of them wait for the tenant's Key Vault as long as
	// key_vault.load_timeout. Further ones wait half a second: a vault that
	// hangs holds up its own tenant only.
	Waiting int `yaml:"waiting" min:"1" max:"65536"`
}

// MissLimit is the section "limits.misses".
type MissLimit struct {
	// Rate is how many data keys are loaded or minted in a second, for long.
	Rate float64 `yaml:"rate" min:"0.01" max:"1000000"`
	// Burst is how many are at once after a pause, such as a cold start.
	Burst int `yaml:"burst" min:"1" max:"1000000"`
}

// Server is the section "server".
type Server struct {
	// Reflection serves gRPC reflection, with which grpcurl finds the API.
	Reflection bool `yaml:"reflection"`
}

// Metrics is the section "metrics".
type Metrics struct {
	// Listen is the TCP address that serves Prometheus metrics over plain
	// HTTP: "127.0.0.1:9464". Empty: none are served.
	Listen string `yaml:"listen" show:"empty"`
}

// Log is the section "log".
type Log struct {
	// Level is the lowest level that is logged.
	Level string `yaml:"level" enum:"debug info warn error"`
	// Format is how a line looks.
	Format string `yaml:"format" enum:"json text"`
}

// HardAge is SoftAge times HardAgeFactor.
func (d *DEK) HardAge() time.Duration {
	return time.Duration(float64(d.SoftAge) * d.HardAgeFactor)
}

// Default returns the defaults of every field that has one.
func Default() *Config {
	return &Config{
		Listen: Listen{Socket: "/run/keysidecar/keysidecar.sock", Mode: 0o600, AdminMode: 0o600,
			TCP: TCP{Allow: []string{"127.0.0.0/8", "::1/128"}, MaxAge: time.Hour}},
		TenantsFile: "tenants.yaml", PolicyFile: "policy.yaml", ReloadInterval: 5 * time.Second,
		KeyVault: KeyVault{Cloud: "public", PollInterval: 5 * time.Minute, Lease: 5 * time.Minute,
			OutageGrace: time.Hour, LoadTimeout: 5 * time.Second},
		DEK: DEK{SoftAge: 30 * day, HardAgeFactor: 1.25, MaxMessages: 1 << 32, MaxBytes: PiB},
		Cache: Cache{Entries: 10_000, TenantShare: 0.25, Negative: Negative{
			Unknown: 5 * time.Second, Unreachable: 2 * time.Second, Refused: 15 * time.Second, Entries: 10_000}},
		Limits: Limits{UnaryBytes: MiB, CallsPerConnection: 256, Connections: 1024, ConnectionsPerCaller: 128,
			CallTimeout: 30 * time.Second, BytesShare: 0.25,
			Caller: CallLimit{Rate: 20_000, Burst: 20_000, Calls: 1024},
			Tenant: TenantLimit{Rate: 20_000, Burst: 20_000, Calls: 1024, Waiting: 32},
			Misses: MissLimit{Rate: 100, Burst: 2000}, Drain: 10 * time.Second},
		Audit: defaultAudit(),
		Log:   Log{Level: "info", Format: "json"},
	}
}

// Files returns the files that a Reload reads again, and those of the TCP
// listener: what to look at for changes.
func (c *Config) Files() []string {
	names := []string{c.TenantsFile, c.PolicyFile}
	if tcp := &c.Listen.TCP; tcp.Address != "" {
		names = append(names, tcp.CertFile, tcp.KeyFile, tcp.ClientCAFile)
	}
	return names
}

// Prefixes returns Allow. It is for a Config from Load.
func (t *TCP) Prefixes() []netip.Prefix {
	out := make([]netip.Prefix, len(t.Allow))
	for i, text := range t.Allow {
		p, err := parsePrefix(text)
		if err != nil {
			panic("config: internal error: prefix of a checked file: " + err.Error())
		}
		out[i] = p
	}
	return out
}

// AllowedHosts returns the hosts that KEK URLs may name, in the form of
// tenant.Config.Hosts: those of the cloud, any vault in it, then Hosts.
func (kv *KeyVault) AllowedHosts() []string {
	var own []string
	switch kv.Cloud {
	case "public":
		own = []string{"*.vault.azure.net", "*.managedhsm.azure.net"}
	case "us_government":
		own = []string{"*.vault.usgovcloudapi.net", "*.managedhsm.usgovcloudapi.net"}
	case "china":
		own = []string{"*.vault.azure.cn", "*.managedhsm.azure.cn"}
	case "devvault":
		own = []string{"*." + kv.DevVault.Suffix}
		if _, port, err := net.SplitHostPort(kv.DevVault.Address); err == nil && port != "443" {
			own = append(own, own[0]+":"+port)
		}
	}
	return append(own, kv.Hosts...)
}
