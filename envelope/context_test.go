package envelope_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/envelope"
)

// decodeContext is the inverse of the encoding; that there is one makes the
// encoding injective.
func decodeContext(t testing.TB, b []byte) []pair {
	t.Helper()
	take := func(n int) []byte {
		if n > len(b) {
			t.Fatalf("context encoding ends early")
		}
		out := b[:n]
		b = b[n:]
		return out
	}
	number := func() int { return int(binary.BigEndian.Uint16(take(2))) }
	pairs := []pair{}
	for range number() {
		key := string(take(number()))
		pairs = append(pairs, pair{key, string(take(number()))})
	}
	if len(b) > 0 {
		t.Fatalf("%d bytes after the context", len(b))
	}
	return pairs
}

func checkContext(t testing.TB, pairs map[string]string) {
	c, err := envelope.ParseContext(pairs)
	if err != nil {
		if !errors.Is(err, envelope.ErrContext) || c.Encoded()[1] != 0 {
			t.Fatalf("ParseContext = %x, %v", c.Encoded(), err)
		}
		return
	}
	decoded := decodeContext(t, c.Encoded())
	if !slices.IsSortedFunc(decoded, func(a, b pair) int { return bytes.Compare([]byte(a.Key), []byte(b.Key)) }) {
		t.Fatalf("not sorted: %q", decoded)
	}
	back := map[string]string{}
	for _, p := range decoded {
		back[p.Key] = p.Value
	}
	if !maps.Equal(pairs, back) || len(decoded) != len(pairs) {
		t.Fatalf("decoded %q, want %q", decoded, pairs)
	}
	// Another map with the same pairs, filled in another order.
	other := map[string]string{}
	for _, p := range slices.Backward(decoded) {
		other[p.Key] = p.Value
	}
	if again := must(envelope.ParseContext(other)); !bytes.Equal(again.Encoded(), c.Encoded()) {
		t.Fatalf("encoded %x and %x", c.Encoded(), again.Encoded())
	}
}

func TestContext(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) { checkContext(t, genPairs().Draw(r, "pairs")) })
}

func TestContextNames(t *testing.T) {
	many := map[string]string{}
	for _, p := range badContexts()["33-pairs"] {
		many[p.Key] = p.Value
	}
	big := map[string]string{"z": ""}
	for _, p := range messageContexts()["8192-bytes"] {
		big[p.Key] = p.Value
	}
	for _, test := range []struct {
		pairs map[string]string
		want  string
	}{
		{many, "more than 32 pairs"},
		{big, "keys and values over 8192 bytes"},
		{map[string]string{"": "secret"}, "empty key"},
		{map[string]string{strings.Repeat("secret", 43): ""}, "key over 255 bytes"},
		{map[string]string{"secret": strings.Repeat("secret", 171)}, "value over 1024 bytes"},
		{map[string]string{"secret\xff": ""}, "invalid UTF-8"},
		{map[string]string{"k": "secret\xff"}, "invalid UTF-8"},
		{map[string]string{"keysidecar.secret": ""}, "key reserved (keysidecar.*)"},
		// Several limits at once: always the same one is named.
		{map[string]string{"a": "\xff", "b": strings.Repeat("b", 1025), "": ""}, "empty key"},
	} {
		_, err := envelope.ParseContext(test.pairs)
		if !errors.Is(err, envelope.ErrContext) {
			t.Errorf("%s: %v", test.want, err)
			continue
		}
		if diff := cmp.Diff(test.want+": "+envelope.ErrContext.Error(), err.Error()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestContextRetainsNothing(t *testing.T) {
	pairs := map[string]string{"a": "1"}
	c := must(envelope.ParseContext(pairs))
	before := c.Encoded()
	pairs["a"] = "2"
	if !bytes.Equal(before, c.Encoded()) {
		t.Error("changed with the map")
	}
	if zero := (envelope.Context{}).Encoded(); !bytes.Equal(zero, must(envelope.ParseContext(nil)).Encoded()) {
		t.Errorf("zero context encodes as %x", zero)
	}
}
