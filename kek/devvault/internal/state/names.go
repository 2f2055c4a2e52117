package state

import (
	"net"
	"strings"
)

// ValidSuffix reports whether s is a DNS name of lower-case labels.
func ValidSuffix(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !validLabel(label) {
			return false
		}
	}
	return len(s) <= 200
}

// validLabel: 1 to 63 of [a-z0-9-], no hyphen at either end.
func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return only(s, func(c byte) bool { return isDigit(c) || isLower(c) || c == '-' })
}

// validVault keeps Azure's rule: 3 to 24 of [a-z0-9-], first a letter, last
// not a hyphen, no two hyphens in a row.
func validVault(s string) bool {
	return len(s) >= 3 && len(s) <= 24 && isLower(s[0]) && validLabel(s) && !strings.Contains(s, "--")
}

// ValidKeyName reports whether s keeps Azure's rule: 1 to 127 of [A-Za-z0-9-].
func ValidKeyName(s string) bool {
	return s != "" && len(s) <= 127 &&
		only(s, func(c byte) bool { return isDigit(c) || isLower(c) || c >= 'A' && c <= 'Z' || c == '-' })
}

// ValidVersion reports whether s is 32 lower-case hex digits.
func ValidVersion(s string) bool {
	return len(s) == 32 && only(s, func(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'f' })
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isLower(c byte) bool { return c >= 'a' && c <= 'z' }

func only(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

// SplitHost splits a Host header into the vault's name and the port (with its
// colon, or empty) if the host is directly under suffix.
func SplitHost(hostport, suffix string) (vault, port string, ok bool) {
	host := strings.ToLower(hostport)
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, ":"+p
	}
	vault, ok = strings.CutSuffix(strings.TrimSuffix(host, "."), "."+suffix)
	return vault, port, ok && validVault(vault)
}
