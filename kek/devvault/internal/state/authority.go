package state

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	caLife    = 10 * 365 * 24 * time.Hour
	leafLife  = 365 * 24 * time.Hour
	renewWhen = 30 * 24 * time.Hour // a certificate with less left is replaced
	backdate  = time.Hour           // tolerates clients whose clock is behind
)

// Authority issues the server's certificate. Its own certificate is kept and
// is constrained to the suffix, localhost and loopback addresses, so that a
// developer who trusts it trusts it for nothing else. The server's lives in
// memory and is renewed as it runs.
type Authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	suffix string
	now    func() time.Time

	mu   sync.Mutex
	leaf *tls.Certificate
}

// openAuthority loads the authority of dir. It makes a new one when there is
// none, when it is about to expire, or when it was made for another suffix.
func openAuthority(dir, suffix string, now func() time.Time) (*Authority, error) {
	a := &Authority{suffix: suffix, now: now}
	raw, err := os.ReadFile(filepath.Join(dir, caFile))
	if err == nil {
		err = a.parse(raw)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !a.usable():
		if err := a.create(filepath.Join(dir, caFile)); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("reading certificate authority: %w", err)
	}
	if err := a.writeCert(filepath.Join(dir, caCertFile)); err != nil {
		return nil, err
	}
	_, err = a.Certificate(nil)
	return a, err
}

func (a *Authority) usable() bool {
	return a.now().Add(renewWhen).Before(a.cert.NotAfter) &&
		slices.Contains(a.cert.PermittedDNSDomains, a.suffix)
}

// parse reads a certificate and its key from PEM.
func (a *Authority) parse(raw []byte) error {
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("key is %T, not ECDSA", pair.PrivateKey)
	}
	a.cert, a.key = pair.Leaf, key
	return nil
}

func (a *Authority) create(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generating certificate authority: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:                newSerial(),
		Subject:                     pkix.Name{CommonName: "keysidecar devvault CA"},
		NotBefore:                   a.now().Add(-backdate),
		NotAfter:                    a.now().Add(caLife),
		KeyUsage:                    x509.KeyUsageCertSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{a.suffix, "localhost"},
		PermittedIPRanges:           loopbackRanges(),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fmt.Errorf("creating certificate authority: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding certificate authority: %w", err)
	}
	var out bytes.Buffer
	out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	out.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	if err := writeFile(path, out.Bytes()); err != nil {
		return fmt.Errorf("writing certificate authority: %w", err)
	}
	return a.parse(out.Bytes())
}

// writeCert keeps the file that clients read in step with the authority.
func (a *Authority) writeCert(path string) error {
	want := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if got, err := os.ReadFile(path); err == nil && bytes.Equal(got, want) {
		return nil
	}
	if err := writeFile(path, want); err != nil {
		return fmt.Errorf("writing CA certificate: %w", err)
	}
	return nil
}

// Pool returns a pool of the authority's certificate alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// Certificate is for tls.Config.GetCertificate. It does not look at its argument.
func (a *Authority) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leaf == nil || a.now().Add(renewWhen).After(a.leaf.Leaf.NotAfter) {
		leaf, err := a.issue()
		if err != nil {
			return nil, err
		}
		a.leaf = leaf
	}
	return a.leaf, nil
}

func (a *Authority) issue() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating certificate key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: a.suffix},
		NotBefore:    a.now().Add(-backdate),
		NotAfter:     a.now().Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{a.suffix, "*." + a.suffix, "localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issuing certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func loopbackRanges() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
}

// newSerial returns 127 random bits, never zero.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}
