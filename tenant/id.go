package tenant

import (
	"errors"
	"strings"
)

// MaxID is the longest tenant ID in bytes.
const MaxID = 128

// ErrInvalidID is returned by Parse for an ill-formed tenant ID.
var ErrInvalidID = errors.New("tenant ID is not 1 to 128 bytes of [A-Za-z0-9._:-] that begin and end alphanumeric and have no \"..\"")

// ID is a well-formed tenant ID. Only Parse makes one; the zero ID is no
// tenant. IDs are compared with ==. They are written in clear in key blocks
// and audit records, so they have to be opaque.
type ID struct{ s string }

// Parse returns s as an ID, or ErrInvalidID. It does not say whether the
// tenant exists.
func Parse(s string) (ID, error) {
	if len(s) == 0 || len(s) > MaxID || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return ID{}, ErrInvalidID
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && c != '.' && c != '_' && c != ':' && c != '-' {
			return ID{}, ErrInvalidID
		}
	}
	if strings.Contains(s, "..") {
		return ID{}, ErrInvalidID
	}
	return ID{s}, nil
}

// String returns the ID as it was parsed.
func (id ID) String() string { return id.s }

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
