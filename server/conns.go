package server

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"

	"github.com/keysidecar/keysidecar/policy"
)

// connections are those that a Server has accepted and that are open. gRPC
// waits for handshakes under way before it stops, whoever does not shake.
type connections struct {
	max, perCaller int
	stuck          time.Duration // stuckWrite
	logger         *slog.Logger
	quiet          quiet

	epoch   time.Time
	mu      sync.Mutex
	open    map[*conn]struct{}
	unknown list.List         // of *conn: those of open that no caller has claimed, oldest first
	callers map[string]*owner // by callerKey
	refused uint64
}

func newConnections(most, perCaller int, logger *slog.Logger) *connections {
	return &connections{
		max: most, perCaller: perCaller, stuck: stuckWrite, open: make(map[*conn]struct{}), callers: make(map[string]*owner),
		epoch: time.Now().Add(-time.Second), logger: logger, quiet: quiet{lines: rate.NewLimiter(refusalsPerSecond, refusalsAtOnce)},
	}
}

// Of refused connections, so many lines are written in a second, and at once.
const (
	refusalsPerSecond = 1
	refusalsAtOnce    = 20
)

// log tells that a connection was closed, and why.
func (c *connections) log(why string, who slog.Attr) {
	left, ok := c.quiet.next(slog.LevelWarn)
	if !ok {
		return
	}
	c.logger.LogAttrs(context.Background(), slog.LevelWarn, "connection refused", slog.String("why", why), who,
		slog.Uint64("lines_left_out", left))
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
	added := &conn{closed: make(chan struct{}), Conn: raw, all: c, stuck: c.stuck}
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
	o := c.owner(key)
	if o.count >= c.perCaller {
		c.refused++
		c.forget(owned)
		return false
	}
	o.count++
	owned.brake.Store(o.brake)
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
	c.callers[gone.caller].count--
}

// owner is one caller.
type owner struct {
	count int // open connections
	brake *brake
}

// owner returns the caller of that key. A caller without connections is kept
// while it is braked, so that it gains nothing by connecting again.
func (c *connections) owner(key string) *owner {
	for other, o := range c.callers {
		if o.count == 0 && !o.brake.pressed(time.Since(c.epoch)) {
			delete(c.callers, other)
		}
	}
	o := c.callers[key]
	if o == nil {
		o = &owner{brake: newBrake()}
		c.callers[key] = o
	}
	return o
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
			l.all.log("its address is not one of listen.tcp.allow", slog.String("address", raw.RemoteAddr().String()))
		} else if added := l.all.add(raw); added != nil {
			return added, nil
		} else {
			l.all.log("too many are open: limits.connections", slog.String("listener", l.Addr().String()))
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
	stuck  time.Duration
	caller string        // guarded by all.mu; whom it counts for
	place  *list.Element // guarded by all.mu; in all.unknown, nil once it has a caller

	// writing is held by Write; since is when it began, in ns by monotonic
	// time, 0 if none is under way.
	writing sync.Mutex
	since   atomic.Int64

	brake  atomic.Pointer[brake] // the caller's, nil before the handshake
	read   int                   // bytes read so far: the reader's own
	once   sync.Once
	closed chan struct{} // closed by Close
}

const (
	// slowWrite is how long a write may take before nothing more is read: gRPC
	// would take in what it cannot answer.
	slowWrite = 20 * time.Millisecond
	// stuckWrite is how long a peer may leave an answer in its socket before it
	// loses the connection.
	stuckWrite = 5 * time.Second
)

// Write writes, and closes a connection whose peer does not read.
func (c *conn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.since.Store(int64(time.Since(c.all.epoch)))
	defer c.since.Store(0)
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.stuck)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.Join(err, c.Close()) // gRPC leaves that to its reader
	}
	return n, err
}

// Read reads, but not while a write waits for the peer to read, and slowly from
// a caller far over its rate.
func (c *conn) Read(b []byte) (int, error) {
	if since := c.since.Load(); since != 0 && time.Since(c.all.epoch)-time.Duration(since) > slowWrite {
		c.writing.Lock()   // until that write is done
		c.writing.Unlock() //nolint:staticcheck // nothing is guarded: it is waited for
	}
	n, err := c.Conn.Read(c.braked(b))
	c.read += n
	return n, err
}

// Close closes the connection.
func (c *conn) Close() error {
	c.all.remove(c)
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) }) // whoever waits for it reads nothing more
	return err
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

// owned is a connection's AuthInfo, and the connection.
type owned struct {
	credentials.AuthInfo
	conn *conn
}

// Unwrap returns the AuthInfo of the handshake.
func (o owned) Unwrap() credentials.AuthInfo { return o.AuthInfo }

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
	accepted, counted := raw.(*conn)
	if !ok || !counted {
		return nil, nil, errors.Join(fmt.Errorf("handshake gave %T over %T", info, raw), proved.Close())
	}
	if !c.all.claim(accepted, callerKey(known.Caller())) {
		c.all.log("its caller has too many: limits.connections_per_caller", slog.String("identity", known.Caller().Name))
		return nil, nil, errors.Join(errTooManyConnections, proved.Close())
	}
	return proved, owned{info, accepted}, nil
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
