package sidecar_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/sidecar"
)

func sumOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// ofReloads returns the records of reloads, each as its result and the hashes of
// these files, "-" for none.
func ofReloads(all []logged, names ...string) (out []string) {
	for _, l := range all {
		if l.Kind != "reload" {
			continue
		}
		text := l.Result
		for _, name := range names {
			sum := "-"
			for path, s := range l.Files {
				if filepath.Base(path) == name {
					sum = s
				}
			}
			text += " " + sum
		}
		out = append(out, text)
	}
	return out
}

// rewrite changes a file of the sidecar in place, so that nothing but what is in
// it differs.
func rewrite(file, text string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if text += strings.Repeat("#", int(info.Size())-len(text)); int64(len(text)) != info.Size() {
		return fmt.Errorf("%s is %d bytes, not %d", file, info.Size(), len(text))
	}
	return errors.Join(os.WriteFile(file, []byte(text), 0o600), os.Chtimes(file, info.ModTime(), info.ModTime()))
}

// pipeIn makes policy.yaml a pipe. Between is called when it is being read: so
// tenants.yaml has been parsed. Then text comes out of it. The result of what is
// returned is for when it has been read.
func (n *node) pipeIn(t *testing.T, text string, between func() error) (done func() error) {
	t.Helper()
	pipe := filepath.Join(n.dir, "policy.yaml")
	if err := errors.Join(os.Remove(pipe), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(pipe, os.O_WRONLY, 0) // waits for who reads
		if err != nil {
			result <- err
			return
		}
		info, err := f.Stat()
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err == nil {
			err = os.Chtimes(pipe, info.ModTime(), info.ModTime())
		}
		result <- errors.Join(err, between(), f.Close())
	}()
	return func() error { return <-result }
}

// TestAuditOfSwappedFiles changes tenants.yaml between parsing and recording:
// the record is of what was parsed, and that is in effect.
func TestAuditOfSwappedFiles(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s"
	dir := set.auditTo(t, "")
	n := site.start(t, set)
	parsed := site.sharing("id: aa", "id: bb").directory() + strings.Repeat("#", 200)
	file := filepath.Join(n.dir, "tenants.yaml")
	policy := sumOf(admitMe())

	n.put(t, "tenants.yaml", parsed)
	done := n.pipeIn(t, admitMe(), func() error { return rewrite(file, site.sharing("id: aa", "id: cc").directory()) })
	if _, err := n.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	for tenant, want := range map[string]string{"aa": "OK", "bb": "OK", "cc": "UNKNOWN_TENANT"} {
		if got := n.try(t.Context(), tenant); got != want {
			t.Errorf("%s: %s, want %s", tenant, got, want)
		}
	}

	n.put(t, "tenants.yaml", parsed)
	done = n.pipeIn(t, admitMe(), func() error { return os.WriteFile(file, []byte("changed"), 0o600) })
	if _, err := n.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "a file changed while the files were read") {
		t.Fatal(err)
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}

	n.put(t, "tenants.yaml", parsed)
	done = n.pipeIn(t, "{", func() error { return os.WriteFile(file, []byte("changed"), 0o600) })
	if _, err := n.Reload(t.Context()); err == nil {
		t.Fatal("a bad policy.yaml is taken")
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	n.end(t)
	want := []string{
		"OK " + sumOf(parsed) + " " + policy, "REFUSED " + sumOf(parsed) + " " + policy, "REFUSED " + sumOf(parsed) + " " + sumOf("{"),
	}
	if diff := cmp.Diff(want, ofReloads(logIn(t, dir), "tenants.yaml", "policy.yaml")); diff != "" {
		t.Errorf("records of reloads (-want +got):\n%s", diff)
	}
}

// TestAuditOfStart changes a file after it was loaded and before the sidecar
// begins its log.
func TestAuditOfStart(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set, dir := site.sharing("id: aa"), shortDir(t)
	path := set.auditTo(t, "")
	set.secure(t, newPKI(t), trustDomain, "")
	file, err := set.write(dir, site.Addr(), site.CAFile(), site.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want := cfg.Hashes()
	for _, name := range []string{"tls.crt", "callers.pem"} {
		want[filepath.Join(dir, name)] = sumOf(set.files[name])
	}
	for _, name := range []string{"config.yaml", "tenants.yaml", "policy.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("changed"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := sidecar.New(cfg, sidecar.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all := logIn(t, path)
	if len(all) == 0 || all[0].Kind != "start" {
		t.Fatalf("log: %+v", all)
	}
	if diff := cmp.Diff(want, all[0].Files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestAuditOfBadCertificate has good rules come with a bad certificate: neither
// takes effect, no record says so, and trying again what is as bad adds none.
func TestAuditOfBadCertificate(t *testing.T) {
	site, p := newSite(t), newPKI(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s"
	set.secure(t, p, trustDomain, "")
	dir := set.auditTo(t, "")
	n := site.start(t, set)
	good := p.files(t)
	n.put(t, "policy.yaml", only("nobody*"))
	n.put(t, "tenants.yaml", site.sharing("id: aa", "id: nobody").directory())
	n.put(t, "tls.crt", good["tls.crt"])
	n.put(t, "callers.pem", good["callers.pem"]) // but tls.key is another's
	if _, err := n.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "tls.key") {
		t.Fatalf("a certificate with another's key: %v", err)
	}
	for range 3 {
		if err := n.ReloadAgain(t.Context()); err == nil {
			t.Fatal("a certificate with another's key is taken")
		}
	}
	if got := n.try(t.Context(), "aa"); got != "OK" {
		t.Errorf("under the rules of before: %s", got)
	}
	n.put(t, "tls.key", good["tls.key"])
	n.put(t, "callers.pem", "bad")
	for range 3 {
		if err := n.ReloadAgain(t.Context()); err == nil || !strings.Contains(err.Error(), "callers.pem") {
			t.Fatalf("a bad client CA file: %v", err)
		}
	}
	n.put(t, "callers.pem", good["callers.pem"])
	if err := n.ReloadAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.try(t.Context(), "aa"); got != "PERMISSION_DENIED" {
		t.Errorf("under the new rules: %s", got)
	}
	n.end(t)
	crt := sumOf(good["tls.crt"])
	want := []string{"REFUSED " + crt + " -", "REFUSED " + crt + " " + sumOf("bad"), "OK " + crt + " " + sumOf(good["callers.pem"])}
	all := logIn(t, dir)
	if diff := cmp.Diff(want, ofReloads(all, "tls.crt", "callers.pem")); diff != "" {
		t.Errorf("records of reloads (-want +got):\n%s", diff)
	}
	for _, l := range all {
		if _, ok := l.Files[filepath.Join(n.dir, "tls.key")]; ok {
			t.Errorf("hash of a private key: %s", l.raw)
		}
	}
}

// A slow is where a log goes that can be held up.
type slow struct {
	sync.Mutex
	to io.Writer
}

func (s *slow) Write(p []byte) (int, error) {
	s.Lock()
	defer s.Unlock()
	return s.to.Write(p)
}

// TestAuditOfReloadTooLate holds the log up until reloads are refused whose
// record is written later: that they were refused is recorded after each.
func TestAuditOfReloadTooLate(t *testing.T) {
	site := newSite(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: aa")
	set.config = "reload_interval: 0s"
	log := set.auditToStream("write_timeout: 100ms")
	to := &slow{to: log}
	set.AuditTo = to
	n := site.start(t, set)
	results := func() string { return strings.Join(ofReloads(logFrom(t, log.reader(), "-")), " ") }
	want := ""
	for range 3 {
		to.Lock()
		for range 3 { // of which the first is being written when it is given up
			if err := n.ReloadAgain(t.Context()); err == nil || !strings.Contains(err.Error(), "audit") {
				t.Errorf("while nothing is written: %v", err)
			}
		}
		to.Unlock()
		want = strings.TrimSpace(want + " OK REFUSED")
		await(t, want, func() bool { return results() == want })
	}
	if err := n.ReloadAgain(t.Context()); err != nil {
		t.Error(err)
	}
	if got := results(); got != want+" OK" {
		t.Errorf("records are %s", got)
	}
}
