package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Source is how a caller was proved. The zero Source proves nothing.
type Source uint8

// The sources.
const (
	// Peer is the kernel's word on who connected to a Unix socket.
	Peer Source = 1 + iota
	// SPIFFE is a client certificate with a SPIFFE ID.
	SPIFFE
	// DNS is a client certificate with a DNS name.
	DNS
)

const (
	maxSPIFFE      = 2048 // bytes of a SPIFFE ID
	maxTrustDomain = 255  // bytes of its trust domain
	maxDNS         = 253  // bytes of a DNS name
	maxLabel       = 63   // bytes of one of its labels

	spiffeScheme = "spiffe://"
	dnsScheme    = "dns:"
)

// The user IDs that are not like others; overflow and noID also as group IDs.
const (
	root     = 0         // may become any user
	overflow = 65534     // "nobody": also how the kernel shows a user that it cannot map
	noID     = 1<<32 - 1 // (uid_t)-1: no user and no group; how the kernel says that it does not know
)

// Caller is who calls, as a listener proved it. The zero Caller is nobody.
// Callers are made by PeerCaller, SPIFFECaller, DNSCaller and ParseCaller, and
// are compared with ==.
type Caller struct {
	// Name is the caller's canonical text, as ParseCaller reads it.
	Name string
	// Source is how the caller was proved.
	Source Source
	// UID is the user ID of a Peer.
	UID uint32
	// GID is the primary group ID of a Peer, if HasGID is true.
	GID    uint32
	HasGID bool
	// PID is the process ID of a Peer, 0 if it is not known. It is for the
	// log only and never decided on: it can be reused.
	PID int32
}

// PeerCaller returns the process at the other end of a Unix socket, named
// "uid:10001/gid:20000". A uid or gid of 4294967295 is how the kernel says that
// it does not know: that is nobody.
func PeerCaller(uid, gid uint32, pid int32) Caller {
	if uid == noID || gid == noID {
		return Caller{}
	}
	return Caller{Name: uidName(uid) + "/gid:" + decimal(gid), Source: Peer, UID: uid, GID: gid, HasGID: true, PID: pid}
}

// uidCaller returns a process of which only the user is known.
func uidCaller(uid uint32) Caller { return Caller{Name: uidName(uid), Source: Peer, UID: uid} }

func uidName(uid uint32) string { return "uid:" + decimal(uid) }

func decimal(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

// SPIFFECaller returns the workload of that SPIFFE ID, such as
// "spiffe://example.org/billing", which is its name. The ID has to be what
// the SPIFFE-ID standard, sections 2.1 to 2.4, allows: at most 2048 bytes,
// and with a path, as a workload's always is.
func SPIFFECaller(id string) (Caller, error) {
	if err := checkSPIFFE(id); err != nil {
		return Caller{}, fmt.Errorf("SPIFFE ID %.80q: %w", id, err)
	}
	return Caller{Name: id, Source: SPIFFE}, nil
}

// DNSCaller returns the caller of that DNS name, named "dns:batch.internal".
// The name has to be lower-case labels of letters, digits and inner hyphens
// (RFC 1123, section 2.1), at most 253 bytes, without a last dot or a
// wildcard, and not an IP address.
func DNSCaller(name string) (Caller, error) {
	if err := checkDNS(name); err != nil {
		return Caller{}, fmt.Errorf("DNS name %.80q: %w", name, err)
	}
	return Caller{Name: dnsScheme + name, Source: DNS}, nil
}

// ParseCaller returns the caller of that name: "uid:10001",
// "uid:10001/gid:20000", "spiffe://example.org/billing" or
// "dns:batch.internal". It takes nothing but what the Caller's Name then is.
func ParseCaller(text string) (Caller, error) {
	if strings.HasPrefix(text, spiffeScheme) {
		return SPIFFECaller(text)
	}
	if name, ok := strings.CutPrefix(text, dnsScheme); ok {
		return DNSCaller(name)
	}
	c, ok := parsePeer(text)
	if !ok || c.Name != text {
		return Caller{}, fmt.Errorf("caller %.80q is not uid:N, uid:N/gid:N, spiffe://DOMAIN/PATH or dns:NAME", text)
	}
	return c, nil
}

// parsePeer reads "uid:N" and "uid:N/gid:N"; also with leading zeros, which
// the Name of its Caller does not have.
func parsePeer(text string) (Caller, bool) {
	user, group, hasGID := strings.Cut(text, "/")
	uid, ok := parseID(user, "uid:")
	if !ok || !hasGID {
		return uidCaller(uid), ok
	}
	gid, ok := parseID(group, "gid:")
	return PeerCaller(uid, gid, 0), ok
}

func parseID(s, prefix string) (uint32, bool) {
	digits, ok := strings.CutPrefix(s, prefix)
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && n != noID
}

func checkSPIFFE(id string) error {
	domain, path, _ := strings.Cut(strings.TrimPrefix(id, spiffeScheme), "/")
	switch {
	case !strings.HasPrefix(id, spiffeScheme):
		return errors.New("does not begin with spiffe://")
	case len(id) > maxSPIFFE:
		return fmt.Errorf("is longer than %d bytes", maxSPIFFE)
	case len(domain) > maxTrustDomain:
		return fmt.Errorf("its trust domain is longer than %d bytes", maxTrustDomain)
	case domain == "" || !only(domain, trustDomainByte):
		return errors.New("its trust domain is not one or more of [a-z0-9._-]")
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || !only(segment, pathByte) {
			return errors.New("its path is not of segments [A-Za-z0-9._-] with neither . nor .. among them")
		}
	}
	return nil
}

func checkDNS(name string) error {
	if len(name) > maxDNS {
		return fmt.Errorf("is longer than %d bytes", maxDNS)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' || !only(label, nameByte) {
			return fmt.Errorf("is not labels of 1 to %d bytes [a-z0-9-] with inner hyphens only", maxLabel)
		}
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; only(last, digit) {
		return errors.New("its last label is a number, as an IP address has it")
	}
	return nil
}

// only reports whether every byte of s is one that is asked for.
func only(s string, ask func(byte) bool) bool {
	for i := range len(s) {
		if !ask(s[i]) {
			return false
		}
	}
	return true
}

func digit(c byte) bool           { return '0' <= c && c <= '9' }
func nameByte(c byte) bool        { return 'a' <= c && c <= 'z' || digit(c) || c == '-' }
func trustDomainByte(c byte) bool { return nameByte(c) || c == '.' || c == '_' }
func pathByte(c byte) bool        { return trustDomainByte(c) || 'A' <= c && c <= 'Z' }
