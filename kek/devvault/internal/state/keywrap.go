package state

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// keyWrapIV is the default initial value of RFC 3394, 2.2.3.1.
const keyWrapIV = 0xa6a6a6a6a6a6a6a6

// errKeyWrap: wrong length or failed integrity check; which of them is nobody's
// business.
var errKeyWrap = errors.New("value is not a wrapped key")

// keyWrap wraps n >= 2 blocks of 8 bytes: AES Key Wrap (RFC 3394, 2.2.1). The
// result is 8 bytes longer.
func keyWrap(kek *[32]byte, in []byte) ([]byte, error) {
	if len(in) < 16 || len(in)%8 != 0 {
		return nil, errors.New("key to wrap is not a multiple of 8 bytes, at least 16")
	}
	c, err := aes.NewCipher(kek[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 8+len(in))
	copy(out[8:], in)
	var b [aes.BlockSize]byte
	a, t := uint64(keyWrapIV), uint64(0)
	for range 6 {
		for r := out[8:]; len(r) > 0; r = r[8:] {
			t++
			a = step(c.Encrypt, &b, a, r) ^ t
		}
	}
	binary.BigEndian.PutUint64(out, a)
	return out, nil
}

// keyUnwrap reverses keyWrap and checks its integrity (RFC 3394, 2.2.2).
func keyUnwrap(kek *[32]byte, in []byte) ([]byte, error) {
	if len(in) < 24 || len(in)%8 != 0 {
		return nil, errKeyWrap
	}
	c, err := aes.NewCipher(kek[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(in)-8)
	copy(out, in[8:])
	var b [aes.BlockSize]byte
	a, t := binary.BigEndian.Uint64(in), uint64(6*(len(out)/8))
	for range 6 {
		for i := len(out) - 8; i >= 0; i -= 8 {
			a = step(c.Decrypt, &b, a^t, out[i:])
			t--
		}
	}
	var got, want [8]byte
	binary.BigEndian.PutUint64(got[:], a)
	binary.BigEndian.PutUint64(want[:], keyWrapIV)
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		clear(out)
		return nil, errKeyWrap
	}
	return out, nil
}

// step runs the cipher over a || r[:8], keeps the right half in r and returns
// the left.
func step(crypt func(dst, src []byte), b *[aes.BlockSize]byte, a uint64, r []byte) uint64 {
	binary.BigEndian.PutUint64(b[:8], a)
	copy(b[8:], r[:8])
	crypt(b[:], b[:])
	copy(r, b[8:])
	return binary.BigEndian.Uint64(b[:8])
}
