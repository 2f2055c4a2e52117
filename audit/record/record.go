// Package record defines the lines of an audit log: how one is written, read,
// hashed into an RFC 6962 Merkle tree, and how checkpoints and certificates over
// them are signed. docs/audit-log.md is the format's description.
package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// MaxLine is the longest line of a log in bytes, without its line feed.
const MaxLine = 8 << 10

// ErrMalformed says that a line is not one that Append writes.
var ErrMalformed = errors.New("not a line of an audit log")

// Class says for how long a record is kept, and what happens when it cannot be
// written.
type Class uint8

// The classes.
const (
	// Keys is the life of keys, of the configuration, of operators' calls, and
	// of the log itself.
	Keys Class = 1 + iota
	// Denials are operations that policy, or a tenant's state, refused.
	Denials
	// Data are all other operations on data.
	Data
)

var classes = [...]string{Keys: "keys", Denials: "denials", Data: "data"}

// String returns the class as a record names it.
func (c Class) String() string {
	if c == 0 || int(c) >= len(classes) {
		return fmt.Sprintf("class(%d)", uint8(c))
	}
	return classes[c]
}

// ParseClass is the inverse of String.
func ParseClass(s string) (Class, error) {
	for c := Keys; int(c) < len(classes); c++ {
		if classes[c] == s {
			return c, nil
		}
	}
	return 0, fmt.Errorf("class %.20q is not one of keys, denials, data", s)
}

// Link is how a record names the one before it: the first 9 bytes of its leaf
// hash. It shows at which record a log was edited; that it was, the tree shows.
type Link [9]byte

// LinkTo returns the link to the record with that leaf hash.
func LinkTo(leaf tlog.Hash) Link { return Link(leaf[:9]) }

// Header is what of a record is hashed into the tree. The event is there by its
// hash: so it can be removed when its time is over, and the rest still proves
// when which class of event was removed.
type Header struct {
	// Log is the origin of the log, as its checkpoints have it.
	Log string
	// Seq is the record's place in the log, from 0.
	Seq int64
	// Time is when it was written, in UTC, by the sidecar's clock, to the
	// microsecond.
	Time time.Time
	// Class is the record's class.
	Class Class
	// Prev links to the record before, zero in the first.
	Prev Link
	// Sum is the SHA-256 of the event's bytes.
	Sum [sha256.Size]byte
}

const timeLayout = "2006-01-02T15:04:05.000000Z"

// appendText appends the header without the brace that ends it.
func (h *Header) appendText(dst []byte) []byte {
	dst = append(dst, `{"log":`...)
	dst = appendString(dst, h.Log)
	dst = append(dst, `,"seq":`...)
	dst = strconv.AppendInt(dst, h.Seq, 10)
	dst = append(dst, `,"time":"`...)
	dst = h.Time.UTC().AppendFormat(dst, timeLayout)
	dst = append(dst, `","class":"`...)
	dst = append(dst, h.Class.String()...)
	dst = append(dst, `","prev":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, h.Prev[:])
	dst = append(dst, `","sha256":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, h.Sum[:])
	return append(dst, '"')
}

const eventKey = `,"event":`

// Append appends the line of a record, with its line feed, and returns its leaf
// hash. It sets h.Sum. Event is what Event.Append returned.
func Append(dst []byte, h *Header, event []byte) ([]byte, tlog.Hash) {
	h.Sum = sha256.Sum256(event)
	start := len(dst)
	dst = h.appendText(dst)
	// The leaf is the line without its event.
	dst = append(dst, '}')
	leaf := tlog.RecordHash(dst[start:])
	dst = append(dst[:len(dst)-1], eventKey...)
	dst = append(dst, event...)
	return append(dst, "}\n"...), leaf
}

// Record is one line, read.
type Record struct {
	Header
	// Leaf is the record's leaf hash.
	Leaf tlog.Hash
	// Event is the event's bytes, JSON; nil if they were removed. They are not
	// compared with Sum: see Intact.
	Event []byte
}

// Intact reports whether the event is the one of the header, or was removed.
func (r *Record) Intact() bool { return r.Event == nil || sha256.Sum256(r.Event) == r.Sum }

// Pruned reports whether the event was removed.
func (r *Record) Pruned() bool { return r.Event == nil }

// AppendPruned appends the record's line without its event, with its line feed.
func (h *Header) AppendPruned(dst []byte) []byte { return append(h.appendText(dst), "}\n"...) }

// Parse takes a line apart, without its line feed. It accepts exactly what
// Append and AppendPruned write, else the error is ErrMalformed. The event is
// neither parsed nor compared with its hash; it aliases line.
func Parse(line []byte) (*Record, error) {
	if len(line) > MaxLine {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrMalformed, MaxLine)
	}
	head, event, full := bytes.Cut(line, []byte(eventKey))
	switch {
	case full && (len(event) < 3 || event[0] != '{' || event[len(event)-1] != '}' || event[len(event)-2] != '}'):
		return nil, fmt.Errorf("%w: its event is not closed", ErrMalformed)
	case full:
		event = event[: len(event)-1 : len(event)-1]
	default:
		if head, full = bytes.CutSuffix(line, []byte{'}'}); !full {
			return nil, fmt.Errorf("%w: it is not closed", ErrMalformed)
		}
		event = nil
	}
	r := &Record{Event: event}
	if err := r.parse(head); err != nil {
		return nil, err
	}
	text := append(r.appendText(make([]byte, 0, len(head)+1)), '}')
	if !bytes.Equal(text[:len(text)-1], head) {
		return nil, fmt.Errorf("%w: it is written in another way", ErrMalformed)
	}
	r.Leaf = tlog.RecordHash(text)
	return r, nil
}
