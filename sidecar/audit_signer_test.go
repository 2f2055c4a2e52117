package sidecar_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// signerKey asks a vault for an EC key, and returns it and its name.
func (s *site) signerKey(t *testing.T, vault, key string) (string, *ecdsa.PublicKey) {
	t.Helper()
	token, err := os.ReadFile(s.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL(vault)+"/keys/"+key+"?api-version=7.4", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	c := s.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct{ Key struct{ KID, X, Y string } }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d: %v", resp.StatusCode, err)
	}
	point := []byte{4}
	for _, text := range []string{got.Key.X, got.Key.Y} {
		point = append(point, must(base64.RawURLEncoding.DecodeString(text))...)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	return got.Key.KID, public
}

// certificateIn waits until a log has a certificate, and returns it.
func certificateIn(t *testing.T, dir string) (c logged) {
	t.Helper()
	await(t, "a certificate", func() bool {
		for _, l := range logIn(t, dir) {
			if l.Kind == record.Certified {
				c = l
			}
		}
		return c.Event != nil
	})
	return c
}

// The key of each log is certified by Key Vault: at once, or, if the vault is
// down, as soon as it is not; meanwhile callers are served.
func TestAuditIsCertified(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("down=%v", down), func(t *testing.T) {
			t.Parallel()
			site := newSite(t)
			site.createOctKEK(t, "shared")
			if _, err := site.CreateKey("signer", "audit", devvault.KeySpec{Type: "EC"}); err != nil {
				t.Fatal(err)
			}
			set := site.sharing("id: plain")
			dir := set.auditTo(t, fmt.Sprintf("signer: {url: 'https://signer.vault.localhost/keys/audit', credential: dev, entra_tenant: %s}", site.EntraTenant()))
			if down {
				site.inject(t, devvault.Fault{Kind: devvault.FaultReset, Vault: "signer"})
			}
			n := site.start(t, set)
			if down {
				await(t, "the vault does not answer", func() bool { return strings.Contains(n.log.String(), "audit log's key not certified") })
				if got := n.try(t.Context(), "plain"); got != "OK" {
					t.Errorf("without the signer's vault: %s", got)
				}
				for _, l := range logIn(t, dir) {
					if l.Kind == record.Certified {
						t.Errorf("certified by nobody: %s", l.raw)
					}
				}
				site.ClearFaults()
			}
			c := certificateIn(t, dir)
			n.end(t)
			name, public := site.signerKey(t, "signer", "audit")
			name = "https://signer.vault.localhost/keys/audit/" + path.Base(name) // as it is called where it is used
			if got, _ := record.SignerOf(c.Note); got != name {
				t.Errorf("signed by %q, want %q", got, name)
			}
			got, err := record.OpenCertificate(c.Note, name, public)
			if err != nil || got.Key != logIn(t, dir)[0].Key {
				t.Errorf("certificate of %q, %v", got.Key, err)
			}
			trust := verify.Config{Trust: verify.Trust{Signers: []*ecdsa.PublicKey{public}}}
			if logs := verified(t, nil, trust, dir); len(logs) != 1 || logs[0].Certified != name {
				t.Errorf("audit verify says %+v, want it certified by %s", logs, name)
			}
			unverified(t, site, dir)
		})
	}
}

// unverified wants that another key vouches for nothing.
func unverified(t *testing.T, s *site, dir string) {
	t.Helper()
	if _, err := s.CreateKey("signer", "another", devvault.KeySpec{Type: "EC"}); err != nil {
		t.Fatal(err)
	}
	_, public := s.signerKey(t, "signer", "another")
	report, err := verify.Verify([]string{dir}, nil, verify.Config{Trust: verify.Trust{Signers: []*ecdsa.PublicKey{public}}})
	if err != nil || report.Verified() {
		t.Errorf("with another signer: %+v, %v", report, err)
	}
}
