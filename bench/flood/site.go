package flood

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/bench/load"
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

// newSite makes a site in a new directory, and builds the sidecar unless there is one.
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
	if s.binary == "" {
		s.binary = filepath.Join(dir, "keysidecar")
		if err := build(ctx, s.binary); err != nil {
			return nil, err
		}
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

// build makes the program, as `make build` does, from the module that this one replaces.
func build(ctx context.Context, path string) error {
	const module = "github.com/keysidecar/keysidecar"
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return fmt.Errorf("finding module %s: %w", module, err)
	}
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "./cmd/keysidecar")
	c.Dir = strings.TrimSpace(string(dir))
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building keysidecar: %w: %s", err, text)
	}
	return nil
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
func (s *site) start(ctx context.Context, limit float64) (*process, error) {
	path, err := s.write(limit)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, s.binary, "serve", "--config", path)
	c.Stderr = log
	p, err := startProcess(c)
	err = errors.Join(err, log.Close())
	if err != nil {
		return nil, err
	}
	if err := s.waitReady(ctx, p); err != nil {
		text, _ := os.ReadFile(log.Name()) // what there is of it
		return nil, fmt.Errorf("starting keysidecar: %w: %s", errors.Join(err, p.stop()), text)
	}
	return p, nil
}

// waitReady waits until the sidecar listens.
func (s *site) waitReady(ctx context.Context, p *process) error {
	network, address := "unix", s.socket()
	if !s.sockets {
		network, address = "tcp", s.address
	}
	giveUp := time.After(20 * time.Second)
	for {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.ended:
			return errors.New("it has ended")
		case <-giveUp:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
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
