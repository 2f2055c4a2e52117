package state

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
)

const (
	curveP256 = "P-256"
	// coordinate is the length of x, y, r and s on P-256, in bytes.
	coordinate = 32
)

// Point returns the curve and the coordinates of an EC key, 32 bytes each,
// big-endian; nothing for keys of other types.
func (v *Version) Point() (curve string, x, y []byte) {
	k := v.material.ec
	if k == nil {
		return "", nil, nil
	}
	b, err := k.PublicKey.Bytes() // 4 || x || y (SEC 1, 2.3.3)
	if err != nil {
		panic("state: internal error: EC key is not on its curve: " + err.Error())
	}
	return curveP256, b[1 : 1+coordinate], b[1+coordinate:]
}

// Sign signs a digest, if the version permits it at now. The signature is
// r || s, 32 bytes each (RFC 7518, 3.4).
func (v *Version) Sign(alg string, digest []byte, now int64) ([]byte, error) {
	if err := v.permits(KeyOpSign, now); err != nil {
		return nil, err
	}
	m := v.material
	switch {
	case m.ec == nil || alg != algES256:
		return nil, m.unsupported(alg)
	case len(digest) != sha256.Size:
		return nil, BadParameter("Property \"value\" has invalid value: a digest for ES256 has 32 bytes, not %d.", len(digest))
	}
	r, s, err := ecdsa.Sign(rand.Reader, m.ec, digest)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	out := make([]byte, 2*coordinate)
	r.FillBytes(out[:coordinate])
	s.FillBytes(out[coordinate:])
	return out, nil
}

func generateEC(kty string, bits int, curve string) (*material, error) {
	if bits != 0 && bits != 256 || curve != "" && curve != curveP256 {
		return nil, BadParameter("EC keys here are on curve P-256, not on %q with %d bits.", curve, bits)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating EC key: %w", err)
	}
	return &material{kty: kty, ec: k}, nil
}

func decodeEC(kty string, raw []byte) (*material, error) {
	k, err := x509.ParsePKCS8PrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("parsing EC key: %w", err)
	}
	private, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is %T, not EC", k)
	}
	if private.Curve != elliptic.P256() {
		return nil, fmt.Errorf("EC key is on curve %s, not P-256", private.Curve.Params().Name)
	}
	if _, err := private.ECDH(); err != nil {
		return nil, fmt.Errorf("checking EC key: %w", err)
	}
	return &material{kty: kty, ec: private}, nil
}
