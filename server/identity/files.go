package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxFile = 1 << 20 // bytes: some 500 certificates

	// What others than a file's owner and its group may not do. The group may:
	// a volume in Kubernetes gives its files to the pod's group.
	useKey     fs.FileMode = 0o007
	changeFile fs.FileMode = 0o002
)

// Loaded is what the files of a Certificates held at one time. It is immutable.
type Loaded struct {
	generation  uint64 // another one for each Load
	own         tls.Certificate
	expired     error // nil: own has not
	authorities authorities
	hashes      map[string]string
}

// Hashes returns the SHA-256 of the certificate file and the client CA file, in
// hex, by their paths: of the very bytes that were read, whatever is in the files
// by now. A file that the private key is in is left out.
func (l *Loaded) Hashes() map[string]string { return maps.Clone(l.hashes) }

// filesError is why files were refused.
type filesError struct {
	error
	hashes map[string]string // as Loaded.Hashes, as far as they were read
}

func (e *filesError) Unwrap() error { return e.error }

// HashesOf returns what Loaded.Hashes does, of the bytes that an error of Load is
// about: reading ends with the first file that is not right.
func HashesOf(err error) map[string]string {
	bad, ok := errors.AsType[*filesError](err)
	if !ok {
		return nil
	}
	return maps.Clone(bad.hashes)
}

// load reads the files of cfg. Its errors name the file, and are for HashesOf.
// That cfg.CertFile has expired is not among them.
func load(cfg *CertificatesConfig, td spiffeid.TrustDomain, now time.Time) (*Loaded, error) {
	l := &Loaded{hashes: make(map[string]string)}
	err := l.loadPair(cfg, now)
	if err == nil {
		err = l.loadAuthorities(cfg, td)
	}
	if err != nil {
		return nil, &filesError{error: err, hashes: l.hashes}
	}
	return l, nil
}

func (l *Loaded) loadAuthorities(cfg *CertificatesConfig, td spiffeid.TrustDomain) error {
	raw, err := l.read(cfg, cfg.ClientCAFile, changeFile)
	if err != nil {
		return fmt.Errorf("reading client CA file: %w", err)
	}
	cas, err := parseAuthorities(raw)
	if err != nil {
		return fmt.Errorf("client CA file %s: %w", cfg.ClientCAFile, err)
	}
	l.authorities = newAuthorities(cas, td)
	return nil
}

// loadPair reads the server's certificate and its key.
func (l *Loaded) loadPair(cfg *CertificatesConfig, now time.Time) error {
	cert, err := l.read(cfg, cfg.CertFile, changeFile)
	if err != nil {
		return fmt.Errorf("reading certificate file: %w", err)
	}
	key, err := l.read(cfg, cfg.KeyFile, useKey)
	if err != nil {
		return fmt.Errorf("reading key file: %w", err)
	}
	if l.own, err = tls.X509KeyPair(cert, key); err != nil {
		return fmt.Errorf("certificate file %s and key file %s: %w", cfg.CertFile, cfg.KeyFile, err)
	}
	switch leaf := l.own.Leaf; {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("certificate in %s is not valid before %s: is the clock right?",
			cfg.CertFile, leaf.NotBefore.Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		l.expired = fmt.Errorf("certificate in %s expired at %s: renew it", cfg.CertFile, leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// read is readFile, and keeps the hash of what it returns.
func (l *Loaded) read(cfg *CertificatesConfig, name string, forbidden fs.FileMode) ([]byte, error) {
	raw, err := readFile(name, forbidden)
	if err == nil && name != cfg.KeyFile { // a private key is nobody's business
		sum := sha256.Sum256(raw)
		l.hashes[name] = hex.EncodeToString(sum[:])
	}
	return raw, err
}

// parseAuthorities takes PEM certificates of authorities with nothing around
// them: pem.Decode would skip a block that somebody damaged, and with it the
// authority.
func parseAuthorities(raw []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for raw = bytes.TrimSpace(raw); len(raw) > 0; raw = bytes.TrimSpace(raw) {
		n := len(certs) + 1
		block, rest := pem.Decode(raw)
		begins := bytes.Count(raw[:len(raw)-len(rest)], []byte("-----BEGIN "))
		switch {
		case block == nil, begins != 1, !bytes.HasPrefix(raw, []byte("-----BEGIN ")):
			return nil, fmt.Errorf("what should be certificate %d is not PEM, or text is in front of it", n)
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("what should be certificate %d is a %s", n, short(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, fmt.Errorf("certificate %d is not an authority's", n)
		}
		certs, raw = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return certs, nil
}

// readFile reads a regular file, unless others may do what is forbidden.
func readFile(name string, forbidden fs.FileMode) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode&forbidden != 0 {
		return nil, fmt.Errorf("%s is %v: it has to be a regular file without permissions %04o", name, mode, forbidden)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFile {
		return nil, fmt.Errorf("%s is over %d bytes", name, maxFile)
	}
	return raw, nil
}
