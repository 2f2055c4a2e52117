package answer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
)

// RSA makes a public key of a JSON Web Key's n and e, big-endian (RFC 7518,
// 6.3.1): a modulus of 2048, 3072 or 4096 bits.
func RSA(n, e []byte) (*rsa.PublicKey, error) {
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	switch modulus.BitLen() {
	case 2048, 3072, 4096:
	default:
		return nil, fmt.Errorf("RSA modulus has %d bits, not 2048, 3072 or 4096", modulus.BitLen())
	}
	if modulus.Bit(0) == 0 {
		return nil, errors.New("RSA modulus is even")
	}
	if exponent.BitLen() > 31 || exponent.Bit(0) == 0 || exponent.Int64() < 3 {
		return nil, errors.New("RSA exponent is not an odd number from 3 to 2^31-1")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

// p256Size is the length of a coordinate on P-256, in bytes.
const p256Size = 32

// P256 makes a public key of a JSON Web Key's x and y, big-endian (RFC 7518,
// 6.2.1): a point on P-256. Leading zeros may be missing or too many, which
// Microsoft's own SDKs allow for.
func P256(x, y []byte) (*ecdsa.PublicKey, error) {
	point := make([]byte, 1+2*p256Size)
	point[0] = 4 // uncompressed (SEC 1, 2.3.3)
	for i, coordinate := range [][]byte{x, y} {
		c := new(big.Int).SetBytes(coordinate)
		if c.BitLen() > 8*p256Size {
			return nil, fmt.Errorf("EC coordinate has %d bits, over %d", c.BitLen(), 8*p256Size)
		}
		c.FillBytes(point[1+i*p256Size:][:p256Size])
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("EC key is not a point on P-256")
	}
	return public, nil
}
