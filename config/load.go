package config

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/keysidecar/keysidecar/tenant"
)

// maxSocket is the longest socket path that leaves room, in the 107 bytes of
// sun_path, for the temporary name that a listener binds first.
const maxSocket = 100

// Load reads and checks config.yaml at path and the tenants file that it
// names. A wrong file gives an *Error with the problems of both files.
func Load(path string) (*Config, error) {
	var ps problems
	c := Default()
	data := readFile(path, MaxConfigFile, &ps)
	if len(ps) > 0 {
		return nil, ps.err()
	}
	c.decode(path, data, &ps)
	if len(ps) == 0 { // else most of its problems would be ours
		c.Tenants = loadTenants(c.TenantsFile, c, &ps)
	}
	if err := ps.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// LoadTenants reads and checks the tenants file at path for the sidecar that
// c configures: its vault hosts, credentials and region. Problems come as an
// *Error. c is not changed.
func LoadTenants(path string, c *Config) (*Tenants, error) {
	var ps problems
	t := loadTenants(path, c, &ps)
	if err := ps.err(); err != nil {
		return nil, err
	}
	return t, nil
}

// decode sets c, which has the defaults, from data, and checks it.
func (c *Config) decode(path string, data []byte, ps *problems) {
	f := parse(path, data, ps)
	f.decode(c)
	if len(*ps) == 0 {
		c.check(f)
	}
}

// check is what the tags of the fields cannot say.
func (c *Config) check(f *file) {
	if n := len(c.Listen.Socket); n > maxSocket {
		f.addf("listen.socket", "%s is %d bytes long, over %d", c.Listen.Socket, n, maxSocket)
	}
	if m := c.Listen.Mode; m&^0o666 != 0 || m&0o600 != 0o600 {
		f.addf("listen.mode", "%04o is not read and write for the user, and at most for all", uint32(m))
	}
	if a := c.Metrics.Listen; a != "" {
		if err := checkAddress(a); err != nil {
			f.addf("metrics.listen", "%s", err)
		}
	}
	for i, h := range c.KeyVault.Hosts {
		if strings.HasPrefix(h, "*") {
			f.addf(fmt.Sprintf("key_vault.hosts[%d]", i), "%q is a pattern: name each host", h)
		} else if err := tenant.CheckHost(h); err != nil {
			f.addf(fmt.Sprintf("key_vault.hosts[%d]", i), "%s", err)
		}
	}
	c.KeyVault.checkDevVault(f)
	names := map[string]bool{}
	for i := range c.KeyVault.Credentials {
		cred, at := &c.KeyVault.Credentials[i], fmt.Sprintf("key_vault.credentials[%d]", i)
		if names[cred.Name] {
			f.addf(at+".name", "%q is given twice", cred.Name)
		}
		names[cred.Name] = true
		cred.check(f, at, c.KeyVault.Cloud)
	}
}

// checkAddress checks "host:port"; the host may be empty.
func checkAddress(a string) error {
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		return fmt.Errorf("%q is not host:port", a)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", a)
	}
	return nil
}

func (kv *KeyVault) checkDevVault(f *file) {
	v := &kv.DevVault
	for _, s := range []struct{ key, value string }{
		{"address", v.Address}, {"suffix", v.Suffix}, {"ca_file", v.CAFile}, {"token_file", v.TokenFile},
	} {
		at := "key_vault.devvault." + s.key
		switch dev := kv.Cloud == "devvault"; {
		case dev && s.value == "":
			f.addf(at, "is required with cloud devvault")
		case !dev && s.value != "":
			f.addf(at, "goes with cloud devvault only")
		}
	}
	if v.Suffix != "" {
		if strings.Contains(v.Suffix, ":") {
			f.addf("key_vault.devvault.suffix", "%q has a port", v.Suffix)
		} else if err := tenant.CheckHost("*." + v.Suffix); err != nil {
			f.addf("key_vault.devvault.suffix", "%s", err)
		}
	}
	if v.Address != "" {
		if err := checkAddress(v.Address); err != nil {
			f.addf("key_vault.devvault.address", "%s", err)
		}
	}
}

// want says what a credential type makes of a key.
type want int

const (
	refused want = iota
	optional
	required
)

func (c *Credential) check(f *file, at, cloud string) {
	if !validName(c.Name) {
		f.addf(at+".name", "%q is not 1 to 63 of [a-z0-9-]", c.Name)
	}
	if (c.Type == "devvault") != (cloud == "devvault") {
		f.addf(at+".type", "%s does not go with cloud %s", c.Type, cloud)
	}
	var tenantID, clientID, token, certificate want
	switch c.Type {
	case "workload_identity":
		tenantID, clientID, token = required, required, optional
	case "managed_identity":
		clientID = optional
	case "client_certificate":
		tenantID, clientID, certificate = required, required, required
	}
	for _, k := range []struct {
		key, value string
		want       want
		guid       bool
	}{
		{"tenant_id", c.TenantID, tenantID, true}, {"client_id", c.ClientID, clientID, true},
		{"token_file", c.TokenFile, token, false}, {"certificate_file", c.CertificateFile, certificate, false},
	} {
		switch {
		case k.value == "" && k.want == required:
			f.addf(at+"."+k.key, "is required for %s", c.Type)
		case k.value != "" && k.want == refused:
			f.addf(at+"."+k.key, "is not allowed for %s", c.Type)
		case k.value != "" && k.guid && !tenant.IsGUID(k.value):
			f.addf(at+"."+k.key, "%q is not a GUID in lower case", k.value)
		}
	}
	if len(c.AllowedTenants) > 0 && tenantID == refused {
		f.addf(at+".allowed_tenants", "is not allowed for %s", c.Type)
	}
	for i, id := range c.AllowedTenants {
		if !tenant.IsGUID(id) {
			f.addf(fmt.Sprintf("%s.allowed_tenants[%d]", at, i), "%q is not a GUID in lower case", id)
		}
	}
}

// reaches reports whether the credential may ask for tokens of an Entra tenant.
func (c *Credential) reaches(entraTenant string) bool {
	return c.TenantID == "" || c.TenantID == entraTenant || slices.Contains(c.AllowedTenants, entraTenant)
}

func validName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= 63
}
