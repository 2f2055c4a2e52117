// Package trust reads what is known of audit logs from elsewhere: keys and
// checkpoints, in the files that people keep them in.
package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/keysidecar/keysidecar/audit/record"
)

// ReadKeys reads a file of verifier keys, one a line. Empty lines, and those that
// begin with #, are left out.
func ReadKeys(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading logs' keys: %w", err)
	}
	var keys []string
	for number, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if _, err := record.NewVerifier(line); err != nil {
			return nil, fmt.Errorf("line %d of %s: %w", number+1, path, err)
		}
		keys = append(keys, line)
	}
	return keys, nil
}

// ReadSigners reads the public keys that certify logs' keys: PEM, as az keyvault
// key download writes it, or a JSON Web Key, alone or as az keyvault key show
// prints it. They must be EC P-256 keys.
func ReadSigners(path string) ([]*ecdsa.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading signers' keys: %w", err)
	}
	keys, err := parseSigners(data)
	if err != nil {
		return nil, fmt.Errorf("reading signers' keys from %s: %w", path, err)
	}
	return keys, nil
}

func parseSigners(data []byte) ([]*ecdsa.PublicKey, error) {
	if data = bytes.TrimSpace(data); bytes.HasPrefix(data, []byte{'{'}) {
		key, err := parseJWK(data)
		if err != nil {
			return nil, err
		}
		return []*ecdsa.PublicKey{key}, nil
	}
	var keys []*ecdsa.PublicKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("a PEM block is %.40q, not PUBLIC KEY: az keyvault key download writes that", block.Type)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() {
			return nil, errors.New("a key is not an EC P-256 key")
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("it is no public key: give PEM (az keyvault key download) or a JSON Web Key (az keyvault key show)")
	}
	return keys, nil
}

// parseJWK reads a key as RFC 7517 and RFC 7518, section 6.2, write it.
func parseJWK(data []byte) (*ecdsa.PublicKey, error) {
	type jwk struct{ Kty, Crv, X, Y string }
	var key struct {
		jwk
		Key *jwk
	}
	if err := json.Unmarshal(data, &key); err != nil {
		return nil, fmt.Errorf("reading a JSON Web Key: %w", err)
	}
	if key.Key != nil {
		key.jwk = *key.Key
	}
	if key.Kty != "EC" && key.Kty != "EC-HSM" || key.Crv != "P-256" {
		return nil, fmt.Errorf("a JSON Web Key is %.20q on curve %.20q, not EC on P-256", key.Kty, key.Crv)
	}
	point := []byte{4} // SEC 1, section 2.3.3: both coordinates follow
	for _, text := range []string{key.X, key.Y} {
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
		if err != nil || len(raw) != 32 {
			return nil, errors.New("a JSON Web Key has coordinates that are not 32 bytes each")
		}
		point = append(point, raw...)
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
}
