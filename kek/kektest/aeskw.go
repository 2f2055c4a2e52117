package kektest

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	semiblock = 8 // the unit of RFC 3394, in bytes
	// integrity is the initial value of RFC 3394, 2.2.3.1.
	integrity uint64 = 0xA6A6A6A6A6A6A6A6
)

var errKeyWrap = errors.New("integrity check of the key wrap")

// aesWrap wraps key, a multiple of 8 bytes and at least 16, under kek
// (RFC 3394, 2.2.1). The result is 8 bytes longer.
func aesWrap(kek *[32]byte, key []byte) ([]byte, error) {
	if len(key) < 2*semiblock || len(key)%semiblock != 0 {
		return nil, fmt.Errorf("key of %d bytes cannot be wrapped", len(key))
	}
	block, err := aes.NewCipher(kek[:])
	if err != nil {
		return nil, err
	}
	n := len(key) / semiblock
	out := make([]byte, semiblock+len(key))
	copy(out[semiblock:], key)
	var b [aes.BlockSize]byte
	binary.BigEndian.PutUint64(b[:], integrity)
	for t := range 6 * n {
		r := out[(t%n+1)*semiblock:][:semiblock]
		copy(b[semiblock:], r)
		block.Encrypt(b[:], b[:])
		copy(r, b[semiblock:])
		a := binary.BigEndian.Uint64(b[:]) ^ uint64(t+1)
		binary.BigEndian.PutUint64(b[:], a)
	}
	copy(out, b[:semiblock])
	return out, nil
}

// aesUnwrap is the inverse of aesWrap (RFC 3394, 2.2.2).
func aesUnwrap(kek *[32]byte, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 3*semiblock || len(wrapped)%semiblock != 0 {
		return nil, errKeyWrap
	}
	block, err := aes.NewCipher(kek[:])
	if err != nil {
		return nil, err
	}
	n := len(wrapped)/semiblock - 1
	out := append([]byte(nil), wrapped[semiblock:]...)
	var b [aes.BlockSize]byte
	copy(b[:], wrapped[:semiblock])
	for t := 6*n - 1; t >= 0; t-- {
		r := out[t%n*semiblock:][:semiblock]
		a := binary.BigEndian.Uint64(b[:]) ^ uint64(t+1)
		binary.BigEndian.PutUint64(b[:], a)
		copy(b[semiblock:], r)
		block.Decrypt(b[:], b[:])
		copy(r, b[semiblock:])
	}
	var want [semiblock]byte
	binary.BigEndian.PutUint64(want[:], integrity)
	if subtle.ConstantTimeCompare(b[:semiblock], want[:]) != 1 {
		clear(out)
		return nil, errKeyWrap
	}
	return out, nil
}
