package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// material is what the files held at one time. It is immutable.
type material struct {
	generation  uint64 // one more with each Reload
	own         tls.Certificate
	authorities authorities
}

// load reads the files of cfg. Its errors name the file. That cfg.CertFile has
// expired is not among them.
func load(cfg CertificatesConfig, td spiffeid.TrustDomain, now time.Time) (*material, error) {
	own, err := loadPair(cfg.CertFile, cfg.KeyFile, now)
	if err != nil {
		return nil, err
	}
	raw, err := readFile(cfg.ClientCAFile, changeFile)
	if err != nil {
		return nil, fmt.Errorf("reading client CA file: %w", err)
	}
	cas, err := parseAuthorities(raw)
	if err != nil {
		return nil, fmt.Errorf("client CA file %s: %w", cfg.ClientCAFile, err)
	}
	return &material{own: own, authorities: newAuthorities(cas, td)}, nil
}

// loadPair reads the server's certificate and its key.
func loadPair(certFile, keyFile string, now time.Time) (tls.Certificate, error) {
	cert, err := readFile(certFile, changeFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading certificate file: %w", err)
	}
	key, err := readFile(keyFile, useKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading key file: %w", err)
	}
	own, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate file %s and key file %s: %w", certFile, keyFile, err)
	}
	if leaf := own.Leaf; now.Before(leaf.NotBefore) {
		return tls.Certificate{}, fmt.Errorf("certificate in %s is not valid before %s: is the clock right?",
			certFile, leaf.NotBefore.Format(time.RFC3339))
	}
	return own, nil
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
