package devvault_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/kek/devvault"
)

func TestOpenRefuses(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close() })
	dir := t.TempDir()
	for name, cfg := range map[string]devvault.Config{
		"no directory":      {},
		"upper-case suffix": {Dir: dir, Suffix: "Vault.localhost"},
		"empty label":       {Dir: dir, Suffix: "vault..localhost"},
		"suffix with port":  {Dir: dir, Suffix: "vault.localhost:443"},
		"address in use":    {Dir: dir, Listen: busy.Addr().String()},
	} {
		if s, err := devvault.Open(cfg); err == nil {
			t.Errorf("%s: opened", name)
			_ = s.Close()
		}
	}
	s := start(t, devvault.Config{Dir: dir}) // none of them keeps the directory
	if _, err := devvault.Open(devvault.Config{Dir: dir}); !errors.Is(err, devvault.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

// TestCloseCutsOffAnOpenRequest: a client that never finishes does not keep
// Close from returning.
func TestCloseCutsOffAnOpenRequest(t *testing.T) {
	s := start(t, devvault.Config{})
	c := httpClient(t, s)
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	body, feed := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL(vault)+"/keys/kek/wrapkey"+apiVersion, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token(t, s))
	done := make(chan error, 1)
	go func() {
		resp, err := c.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		done <- err
	}()
	if _, err := feed.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return s.Counters().Kinds[devvault.OpWrap] > 0 })
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("Close took %v", took)
	}
	_ = feed.Close()
	<-done
}

// TestGoMethodsRefuseLikeREST: they return what the API would answer.
func TestGoMethodsRefuseLikeREST(t *testing.T) {
	s := start(t, devvault.Config{})
	create(t, s, "kek", oct())
	now := time.Now()
	_, badType := s.CreateKey(vault, "x", devvault.KeySpec{Type: "oct"})
	_, badVault := s.CreateKey("X", "kek", oct())
	_, badName := s.CreateKey(vault, "a_b", oct())
	_, badTimes := s.CreateKey(vault, "x", devvault.KeySpec{Type: "oct-HSM", NotBefore: now, Expires: now})
	_, noKey := s.Rotate(vault, "nokey")
	for name, tc := range map[string]struct {
		err    error
		status int
		code   string
	}{
		"type": {badType, 400, "BadParameter"}, "vault": {badVault, 400, "BadParameter"},
		"name": {badName, 400, "BadParameter"}, "times": {badTimes, 400, "BadParameter"},
		"key": {noKey, 404, "KeyNotFound"}, "version": {s.SetEnabled(vault, "kek", "0", true), 404, "KeyNotFound"},
		"recover": {s.Recover(vault, "kek"), 404, "KeyNotFound"}, "purge": {s.Purge(vault, "kek"), 404, "KeyNotFound"},
		"ops":      {s.SetAttributes(vault, "kek", "", devvault.Attributes{Ops: []string{"sign"}}), 400, "BadParameter"},
		"no vault": {s.Delete("globex", "kek"), 421, "VaultNotFound"},
	} {
		var e *devvault.Error
		if !errors.As(tc.err, &e) || e.Status != tc.status || e.Code != tc.code {
			t.Errorf("%s: %v", name, tc.err)
		}
	}
	zero := time.Time{}
	if err := s.SetAttributes(vault, "kek", "", devvault.Attributes{NotBefore: &now, Expires: new(now.Add(time.Hour))}); err != nil {
		t.Error(err)
	}
	c := azure(t, s)
	k, err := c.GetKey(t.Context(), "kek", "", nil)
	if err != nil || k.Attributes.NotBefore.Unix() != now.Unix() || k.Attributes.Expires.Unix() != now.Unix()+3600 {
		t.Fatalf("bounds: %+v, %v", k.Attributes, err)
	}
	if err := s.SetAttributes(vault, "kek", "", devvault.Attributes{NotBefore: &zero, Expires: &zero}); err != nil {
		t.Error(err)
	}
	k, err = c.GetKey(t.Context(), "kek", "", nil)
	if err != nil || k.Attributes.NotBefore != nil || k.Attributes.Expires != nil {
		t.Errorf("bounds were not removed: %+v, %v", k.Attributes, err)
	}
	if !s.HasKey(vault, "KEK") || s.HasKey(vault, "nokey") || s.HasKey("globex", "kek") {
		t.Error("HasKey is wrong")
	}
	if err := s.Delete(vault, "kek"); err != nil {
		t.Error(err)
	}
	if s.HasKey(vault, "kek") {
		t.Error("HasKey finds a deleted key")
	}
	if err := s.Purge(vault, "kek"); err != nil {
		t.Error(err)
	}
}

func TestURLsAndFiles(t *testing.T) {
	s := start(t, devvault.Config{Suffix: "kv.internal.test"})
	_, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if want := "https://acme.kv.internal.test:" + port; s.URL("Acme") != want {
		t.Errorf("URL %s, want %s", s.URL("Acme"), want)
	}
	create(t, s, "kek", oct())
	if _, err := azure(t, s).GetKey(t.Context(), "kek", "", nil); err != nil {
		t.Errorf("another suffix: %v", err)
	}
	if tok := token(t, s); len(tok) != 43 || strings.TrimSpace(tok) != tok {
		t.Errorf("token %q", tok)
	}
	for _, f := range []string{s.CAFile(), s.TokenFile()} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}
