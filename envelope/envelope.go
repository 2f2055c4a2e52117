package envelope

import (
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/keysidecar/keysidecar/internal/cobblestone"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/tenant"
)

// HeaderSize is the length of an envelope's header in bytes.
const HeaderSize = 22

const (
	envelopeMagic       = "KSE"
	envelopeVersion     = 0x01
	suiteCobblestone256 = 0x01
	noFlags             = 0x00

	sealLabel  = "keysidecar/v1/seal\x00"
	dekIDLabel = "keysidecar/v1/dek-id\x00"
)

var (
	// ErrMalformed is returned for bytes that break a rule of the format.
	ErrMalformed = errors.New("sealed data is malformed")
	// ErrUnsupported is returned for a version, suite, flag, kind, purpose,
	// algorithm or proof that this package does not know.
	ErrUnsupported = errors.New("sealed data is of an unsupported format")
	// ErrOpen is returned for well-formed data that is not authentic for the
	// key, tenant and encryption context given, or whose proof is not.
	ErrOpen = errors.New("sealed data is not authentic")
	// ErrContext is returned by ParseContext for a context over a limit.
	ErrContext = errors.New("encryption context is not valid")
)

func malformed(what string) error   { return fmt.Errorf("%s: %w", what, ErrMalformed) }
func unsupported(what string) error { return fmt.Errorf("%s: %w", what, ErrUnsupported) }

// ID identifies a DEK or a branch key. It is derived from the key, so it is
// no secret and cannot be chosen. IDs are compared with ==.
type ID [16]byte

// String returns 32 lower-case hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Purpose says what a DEK is used for.
type Purpose byte

// PurposeSeal is sealing data, the only purpose so far. A branch key has the
// purpose zero.
const PurposeSeal Purpose = 1

// DEKID returns the identifier of a DEK used for p by t: the first 16 bytes of
//
//	HKDF-Expand-SHA-512(key, "keysidecar/v1/dek-id" || 0x00 || p || lp16(t))
//
// It is recomputed after every unwrap, which is what ties wrapped bytes to a
// tenant. It allocates; it is not for the path of every message. It panics
// if t is the zero ID or key is wiped.
func DEKID(key *secret.Key, p Purpose, t tenant.ID) ID {
	info := append([]byte(dekIDLabel), byte(p))
	info = appendLP16(info, mustTenant(t))
	id, err := hkdf.Expand(sha512.New, key.Expose()[:], string(info), len(ID{}))
	if err != nil {
		panic("envelope: internal error: " + err.Error())
	}
	return ID(id)
}

// SealedSize returns the length of an envelope over n bytes of plaintext.
func SealedSize(n int) int { return HeaderSize + cobblestone.SealedSize(n) }

// Seal appends to dst an envelope over plaintext, and returns the result:
//
//	"KSE" || version || suite || flags || id || salt || commitment || chunks
//
// id is DEKID(key, PurposeSeal, t); Seal does not recompute it. Tenant and
// context are bound, not contained: Open needs the same ones. dst needs
// SealedSize(len(plaintext)) bytes of spare capacity to be used in place, and
// must not overlap plaintext. It panics if t is the zero ID or key is wiped.
func Seal(dst []byte, key *secret.Key, id ID, t tenant.ID, c Context, plaintext []byte) []byte {
	dst = slices.Grow(dst, SealedSize(len(plaintext)))
	start := len(dst)
	dst = append(dst, envelopeMagic...)
	dst = append(dst, envelopeVersion, suiteCobblestone256, noFlags)
	dst = append(dst, id[:]...)
	b := newBinding(dst[start:], t, c)
	defer b.release()
	return cobblestone.Seal(dst, key.Expose(), b.bytes, plaintext)
}

// Open appends to dst the plaintext of env, an envelope without bundle, and
// returns the result. It returns nil and ErrOpen if env was not sealed with
// this key, tenant and context, and what Parse returns if env is ill-formed.
// No byte that is not authentic is ever returned or left in dst, which must
// not overlap env.
func Open(dst []byte, key *secret.Key, t tenant.ID, c Context, env []byte) ([]byte, error) {
	if _, err := parseEnvelope(env); err != nil {
		return nil, err
	}
	b := newBinding(env[:HeaderSize], t, c)
	defer b.release()
	out, err := cobblestone.Open(dst, key.Expose(), b.bytes, env[HeaderSize:])
	if err != nil {
		// One error for every cause: the caller gets no oracle.
		return nil, ErrOpen
	}
	return out, nil
}

// parseEnvelope checks a header and the length of the body after it.
func parseEnvelope(env []byte) (ID, error) {
	r := reader{rest: env}
	if string(r.take(len(envelopeMagic))) != envelopeMagic {
		return ID{}, malformed("envelope magic")
	}
	version := r.byte()
	if !r.short && version != envelopeVersion {
		return ID{}, unsupported("envelope version")
	}
	suite, flags, id := r.byte(), r.byte(), r.id()
	switch _, err := cobblestone.OpenedSize(len(r.rest)); {
	case r.short:
		return ID{}, malformed("envelope header length")
	case suite != suiteCobblestone256:
		return ID{}, unsupported("envelope suite")
	case flags != noFlags:
		return ID{}, unsupported("envelope flags")
	case err != nil:
		return ID{}, malformed("envelope body length")
	}
	return id, nil
}

// binding is what an envelope is bound to: the context input of the body
// construction, in a buffer that is reused.
type binding struct{ bytes []byte }

// bindings saves one allocation per message. A buffer holds nothing between
// uses: release clears it.
var bindings = sync.Pool{New: func() any { return &binding{make([]byte, 0, 512)} }} //nolint:gochecknoglobals // no state outlives a use

func newBinding(header []byte, t tenant.ID, c Context) *binding {
	b := bindings.Get().(*binding) //nolint:forcetypeassert // the pool holds nothing else
	b.bytes = append(b.bytes, sealLabel...)
	b.bytes = append(b.bytes, header...)
	b.bytes = appendLP16(b.bytes, mustTenant(t))
	b.bytes = c.append(b.bytes)
	return b
}

func (b *binding) release() {
	clear(b.bytes)
	b.bytes = b.bytes[:0]
	bindings.Put(b)
}

// mustTenant returns t as a string, and panics for the zero ID: bytes bound to
// no tenant must not exist.
func mustTenant(t tenant.ID) string {
	s := t.String()
	if s == "" {
		panic("envelope: internal error: zero tenant ID")
	}
	return s
}

// appendLP16 appends len(s) as 16-bit big-endian integer, and s. The callers'
// limits keep s shorter than 65,536 bytes.
func appendLP16[T string | []byte](dst []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...) //nolint:gosec // see above
}

// appendLP8 does the same with an 8-bit integer: the limits are below 256.
func appendLP8(dst, s []byte) []byte {
	return append(append(dst, byte(len(s))), s...) //nolint:gosec // see above
}
