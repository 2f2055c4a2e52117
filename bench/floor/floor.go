// Package floor is what no implementation of Cobblestone-256 can do without: two
// HMAC-SHA-512 passes, one AES-256 key schedule, AES-GCM of the payload. It is measured
// beside the real thing and must never be used for anything else.
//
// It is as fast as the standard library allows. There is no salt from crypto/rand, no
// commitment to write or compare, no chunking (one GCM call with one tag for the whole
// payload), no check of a length, no wiping and no pool: digest and buffers are at hand,
// and the HMAC's message lies ready in one piece. The states after HMAC's two pads are
// computed once and used in both passes, which spares two of ten SHA-512 blocks.
package floor

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha512"
	"encoding"
	"hash"
)

const keySize = 32

// Parts holds the digest and the buffers. It is not safe for concurrent use.
type Parts struct {
	digest hash.Hash
	saver  encoding.BinaryAppender    // the digest
	loader encoding.BinaryUnmarshaler // the digest

	ipad, opad   [sha512.BlockSize]byte
	inner, outer []byte // the digest's state after each pad
	sum          [sha512.Size]byte
	message      []byte // T(1) || info || counter
	second       [sha512.Size]byte
	nonce        [12]byte
}

// New returns the parts for messages that all have the same info: label || salt || context.
func New(info []byte) *Parts {
	digest := sha512.New()
	p := &Parts{
		digest:  digest,
		saver:   digest.(encoding.BinaryAppender),
		loader:  digest.(encoding.BinaryUnmarshaler),
		message: make([]byte, sha512.Size+len(info)+1),
	}
	copy(p.message[sha512.Size:], info)
	p.inner, p.outer = p.save(nil), p.save(nil)
	return p
}

// Seal appends the AES-GCM ciphertext of plaintext to dst.
func (p *Parts) Seal(dst []byte, key *[keySize]byte, plaintext []byte) []byte {
	return p.aead(key).Seal(dst, p.nonce[:], plaintext, nil)
}

// Open appends the plaintext of what Seal made to dst. It panics when it is not
// authentic: a measurement has no use for an error.
func (p *Parts) Open(dst []byte, key *[keySize]byte, ciphertext []byte) []byte {
	plaintext, err := p.aead(key).Open(dst, p.nonce[:], ciphertext, nil)
	check(err)
	return plaintext
}

func (p *Parts) aead(key *[keySize]byte) cipher.AEAD {
	p.derive(key)
	block, err := aes.NewCipher(p.message[:keySize])
	check(err)
	copy(p.nonce[:], p.message[keySize:])
	aead, err := cipher.NewGCM(block)
	check(err)
	return aead
}

// derive leaves T(1) in the first 64 bytes of message and T(2) in second.
func (p *Parts) derive(key *[keySize]byte) {
	for i := range p.ipad {
		p.ipad[i], p.opad[i] = 0x36, 0x5c
	}
	for i, b := range key {
		p.ipad[i], p.opad[i] = 0x36^b, 0x5c^b
	}
	p.digest.Reset()
	p.digest.Write(p.opad[:])
	p.outer = p.save(p.outer[:0])
	p.digest.Reset()
	p.digest.Write(p.ipad[:])
	p.inner = p.save(p.inner[:0])

	counter := &p.message[len(p.message)-1]
	*counter = 1
	p.digest.Write(p.message[sha512.Size:])
	p.finish(p.message[:0])

	p.load(p.inner)
	*counter = 2
	p.digest.Write(p.message)
	p.finish(p.second[:0])
}

// finish appends the HMAC to dst. The digest has absorbed the inner pad and the message.
func (p *Parts) finish(dst []byte) {
	p.digest.Sum(p.sum[:0])
	p.load(p.outer)
	p.digest.Write(p.sum[:])
	p.digest.Sum(dst)
}

func (p *Parts) save(state []byte) []byte {
	state, err := p.saver.AppendBinary(state)
	check(err)
	return state
}

func (p *Parts) load(state []byte) { check(p.loader.UnmarshalBinary(state)) }

func check(err error) {
	if err != nil {
		panic("floor: internal error: " + err.Error())
	}
}
