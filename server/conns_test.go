package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/server"
)

// hello is how a client begins: the preface, and settings that say nothing.
const hello = http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// knock opens a connection and says what a client of gRPC's would say first.
func (r *running) knock(t *testing.T, as string) net.Conn {
	for {
		conn, err := r.netDial(t.Context(), as)
		if errors.Is(err, syscall.EAGAIN) {
			runtime.Gosched() // the socket's queue is full
			continue
		}
		if err != nil {
			panic(err) // maybe not in the goroutine of the test
		}
		_, _ = conn.Write([]byte(hello)) // it may be closed already
		return conn
	}
}

// opened reports whether the server keeps a connection: it speaks first.
func opened(t *testing.T, conn net.Conn) bool {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	_, err := conn.Read(make([]byte, 9))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("server neither speaks nor closes")
	}
	return err == nil
}

// TestConnectionsPerCaller shows that a caller with too many connections keeps
// nobody else out, that those which close make room, and that a user who
// changes groups is still one caller.
func TestConnectionsPerCaller(t *testing.T) {
	const each = 3
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.ConnectionsPerCaller = each
	})
	var held []net.Conn
	knock := func(as string) bool {
		conn := s.knock(t, as)
		t.Cleanup(func() { conn.Close() })
		if !opened(t, conn) {
			return false
		}
		held = append(held, conn)
		return true
	}
	group := 0
	callers := []func() string{
		func() string { group++; return fmt.Sprintf("uid:7/gid:%d", group) },
		func() string { return "uid:8/gid:1" },
		func() string { return "dns:a.test" },
		func() string { return "spiffe://a.test/b" },
	}
	for round := range 3 {
		for _, caller := range callers {
			for i := range each + 2 {
				if as := caller(); knock(as) != (i < each) {
					t.Errorf("round %d: connection %d of %s stayed open: %v", round, i, as, i >= each)
				}
			}
		}
		if open, refused := s.Connections(); open != each*len(callers) || refused != uint64(2*len(callers)*(round+1)) {
			t.Errorf("round %d: %d connections are open, %d were refused", round, open, refused)
		}
		for _, conn := range held {
			conn.Close()
		}
		held = nil
		eventually(t, "all connections forgotten", func() bool { open, _ := s.Connections(); return open == 0 })
	}
}

// TestConnectionsOfAll is about the total.
func TestConnectionsOfAll(t *testing.T) {
	const most = 5
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.Connections, c.ConnectionsPerCaller = most, most
	})
	for i := range most + 3 {
		conn := s.knock(t, fmt.Sprintf("dns:%d.test", i))
		t.Cleanup(func() { conn.Close() })
		if opened(t, conn) != (i < most) {
			t.Errorf("connection %d stayed open: %v", i, i >= most)
		}
	}
	if open, refused := s.Connections(); open != most || refused != 3 {
		t.Errorf("%d connections are open, %d were refused; want %d and 3", open, refused, most)
	}
}

// TestNobodyConnects shows that a connection whose peer is not known is closed
// and forgotten, and counts for nobody.
func TestNobodyConnects(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.Connections = 1
	})
	for range 10 {
		conn := s.knock(t, "")
		if opened(t, conn) {
			t.Error("a connection of nobody stayed open")
		}
		conn.Close()
		eventually(t, "connection forgotten", func() bool { open, _ := s.Connections(); return open == 0 })
	}
}

// TestSilentPeers shows that peers who do not say who they are keep nobody out,
// and nobody from saying it.
func TestSilentPeers(t *testing.T) {
	const most = 5
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.Source, c.Connections = silentNaming{newNaming()}, most
	})
	came := 0
	come := func(as string) net.Conn {
		conn, err := s.netDial(t.Context(), as)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		came++
		eventually(t, "connection accepted", func() bool {
			open, refused := s.Connections()
			return open+int(refused) == came
		})
		return conn
	}
	for range 3 * most {
		come("dns:silent.test")
	}
	for i := range most + 1 {
		conn := come("dns:victim.test")
		if i == 0 { // who is slow has as long as all others together
			for range most - 1 {
				come("dns:silent.test")
			}
		}
		_, _ = conn.Write([]byte("x" + hello)) // it may be closed already
		if opened(t, conn) != (i < most) {
			t.Errorf("connection %d of somebody who speaks stayed open: %v", i, i >= most)
		}
	}
	if open, refused := s.Connections(); open != most || open+int(refused) != came {
		t.Errorf("of %d connections %d are open, %d were refused", came, open, refused)
	}
}

// silentNaming is a Source whose peers have to speak first.
type silentNaming struct{ naming }

func (n silentNaming) Credentials() credentials.TransportCredentials { return n }

func (n silentNaming) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return nil, nil, err
	}
	return n.naming.ServerHandshake(conn)
}

// TestFloodOfConnections opens as many connections as it can, all of one user,
// and holds them.
func TestFloodOfConnections(t *testing.T) {
	const each, at = 64, 8
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	n := max(1000, int(min(10_000, files.Cur/2))) / at * at
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.ConnectionsPerCaller = each
	})
	victim := keysidecarv1.NewSealServiceClient(s.dialAs(t, "uid:1000/gid:1000"))
	call := func(rpc keysidecarv1.SealServiceClient) {
		if _, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Errorf("victim got %v", err)
		}
	}
	call(victim)
	before := openFiles(t)

	held := make([]net.Conn, n)
	var kept, left atomic.Int64
	left.Store(at)
	var attack sync.WaitGroup
	for a := range at {
		attack.Go(func() {
			defer left.Add(-1)
			for i := a; i < n; i += at {
				held[i] = s.knock(t, fmt.Sprintf("uid:4242/gid:%d", i))
			}
			for i := a; i < n; i += at {
				if opened(t, held[i]) {
					kept.Add(1)
				}
			}
		})
	}
	var slowest time.Duration
	calls := 0
	for ; left.Load() > 0; calls++ { // the victim goes on beside it
		began := time.Now()
		call(victim)
		slowest = max(slowest, time.Since(began))
	}
	attack.Wait()
	call(keysidecarv1.NewSealServiceClient(s.dialAs(t, "uid:1001/gid:1000"))) // who comes now is let in
	open, refused := s.Connections()
	t.Logf("%d connections of one user: %d stayed open, %d were refused; %d calls of a victim, the slowest %v",
		n, kept.Load(), refused, calls, slowest)
	if kept.Load() != each || open != each+2 || refused != uint64(n-each) || calls == 0 {
		t.Errorf("%d of %d stayed open, %d are open in all, %d were refused; want %d, 2 others, and no more",
			kept.Load(), n, open, refused, each)
	}
	for _, conn := range held {
		conn.Close()
	}
	eventually(t, "connections forgotten", func() bool { open, _ := s.Connections(); return open == 2 })
	eventually(t, "files closed", func() bool { return openFiles(t) <= before+2 }) // of the second victim
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestAllowed is about addresses.
func TestAllowed(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	tcp := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	for _, c := range []struct {
		allow []netip.Prefix
		addr  net.Addr
		want  bool
	}{
		{nil, tcp("192.0.2.1:1"), true},
		{nil, &net.UnixAddr{Net: "unix"}, true},
		{[]netip.Prefix{}, tcp("127.0.0.1:1"), false},
		{loopback, tcp("127.0.0.1:1"), true},
		{loopback, tcp("127.255.255.255:65535"), true},
		{loopback, tcp("128.0.0.1:1"), false},
		{loopback, tcp("126.255.255.255:1"), false},
		{loopback, tcp("192.0.2.1:1"), false},
		{loopback, tcp("[::1]:1"), true},
		{loopback, tcp("[::2]:1"), false},
		{loopback, written("[::ffff:127.0.0.1]:1"), true},
		{loopback, written("[::ffff:192.0.2.1]:1"), false},
		{loopback, written("127.0.0.1"), false},
		{loopback, tcp("[::1%lo]:1"), false},
		{loopback, &net.UnixAddr{Net: "unix"}, false},
		{loopback, &net.UnixAddr{Net: "unix", Name: "127.0.0.1"}, false},
		{[]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, tcp("[::1]:1"), false},
	} {
		if got := server.Allowed(c.allow, c.addr); got != c.want {
			t.Errorf("%v lets %v in: %v", c.allow, c.addr, got)
		}
	}
}

// written is an address as it stands.
type written string

func (written) Network() string  { return "tcp" }
func (w written) String() string { return string(w) }

// tcpNaming is a Source whose peers are all one.
type tcpNaming struct{ naming }

func (n tcpNaming) Credentials() credentials.TransportCredentials { return n }

func (tcpNaming) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	caller, err := policy.DNSCaller("tcp.test")
	return conn, namingInfo{caller: caller}, err
}

// TestAllow listens on TCP for one address of two.
func TestAllow(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.Source, c.Allow = tcpNaming{newNaming()}, []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	for from, want := range map[string]codes.Code{"127.0.0.2": codes.OK, "127.0.0.1": codes.Unavailable, "127.0.0.3": codes.Unavailable} {
		conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(ctx, "tcp", ln.Addr().String())
			}))
		if err != nil {
			t.Fatal(err)
		}
		_, before := s.Connections()
		_, err = keysidecarv1.NewSealServiceClient(conn).Seal(t.Context(), &keysidecarv1.SealRequest{})
		if status.Code(err) != want {
			t.Errorf("call from %s got %v, want %v", from, err, want)
		}
		if _, after := s.Connections(); (after > before) != (want != codes.OK) {
			t.Errorf("%d connections were refused before a call from %s, %d after", before, from, after)
		}
		conn.Close()
	}
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestConnectionsInParallel opens and closes many at once, for the race
// detector, and finds nothing left.
func TestConnectionsInParallel(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.ConnectionsPerCaller, c.Connections = 4, 16
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				conn := s.knock(t, fmt.Sprintf("dns:%d.test", i%4))
				if j%2 == 0 {
					_, _ = conn.Read(make([]byte, 9)) // or is closed
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	eventually(t, "all connections forgotten", func() bool { open, _ := s.Connections(); return open == 0 })
	for i := range 4 { // and each may have all of its own again
		for range 4 {
			conn := s.knock(t, fmt.Sprintf("dns:%d.test", i))
			defer conn.Close()
			if !opened(t, conn) {
				t.Errorf("a connection of %d.test was refused", i)
			}
		}
	}
}
