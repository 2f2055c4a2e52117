package state

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSA-OAEP is defined with SHA-1
	"crypto/sha256"
	"crypto/x509"
	"fmt"
)

// The key types that can be created, in Azure's spelling.
const (
	TypeRSA    = "RSA"
	TypeRSAHSM = "RSA-HSM"
	TypeEC     = "EC"
	TypeECHSM  = "EC-HSM"
	TypeOctHSM = "oct-HSM"
)

// The algorithms in Azure's spelling.
const (
	algRSA15      = "RSA1_5"
	algRSAOAEP    = "RSA-OAEP"
	algRSAOAEP256 = "RSA-OAEP-256"
	algA256KW     = "A256KW"
	algES256      = "ES256"
)

// The key_ops, in Azure's spelling.
const (
	KeyOpEncrypt = "encrypt"
	KeyOpDecrypt = "decrypt"
	KeyOpSign    = "sign"
	KeyOpVerify  = "verify"
	KeyOpWrap    = "wrapKey"
	KeyOpUnwrap  = "unwrapKey"
)

// material is the secret of one key version. Exactly one field besides kty is
// set. It never changes.
type material struct {
	kty string
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey // on P-256
	oct *[32]byte
}

// defaultOps returns the key_ops that a key of the type gets, and may have.
func defaultOps(kty string) []string {
	switch kty {
	case TypeOctHSM:
		return []string{KeyOpEncrypt, KeyOpDecrypt, KeyOpWrap, KeyOpUnwrap}
	case TypeEC, TypeECHSM:
		return []string{KeyOpSign, KeyOpVerify}
	}
	return []string{KeyOpEncrypt, KeyOpDecrypt, KeyOpSign, KeyOpVerify, KeyOpWrap, KeyOpUnwrap}
}

// generate makes a key. bits zero and curve empty mean the type's default.
func generate(kty string, bits int, curve string) (*material, error) {
	switch kty {
	case TypeRSA, TypeRSAHSM:
		return generateRSA(kty, bits)
	case TypeEC, TypeECHSM:
		return generateEC(kty, bits, curve)
	case TypeOctHSM:
		if bits != 0 && bits != 256 {
			return nil, BadParameter("Invalid key size %d: oct-HSM keys here have 256 bits.", bits)
		}
		m := &material{kty: kty, oct: new([32]byte)}
		_, _ = rand.Read(m.oct[:])
		return m, nil
	}
	return nil, BadParameter("Key type %q is not one of RSA, RSA-HSM, EC, EC-HSM, oct-HSM.", kty)
}

func generateRSA(kty string, bits int) (*material, error) {
	switch bits {
	case 0:
		bits = 2048
	case 2048, 3072, 4096:
	default:
		return nil, BadParameter("Invalid RSA key size %d.", bits)
	}
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, fmt.Errorf("generating RSA key: %w", err)
	}
	return &material{kty: kty, rsa: k}, nil
}

func (m *material) bits() int {
	if m.rsa != nil {
		return m.rsa.N.BitLen()
	}
	return 256
}

// encode returns what a key file holds: PKCS #8 for RSA and EC, the bare 32
// bytes for oct-HSM.
func (m *material) encode() ([]byte, error) {
	switch {
	case m.rsa != nil:
		return x509.MarshalPKCS8PrivateKey(m.rsa)
	case m.ec != nil:
		return x509.MarshalPKCS8PrivateKey(m.ec)
	}
	return m.oct[:], nil
}

func decodeMaterial(kty string, raw []byte) (*material, error) {
	switch kty {
	case TypeRSA, TypeRSAHSM:
		k, err := x509.ParsePKCS8PrivateKey(raw)
		if err != nil {
			return nil, fmt.Errorf("parsing RSA key: %w", err)
		}
		priv, ok := k.(*rsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("key is %T, not RSA", k)
		}
		return &material{kty: kty, rsa: priv}, nil // ParsePKCS8PrivateKey precomputes
	case TypeEC, TypeECHSM:
		return decodeEC(kty, raw)
	case TypeOctHSM:
		if len(raw) != 32 {
			return nil, fmt.Errorf("oct-HSM key has %d bytes, not 32", len(raw))
		}
		return &material{kty: kty, oct: (*[32]byte)(raw)}, nil
	}
	return nil, fmt.Errorf("unknown key type %q", kty)
}

// wrap is also encrypt. What the algorithm cannot take is a BadParameter.
func (m *material) wrap(alg string, in []byte) ([]byte, error) {
	var out []byte
	var err error
	switch {
	case m.oct != nil && alg == algA256KW:
		out, err = keyWrap(m.oct, in)
	case m.rsa != nil && alg == algRSAOAEP256:
		out, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &m.rsa.PublicKey, in, nil)
	case m.rsa != nil && alg == algRSAOAEP:
		out, err = rsa.EncryptOAEP(sha1.New(), rand.Reader, &m.rsa.PublicKey, in, nil) //nolint:gosec // see import
	case m.rsa != nil && alg == algRSA15:
		//nolint:staticcheck // deprecated, and what Azure offers: hostile wrapped bytes are made with it
		out, err = rsa.EncryptPKCS1v15(rand.Reader, &m.rsa.PublicKey, in)
	default:
		return nil, m.unsupported(alg)
	}
	if err != nil {
		return nil, BadParameter("Property \"value\" has invalid value: %v.", err)
	}
	return out, nil
}

// unwrap is also decrypt. It returns whatever length comes out.
func (m *material) unwrap(alg string, in []byte) ([]byte, error) {
	var out []byte
	var err error
	switch {
	case m.oct != nil && alg == algA256KW:
		out, err = keyUnwrap(m.oct, in)
	case m.rsa != nil && alg == algRSAOAEP256:
		out, err = rsa.DecryptOAEP(sha256.New(), nil, m.rsa, in, nil)
	case m.rsa != nil && alg == algRSAOAEP:
		out, err = rsa.DecryptOAEP(sha1.New(), nil, m.rsa, in, nil) //nolint:gosec // see import
	case m.rsa != nil && alg == algRSA15:
		//nolint:staticcheck // see wrap
		out, err = rsa.DecryptPKCS1v15(nil, m.rsa, in)
	default:
		return nil, m.unsupported(alg)
	}
	if err != nil {
		return nil, BadParameter("The parameter is incorrect.\r\n")
	}
	return out, nil
}

func (m *material) unsupported(alg string) error {
	return BadParameter("Algorithm %q does not fit a key of type %q.", alg, m.kty)
}
