package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// parse reads what appendText wrote. What it lets through that is written in
// another way, Parse refuses.
func (h *Header) parse(text []byte) error {
	rest, ok := bytes.CutPrefix(text, []byte(`{"log":"`))
	var fields [5][]byte
	for i, key := range [...]string{`","seq":`, `,"time":"`, `","class":"`, `","prev":"`, `","sha256":"`} {
		var found bool
		fields[i], rest, found = bytes.Cut(rest, []byte(key))
		ok = ok && found
	}
	sum, closed := bytes.CutSuffix(rest, []byte{'"'})
	switch {
	case !ok || !closed:
		return otherFields(text)
	case !decodeHash(h.Prev[:], fields[4]) || !decodeHash(h.Sum[:], sum):
		return fmt.Errorf("%w: a hash is no base64 of its length", ErrMalformed)
	}
	return h.parseFields(string(fields[0]), string(fields[1]), string(fields[2]), string(fields[3]))
}

// parseFields reads all but the hashes.
func (h *Header) parseFields(log, seq, at, class string) (err error) {
	if err := CheckOrigin(log); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	h.Log = log
	if h.Seq, err = strconv.ParseInt(seq, 10, 64); err != nil || h.Seq < 0 {
		return fmt.Errorf("%w: its number is not one from 0 on", ErrMalformed)
	}
	if h.Time, err = time.Parse(timeLayout, at); err != nil {
		return fmt.Errorf("%w: its time is not like %s", ErrMalformed, timeLayout)
	}
	if h.Class, err = ParseClass(class); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// otherFields says what is wrong with a header whose fields are not found.
func otherFields(text []byte) error {
	if !json.Valid(append(slices.Clip(text), '}')) {
		return fmt.Errorf("%w: it is not JSON", ErrMalformed)
	}
	return fmt.Errorf("%w: it does not have the fields of a record in their order", ErrMalformed)
}

// decode decodes base64 text into all of dst. The text is the only one for dst.
func decode(dst []byte, text string) bool {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	return err == nil && copy(dst, raw) == len(dst) && len(raw) == len(dst)
}

// decodeHash is decode for a hash that is encoded again and compared: it lets
// other text for the same hash through, and takes a fraction of the time.
func decodeHash(dst, text []byte) bool {
	var raw [sha256.Size + 1]byte // 44 digits, the last of which may be padding
	if len(text) != base64.StdEncoding.EncodedLen(len(dst)) {
		return false
	}
	n, err := base64.StdEncoding.Decode(raw[:], text)
	return err == nil && n == len(dst) && copy(dst, raw[:n]) == n
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
