package server

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"google.golang.org/grpc/credentials"

	"github.com/keysidecar/keysidecar/policy"
)

// connections are those that a Server has accepted and that are open. gRPC
// waits for handshakes under way before it stops, whoever does not shake.
type connections struct {
	max, perCaller int

	mu      sync.Mutex
	open    map[*conn]struct{}
	unknown list.List      // of *conn: those of open that no caller has claimed, oldest first
	callers map[string]int // connections of each caller, by callerKey
	refused uint64
}

func newConnections(most, perCaller int) *connections {
	return &connections{max: most, perCaller: perCaller, open: make(map[*conn]struct{}), callers: make(map[string]int)}
}

// listen returns ln with its connections counted, and closed at once where they
// are too many or come from an address that is not allowed. To let them wait
// would let whoever opens many of them keep everybody out.
func (c *connections) listen(ln net.Listener, allow []netip.Prefix) net.Listener {
	return &countedListener{ln, c, allow}
}

// closeAll closes every connection, so that nothing waits for a peer.
func (c *connections) closeAll() {
	c.mu.Lock()
	all := make([]*conn, 0, len(c.open))
	for conn := range c.open {
		all = append(all, conn)
	}
	c.mu.Unlock()
	for _, conn := range all {
		_ = conn.Close() // the peer is being cut off
	}
}

// counts returns how many are open, and how many were refused so far.
func (c *connections) counts() (open int, refused uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open), c.refused
}

func (c *connections) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused++
}

// add returns nil if there are too many whose callers are known. Those that are
// not known yet make way: else whoever connects and says nothing would keep
// everybody out.
func (c *connections) add(raw net.Conn) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.max {
		c.refused++
		oldest := c.unknown.Front()
		if oldest == nil {
			return nil
		}
		gone := oldest.Value.(*conn)
		c.forget(gone)
		_ = gone.Conn.Close() // the peer is being cut off
	}
	added := &conn{Conn: raw, all: c}
	added.place = c.unknown.PushBack(added)
	c.open[added] = struct{}{}
	return added
}

// claim counts an open connection as the caller's. It reports false if the
// caller has too many; then the connection counts no more, and is to be closed.
func (c *connections) claim(owned *conn, key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.open[owned]; !open {
		return true // closed meanwhile: there is nothing to count
	}
	if c.callers[key] >= c.perCaller {
		c.refused++
		c.forget(owned)
		return false
	}
	c.callers[key]++
	c.unknown.Remove(owned.place)
	owned.caller, owned.place = key, nil
	return true
}

func (c *connections) remove(gone *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.open[gone]; open {
		c.forget(gone)
	}
}

// forget removes what is open.
func (c *connections) forget(gone *conn) {
	delete(c.open, gone)
	if gone.place != nil {
		c.unknown.Remove(gone.place)
		return
	}
	if c.callers[gone.caller]--; c.callers[gone.caller] == 0 {
		delete(c.callers, gone.caller)
	}
}

type countedListener struct {
	net.Listener
	all   *connections
	allow []netip.Prefix // nil: every address
}

// Accept waits for the next connection that may be served.
func (l *countedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if !allowed(l.allow, raw.RemoteAddr()) {
			l.all.refuse()
		} else if added := l.all.add(raw); added != nil {
			return added, nil
		}
		_ = raw.Close() // nobody to tell
	}
}

// allowed reports whether a connection from addr may be served.
func allowed(allow []netip.Prefix, addr net.Addr) bool {
	if allow == nil {
		return true
	}
	from, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return false
	}
	for _, prefix := range allow {
		if prefix.Contains(from.Addr().Unmap()) {
			return true
		}
	}
	return false
}

// conn is an accepted connection.
type conn struct {
	net.Conn
	all    *connections
	caller string        // guarded by all.mu; whom it counts for
	place  *list.Element // guarded by all.mu; in all.unknown, nil once it has a caller
}

// Close closes the connection.
func (c *conn) Close() error {
	c.all.remove(c)
	return c.Conn.Close()
}

// SyscallConn gives access to the socket, for peer credentials.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	raw, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T has no socket", c.Conn)
	}
	return raw.SyscallConn()
}

var errTooManyConnections = errors.New("caller has too many connections: limits.connections_per_caller")

// claiming counts connections per caller, as soon as a handshake has shown
// whose they are.
type claiming struct {
	credentials.TransportCredentials
	all *connections
}

// ServerHandshake is that of the credentials, then the claim.
func (c claiming) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	proved, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	known, ok := info.(interface{ Caller() policy.Caller })
	owned, counted := raw.(*conn)
	if !ok || !counted {
		return nil, nil, errors.Join(fmt.Errorf("handshake gave %T over %T", info, raw), proved.Close())
	}
	if !c.all.claim(owned, callerKey(known.Caller())) {
		return nil, nil, errors.Join(errTooManyConnections, proved.Close())
	}
	return proved, info, nil
}

// Clone returns c: nothing of it changes.
func (c claiming) Clone() credentials.TransportCredentials { return c }

// callerKey is what connections count for, and calls of callers whom the policy
// has no name for. A process may choose its primary group among several, so that
// of a peer only the user counts.
func callerKey(c policy.Caller) string {
	if c.Source == policy.Peer {
		return "uid:" + strconv.FormatUint(uint64(c.UID), 10)
	}
	return c.Name
}
