// Package keysidecartest runs a sidecar within a test, with an embedded
// Key Vault that behaves like Azure's: the code under test seals and unseals
// as in production, and the test can rotate or disable keys, make the vault
// fail, and count what it was asked.
package keysidecartest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/internal/devsetup"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/sidecar"
)

// KEK is the name of each tenant's key. The tenant "acme" has the vault "acme".
const KEK = devsetup.KEK

// longestTemp is the longest directory for temporary files below which a
// socket's path, 100 bytes at most, has room.
const longestTemp = 60

// Config says what to start.
type Config struct {
	// Tenants are the tenants that there are, each with a vault of its own
	// name: 3 to 24 of [a-z0-9-], a letter first. Empty is "acme" and "globex".
	Tenants []string
	// Alg is what the KEKs are for. Zero is kek.RSAOAEP256, with keys of 2,048
	// bits; kek.A256KW keys are made faster.
	Alg kek.Alg
	// Policy is the text of policy.yaml. Empty: this user may do everything.
	Policy string
	// Config, if set, changes the sidecar's configuration at every start, after
	// it was loaded and checked: a limit, the poll interval.
	Config func(*config.Config)
}

// Sidecar is a running sidecar and its Key Vault. Its methods are safe for
// concurrent use, but for Restart.
type Sidecar struct {
	// Socket is the path of the Unix socket.
	Socket string

	path   string // of config.yaml
	change func(*config.Config)
	log    *slog.Logger
	vault  *devvault.Server
	client *client.Client
	stop   func() error
}

// Start starts a sidecar that serves until the test and its subtests end. The
// test fails if it cannot start. What the sidecar warns of goes to the test's
// output.
func Start(t testing.TB, cfg Config) *Sidecar {
	t.Helper()
	if len(cfg.Tenants) == 0 {
		cfg.Tenants = []string{"acme", "globex"}
	}
	dir := tempDir(t)
	s := &Sidecar{
		Socket: filepath.Join(dir, "keysidecar.sock"),
		change: cfg.Config,
		log:    slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		stop:   func() error { return nil },
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error("stopping the sidecar:", err)
		}
	})
	if err := s.open(dir, cfg); err != nil {
		t.Fatal("starting a sidecar:", err)
	}
	return s
}

// tempDir returns a new directory with a short path, gone when the test ends.
func tempDir(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if len(base) > longestTemp {
		base = "/tmp"
	}
	// t.TempDir has the test's name in its path: too long for a socket.
	dir, err := os.MkdirTemp(base, "ks")
	if err != nil {
		t.Fatal("making a directory for the sidecar:", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error("removing the sidecar's directory:", err)
		}
	})
	return dir
}

func (s *Sidecar) open(dir string, cfg Config) (err error) {
	if s.vault, err = devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault"), Logger: s.log}); err != nil {
		return err
	}
	s.path, err = devsetup.Write(devsetup.Config{
		Dir: dir, Vault: s.vault, Tenants: cfg.Tenants, Alg: cfg.Alg, Policy: cfg.Policy,
	})
	if err != nil {
		return err
	}
	if s.client, err = client.Dial(s.Socket); err != nil {
		return err
	}
	return s.serve()
}

// serve starts the sidecar; it listens when serve returns.
func (s *Sidecar) serve() error {
	cfg, err := config.Load(s.path)
	if err != nil {
		return err
	}
	if s.change != nil {
		s.change(cfg)
	}
	sc, err := sidecar.New(cfg, sidecar.Options{Logger: s.log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- sc.Run(ctx) }()
	s.stop = func() error {
		s.stop = func() error { return nil }
		cancel()
		return errors.Join(<-ran, sc.Close())
	}
	return nil
}

func (s *Sidecar) close() error {
	var errs []error
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	errs = append(errs, s.stop())
	if s.vault != nil {
		errs = append(errs, s.vault.Close())
	}
	return errors.Join(errs...)
}

// Client returns a client of the sidecar. It lasts over restarts, and is
// closed when the test ends.
func (s *Sidecar) Client() *client.Client { return s.client }

// Vault returns the Key Vault: it rotates and disables keys, fails as it is
// told to, and counts what it is asked. It goes on over restarts.
func (s *Sidecar) Vault() *devvault.Server { return s.vault }

// Restart drains the sidecar and starts another: one that has no key in memory.
// The test fails if that fails.
func (s *Sidecar) Restart(t testing.TB) {
	t.Helper()
	if err := errors.Join(s.stop(), s.serve()); err != nil {
		t.Fatal("restarting the sidecar:", err)
	}
}
