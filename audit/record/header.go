package record

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// parse reads what appendText wrote. What it lets through that is written in
// another way, Parse refuses.
func (h *Header) parse(text []byte) error {
	var raw struct {
		Log    string `json:"log"`
		Seq    int64  `json:"seq"`
		Time   string `json:"time"`
		Class  string `json:"class"`
		Prev   string `json:"prev"`
		SHA256 string `json:"sha256"`
	}
	if err := json.Unmarshal(append(slices.Clip(text), '}'), &raw); err != nil {
		return fmt.Errorf("%w: it is not JSON", ErrMalformed)
	}
	if err := CheckOrigin(raw.Log); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if raw.Seq < 0 {
		return fmt.Errorf("%w: its number is negative", ErrMalformed)
	}
	at, err := time.Parse(timeLayout, raw.Time)
	if err != nil {
		return fmt.Errorf("%w: its time is not like %s", ErrMalformed, timeLayout)
	}
	class, err := ParseClass(raw.Class)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	h.Log, h.Seq, h.Time, h.Class = raw.Log, raw.Seq, at, class
	if !decode(h.Prev[:], raw.Prev) || !decode(h.Sum[:], raw.SHA256) {
		return fmt.Errorf("%w: a hash has another length", ErrMalformed)
	}
	return nil
}

// decode decodes base64 text into all of dst.
func decode(dst []byte, text string) bool {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	return err == nil && copy(dst, raw) == len(dst) && len(raw) == len(dst)
}

// MaxOrigin is the longest origin of a log in bytes.
const MaxOrigin = 128

// CheckOrigin checks the origin of a log: 1 to 128 of [A-Za-z0-9._/-].
func CheckOrigin(s string) error {
	if s == "" || len(s) > MaxOrigin {
		return fmt.Errorf("log origin has %d bytes, not 1 to %d", len(s), MaxOrigin)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '/', c == '-':
		default:
			return fmt.Errorf("log origin %q has other characters than letters, digits and ._/-", s)
		}
	}
	return nil
}
