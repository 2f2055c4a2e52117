package flood

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/keysidecar/keysidecar/bench/load"
	"github.com/keysidecar/keysidecar/bench/process"
	"github.com/keysidecar/keysidecar/internal/devsetup"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// The callers, who are called like their tenants.
const (
	victim   = "victim"
	attacker = "attacker"
)

// site is a directory with the files of a sidecar, and the Key Vault that it uses.
type site struct {
	dir, binary string
	vault       *devvault.Server
	sockets     bool // callers are users of a Unix socket, else certificates over TCP
	address     string
}

// newSite makes a site in a new directory.
func newSite(ctx context.Context, cfg Config) (_ *site, err error) {
	dir, err := os.MkdirTemp("", "ksbench")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, binary: cfg.Binary, sockets: !cfg.TCP && runtime.GOOS == "linux" && os.Geteuid() == 0}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // other users have to reach the socket
		return nil, err
	}
	if s.vault, err = devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault")}); err != nil {
		return nil, fmt.Errorf("opening Key Vault: %w", err)
	}
	if !s.sockets {
		if err := s.writeCertificates(); err != nil {
			return nil, err
		}
		if s.address, err = freePort(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// freePort returns an address on which nobody listens.
func freePort(ctx context.Context) (string, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

func (s *site) close() error {
	var err error
	if s.vault != nil {
		err = s.vault.Close()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// write writes the files of a sidecar whose attacker is limited to so many calls a second;
// 0 is no limit. It returns the path of config.yaml.
func (s *site) write(limit float64) (string, error) {
	policy := fmt.Sprintf(policyFile, s.identity(victim), s.identity(attacker), max(limit, 0), burst(limit))
	path, err := devsetup.Write(devsetup.Config{Dir: s.dir, Vault: s.vault, Tenants: []string{victim, attacker}, Policy: policy})
	if err != nil {
		return "", fmt.Errorf("writing files of the sidecar: %w", err)
	}
	var tcp string
	if !s.sockets {
		tcp = fmt.Sprintf("\n  tcp: {address: %q, cert_file: server.pem, key_file: server.key, client_ca_file: ca.pem}", s.address)
	}
	text := fmt.Sprintf(configFile, s.socket(), tcp, s.vault.Addr(), s.vault.CAFile(), s.vault.TokenFile())
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// burst is a tenth of a second's calls.
func burst(limit float64) int {
	if limit == 0 {
		return 0
	}
	return max(1, int(limit/10))
}

func (s *site) socket() string { return filepath.Join(s.dir, "s.sock") }

// identity is what policy.yaml has of a caller.
func (s *site) identity(name string) string {
	if s.sockets {
		return fmt.Sprintf("uid: %d", uid(name))
	}
	return "dns: " + dnsName(name)
}

// uid is the user that a caller's process is given. It need not exist.
func uid(name string) uint32 {
	if name == victim {
		return 64201
	}
	return 64202
}

func dnsName(name string) string { return name + ".internal" }

func (s *site) target(name string, connections int) load.Target {
	t := load.Target{Connections: connections, Tenant: name, Bytes: 1 << 10}
	if s.sockets {
		t.Socket = s.socket()
		return t
	}
	t.Address = s.address
	t.CAFile = filepath.Join(s.dir, "ca.pem")
	t.CertFile, t.KeyFile = filepath.Join(s.dir, name+".pem"), filepath.Join(s.dir, name+".key")
	return t
}

// start starts a sidecar. Its log goes to a file.
func (s *site) start(ctx context.Context, limit float64) (*process.Process, error) {
	path, err := s.write(limit)
	if err != nil {
		return nil, err
	}
	c := process.Sidecar{
		Binary: s.binary, Config: path, Log: filepath.Join(s.dir, "log"), Network: "unix", Address: s.socket(),
	}
	if !s.sockets {
		c.Network, c.Address = "tcp", s.address
	}
	return c.Start(ctx)
}

// configFile sets no limit of its own that the callers could reach, and otherwise what is
// the default.
const configFile = `apiVersion: keysidecar/v1
listen:
  socket: %s
  mode: "0666"%s
region: local
key_vault:
  cloud: devvault
  devvault: {address: "%s", suffix: vault.localhost, ca_file: %s, token_file: %s}
  credentials: [{name: dev, type: devvault}]
limits:
  caller: {rate: 1000000, burst: 1000000}
  tenant: {rate: 1000000, burst: 1000000}
`

const policyFile = `apiVersion: keysidecar/v1
callers:
  - {name: victim, %s}
  - {name: attacker, %s, rate: %f, burst: %d}
rules:
  - {callers: [victim], tenants: [victim], verbs: [seal]}
  - {callers: [attacker], tenants: [attacker], verbs: [seal]}
`
