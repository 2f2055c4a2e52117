package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// maxMessage is the longest answer that is read, in bytes: 64 MiB of data
	// and more than any bundle adds to it.
	maxMessage = 65 << 20
	// A call whose connection was lost pauses, and then waits for a new one for
	// reconnectTime before it is repeated: two times of both bridge a restart
	// that takes a second.
	reconnectPause = 100 * time.Millisecond
	reconnectTime  = 500 * time.Millisecond
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 2 * time.Second
)

// connection is what Client and Admin call through: a socket, and who may
// listen on it.
type connection struct {
	path     string
	uids     []uint32
	explicit bool
	grpc     *grpc.ClientConn
	// refused is why the last connection was not used, or nil.
	refused atomic.Pointer[error]
}

// Option changes how a Client or an Admin behaves.
type Option func(*connection)

// WithServerUID accepts a sidecar that listens as one of these users instead of
// this process's own user or root. In a pod it is the user ID of the sidecar's
// container. With no uids no sidecar is accepted.
func WithServerUID(uids ...uint32) Option {
	return func(c *connection) { c.uids, c.explicit = uids, true }
}

// open prepares a connection to a socket as Dial takes it.
func open(socket string, opts []Option) (*connection, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(socket, "unix:"), "//")
	if path == "" {
		return nil, errors.New("socket path is empty")
	}
	c := &connection{path: path, uids: []uint32{0, uint32(os.Geteuid())}} //nolint:gosec // a uid is an unsigned 32-bit number
	for _, o := range opts {
		o(c)
	}
	reconnect := backoff.Config{BaseDelay: reconnectPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(c.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("preparing connection to %s: %w", path, err)
	}
	c.grpc = conn
	return c, nil
}

// Close ends the connection and all calls. There are no calls after it.
func (c *connection) Close() error {
	if err := c.grpc.Close(); err != nil {
		return fmt.Errorf("closing connection to %s: %w", c.path, err)
	}
	return nil
}

// reconnect waits for a connection, and not for long.
func (c *connection) reconnect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reconnectTime)
	defer cancel()
	c.grpc.ResetConnectBackoff()
	for state := c.grpc.GetState(); state != connectivity.Ready; state = c.grpc.GetState() {
		c.grpc.Connect()
		if !c.grpc.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// dial connects and checks who listens.
func (c *connection) dial(ctx context.Context, _ string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err == nil {
		if err = c.checkServer(conn); err != nil {
			_ = conn.Close()
		}
	}
	if errors.Is(err, ErrServerUID) {
		c.refused.Store(&err)
	} else {
		c.refused.Store(nil)
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}
