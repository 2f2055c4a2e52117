package state

import "time"

// Doors for the external tests.
var (
	KeyWrap   = keyWrap
	KeyUnwrap = keyUnwrap
	DecodeKey = decodeKey
	SaveKey   = saveKey
)

// OpenAuthority is openAuthority.
func OpenAuthority(dir, suffix string, now func() time.Time) (*Authority, error) {
	return openAuthority(dir, suffix, now)
}
