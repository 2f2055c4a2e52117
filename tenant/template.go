package tenant

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/keysidecar/keysidecar/kek"
)

// hole is what a KEK's URL has where the tenant ID goes.
const hole = "{tenant}"

const (
	scheme     = "https://"
	minVault   = 3
	maxVault   = 24
	maxKeyName = 127
	maxLabel   = 63
	maxHost    = 253
)

// template is a checked KEK. Only before + ID + after depends on the tenant,
// and it is a label or a key name by itself: no ID moves the rest.
type template struct {
	key           kek.Key // Vault or Name is empty where the hole is
	inHost        bool    // the hole is in the host's first label
	inName        bool    // the hole is in the key's name
	before, after string  // around the hole, in its label or name
	rest          string  // of the host, from the first dot on, with the port
}

// fill returns the KEK of one tenant, or ErrTemplate.
func (t *template) fill(id ID) (kek.Key, error) {
	k := t.key
	if !t.inHost && !t.inName {
		return k, nil
	}
	filled := t.before + id.s + t.after
	switch {
	case !fitsHole(id.s):
	case t.inHost && validVault(filled):
		k.Vault = scheme + filled + t.rest
		return k, nil
	case t.inName && validKeyName(filled):
		k.Name = filled
		return k, nil
	}
	return kek.Key{}, fmt.Errorf("%w %s", ErrTemplate, k.Ref)
}

// pattern is the URL's host as Config.Hosts has to allow it.
func (t *template) pattern() string {
	if t.inHost {
		return "*" + t.rest
	}
	return strings.TrimPrefix(t.key.Vault, scheme)
}

// parseURL sets what k.URL says. The other fields of t.key are left alone.
func (t *template) parseURL(url string) error {
	rest, ok := strings.CutPrefix(url, scheme)
	if !ok {
		return errors.New(`is not "https://..."`)
	}
	host, path, _ := strings.Cut(rest, "/")
	name, ok := strings.CutPrefix(path, "keys/")
	if !ok {
		return errors.New(`is not "https://host/keys/name"`)
	}
	if strings.Count(url, "{")+strings.Count(url, "}") != 2*strings.Count(url, hole) {
		return fmt.Errorf("has a brace that is not of %s", hole)
	}
	if strings.Count(url, hole) > 1 {
		return fmt.Errorf("has %s more than once", hole)
	}
	if err := t.parseHost(host); err != nil {
		return err
	}
	return t.parseName(name)
}

func (t *template) parseHost(host string) error {
	label, _, _ := strings.Cut(host, ".")
	t.before, t.after, t.inHost = strings.Cut(label, hole)
	if !t.inHost {
		t.before, t.after = "", ""
		t.key.Vault = scheme + host
		return checkHost(host)
	}
	t.rest = host[len(label):]
	if shortest := t.before + "a0a" + t.after; !validVault(shortest) {
		return fmt.Errorf("with %s filled, vault name %q would not be 3 to 24 of [a-z0-9-] "+
			"with a letter first, a letter or digit last and no --", hole, shortest)
	}
	return checkHost("a" + t.rest)
}

func (t *template) parseName(name string) error {
	before, after, in := strings.Cut(name, hole)
	if !in {
		t.key.Name = name
		if !validKeyName(name) {
			return fmt.Errorf("key name %q is not 1 to 127 of [A-Za-z0-9-]", name)
		}
		return nil
	}
	t.before, t.after, t.inName = before, after, true
	if longest := before + strings.Repeat("a", maxVault) + after; !validKeyName(longest) {
		return fmt.Errorf("with %s filled, key name %q would not be 1 to 127 of [A-Za-z0-9-]", hole, longest)
	}
	return nil
}

// takes reports whether an ID that begins with prefix can fit.
func (t *template) takes(prefix string) bool {
	if !t.inHost && !t.inName {
		return true
	}
	for _, tail := range []string{"", "a", "aa", "aaa"} {
		if id, err := Parse(prefix + tail); err == nil {
			if _, err := t.fill(id); err == nil {
				return true
			}
		}
	}
	return false
}

// fitsHole reports whether id matches [a-z][a-z0-9-]{1,22}[a-z0-9] as a whole,
// without "--", which vault names forbid and which begins an encoded IDN.
// That is what a whole vault name looks like.
func fitsHole(id string) bool { return validVault(id) }

// validVault reports whether s is a legal Key Vault or Managed HSM name in
// lower case.
func validVault(s string) bool {
	return minVault <= len(s) && len(s) <= maxVault && validLabel(s) && 'a' <= s[0] && s[0] <= 'z' &&
		!strings.Contains(s, "--")
}

// validKeyName reports whether s is a legal key name.
func validKeyName(s string) bool {
	for i := range len(s) {
		if !alphanumeric(s[i]) && s[i] != '-' {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= maxKeyName
}

// validLabel reports whether s is a DNS label (RFC 1123, 2.1) in lower case.
func validLabel(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= maxLabel
}

// CheckHost returns what is wrong with an entry of Config.Hosts.
func CheckHost(host string) error {
	if suffix, ok := strings.CutPrefix(host, "*."); ok {
		return checkHost(suffix)
	}
	return checkHost(host)
}

// checkHost checks "host" or "host:port": a DNS name of two or more labels in
// lower case, which is no IP address.
func checkHost(host string) error {
	name, port, ok := strings.Cut(host, ":")
	if ok {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || port[0] == '0' {
			return fmt.Errorf("port %q is not 1 to 65535", port)
		} else if n == 443 {
			return errors.New("port 443 has to be left out")
		}
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if !validLabel(l) {
			return fmt.Errorf("host %q is not a DNS name in lower case", name)
		}
	}
	if last := labels[len(labels)-1]; len(labels) < 2 || len(name) > maxHost || '0' <= last[0] && last[0] <= '9' {
		return fmt.Errorf("host %q is not a DNS name of two labels or more", name)
	}
	return nil
}
