package secret

import (
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
)

const redacted = "REDACTED"

// Key is a key in a slot of a slab. It prints, logs and marshals as REDACTED;
// nil prints so too. Its holder owns the slot until Wipe.
//
// Methods are safe for concurrent use, except that nobody may read what
// Expose returned once Wipe is called: whoever shares a Key counts its users.
type Key struct {
	slab  *Slab
	index uint32
	p     atomic.Pointer[[Size]byte] // into the slab; nil after Wipe
}

// Expose returns the key's slot itself, not a copy. It is the only way to the
// bytes: grep for it. The pointer is good until Wipe or Slab.Close; it must
// not be retained, and the key not be compared with ==. Only who alone has the
// Key may write through it, such as to unwrap into the slot. Expose panics
// after Wipe or Slab.Close.
func (k *Key) Expose() *[Size]byte {
	p := k.p.Load()
	if p == nil {
		panic("secret: internal error: Expose after Wipe")
	}
	if k.slab.closed.Load() {
		panic("secret: internal error: Expose after Close")
	}
	return p
}

// Wipe overwrites the slot with zeros and frees it. A second Wipe, and one
// after Slab.Close, does nothing.
func (k *Key) Wipe() {
	if k.p.Swap(nil) != nil {
		k.slab.wipe(k.index)
	}
}

// String returns "REDACTED".
func (*Key) String() string { return redacted }

// GoString returns "REDACTED".
func (*Key) GoString() string { return redacted }

// Format writes "REDACTED" for every verb.
func (*Key) Format(f fmt.State, _ rune) { writeState(f, redacted) }

// LogValue returns the string "REDACTED".
func (*Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns the JSON string "REDACTED". It never fails.
func (*Key) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns "REDACTED". It never fails.
func (*Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// writeState writes s. fmt.State's Write cannot fail, and a Format method has
// nobody to tell.
func writeState(f fmt.State, s string) { _, _ = io.WriteString(f, s) }
