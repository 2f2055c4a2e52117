// Package cobblestone implements Cobblestone-256: the chunked encryption of
// https://c2sp.org/chunked-encryption (version v1, C2SP commit 5ba5ee8) with
// AES-256-GCM and HKDF-Expand-SHA-512. SPEC.md repeats it in full.
//
// A body is
//
//	body = salt[24] || commitment[32] || chunk 0 || ... || chunk k
//
// Every message has its own AES key, base nonce and commitment, derived from
// the caller's key, a random salt and the caller's context. Chunk i is AES-256-GCM
// of 16 KiB of plaintext under the base nonce XOR i, without associated data.
// The last chunk, and only it, is shorter than 16 KiB, so a message whose length
// is a multiple of 16 KiB (0 included) ends with an empty chunk. That is what
// makes a truncated message detectable.
//
// Seal and Open handle a message that fits in memory, Writer and Reader one that
// does not; each opens what the other sealed. The functions are safe for concurrent
// use, a Writer or Reader is not.
//
// # What stays in memory
//
// Everything from which the caller's key could be computed (HMAC pads and states)
// and every derived key is overwritten before a function returns. What this package
// cannot overwrite, because crypto/aes and crypto/cipher keep it on the heap until
// it is collected, is the AES key schedule of one message.
//
// The package panics when the program runs with GODEBUG=fips140=only, which
// forbids AES-GCM with nonces made by the caller.
package cobblestone

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"slices"
	"unsafe"
)

const (
	// KeySize is the length of the caller's key in bytes.
	KeySize = 32
	// ChunkSize is the length in bytes of the plaintext in every chunk but the last.
	ChunkSize = 16384
	// SaltSize is the length in bytes of the salt at the start of a body.
	SaltSize = 24
	// CommitmentSize is the length in bytes of the commitment after the salt.
	CommitmentSize = 32
	// PrefixSize is the length in bytes of what comes before the first chunk.
	PrefixSize = SaltSize + CommitmentSize
	// TagSize is the length in bytes by which a chunk is longer than its plaintext.
	TagSize = 16

	sealedChunkSize = ChunkSize + TagSize
	// maxChunks keeps a message below the wear-out limit of AES in counter mode.
	maxChunks = 1 << 38
)

var (
	// ErrOpen says that a body does not open: wrong key or context, or the body was
	// truncated, extended or changed. It does not say which.
	ErrOpen = errors.New("message does not authenticate")
	// ErrClosed is returned for a use of a Writer or Reader that has been closed.
	ErrClosed = errors.New("stream is closed")
	// ErrTooLong is returned by a Writer for a message of 4 PiB or more.
	ErrTooLong = errors.New("message is too long")
)

// SealedSize returns the length in bytes of the body of an n-byte plaintext:
// 56 + n + 16 * (n/16384 + 1).
func SealedSize(n int) int {
	return PrefixSize + n + TagSize*(n/ChunkSize+1)
}

// OpenedSize returns the length in bytes of the plaintext of an n-byte body.
// It returns ErrOpen when no body has that length.
func OpenedSize(n int) (int, error) {
	n -= PrefixSize
	if n < TagSize {
		return 0, ErrOpen
	}
	full, last := n/sealedChunkSize, n%sealedChunkSize
	if last < TagSize || uint64(full) >= maxChunks {
		return 0, ErrOpen
	}
	return full*ChunkSize + last - TagSize, nil
}

// Seal appends the body of plaintext to dst and returns the extended slice. The salt
// is drawn from crypto/rand, so two bodies of one plaintext differ. The same context,
// which is authenticated and not part of the body, must be given to Open.
//
// The appended bytes must not overlap plaintext; Seal panics when they do. It
// allocates only what crypto/aes and crypto/cipher do when dst has room for
// SealedSize(len(plaintext)) more bytes.
func Seal(dst []byte, key *[KeySize]byte, context, plaintext []byte) []byte {
	size := SealedSize(len(plaintext))
	out := slices.Grow(dst, size)
	if overlap(out[len(dst):len(dst)+size], plaintext) {
		panic("cobblestone: internal error: output overlaps plaintext")
	}

	d := newDeriver()
	defer d.release()
	rand.Read(d.salt())
	d.derive(key, context)
	out = append(out, d.salt()...)
	out = append(out, d.commitment()...)

	c := d.newSequence()
	for len(plaintext) >= ChunkSize {
		out = c.seal(out, plaintext[:ChunkSize])
		plaintext = plaintext[ChunkSize:]
	}
	return c.seal(out, plaintext)
}

// Open appends the plaintext of body to dst and returns the extended slice. On
// failure it returns nil and ErrOpen, and what it wrote behind dst is wiped.
//
// The appended bytes must not overlap body; Open panics when they do, so it does not
// decrypt in place. It allocates only what crypto/aes and crypto/cipher do when dst
// has room for OpenedSize(len(body)) more bytes.
func Open(dst []byte, key *[KeySize]byte, context, body []byte) ([]byte, error) {
	size, err := OpenedSize(len(body))
	if err != nil {
		return nil, err
	}

	d := newDeriver()
	defer d.release()
	copy(d.salt(), body)
	d.derive(key, context)
	if subtle.ConstantTimeCompare(d.commitment(), body[SaltSize:PrefixSize]) != 1 {
		return nil, ErrOpen
	}

	out := slices.Grow(dst, size)
	tail := out[len(dst) : len(dst)+size]
	if overlap(tail, body) {
		panic("cobblestone: internal error: output overlaps body")
	}
	out, err = openChunks(out, d.newSequence(), body[PrefixSize:])
	if err != nil {
		clear(tail)
		return nil, err
	}
	return out, nil
}

// openChunks appends the plaintext of all chunks to out, which has room for it.
// The caller has checked by OpenedSize that the last chunk is a short one.
func openChunks(out []byte, c *sequence, chunks []byte) ([]byte, error) {
	for {
		n := min(len(chunks), sealedChunkSize)
		var err error
		if out, err = c.open(out, chunks[:n]); err != nil {
			return nil, err
		}
		if n < sealedChunkSize {
			return out, nil
		}
		chunks = chunks[n:]
	}
}

// overlap reports whether x and y share memory. AES-GCM checks each chunk for itself
// only: it would not notice an output that destroys a later chunk's input.
func overlap(x, y []byte) bool {
	if len(x) == 0 || len(y) == 0 {
		return false
	}
	x0, y0 := uintptr(unsafe.Pointer(&x[0])), uintptr(unsafe.Pointer(&y[0]))
	return x0 < y0+uintptr(len(y)) && y0 < x0+uintptr(len(x))
}
