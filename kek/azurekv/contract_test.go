package azurekv_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/kek/kektest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is Vaults in front of an embedded vault, and a key in it.
type harness struct {
	*azurekv.Vaults
	server  *devvault.Server
	key     kek.Key
	version kek.Version // its first
}

const vaultName = "tenants"

func openServer(t testing.TB) *devvault.Server {
	t.Helper()
	s, err := devvault.Open(devvault.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open makes Vaults with cfg, and a key; ops limits its key_ops.
func open(t testing.TB, s *devvault.Server, cfg azurekv.Config, alg kek.Alg, ops ...string) *harness {
	t.Helper()
	spec := devvault.KeySpec{Type: "RSA", Ops: ops}
	if alg == kek.A256KW {
		spec.Type = "oct-HSM"
	}
	return openWith(t, s, cfg, alg, spec)
}

func openWith(t testing.TB, s *devvault.Server, cfg azurekv.Config, alg kek.Alg, spec devvault.KeySpec) *harness {
	t.Helper()
	cfg.DevVault = &azurekv.DevVault{Suffix: "vault.localhost", Address: s.Addr(), CAFile: s.CAFile(), TokenFile: s.TokenFile()}
	v := newVaults(t, cfg)
	name := "kek-" + strings.ToLower(rand.Text()[:8])
	version, err := s.CreateKey(vaultName, name, spec)
	if err != nil {
		t.Fatal(err)
	}
	return &harness{
		Vaults:  v,
		server:  s,
		version: parse(t, version),
		key:     kek.Key{Ref: "main", Vault: s.URL(vaultName), Name: name, Alg: alg, EntraTenant: s.EntraTenant()},
	}
}

func newVaults(t testing.TB, cfg azurekv.Config) *azurekv.Vaults {
	t.Helper()
	v, err := azurekv.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func parse(t testing.TB, version string) kek.Version {
	t.Helper()
	v, err := kek.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (h *harness) owner() kektest.Owner {
	set := func(t testing.TB, v kek.Version, enabled bool) {
		if err := h.server.SetEnabled(vaultName, h.key.Name, v.String(), enabled); err != nil {
			t.Fatal(err)
		}
	}
	return kektest.Owner{
		Rotate:  h.rotate,
		Disable: func(t testing.TB, v kek.Version) { set(t, v, false) },
		Enable:  func(t testing.TB, v kek.Version) { set(t, v, true) },
	}
}

func (h *harness) rotate(t testing.TB) kek.Version {
	t.Helper()
	v, err := h.server.Rotate(vaultName, h.key.Name)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, v)
}

// public gets the RSA public key of a version, as anybody with keys/read can.
func (h *harness) public(t testing.TB, v kek.Version) *rsa.PublicKey {
	t.Helper()
	var answer struct {
		Key struct{ N, E base64url }
	}
	h.get(t, v, &answer)
	return &rsa.PublicKey{N: new(big.Int).SetBytes(answer.Key.N), E: int(new(big.Int).SetBytes(answer.Key.E).Int64())}
}

func TestContract(t *testing.T) {
	s := openServer(t)
	t.Run("RSA-OAEP-256", func(t *testing.T) {
		kektest.Run(t, func(t *testing.T) (kek.Wrapper, kek.Key, kektest.Owner) {
			h := open(t, s, azurekv.Config{}, kek.RSAOAEP256)
			o := h.owner()
			o.Plant = func(t testing.TB, v kek.Version, b []byte) []byte {
				wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, h.public(t, v), b, nil)
				if err != nil {
					t.Fatal(err)
				}
				return wrapped
			}
			return h, h.key, o
		})
	})
	t.Run("A256KW", func(t *testing.T) {
		kektest.Run(t, func(t *testing.T) (kek.Wrapper, kek.Key, kektest.Owner) {
			h := open(t, s, azurekv.Config{}, kek.A256KW)
			return h, h.key, h.owner()
		})
	})
}

func TestSignerContract(t *testing.T) {
	s := openServer(t)
	for _, kty := range []string{"EC", "EC-HSM"} {
		t.Run(kty, func(t *testing.T) {
			kektest.RunSigner(t, func(t *testing.T) (kek.Signer, kek.Key, kektest.Owner) {
				h := openSigner(t, s, azurekv.Config{}, devvault.KeySpec{Type: kty})
				return h, h.key, h.owner()
			})
		})
	}
}

// TestDo runs the contract with each piece of key work counted.
func TestDo(t *testing.T) {
	var calls atomic.Int32
	h := open(t, openServer(t), azurekv.Config{Do: func(f func()) { calls.Add(1); f() }}, kek.A256KW)
	var dek [kek.Size]byte
	wrapped, err := h.Wrap(t.Context(), h.key, h.version, &dek)
	if err != nil {
		t.Fatal(err)
	}
	before := calls.Load()
	if err := h.Unwrap(t.Context(), h.key, h.version, wrapped, &dek); err != nil {
		t.Fatal(err)
	}
	if before != 1 || calls.Load() != 2 {
		t.Errorf("Do ran %d times for a wrap and %d times in all", before, calls.Load())
	}
}

type base64url []byte

func (b *base64url) UnmarshalText(text []byte) error {
	return decode64(text, (*[]byte)(b))
}

func ExampleVaults_Check() {
	v, err := azurekv.New(azurekv.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(v.Check(kek.Key{Alg: kek.RSAOAEP256, Name: "kek", Vault: "https://vault.attacker.example"}))
	// Output: vault host "vault.attacker.example" is not in the configured cloud and not listed
}
