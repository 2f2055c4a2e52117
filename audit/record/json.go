package record

import (
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string of printable ASCII: nothing in it does
// anything to a terminal. Bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			dst = appendASCII(dst, c)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		if r >= 0x10000 {
			r -= 0x10000
			dst = appendUnit(appendUnit(dst, uint16(0xd800+r>>10)), uint16(0xdc00+r&0x3ff)) //nolint:gosec // 16 bits each
			continue
		}
		dst = appendUnit(dst, uint16(r)) //nolint:gosec // below 0x10000
	}
	return append(dst, '"')
}

func appendASCII(dst []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case c == '\n':
		return append(dst, `\n`...)
	case c < ' ' || c == 0x7f:
		return appendUnit(dst, uint16(c))
	}
	return append(dst, c)
}

// appendUnit appends the escape of a UTF-16 code unit.
func appendUnit(dst []byte, u uint16) []byte {
	return append(dst, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// Cut returns the longest beginning of s that is most bytes long at most as it is
// encoded in an event. It ends between characters.
func Cut(s string, most int) string {
	if len(s)*len(`\ud800\udc00`) <= most {
		return s
	}
	var space [16]byte
	used := 0
	for i, r := range s {
		used += len(appendString(space[:0], string(r))) - len(`""`)
		if used > most {
			return s[:i]
		}
	}
	return s
}
