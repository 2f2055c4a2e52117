package identity_test

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/server/identity"
)

// sums returns the hashes of these files as they are now.
func (s *site) sums(names ...string) map[string]string {
	s.t.Helper()
	sums := make(map[string]string)
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			s.t.Fatal(err)
		}
		sums[name] = fmt.Sprintf("%x", sha256.Sum256(raw))
	}
	return sums
}

// same wants these hashes.
func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestUse shows that what was loaded is in effect when it is used, not before,
// and as it was when it was loaded.
func TestUse(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	first := s.sums(s.config.CertFile, s.config.ClientCAFile)
	cfg := s.clientConfig(s.clients.issue(withNames(dnsName)))
	live := l.dial(t, cfg)
	l.admitted(t, live)

	s.writePair(s.root.issue(withNames(serverName)))
	s.writeCAs(newRoot(t, "another"))
	second := s.sums(s.config.CertFile, s.config.ClientCAFile)
	same(t, "at the start, and the files are others", first, source.Hashes())
	loaded, err := source.Load()
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.config.CertFile, 0o644, []byte("a third one"))
	s.write(s.config.ClientCAFile, 0o644, nil)
	same(t, "loaded", second, loaded.Hashes())
	clear(loaded.Hashes()) // nobody else's
	same(t, "loaded, again", second, loaded.Hashes())
	same(t, "not used yet", first, source.Hashes())
	l.admitted(t, live)
	l.admitted(t, l.dial(t, cfg))

	source.Use(loaded)
	same(t, "used", second, source.Hashes())
	l.refused(t, live, codes.Unauthenticated, "no authority of the client CA file")
	l.refused(t, l.dial(t, cfg), codes.Unavailable, "")
}

// TestUseAgain goes back to what was in effect before, which verifies open
// connections once more.
func TestUseAgain(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	l := serve(t, source, listen(t))
	_, info := l.admitted(t, l.dial(t, s.clientConfig(s.clients.issue(withNames(dnsName)))))
	load := func() *identity.Loaded {
		loaded, err := source.Load()
		if err != nil {
			t.Fatal(err)
		}
		return loaded
	}
	with1 := load()
	s.writeCAs(newRoot(t, "another"))
	without := load()
	for i, use := range []*identity.Loaded{without, with1, with1, without, with1} {
		source.Use(use)
		if _, err := source.Caller(with(info)); (err == nil) != (use == with1) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestUseOfExpired has the warning come when the certificate takes effect.
func TestUseOfExpired(t *testing.T) {
	s := newSite(t, "")
	source := s.open()
	s.writePair(s.root.issue(func(c *x509.Certificate) { c.DNSNames, c.NotAfter = []string{serverName}, time.Now().Add(-time.Minute) }))
	loaded, err := source.Load()
	if err != nil || len(s.log) > 0 {
		t.Fatalf("Load: %v, %d lines in the log", err, len(s.log))
	}
	source.Use(loaded)
	if line := s.log.wait(t); !strings.Contains(line, "refused by its callers") {
		t.Errorf("log: %s", line)
	}
}

// TestHashesOf has a file refused: there are the hashes of those that were read,
// the refused one among them, and never that of the key.
func TestHashesOf(t *testing.T) {
	cert := func(c identity.CertificatesConfig) string { return c.CertFile }
	key := func(c identity.CertificatesConfig) string { return c.KeyFile }
	ca := func(c identity.CertificatesConfig) string { return c.ClientCAFile }
	type file = func(identity.CertificatesConfig) string
	for name, test := range map[string]struct {
		bad  file
		text []byte // nil: none
		read []file
	}{
		"certificate":    {cert, []byte("bad"), []file{cert}},
		"no certificate": {cert, nil, nil},
		"key":            {key, []byte("bad"), []file{cert}},
		"no key":         {key, nil, []file{cert}},
		"authorities":    {ca, []byte("bad"), []file{cert, ca}},
		"no authorities": {ca, nil, []file{cert}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "")
			source := s.open()
			before := source.Hashes()
			bad := test.bad(s.config)
			if s.write(bad, 0o600, test.text); test.text == nil {
				if err := os.Remove(bad); err != nil {
					t.Fatal(err)
				}
			}
			var names []string
			for _, f := range test.read {
				names = append(names, f(s.config))
			}
			want := s.sums(names...)
			loaded, err := source.Load()
			_, startErr := identity.NewCertificates(s.config)
			s.write(bad, 0o600, []byte("changed since"))
			for _, err := range []error{err, startErr, fmt.Errorf("wrapped: %w", err)} {
				if loaded != nil || err == nil {
					t.Fatalf("Load: %v, %v", loaded, err)
				}
				same(t, "refused", want, identity.HashesOf(err))
			}
			same(t, "in effect", before, source.Hashes())
		})
	}
	for _, err := range []error{nil, io.EOF} {
		if got := identity.HashesOf(err); len(got) != 0 {
			t.Errorf("HashesOf(%v) = %v", err, got)
		}
	}
}

// TestKeyBesidesCertificate has one file for both: there is no hash of it.
func TestKeyBesidesCertificate(t *testing.T) {
	s := newSite(t, "")
	own := s.root.issue(withNames(serverName))
	s.config.KeyFile = s.config.CertFile
	s.write(s.config.CertFile, 0o600, slices.Concat(pemOf("CERTIFICATE", own.Certificate...), keyPEM(t, own)))
	same(t, "both in one file", s.sums(s.config.ClientCAFile), s.open().Hashes())
}
