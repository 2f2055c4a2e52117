package config

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/config/internal/strict"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// maxSocket is the longest socket path that leaves room, in the 107 bytes of
// sun_path, for the temporary name that a listener binds first.
const maxSocket = 100

// minReloadInterval keeps looking at files from being all that there is to do.
const minReloadInterval = 10 * time.Millisecond

// check is what the tags of the fields cannot say.
func (c *Config) check(f *strict.File) {
	c.Listen.check(f)
	c.Limits.check(f)
	if i := c.ReloadInterval; i > 0 && i < minReloadInterval {
		f.Addf("reload_interval", "%s is neither 0s nor %s or more", i, minReloadInterval)
	}
	if a := c.Metrics.Listen; a != "" {
		if err := checkAddress(a); err != nil {
			f.Addf("metrics.listen", "%s", err)
		}
	}
	for i, h := range c.KeyVault.Hosts {
		if strings.HasPrefix(h, "*") {
			f.Addf(fmt.Sprintf("key_vault.hosts[%d]", i), "%q is a pattern: name each host", h)
		} else if err := tenant.CheckHost(h); err != nil {
			f.Addf(fmt.Sprintf("key_vault.hosts[%d]", i), "%s", err)
		}
	}
	c.KeyVault.checkDevVault(f)
	names := map[string]bool{}
	for i := range c.KeyVault.Credentials {
		cred, at := &c.KeyVault.Credentials[i], fmt.Sprintf("key_vault.credentials[%d]", i)
		if names[cred.Name] {
			f.Addf(at+".name", "%q is given twice", cred.Name)
		}
		names[cred.Name] = true
		cred.check(f, at, c.KeyVault.Cloud)
	}
	c.checkAudit(f)
}

// check is about both sockets and TCP.
func (l *Listen) check(f *strict.File) {
	for _, s := range []struct {
		key, modeKey, path string
		mode               fs.FileMode
	}{
		{"listen.socket", "listen.mode", l.Socket, l.Mode},
		{"listen.admin_socket", "listen.admin_mode", l.AdminSocket, l.AdminMode},
	} {
		if n := len(s.path); n > maxSocket {
			f.Addf(s.key, "%s is %d bytes long, over %d", s.path, n, maxSocket)
		}
		if s.mode&^0o666 != 0 || s.mode&0o600 != 0o600 {
			f.Addf(s.modeKey, "%04o is not read and write for the user, and at most for all", uint32(s.mode))
		}
	}
	if filepath.Clean(l.Socket) == filepath.Clean(l.AdminSocket) {
		f.Addf("listen.admin_socket", "%s is the path of socket: workloads and administrators need one each", l.AdminSocket)
	}
	l.TCP.check(f)
}

func (t *TCP) check(f *strict.File) {
	for _, s := range []struct {
		key, value string
		required   bool
	}{
		{"cert_file", t.CertFile, true}, {"key_file", t.KeyFile, true}, {"client_ca_file", t.ClientCAFile, true},
		{"trust_domain", t.TrustDomain, false},
	} {
		switch {
		case t.Address == "" && s.value != "":
			f.Addf("listen.tcp."+s.key, "goes with an address only")
		case t.Address != "" && s.value == "" && s.required:
			f.Addf("listen.tcp."+s.key, "is required with an address")
		}
	}
	if t.Address != "" {
		if a, err := netip.ParseAddrPort(t.Address); err != nil || a.Port() == 0 {
			f.Addf("listen.tcp.address", "%q is not an IP address and a port from 1 to 65535", t.Address)
		}
		if len(t.Allow) == 0 {
			f.Addf("listen.tcp.allow", "is empty: nobody could connect")
		}
	}
	for i, text := range t.Allow {
		if _, err := parsePrefix(text); err != nil {
			f.Addf(fmt.Sprintf("listen.tcp.allow[%d]", i), "%s", err)
		}
	}
	if t.TrustDomain != "" {
		if _, err := policy.SPIFFECaller("spiffe://" + t.TrustDomain + "/any"); err != nil || strings.Contains(t.TrustDomain, "/") {
			f.Addf("listen.tcp.trust_domain", "%q is not a SPIFFE trust domain: 1 to 255 of [a-z0-9._-]", t.TrustDomain)
		}
	}
}

// parsePrefix reads the prefix of IP addresses in its one notation. IPv4
// addresses are not taken inside IPv6: none would match there.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, fmt.Errorf("%q is not a prefix of IP addresses such as \"10.1.0.0/16\"", text)
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits after the prefix: write %s", p, p.Masked())
	}
	return p, nil
}

// callOverhead is what one call needs besides its data and an answer as long,
// and a little more.
const callOverhead = 512 * KiB

// check is about limits that go with one another.
func (l *Limits) check(f *strict.File) {
	if l.ConnectionsPerCaller > l.Connections {
		f.Addf("limits.connections_per_caller", "%d is over connections, which is %d", l.ConnectionsPerCaller, l.Connections)
	}
	if l.BytesInFlight == 0 {
		return
	}
	if l.BytesInFlight < 4*l.UnaryBytes {
		f.Addf("limits.bytes_in_flight", "%s is under %s, 4 times unary_bytes", l.BytesInFlight, 4*l.UnaryBytes)
	} else if share, need := Size(l.BytesShare*float64(l.BytesInFlight)), 2*l.UnaryBytes+callOverhead; share < need {
		f.Addf("limits.bytes_share", "leaves a caller %s, under the %s that one call may need: 2 times unary_bytes and %s",
			share, need, callOverhead)
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

func (kv *KeyVault) checkDevVault(f *strict.File) {
	v := &kv.DevVault
	for _, s := range []struct{ key, value string }{
		{"address", v.Address}, {"suffix", v.Suffix}, {"ca_file", v.CAFile}, {"token_file", v.TokenFile},
	} {
		at := "key_vault.devvault." + s.key
		switch dev := kv.Cloud == "devvault"; {
		case dev && s.value == "":
			f.Addf(at, "is required with cloud devvault")
		case !dev && s.value != "":
			f.Addf(at, "goes with cloud devvault only")
		}
	}
	if v.Suffix != "" {
		if strings.Contains(v.Suffix, ":") {
			f.Addf("key_vault.devvault.suffix", "%q has a port", v.Suffix)
		} else if err := tenant.CheckHost("*." + v.Suffix); err != nil {
			f.Addf("key_vault.devvault.suffix", "%s", err)
		}
	}
	if v.Address != "" {
		if err := checkAddress(v.Address); err != nil {
			f.Addf("key_vault.devvault.address", "%s", err)
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

func (c *Credential) check(f *strict.File, at, cloud string) {
	if !validName(c.Name) {
		f.Addf(at+".name", "%q is not 1 to 63 of [a-z0-9-]", c.Name)
	}
	if (c.Type == "devvault") != (cloud == "devvault") {
		f.Addf(at+".type", "%s does not go with cloud %s", c.Type, cloud)
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
			f.Addf(at+"."+k.key, "is required for %s", c.Type)
		case k.value != "" && k.want == refused:
			f.Addf(at+"."+k.key, "is not allowed for %s", c.Type)
		case k.value != "" && k.guid && !tenant.IsGUID(k.value):
			f.Addf(at+"."+k.key, "%q is not a GUID in lower case", k.value)
		}
	}
	if len(c.AllowedTenants) > 0 && tenantID == refused {
		f.Addf(at+".allowed_tenants", "is not allowed for %s", c.Type)
	}
	for i, id := range c.AllowedTenants {
		if !tenant.IsGUID(id) {
			f.Addf(fmt.Sprintf("%s.allowed_tenants[%d]", at, i), "%q is not a GUID in lower case", id)
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
