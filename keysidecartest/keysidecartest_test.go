package keysidecartest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/keysidecartest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var pairs = map[string]string{"table": "invoices", "id": "4711"}

func seal(t *testing.T, s *keysidecartest.Sidecar, tenant string) client.Sealed {
	t.Helper()
	sealed, err := s.Client().Seal(t.Context(), tenant, []byte("data of "+tenant), pairs)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func opens(t *testing.T, s *keysidecartest.Sidecar, tenant string, sealed client.Sealed) {
	t.Helper()
	opened, err := s.Client().Unseal(t.Context(), tenant, sealed.Bytes, pairs)
	if err != nil || string(opened.Plaintext) != "data of "+tenant {
		t.Errorf("Unseal for %s returned %q, %v", tenant, opened.Plaintext, err)
	}
}

func TestStart(t *testing.T) {
	s := keysidecartest.Start(t, keysidecartest.Config{})
	for _, tenant := range []string{"acme", "globex"} {
		sealed := seal(t, s, tenant)
		opens(t, s, tenant, sealed)
		if sealed.KeyInfo.KEKRef != tenant {
			t.Errorf("%s is sealed under the KEK %s", tenant, sealed.KeyInfo.KEKRef)
		}
		if _, err := s.Client().Unseal(t.Context(), "acme", sealed.Bytes, nil); client.ReasonOf(err) != "AUTHENTICATION_FAILED" {
			t.Errorf("Unseal with another context returned %v", err)
		}
	}
	if _, err := s.Client().Seal(t.Context(), "initech", nil, nil); client.ReasonOf(err) != "UNKNOWN_TENANT" {
		t.Errorf("Seal for an unknown tenant returned %v", err)
	}
	other, err := client.Dial(s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if ok, err := other.Serving(t.Context(), ""); !ok || err != nil {
		t.Errorf("Serving on Socket returned %v, %v", ok, err)
	}
}

func TestPolicy(t *testing.T) {
	s := keysidecartest.Start(t, keysidecartest.Config{Policy: fmt.Sprintf(`apiVersion: keysidecar/v1
callers: [{name: code-under-test, uid: %d}]
rules: [{callers: [code-under-test], tenants: [acme], verbs: [seal]}]
`, os.Geteuid())})
	sealed := seal(t, s, "acme")
	if _, err := s.Client().Unseal(t.Context(), "acme", sealed.Bytes, pairs); client.ReasonOf(err) != "PERMISSION_DENIED" {
		t.Errorf("Unseal, which no rule grants, returned %v", err)
	}
}

func TestConfig(t *testing.T) {
	starts := 0
	s := keysidecartest.Start(t, keysidecartest.Config{
		Tenants: []string{"initech"}, Alg: kek.A256KW,
		Config: func(c *config.Config) { starts++; c.Limits.UnaryBytes = config.KiB },
	})
	sealed := seal(t, s, "initech")
	parsed, err := envelope.Parse(sealed.Bytes)
	if err != nil || parsed.Blocks()[0].Alg != envelope.AlgA256KW {
		t.Errorf("sealed under %v, %v", parsed, err)
	}
	if _, err := s.Client().Seal(t.Context(), "acme", nil, nil); client.ReasonOf(err) != "UNKNOWN_TENANT" {
		t.Errorf("Seal for acme returned %v", err)
	}
	s.Restart(t)
	if _, err := s.Client().Seal(t.Context(), "initech", make([]byte, 1025), nil); client.ReasonOf(err) != "TOO_LARGE" {
		t.Errorf("Seal over the limit returned %v", err)
	}
	if starts != 2 {
		t.Errorf("Config was called %d times, not at each of 2 starts", starts)
	}
}

func TestRestart(t *testing.T) {
	s := keysidecartest.Start(t, keysidecartest.Config{Alg: kek.A256KW})
	sealed := seal(t, s, "acme")
	for range 2 {
		s.Vault().ResetCounters()
		s.Restart(t)
		for range 3 {
			opens(t, s, "acme", sealed)
		}
		if n := s.Vault().Counters().Kinds[devvault.OpUnwrap]; n != 1 {
			t.Errorf("after a restart the vault was asked to unwrap %d times, not once", n)
		}
	}
}

func TestVault(t *testing.T) {
	s := keysidecartest.Start(t, keysidecartest.Config{})
	sealed := seal(t, s, "acme")
	version, err := s.Vault().Rotate("acme", keysidecartest.KEK)
	if err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	if got := seal(t, s, "acme").KeyInfo.KEKVersion; got != version {
		t.Errorf("sealed under version %s, not the newest, %s", got, version)
	}
	if _, err := s.Vault().Inject(devvault.Fault{Kind: devvault.FaultForbiddenRBAC, Vault: "acme"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client().Unseal(t.Context(), "acme", sealed.Bytes, pairs); client.ReasonOf(err) != "KEK_FORBIDDEN" {
		t.Errorf("Unseal with a vault that refuses returned %v", err)
	}
}

// TestLongTemp has a directory for temporary files that no socket fits into.
func TestLongTemp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	s := keysidecartest.Start(t, keysidecartest.Config{Alg: kek.A256KW})
	opens(t, s, "acme", seal(t, s, "acme"))
}

// failing is a test that records how it failed instead of failing.
type failing struct {
	testing.TB
	fatal string
}

func (f *failing) Fatal(args ...any) {
	f.fatal = fmt.Sprintln(args...)
	runtime.Goexit()
}

func (f *failing) Helper() {}

// TestFails starts what cannot be started: the test has to fail, and nothing
// may be left.
func TestFails(t *testing.T) {
	for want, cfg := range map[string]keysidecartest.Config{
		"vault's name":  {Tenants: []string{"Acme"}},
		"socket":        {Alg: kek.A256KW, Config: func(c *config.Config) { c.Listen.Socket = "/none/s" }},
		"without a cap": {Alg: kek.A256KW, Config: func(c *config.Config) { c.KeyVault.DevVault.CAFile = "/none/without a cap" }},
	} {
		f := &failing{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			keysidecartest.Start(f, cfg)
		}()
		<-done
		if !strings.HasPrefix(f.fatal, "starting a sidecar: ") || !strings.Contains(f.fatal, want) {
			t.Errorf("Start failed with %q, want %q", f.fatal, want)
		}
	}
}

// TestEnd looks at what is left when the test has ended: nothing. Goroutines are
// TestMain's business.
func TestEnd(t *testing.T) {
	var socket string
	t.Run("test", func(t *testing.T) {
		socket = keysidecartest.Start(t, keysidecartest.Config{Alg: kek.A256KW}).Socket
		if _, err := os.Stat(socket); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Dir(socket)); !os.IsNotExist(err) {
		t.Errorf("the sidecar's directory after its test: %v", err)
	}
}
