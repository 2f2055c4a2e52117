package cobblestone

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"hash"
	"sync"
)

const (
	label     = "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"
	nonceSize = 12
	// HKDF-Expand of 76 bytes takes two blocks: T(1) || T(2).
	okmSize = 2 * sha512.Size
)

// derivers spares every message the making of a digest and its buffers. What it holds
// is wiped and as good as new.
var derivers = sync.Pool{New: func() any { return makeDeriver() }} //nolint:gochecknoglobals // no state outlives a use

// A deriver computes HKDF-Expand-SHA-512 (RFC 5869, section 2.3) of one message:
//
//	T(1) = HMAC(key, label || salt || context || 0x01)
//	T(2) = HMAC(key, T(1) || label || salt || context || 0x02)
//	AES key[32] || base nonce[12] || commitment[32] = (T(1) || T(2))[:76]
//
// It does by hand what crypto/hmac does, for three reasons: nothing is allocated, the
// digest is used again, and the states that equal the key can be wiped. All arguments
// of the digest's methods lie inside the deriver, for they escape to the heap.
type deriver struct {
	digest hash.Hash
	saver  encoding.BinaryAppender    // the digest
	loader encoding.BinaryUnmarshaler // the digest

	blank []byte                      // saved state of an unused digest
	info  [len(label) + SaltSize]byte // label || salt
	keys  keys
	inner []byte // saved state after the inner pad, equals the key
	outer []byte // saved state after the outer pad, equals the key
}

// keys is the part of a deriver that holds secrets, or may (staged), in arrays.
type keys struct {
	pad     [sha512.BlockSize]byte
	sum     [sha512.Size]byte
	okm     [okmSize]byte
	counter [1]byte
	staged  [256]byte
	chunks  sequence
}

func makeDeriver() *deriver {
	digest := sha512.New()
	d := &deriver{
		digest: digest,
		saver:  digest.(encoding.BinaryAppender),
		loader: digest.(encoding.BinaryUnmarshaler),
	}
	d.blank = d.save(nil)
	d.inner = make([]byte, len(d.blank))
	d.outer = make([]byte, len(d.blank))
	copy(d.info[:], label)
	return d
}

func newDeriver() *deriver { return derivers.Get().(*deriver) }

// release wipes d, digest included, and gives it back.
func (d *deriver) release() {
	clear(d.salt())
	d.keys = keys{}
	clear(d.inner)
	clear(d.outer)
	// Reset would leave the last partial block in the digest; loading a state overwrites it.
	d.load(d.blank)
	derivers.Put(d)
}

// salt returns the message's salt, for the caller to fill before derive.
func (d *deriver) salt() []byte { return d.info[len(label):] }

// commitment returns the commitment that derive computed.
func (d *deriver) commitment() []byte {
	const at = KeySize + nonceSize
	return d.keys.okm[at : at+CommitmentSize]
}

// derive computes the message's keys from key, the salt and context.
func (d *deriver) derive(key *[KeySize]byte, context []byte) {
	// Each pad is hashed once and its state used twice: two of ten SHA-512 blocks saved.
	d.load(d.blank)
	d.outer = d.absorbPad(key, 0x5c, d.outer)
	d.load(d.blank)
	d.inner = d.absorbPad(key, 0x36, d.inner)

	d.expand(d.keys.okm[:0], context, 1)
	d.load(d.inner)
	d.expand(d.keys.okm[:sha512.Size], context, 2)
}

// absorbPad hashes the key XOR the pad byte and saves the digest's state in state.
func (d *deriver) absorbPad(key *[KeySize]byte, pad byte, state []byte) []byte {
	for i := range d.keys.pad {
		d.keys.pad[i] = pad
	}
	for i, b := range key {
		d.keys.pad[i] ^= b
	}
	d.digest.Write(d.keys.pad[:])
	return d.save(state[:0])
}

// expand appends T(counter) to okm, which is T(1) .. T(counter-1). The digest is in
// the inner state.
func (d *deriver) expand(okm, context []byte, counter byte) {
	d.digest.Write(okm)
	d.digest.Write(d.info[:])
	for len(context) > 0 {
		n := copy(d.keys.staged[:], context)
		d.digest.Write(d.keys.staged[:n])
		context = context[n:]
	}
	d.keys.counter[0] = counter
	d.digest.Write(d.keys.counter[:])
	d.digest.Sum(d.keys.sum[:0])

	d.load(d.outer)
	d.digest.Write(d.keys.sum[:])
	d.digest.Sum(okm)
}

func (d *deriver) save(state []byte) []byte {
	state, err := d.saver.AppendBinary(state)
	if err != nil {
		panic("cobblestone: internal error: saving SHA-512 state: " + err.Error())
	}
	return state
}

func (d *deriver) load(state []byte) {
	if err := d.loader.UnmarshalBinary(state); err != nil {
		panic("cobblestone: internal error: loading SHA-512 state: " + err.Error())
	}
}

// newSequence returns the chunks under the keys that derive computed. It is valid
// until d is released.
func (d *deriver) newSequence() *sequence {
	key, base := d.keys.okm[:KeySize], d.keys.okm[KeySize:KeySize+nonceSize]
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("cobblestone: internal error: making cipher: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("cobblestone: internal error: making AEAD: " + err.Error())
	}
	d.keys.chunks = sequence{aead: aead, base: [nonceSize]byte(base)}
	return &d.keys.chunks
}

// A sequence seals or opens the chunks of one message in order.
type sequence struct {
	aead  cipher.AEAD
	base  [nonceSize]byte
	nonce [nonceSize]byte // of the chunk at hand; here and not on the stack, as it escapes
	next  uint64          // index of the next chunk
}

// full reports whether the message has as many chunks as a message may have.
func (s *sequence) full() bool { return s.next >= maxChunks }

// advance sets the nonce of the next chunk: base XOR index, as big-endian integers.
func (s *sequence) advance() {
	if s.full() {
		panic("cobblestone: internal error: chunk counter exhausted")
	}
	copy(s.nonce[:], s.base[:])
	low := s.nonce[nonceSize-8:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^s.next)
	s.next++
}

// seal appends the next chunk to dst.
func (s *sequence) seal(dst, plaintext []byte) []byte {
	s.advance()
	return s.aead.Seal(dst, s.nonce[:], plaintext, nil)
}

// open appends the plaintext of the next chunk to dst. On failure it returns nil and ErrOpen.
func (s *sequence) open(dst, chunk []byte) ([]byte, error) {
	s.advance()
	plaintext, err := s.aead.Open(dst, s.nonce[:], chunk, nil)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}
