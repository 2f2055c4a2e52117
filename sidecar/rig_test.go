package sidecar_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/kek/devvault"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sidecar"
)

// TestMain runs the tests; a test that needs processes runs this binary again,
// as a process of another kind.
func TestMain(m *testing.M) {
	if kind := os.Getenv(processKind); kind != "" {
		if err := runProcess(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// kekName is the name of every KEK in its vault.
const kekName = "kek"

// A site is a Key Vault, and the files of sidecars that use it.
type site struct {
	*devvault.Server
	dir string
}

// newSite opens an embedded Key Vault in which each of vaults has an RSA key.
func newSite(t *testing.T, vaults ...string) *site {
	t.Helper()
	s := &site{dir: shortDir(t)}
	var err error
	if s.Server, err = devvault.Open(devvault.Config{Dir: filepath.Join(s.dir, "vault")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, v := range vaults {
		s.createKEK(t, v)
	}
	return s
}

// createKEK adds a version to a vault's KEK, and returns it.
func (s *site) createKEK(t *testing.T, vault string) string {
	t.Helper()
	v, err := s.CreateKey(vault, kekName, devvault.KeySpec{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (s *site) inject(t *testing.T, f devvault.Fault) {
	t.Helper()
	if _, err := s.Inject(f); err != nil {
		t.Fatal(err)
	}
}

// shortDir returns an empty directory whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// settings are what tests change of a sidecar's files. Empty: as usual.
type settings struct {
	keks, tenants  []string // lines of tenants.yaml
	poll, load     string   // key_vault: 8m, 20s
	unknown        string   // cache.negative.unknown: 1ms, as all of negative
	tiny           bool     // a cache with room for one DEK of each tenant
	maxMessages    int      // dek.max_messages: 2^32
	policy         string   // policy.yaml: this user may do everything
	listen, limits string   // further keys of these sections
	config         string   // further lines of config.yaml
	stateless      bool     // no state_dir
	files          map[string]string
	sidecar.Options
}

// admitMe is a policy.yaml that lets this user do everything.
func admitMe() string {
	return fmt.Sprintf(`apiVersion: keysidecar/v1
callers: [{name: me, uid: %d}]
rules:
- {callers: [me], tenants: ["*"], verbs: [seal, unseal]}
- {callers: [me], tenants: ["*"], verbs: [admin.status, admin.reload, admin.evict, admin.policy, admin.tenants, admin.suspend]}
`, os.Geteuid())
}

// orElse returns s, or usual if it is empty.
func orElse(s, usual string) string {
	if s == "" {
		return usual
	}
	return s
}

// directory is tenants.yaml.
func (set settings) directory() string {
	return "apiVersion: keysidecar/v1\nkeks:\n- " + strings.Join(set.keks, "\n- ") +
		"\ntenants:\n- " + strings.Join(set.tenants, "\n- ") + "\n"
}

// write writes the files of a sidecar to dir, and returns the path of the
// first of them.
func (set settings) write(dir, address, caFile, tokenFile string) (string, error) {
	if set.maxMessages == 0 {
		set.maxMessages = 1 << 32
	}
	entries, share := 1000, "1"
	if set.tiny {
		entries, share = 16, "0.01"
	}
	state := "state_dir: " + filepath.Join(dir, "state")
	if set.stateless {
		state = ""
	}
	files := map[string]string{
		"config.yaml": fmt.Sprintf(`apiVersion: keysidecar/v1
listen: {socket: %s%s}
region: west
tenants_file: tenants.yaml
key_vault:
  cloud: devvault
  devvault: {address: "%s", suffix: vault.localhost, ca_file: %s, token_file: %s}
  credentials: [{name: dev, type: devvault}]
  poll_interval: %s
  load_timeout: %s
dek: {max_messages: %d}
cache: {entries: %d, tenant_share: %s, negative: {unknown: %s, unreachable: 1ms, refused: 1ms}}
limits: {unary_bytes: 4KiB, misses: {rate: 100000, burst: 100000}%s}
%s
%s
`, filepath.Join(dir, "s.sock"), set.listen, address, caFile, tokenFile,
			orElse(set.poll, "8m"), orElse(set.load, "20s"), set.maxMessages, entries, share, orElse(set.unknown, "1ms"),
			set.limits, state, set.config),
		"policy.yaml":  orElse(set.policy, admitMe()),
		"tenants.yaml": set.directory(),
	}
	maps.Copy(files, set.files)
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		return "", err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "config.yaml"), nil
}

// A node is a running sidecar and ways to call it.
type node struct {
	*sidecar.Sidecar
	dir, socket, adminSocket, tcp string
	log                           *journal
	// client repeats calls as docs/errors.md says; rpc does not.
	client *client.Client
	rpc    keysidecarv1.SealServiceClient
	// stop ends Run's context; done is closed when Run has returned runErr.
	stop   context.CancelFunc
	done   chan struct{}
	runErr error
	ended  sync.Once
}

// journal is a log that can be read while it is written.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// start runs a sidecar. Without KEKs in set, each tenant has the RSA key of
// the vault that is called like the tenant.
func (s *site) start(t *testing.T, set settings) *node {
	t.Helper()
	if set.keks == nil {
		set.keks = []string{s.kek("own", "{tenant}", "RSA-OAEP-256")}
		set.tenants = []string{`{prefix: "", kek: own}`}
	}
	dir := shortDir(t)
	file, err := set.write(dir, s.Addr(), s.CAFile(), s.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	return launch(t, file, set.Options)
}

// launch runs the sidecar whose files are there.
func launch(t *testing.T, file string, opts sidecar.Options) *node {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		dir: filepath.Dir(file), socket: cfg.Listen.Socket, adminSocket: cfg.Listen.AdminSocket, tcp: cfg.Listen.TCP.Address,
		log: &journal{}, done: make(chan struct{}),
	}
	opts.Logger = slog.New(slog.NewJSONHandler(n.log, nil))
	if n.Sidecar, err = sidecar.New(cfg, opts); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	go func() {
		defer close(n.done)
		n.runErr = n.Run(ctx)
	}()
	t.Cleanup(func() { n.end(t) })
	n.client = n.dial(t)
	n.rpc = keysidecarv1.NewSealServiceClient(n.connect(t))
	return n
}

// again ends the sidecar, and runs another one with its files.
func (n *node) again(t *testing.T) *node {
	t.Helper()
	n.end(t)
	return launch(t, filepath.Join(n.dir, "config.yaml"), sidecar.Options{})
}

// put replaces one of the sidecar's files, at once and not in part.
func (n *node) put(t *testing.T, name, text string) {
	t.Helper()
	temp := filepath.Join(n.dir, "new")
	err := os.WriteFile(temp, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(temp, filepath.Join(n.dir, name))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// load puts in a file that is right, and reads it.
func (n *node) load(t *testing.T, name, text string) {
	t.Helper()
	n.put(t, name, text)
	if _, err := n.Reload(t.Context()); err != nil {
		t.Fatalf("%s:\n%s\n%v", name, text, err)
	}
}

// end stops the sidecar; a call under way has to be over, or it fails.
func (n *node) end(t *testing.T) {
	t.Helper()
	n.ended.Do(func() {
		n.stop()
		<-n.done
		if n.runErr != nil {
			t.Errorf("Run: %v", n.runErr)
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// kek is a KEK in tenants.yaml, in the vault of that name.
func (s *site) kek(ref, vault, alg string) string { return kekLine(s.EntraTenant(), ref, vault, alg) }

func kekLine(entraTenant, ref, vault, alg string) string {
	return fmt.Sprintf("{ref: %s, url: 'https://%s.vault.localhost/keys/%s', alg: %s, region: west, credential: dev, entra_tenant: %s}",
		ref, vault, kekName, alg, entraTenant)
}

// dial returns a further client.
func (n *node) dial(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Dial(n.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// operator returns a client of the admin socket.
func (n *node) operator(t *testing.T) *client.Admin {
	t.Helper()
	a, err := client.DialAdmin(n.adminSocket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// connect returns a further connection without package client.
func (n *node) connect(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return connect(t, n.socket)
}

// connect returns a connection to a Unix socket.
func connect(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// seal seals or ends the test.
func (n *node) seal(t *testing.T, tenant, plaintext string) client.Sealed {
	t.Helper()
	sealed, err := n.client.Seal(t.Context(), tenant, []byte(plaintext), nil)
	if err != nil {
		t.Fatalf("Seal for %s: %v", tenant, err)
	}
	return sealed
}

// mustOpen unseals, and wants that plaintext.
func (n *node) mustOpen(t *testing.T, tenant string, sealed []byte, plaintext string) client.KeyInfo {
	t.Helper()
	got, err := n.client.Unseal(t.Context(), tenant, sealed, nil)
	if err != nil || string(got.Plaintext) != plaintext {
		t.Errorf("Unseal for %s: %q, %v, want %q", tenant, got.Plaintext, err, plaintext)
	}
	return got.KeyInfo
}

// try seals for a tenant, once, and returns the reason of what it got.
func (n *node) try(ctx context.Context, tenant string) string { return try(ctx, n.rpc, tenant) }

func try(ctx context.Context, rpc keysidecarv1.SealServiceClient, tenant string) string {
	_, err := rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: []byte("data")})
	return reasonOf(err)
}

// reasonOf returns the sidecar's reason for an error, "OK" for none, and the
// code of what is not the sidecar's own.
func reasonOf(err error) string {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return st.Code().String()
}

// await waits until what is true.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	giveUp := time.After(30 * time.Second)
	for !is() {
		select {
		case <-giveUp:
			t.Fatal("waited in vain: " + what)
		case <-time.After(time.Millisecond):
		}
	}
}
