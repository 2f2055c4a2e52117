package server_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/server/identity"
	"github.com/keysidecar/keysidecar/server/socket"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is a Sealer that gives one answer to both operations.
type answer func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error)

func (a answer) Seal(ctx context.Context, r sealer.Request) (sealer.Result, error) {
	return a(ctx, policy.Seal, r)
}

func (a answer) Unseal(ctx context.Context, r sealer.Request) (sealer.Result, error) {
	return a(ctx, policy.Unseal, r)
}

func echo(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
	return sealer.Result{Data: r.Data}, nil
}

func failing(err error) answer {
	return func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		return sealer.Result{}, err
	}
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

// running is a server on a real socket.
type running struct {
	*server.Server
	path string
	log  *journal
	conn *grpc.ClientConn
	rpc  keysidecarv1.SealServiceClient
}

// rules calls this process's user "me", with limits of its own if there are any.
func rules(t *testing.T, limits tenant.Limits) *policy.Policy {
	t.Helper()
	uid := uint32(os.Geteuid())
	p, err := policy.New(policy.Config{
		Callers: []policy.CallerRule{{Name: "me", UID: &uid, Limits: limits}},
		Rules:   []policy.Rule{{Callers: []string{"me"}, Tenants: []string{"*"}, Verbs: []string{"seal", "unseal", "admin.status"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// me is the caller of every call that this process makes.
func me() policy.Caller {
	return policy.PeerCaller(uint32(os.Geteuid()), uint32(os.Getegid()), int32(os.Getpid()))
}

// config is a plain Config.
func config(t *testing.T, s server.Sealer, log io.Writer) server.Config {
	t.Helper()
	callers, err := limit.New(limit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	room, err := limit.NewBytes(limit.BytesConfig{Total: 1 << 30, Share: 1})
	if err != nil {
		t.Fatal(err)
	}
	p := rules(t, tenant.Limits{})
	return server.Config{
		Sealer: s, Source: identity.NewPeers(), Policy: func() *policy.Policy { return p },
		Limits: &server.Limits{Callers: callers, Bytes: room},
		Logger: slog.New(slog.NewJSONHandler(log, nil)),
	}
}

// noCaller is a Source that proves nothing.
type noCaller struct {
	identity.Source
	err error
}

func (n noCaller) Caller(context.Context) (policy.Caller, error) { return policy.Caller{}, n.err }

// start serves s with what change makes of a plain Config.
func start(t *testing.T, s server.Sealer, change func(*server.Config)) *running {
	t.Helper()
	r := &running{path: socketPath(t), log: &journal{}}
	cfg := config(t, s, r.log)
	if change != nil {
		change(&cfg)
	}
	var err error
	if r.Server, err = server.New(cfg); err != nil {
		t.Fatal(err)
	}
	ln, err := socket.Listen(r.path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- r.Serve(ln) }()
	t.Cleanup(func() {
		r.Close()
		if err := <-served; err != nil {
			t.Error("Serve:", err)
		}
	})
	r.conn = r.dial(t)
	r.rpc = keysidecarv1.NewSealServiceClient(r.conn)
	return r
}

// dial opens a further connection, without waiting for it.
func (r *running) dial(t *testing.T, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost", append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.path)
		}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// socketPath returns a free path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "keysidecar.sock")
}
