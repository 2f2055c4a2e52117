package state_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

const suffix = "vault.localhost"

func open(t *testing.T, path string) *state.Dir {
	t.Helper()
	d, err := state.Open(path, suffix, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func mustCreate(t *testing.T, d *state.Dir, name string) *state.Version {
	t.Helper()
	if err := d.Keys.CreateVault("acme"); err != nil {
		t.Fatal(err)
	}
	_, v, err := d.Keys.Create("acme", name, state.Spec{Type: state.TypeOctHSM})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// copyDir is what is on disk at this moment: what a kill -9 would leave.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev", "vault")
	d := open(t, path)
	v := mustCreate(t, d, "Kek")
	if _, _, err := d.Keys.Update("acme", "kek", v.ID, state.Change{
		Enabled: new(false), NotBefore: new(int64(5)), Expires: new(int64(9)),
		Ops: []string{state.KeyOpUnwrap}, Tags: map[string]string{"a": "b"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Keys.Create("acme", "kek", state.Spec{Type: state.TypeRSA}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Keys.SetPolicy("acme", "kek", json.RawMessage(`{"x":1}`)); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, d, "gone")
	if _, err := d.Keys.Delete("acme", "gone"); err != nil {
		t.Fatal(err)
	}
	token, ca := read(t, d.TokenFile()), read(t, d.CAFile())
	want, err := d.Keys.Live("acme", "kek")
	if err != nil {
		t.Fatal(err)
	}

	again := open(t, copyDir(t, path)) // d is not closed: as after kill -9
	got, err := again.Keys.Live("acme", "KEK")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(state.Version{}), cmp.FilterPath(func(p cmp.Path) bool {
		return p.Last().String() == ".material"
	}, cmp.Ignore())); diff != "" {
		t.Errorf("key after reopening (-want +got):\n%s", diff)
	}
	for i := range want.Versions {
		wn, _ := want.Versions[i].Public()
		gn, _ := got.Versions[i].Public()
		if !slices.Equal(wn, gn) {
			t.Errorf("version %d has another public key", i)
		}
	}
	if _, err := again.Keys.Dead("acme", "gone"); err != nil {
		t.Errorf("deleted key: %v", err)
	}
	if again.EntraTenant != d.EntraTenant || d.EntraTenant == "" {
		t.Errorf("tenant %q, then %q", d.EntraTenant, again.EntraTenant)
	}
	if read(t, again.TokenFile()) != token || read(t, again.CAFile()) != ca {
		t.Error("token or CA changed")
	}
}

// TestCrashLeftovers has what a process killed between writing a temporary
// file and renaming it leaves, in every directory.
func TestCrashLeftovers(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	v := mustCreate(t, d, "kek")
	crashed := copyDir(t, path)
	vault := filepath.Join(crashed, "vaults", "acme")
	whole := read(t, filepath.Join(vault, "kek.json"))
	write(t, filepath.Join(crashed, ".tmp-1"), "-----BEGIN CERT")
	write(t, filepath.Join(vault, ".tmp-2"), whole[:len(whole)/2])
	write(t, filepath.Join(vault, ".tmp-3"), "")

	again := open(t, crashed)
	k, err := again.Keys.Live("acme", "kek")
	if err != nil || len(k.Versions) != 1 || k.Newest().ID != v.ID {
		t.Fatalf("key after a crash: %+v, %v", k, err)
	}
	if err := filepath.WalkDir(crashed, func(p string, e fs.DirEntry, err error) error {
		if strings.HasPrefix(e.Name(), ".tmp-") {
			t.Errorf("%s was not removed", p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestCrashInFirstOpen: nothing but the lock and a temporary file was written.
func TestCrashInFirstOpen(t *testing.T) {
	path := t.TempDir()
	write(t, filepath.Join(path, "lock"), "")
	write(t, filepath.Join(path, ".tmp-1"), `{"for`)
	open(t, path)
}

// TestCrashAtEachFile: a crash after each of the files that the first Open
// writes leaves a directory that opens.
func TestCrashAtEachFile(t *testing.T) {
	full := t.TempDir()
	open(t, full)
	order := []string{"lock", "devvault.json", "ca.pem", "ca.crt", "token"}
	for n := range order {
		path := t.TempDir()
		for _, name := range order[:n] {
			write(t, filepath.Join(path, name), read(t, filepath.Join(full, name)))
		}
		open(t, path)
	}
}

func TestFailedWriteLeavesNothing(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	v := mustCreate(t, d, "kek")
	file := filepath.Join(path, "vaults", "acme", "kek.json")
	before := read(t, file)
	if err := os.Rename(filepath.Dir(file), filepath.Dir(file)+"x"); err != nil { // writes fail from here
		t.Fatal(err)
	}
	if _, _, err := d.Keys.Rotate("acme", "kek"); err == nil {
		t.Fatal("rotated without a directory")
	}
	if k, err := d.Keys.Live("acme", "kek"); err != nil || k.Newest().ID != v.ID {
		t.Errorf("a version that is not on disk is visible: %v", err)
	}
	if err := os.Rename(filepath.Dir(file)+"x", filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	if read(t, file) != before {
		t.Error("key file changed")
	}
}

func TestModes(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	mustCreate(t, d, "kek")
	if err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", p, info.Mode().Perm(), want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestOpenTwice(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	if _, err := state.Open(path, suffix, time.Now); !errors.Is(err, state.ErrInUse) {
		t.Errorf("second Open: %v, want ErrInUse", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestOpenRefuses(t *testing.T) {
	full := t.TempDir()
	d := open(t, full)
	mustCreate(t, d, "kek")
	key := filepath.Join("vaults", "acme", "kek.json")
	whole := read(t, filepath.Join(full, key))
	for _, tc := range []struct{ name, file, content, want string }{
		{"truncated key", key, whole[:len(whole)/2], "parsing key file"},
		{"empty key", key, "", "parsing key file"},
		{"key without versions", key, `{"format":1,"name":"kek"}`, "no version"},
		{"format from the future", key, strings.Replace(whole, `"format":1`, `"format":2`, 1), "format is 2"},
		{"key under another name", filepath.Join("vaults", "acme", "other.json"), whole, "holds key"},
		{"short material", key, `{"format":1,"name":"kek","versions":[{"id":"` + strings.Repeat("0", 32) +
			`","type":"oct-HSM","material":"AAAA"}]}`, "3 bytes"},
		{"bad version", key, strings.Replace(whole, `"id":"`, `"id":"X`, 1), "not 32 hex digits"},
		{"no vault", filepath.Join("vaults", "stray.txt"), "", "is not a vault"},
		{"bad authority", "ca.pem", "garbage", "reading certificate authority"},
		{"short token", "token", "abc", "shorter than 32"},
		{"bad identity", "devvault.json", "{", "parsing"},
		{"identity from the future", "devvault.json", `{"format":9}`, "format 9"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := copyDir(t, full)
			write(t, filepath.Join(path, tc.file), tc.content)
			d, err := state.Open(path, suffix, time.Now)
			if err == nil || !strings.Contains(err.Error(), tc.want) || d != nil {
				t.Fatalf("Open: %v, %v; want an error with %q", d, err, tc.want)
			}
			if _, err := state.Open(path, suffix, time.Now); errors.Is(err, state.ErrInUse) {
				t.Error("a failed Open keeps the lock")
			}
		})
	}
	t.Run("foreign directory", func(t *testing.T) {
		path := t.TempDir()
		write(t, filepath.Join(path, "thesis.txt"), "precious")
		if _, err := state.Open(path, suffix, time.Now); err == nil || !strings.Contains(err.Error(), "not a devvault") {
			t.Errorf("Open: %v", err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() == 0o700 {
			t.Errorf("mode of a foreign directory was changed: %v", err)
		}
	})
}

func TestAuthorityRenewal(t *testing.T) {
	path := t.TempDir()
	open(t, path)
	now := time.Now()
	a, err := state.OpenAuthority(path, suffix, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(334 * 24 * time.Hour)
	if c, err := a.Certificate(nil); err != nil || c != first {
		t.Errorf("31 days left: renewed, %v", err)
	}
	now = now.Add(2 * 24 * time.Hour)
	second, err := a.Certificate(nil)
	if err != nil || second == first {
		t.Fatalf("29 days left: not renewed, %v", err)
	}
	if left := second.Leaf.NotAfter.Sub(now); left < 364*24*time.Hour {
		t.Errorf("renewed for %v", left)
	}
	ca := read(t, filepath.Join(path, "ca.crt"))
	now = now.Add(10 * 365 * 24 * time.Hour)
	if _, err := state.OpenAuthority(path, suffix, func() time.Time { return now }); err != nil {
		t.Fatal(err)
	}
	if read(t, filepath.Join(path, "ca.crt")) == ca {
		t.Error("expired authority was kept")
	}
}

func TestAuthorityIsConstrained(t *testing.T) {
	path := t.TempDir()
	a, err := state.OpenAuthority(path, suffix, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{suffix, "acme." + suffix, "localhost", "127.0.0.1", "::1"} {
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: a.Pool()}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, host := range []string{"a.b." + suffix, "example.com"} {
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: a.Pool()}); err == nil {
			t.Errorf("%s is accepted", host)
		}
	}
	old := read(t, filepath.Join(path, "ca.crt"))
	other, err := state.OpenAuthority(path, "kv.test", time.Now) // a new authority, for the new suffix only
	if err != nil {
		t.Fatal(err)
	}
	if read(t, filepath.Join(path, "ca.crt")) == old {
		t.Error("the authority of another suffix was kept")
	}
	if leaf, err = other.Certificate(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: "acme.kv.test", Roots: other.Pool()}); err != nil {
		t.Error(err)
	}
}

// TestCreationOrder: versions made within one second, and with the clock going
// back, stay in order, also on disk.
func TestCreationOrder(t *testing.T) {
	path := t.TempDir()
	now := time.Unix(1_900_000_000, 0)
	d, err := state.Open(path, suffix, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	var want []string
	for i := range 6 {
		if i == 4 {
			now = now.Add(-time.Hour)
		}
		want = append(want, mustCreate(t, d, "kek").ID)
	}
	for _, d := range []*state.Dir{d, open(t, copyDir(t, path))} {
		k, err := d.Keys.Live("acme", "kek")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range k.Versions {
			got = append(got, v.ID)
			if v.Created != 1_900_000_000 {
				t.Errorf("created %d", v.Created)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("versions (-want +got):\n%s", diff)
		}
	}
}

func TestTokens(t *testing.T) {
	now := time.Now()
	d, err := state.Open(t.TempDir(), suffix, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	token := read(t, d.TokenFile())
	for header, want := range map[string]bool{
		"Bearer " + token: true, "bearer " + token: true, token: false, "": false, "Bearer ": false,
		"Bearer " + token[1:]: false, "Bearer " + token + " ": false, "Basic " + token: false,
	} {
		if got := d.Tokens.Valid(header); got != want {
			t.Errorf("%q: valid is %v", header, got)
		}
	}
	issued := "Bearer " + d.Tokens.Issue(time.Minute)
	if !d.Tokens.Valid(issued) || d.Tokens.Admin(issued) {
		t.Error("an issued token is good for vaults and not for control")
	}
	now = now.Add(time.Minute)
	if d.Tokens.Valid(issued) {
		t.Error("valid after its life")
	}
	issued = "Bearer " + d.Tokens.Issue(time.Minute)
	for range 1024 {
		d.Tokens.Issue(time.Hour)
	}
	if d.Tokens.Valid(issued) {
		t.Error("more tokens are kept than promised")
	}
	d.Tokens.Revoke()
	if d.Tokens.Valid("Bearer "+d.Tokens.Issue(time.Hour)) != true || !d.Tokens.Valid("Bearer "+token) {
		t.Error("Revoke ends too much")
	}
}

// FuzzDecodeKey: what parses is saved and parses to the same.
func FuzzDecodeKey(f *testing.F) {
	path := f.TempDir()
	d, err := state.Open(path, suffix, time.Now)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = d.Close() })
	if err := d.Keys.CreateVault("acme"); err != nil {
		f.Fatal(err)
	}
	for _, typ := range []string{state.TypeOctHSM, state.TypeRSA, state.TypeEC, state.TypeECHSM} {
		if _, _, err := d.Keys.Create("acme", "kek", state.Spec{Type: typ}); err != nil {
			f.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(path, "vaults", "acme", "kek.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	out := filepath.Join(f.TempDir(), "kek.json")
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := state.DecodeKey(raw)
		if err != nil {
			if k != nil {
				t.Fatal("a key came with an error")
			}
			return
		}
		if err := state.SaveKey(out, k); err != nil {
			t.Fatal(err)
		}
		first := read(t, out)
		again, err := state.DecodeKey([]byte(first))
		if err != nil {
			t.Fatal(err)
		}
		if err := state.SaveKey(out, again); err != nil {
			t.Fatal(err)
		}
		if read(t, out) != first {
			t.Error("saving again gives other bytes")
		}
	})
}

func read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
