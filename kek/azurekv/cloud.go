package azurekv

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv/challenge"
)

// The names of the clouds.
const (
	CloudPublic       = "public"
	CloudUSGovernment = "us_government"
	CloudChina        = "china"
)

// cloudSpec is what differs between clouds.
type cloudSpec struct {
	// suffixes are the parent domains of vaults and managed HSMs; each is also
	// the resource that tokens are for, as "https://suffix".
	suffixes []string
	// authorities are the origins a challenge may name. Tokens always come
	// from entra's; the others are its old names.
	authorities []string
	entra       cloud.Configuration
}

func findCloud(name string) (cloudSpec, error) {
	switch name {
	case "", CloudPublic:
		return cloudSpec{
			suffixes:    []string{"vault.azure.net", "managedhsm.azure.net"},
			authorities: publicAuthorities(),
			entra:       cloud.AzurePublic,
		}, nil
	case CloudUSGovernment:
		return cloudSpec{
			suffixes:    []string{"vault.usgovcloudapi.net", "managedhsm.usgovcloudapi.net"},
			authorities: []string{"https://login.microsoftonline.us"},
			entra:       cloud.AzureGovernment,
		}, nil
	case CloudChina:
		return cloudSpec{
			suffixes:    []string{"vault.azure.cn", "managedhsm.azure.cn"},
			authorities: []string{"https://login.chinacloudapi.cn", "https://login.partner.microsoftonline.cn"},
			entra:       cloud.AzureChina,
		}, nil
	}
	return cloudSpec{}, fmt.Errorf("cloud %q is not public, us_government or china", name)
}

// publicAuthorities are also what the embedded vault names.
func publicAuthorities() []string {
	return []string{"https://login.microsoftonline.com", "https://login.windows.net"}
}

// place is where a vault is: what may be asked there and what it may ask for.
type place struct {
	host        string   // host or host:port, as in the URL
	dev         bool     // the embedded vault
	resources   []string // the token resources that the vault may name
	authorities []string // the origins of Entra that the vault may name
}

// locate finds out whether we may talk to a vault at all.
func (v *Vaults) locate(vault string) (place, error) {
	host, ok := strings.CutPrefix(vault, "https://")
	u, err := url.Parse(vault)
	if !ok || !isHost(host) || err != nil {
		return place{}, fmt.Errorf("vault %q is not https://host or https://host:port in lower case", vault)
	}
	if d := v.cfg.DevVault; d != nil && isChild(u.Hostname(), d.Suffix) {
		resource := "https://" + withPort(d.Suffix, u.Port())
		return place{host: host, dev: true, resources: []string{resource}, authorities: publicAuthorities()}, nil
	}
	for _, suffix := range v.cloud.suffixes {
		if isChild(host, suffix) {
			return place{host: host, resources: []string{"https://" + suffix}, authorities: v.cloud.authorities}, nil
		}
	}
	if slices.Contains(v.cfg.Hosts, host) {
		return place{host: host, resources: parents(u), authorities: v.cloud.authorities}, nil
	}
	return place{}, fmt.Errorf("vault host %q is not in the configured cloud and not listed", host)
}

// isHost accepts host and host:port, in lower case.
func isHost(s string) bool {
	u, err := url.Parse("https://" + s)
	return err == nil && u.Host == s && u.Hostname() != "" && s == strings.ToLower(s)
}

// isChild reports whether host is one DNS label below suffix.
func isChild(host, suffix string) bool {
	label, ok := strings.CutSuffix(host, "."+suffix)
	return ok && isLabel(label)
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// parents returns the resources that a listed host may name: its parent
// domains of at least two labels, with its port. azkeys itself insists on a
// parent of the host.
func parents(u *url.URL) []string {
	var out []string
	for rest := u.Hostname(); ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok || !strings.Contains(parent, ".") {
			return out
		}
		out = append(out, "https://"+withPort(parent, u.Port()))
		rest = parent
	}
}

func withPort(host, port string) string {
	if port == "" {
		return host
	}
	return host + ":" + port
}

// Check reports why k can never wrap with this configuration, without asking
// any vault: a malformed field, a host that is not allowed, an unknown
// credential, or an Entra tenant that is missing.
func (v *Vaults) Check(k kek.Key) error { return v.check(opWrap, k) }

// CheckSigner is Check for a key that is to sign.
func (v *Vaults) CheckSigner(k kek.Key) error { return v.check(kek.OpSign, k) }

func (v *Vaults) check(op string, k kek.Key) error {
	if err := checkAlg(op, k.Alg); err != nil {
		return err
	}
	_, err := v.resolve(k)
	return err
}

// checkAlg keeps keys that sign and keys that wrap apart.
func checkAlg(op string, alg kek.Alg) error {
	if op == kek.OpSign && alg != 0 {
		return fmt.Errorf("key is for wrapping with %s, and signs nothing", alg)
	}
	if op != kek.OpSign && alg != kek.RSAOAEP256 && alg != kek.A256KW {
		return fmt.Errorf("unknown wrapping algorithm %d", uint8(alg))
	}
	return nil
}

// resolve checks k, less its Alg, and finds its vault.
func (v *Vaults) resolve(k kek.Key) (place, error) {
	if !isKeyName(k.Name) {
		return place{}, errors.New("key name is not 1 to 127 of [A-Za-z0-9-]")
	}
	p, err := v.locate(k.Vault)
	if err != nil {
		return place{}, err
	}
	if _, err := v.credential(p, k.Credential); err != nil {
		return place{}, err
	}
	if !challenge.IsGUID(k.EntraTenant) && !(p.dev && k.EntraTenant == "") {
		return place{}, fmt.Errorf("Entra tenant ID %q is not a GUID", k.EntraTenant)
	}
	return p, nil
}

func isKeyName(s string) bool {
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 127
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
