package record

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ErrCertificate says that something does not certify a log's key.
var ErrCertificate = errors.New("not a certificate of a log's key")

// certificateTitle is the first line of a certificate.
const certificateTitle = "keysidecar audit key"

// Certificate says that the owner of a Key Vault key knows a log's key: a C2SP
// signed note whose text is a title, the log's verifier key, and a time, and
// which has an ECDSA P-256 signature (type 0x02).
type Certificate struct {
	// Key is the log's verifier key.
	Key string
	// Time is when it was made, to the second.
	Time time.Time
}

// Text returns the certificate as it is signed.
func (c Certificate) Text() string {
	return certificateTitle + "\n" + c.Key + "\n" + c.Time.UTC().Format(time.RFC3339) + "\n"
}

// Digest returns what the signer signs: the SHA-256 of the text.
func (c Certificate) Digest() [sha256.Size]byte { return sha256.Sum256([]byte(c.Text())) }

// Sign returns the signed note. Signature is r and s, 32 bytes each (RFC 7518,
// section 3.4), as Key Vault returns it, by the key called name, whose public
// half is public.
func (c Certificate) Sign(name string, public *ecdsa.PublicKey, signature []byte) (string, error) {
	id, err := keyHash(public)
	if err != nil {
		return "", err
	}
	if len(signature) != 64 {
		return "", fmt.Errorf("%w: a signature of %d bytes is not ES256", ErrCertificate, len(signature))
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]),
	})
	if err != nil {
		return "", fmt.Errorf("encoding a signature: %w", err)
	}
	line := binary.BigEndian.AppendUint32(nil, id)
	signed := c.Text() + "\n— " + name + " " + base64.StdEncoding.EncodeToString(append(line, der...)) + "\n"
	if _, err := OpenCertificate(signed, name, public); err != nil {
		return "", err
	}
	return signed, nil
}

// OpenCertificate checks that public, called name, has signed, and returns what.
func OpenCertificate(signed, name string, public *ecdsa.PublicKey) (Certificate, error) {
	id, err := keyHash(public)
	if err != nil {
		return Certificate{}, err
	}
	n, err := note.Open([]byte(signed), note.VerifierList(&p256{name, id, public}))
	if err != nil {
		return Certificate{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[0] != certificateTitle {
		return Certificate{}, fmt.Errorf("%w: it says something else", ErrCertificate)
	}
	at, err := time.Parse(time.RFC3339, lines[2])
	if err != nil {
		return Certificate{}, fmt.Errorf("%w: its time is not one", ErrCertificate)
	}
	return Certificate{Key: lines[1], Time: at}, nil
}

// SignerOf returns by which key a certificate says that it was signed.
func SignerOf(signed string) (name string, ok bool) {
	_, signatures, _ := strings.Cut(signed, "\n\n")
	name, _, ok = strings.Cut(strings.TrimPrefix(signatures, "— "), " ")
	return name, ok
}

// p256 verifies for package note.
type p256 struct {
	name   string
	hash   uint32
	public *ecdsa.PublicKey
}

// Name returns the key's name.
func (v *p256) Name() string { return v.name }

// KeyHash returns the key's ID.
func (v *p256) KeyHash() uint32 { return v.hash }

// Verify verifies an ASN.1 signature.
func (v *p256) Verify(msg, sig []byte) bool {
	sum := sha256.Sum256(msg)
	return ecdsa.VerifyASN1(v.public, sum[:], sig)
}

// keyHash returns the ID of an ECDSA key: the first 4 bytes of the SHA-256 of
// its SubjectPublicKeyInfo (C2SP signed-note).
func keyHash(public *ecdsa.PublicKey) (uint32, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	sum := sha256.Sum256(der)
	return binary.BigEndian.Uint32(sum[:4]), nil
}
