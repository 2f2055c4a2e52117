package envelope

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of an encryption context. Lengths are bytes of UTF-8.
const (
	// MaxContextPairs is the largest number of pairs.
	MaxContextPairs = 32
	// MaxContextKey is the longest key; the shortest is 1.
	MaxContextKey = 255
	// MaxContextValue is the longest value; a value may be empty.
	MaxContextValue = 1024
	// MaxContext is the largest sum of the lengths of all keys and values.
	MaxContext = 8192
	// ReservedContextKeys begins every key that callers must not use.
	ReservedContextKeys = "keysidecar."
)

// Context is a checked encryption context: pairs that the caller supplies at
// Seal and again, the same, at Open. The zero Context has no pairs. A Context
// is immutable.
type Context struct {
	// encoded is u16(count) || pairs in canonical order; nil if there are none.
	encoded []byte
}

// ParseContext checks pairs against the limits above and encodes them:
//
//	u16(count) || sorted by raw key bytes { lp16(key) || lp16(value) }
//
// Keys and values are valid UTF-8 and are not normalised. A breach is
// ErrContext, wrapped with the name of the limit and never with a key or a
// value. It retains nothing of pairs.
func ParseContext(pairs map[string]string) (Context, error) {
	if len(pairs) == 0 {
		return Context{}, nil
	}
	if len(pairs) > MaxContextPairs {
		return Context{}, fmt.Errorf("more than %d pairs: %w", MaxContextPairs, ErrContext)
	}
	keys := make([]string, 0, MaxContextPairs)
	sum := 0
	for k, v := range pairs {
		keys = append(keys, k)
		sum += len(k) + len(v)
	}
	slices.Sort(keys) // Go compares strings by their bytes.
	for _, k := range keys {
		if err := checkPair(k, pairs[k]); err != nil {
			return Context{}, err
		}
	}
	if sum > MaxContext {
		return Context{}, fmt.Errorf("keys and values over %d bytes: %w", MaxContext, ErrContext)
	}
	return encodeContext(keys, pairs, sum), nil
}

func checkPair(key, value string) error {
	switch {
	case key == "":
		return fmt.Errorf("empty key: %w", ErrContext)
	case len(key) > MaxContextKey:
		return fmt.Errorf("key over %d bytes: %w", MaxContextKey, ErrContext)
	case len(value) > MaxContextValue:
		return fmt.Errorf("value over %d bytes: %w", MaxContextValue, ErrContext)
	case !utf8.ValidString(key) || !utf8.ValidString(value):
		return fmt.Errorf("invalid UTF-8: %w", ErrContext)
	case strings.HasPrefix(key, ReservedContextKeys):
		return fmt.Errorf("key reserved (%s*): %w", ReservedContextKeys, ErrContext)
	}
	return nil
}

func encodeContext(keys []string, pairs map[string]string, sum int) Context {
	b := make([]byte, 0, 2+4*len(keys)+sum)
	b = binary.BigEndian.AppendUint16(b, uint16(len(keys))) //nolint:gosec // at most MaxContextPairs
	for _, k := range keys {
		b = appendLP16(b, k)
		b = appendLP16(b, pairs[k])
	}
	return Context{b}
}

// append appends the canonical encoding.
func (c Context) append(dst []byte) []byte {
	if c.encoded == nil {
		return append(dst, 0, 0)
	}
	return append(dst, c.encoded...)
}
