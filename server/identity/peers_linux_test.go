package identity_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/server/identity"
)

// wrapped is a connection as a server may wrap it.
type wrapped struct{ net.Conn }

// asking is one that lets its socket be asked.
type asking struct{ wrapped }

func (a asking) SyscallConn() (syscall.RawConn, error) { return a.Conn.(syscall.Conn).SyscallConn() }

// wrapping wraps what it accepts.
type wrapping struct{ net.Listener }

func (w wrapping) Accept() (net.Conn, error) {
	conn, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return asking{wrapped{conn}}, nil
}

func listenUnix(t *testing.T) net.Listener {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	// Another user is to connect.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	return ln
}

// another returns a user and a group: if this process may become others,
// others, each with a number of its own.
func another() (uid, gid int) {
	if os.Geteuid() == 0 {
		return 10001, 20000
	}
	return os.Geteuid(), os.Getegid()
}

// dialAs connects as another user, on a thread that ends with it.
func dialAs(ctx context.Context, path string, uid, gid int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not used again
		for _, call := range [][2]uintptr{{syscall.SYS_SETRESGID, uintptr(gid)}, {syscall.SYS_SETRESUID, uintptr(uid)}} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[1], call[1]); errno != 0 {
				done <- result{nil, fmt.Errorf("becoming %d: %w", call[1], errno)}
				return
			}
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialPeer(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	uid, gid := another()
	cc, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) { return dialAs(ctx, path, uid, gid) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func TestPeerNamesCaller(t *testing.T) {
	uid, gid := another()
	want := policy.Caller{
		Name: fmt.Sprintf("uid:%d/gid:%d", uid, gid), Source: policy.Peer,
		UID: uint32(uid), GID: uint32(gid), HasGID: true, PID: int32(os.Getpid()),
	}
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"as accepted": func(ln net.Listener) net.Listener { return ln },
		"wrapped":     func(ln net.Listener) net.Listener { return wrapping{ln} },
	} {
		t.Run(name, func(t *testing.T) {
			source, ln := identity.NewPeers(), listenUnix(t)
			l := serve(t, source, wrap(ln))
			got, info := l.admitted(t, dialPeer(t, ln.Addr().String()))
			if got != want || info.Caller() != want {
				t.Errorf("caller is %+v, not %+v", got, want)
			}
			if info.AuthType() != "peer" || info.SecurityLevel != credentials.PrivacyAndIntegrity {
				t.Errorf("connection is %s, level %v", info.AuthType(), info.SecurityLevel)
			}
			ctx := with(info)
			if n := testing.AllocsPerRun(100, func() {
				if _, err := source.Caller(ctx); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations a call", n)
			}
			// A certificate's source has nothing to say about it.
			if c, err := newSite(t, "").open().Caller(ctx); err == nil {
				t.Errorf("Certificates calls it %v", c)
			}
		})
	}
}

// pair returns both ends of a connection.
func pair(t *testing.T, ln net.Listener) (server, client net.Conn) {
	t.Helper()
	client, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = server.Close(), client.Close(), ln.Close() })
	return server, client
}

func TestRefusedPeers(t *testing.T) {
	tcp, _ := pair(t, listen(t))
	unix, _ := pair(t, listenUnix(t))
	closed, _ := pair(t, listenUnix(t))
	_ = closed.Close()
	pipe, other := net.Pipe()
	t.Cleanup(func() { _, _ = pipe.Close(), other.Close() })
	alone, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = alone.Close() })

	for name, test := range map[string]struct {
		conn net.Conn
		want string
	}{
		"TCP":          {tcp, "only a Unix socket"},
		"TCP, wrapped": {asking{wrapped{tcp}}, "only a Unix socket"},
		"pipe":         {pipe, "does not let its socket be asked"},
		"mute wrapper": {wrapped{unix}, "does not let its socket be asked"},
		"closed":       {closed, "getting at the socket"},
		"no peer":      {alone, "no peer"},
	} {
		conn, info, err := identity.NewPeers().Credentials().ServerHandshake(test.conn)
		if conn != nil || info != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, %v, %v: want %q", name, conn, info, err, test.want)
		}
	}
}
