// Package client calls a keysidecar on the same machine over its Unix socket.
package client

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

const (
	// maxMessage is the longest answer that is read, in bytes: 64 MiB of data
	// and more than any bundle adds to it.
	maxMessage = 65 << 20
	// attempts is how often a call is made at most.
	attempts = 3
	// longestWait is the longest time that a call waits before it is repeated.
	// A sidecar that asks for more gets its answer handed to the caller.
	longestWait = 5 * time.Second
	// A call whose connection was lost pauses, and then waits for a new one for
	// reconnectTime before it is repeated: two times of both bridge a restart
	// that takes a second.
	reconnectPause = 100 * time.Millisecond
	reconnectTime  = 500 * time.Millisecond
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 2 * time.Second
)

// Client calls one sidecar. It is safe for concurrent use, and meant to be
// kept: it connects at the first call, and again whenever the connection is
// lost.
type Client struct {
	path     string
	uids     []uint32
	explicit bool
	conn     *grpc.ClientConn
	rpc      keysidecarv1.SealServiceClient
	health   grpc_health_v1.HealthClient
	// refused is why the last connection was not used, or nil.
	refused atomic.Pointer[error]
}

// Option changes how Dial's Client behaves.
type Option func(*Client)

// WithServerUID accepts a sidecar that listens as one of these users instead of
// this process's own user or root. In a pod it is the user ID of the sidecar's
// container. With no uids no sidecar is accepted.
func WithServerUID(uids ...uint32) Option {
	return func(c *Client) { c.uids, c.explicit = uids, true }
}

// Dial returns a Client for the Unix socket at a path, which may have the
// prefix "unix:" or "unix://". It does not connect. The Client has to be closed.
//
// On Linux, every connection is used only if the user that listens is this
// process's own or root (WithServerUID changes that), so that data does not go
// to whoever got hold of the path. Elsewhere WithServerUID fails every call.
func Dial(socket string, opts ...Option) (*Client, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(socket, "unix:"), "//")
	if path == "" {
		return nil, errors.New("socket path is empty")
	}
	c := &Client{path: path, uids: []uint32{0, uint32(os.Geteuid())}} //nolint:gosec // a uid is an unsigned 32-bit number
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
	c.conn = conn
	c.rpc = keysidecarv1.NewSealServiceClient(conn)
	c.health = grpc_health_v1.NewHealthClient(conn)
	return c, nil
}

// Close ends the connection and all calls. The Client cannot be used again.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("closing connection to %s: %w", c.path, err)
	}
	return nil
}

// KeyInfo names the keys that an operation used. It holds nothing secret.
type KeyInfo struct {
	// DEKID is the ID of the DEK, 32 lower-case hex digits.
	DEKID string
	// KEKRef is the KEK's name in the sidecar's configuration, KEKVersion its
	// version in the vault, 32 lower-case hex digits.
	KEKRef, KEKVersion string
	// Region is where the KEK's vault is; empty if the sidecar is not told.
	Region string
}

// Sealed is what Seal returns.
type Sealed struct {
	// Bytes is what to store, as it is.
	Bytes []byte
	// KeyInfo names the keys that were used.
	KeyInfo KeyInfo
}

// Unsealed is what Unseal returns.
type Unsealed struct {
	// Plaintext is what was given to Seal.
	Plaintext []byte
	// KeyInfo names the keys that were used.
	KeyInfo KeyInfo
}

// Seal encrypts plaintext for a tenant, bound to encryptionContext: non-secret
// pairs that name where the data belongs (at most 32, 8,192 bytes in all) and
// that Unseal needs again. The limit on plaintext is the sidecar's: 1 MiB
// unless configured, 64 MiB at most.
//
// The error is an *Error. A call whose connection was lost, or which the
// sidecar asks to repeat within 5 s, is made up to 3 times while ctx lasts:
// repeating it is harmless. Nothing is retained of the arguments.
func (c *Client) Seal(
	ctx context.Context, tenant string, plaintext []byte, encryptionContext map[string]string,
) (Sealed, error) {
	resp, err := call(ctx, c, c.rpc.Seal, &keysidecarv1.SealRequest{
		Tenant: tenant, Plaintext: plaintext, EncryptionContext: encryptionContext,
	})
	if err != nil {
		return Sealed{}, err
	}
	return Sealed{Bytes: resp.GetSealed(), KeyInfo: keyInfo(resp.GetKeyInfo())}, nil
}

// Unseal decrypts what Seal returned for the same tenant and encryption
// context. Errors and repetition are as for Seal; ReasonOf tells
// AUTHENTICATION_FAILED (wrong tenant or context, or altered data) from the
// rest.
func (c *Client) Unseal(
	ctx context.Context, tenant string, sealed []byte, encryptionContext map[string]string,
) (Unsealed, error) {
	resp, err := call(ctx, c, c.rpc.Unseal, &keysidecarv1.UnsealRequest{
		Tenant: tenant, Sealed: sealed, EncryptionContext: encryptionContext,
	})
	if err != nil {
		return Unsealed{}, err
	}
	return Unsealed{Plaintext: resp.GetPlaintext(), KeyInfo: keyInfo(resp.GetKeyInfo())}, nil
}

// Serving reports what grpc.health.v1 says of a service; "" is the sidecar as
// a whole. It asks once. The error is an *Error.
func (c *Client) Serving(ctx context.Context, service string) (bool, error) {
	resp, err := c.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		return false, c.newError(ctx, err)
	}
	return resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING, nil
}

func keyInfo(k *keysidecarv1.KeyInfo) KeyInfo {
	return KeyInfo{
		DEKID: hex.EncodeToString(k.GetDekId()), KEKRef: k.GetKekRef(), KEKVersion: k.GetKekVersion(), Region: k.GetRegion(),
	}
}

// call makes a call, and repeats it as Seal says.
func call[Req, Resp any](
	ctx context.Context, c *Client, rpc func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req,
) (Resp, error) {
	for attempt := 1; ; attempt++ {
		resp, err := rpc(ctx, req)
		if err == nil {
			return resp, nil
		}
		e := c.newError(ctx, err)
		wait := e.wait()
		if attempt == attempts || wait == 0 || !sleep(ctx, wait) {
			var none Resp
			return none, e
		}
		if e.lost() {
			c.reconnect(ctx)
		}
	}
}

// reconnect waits for a connection, and not for long.
func (c *Client) reconnect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reconnectTime)
	defer cancel()
	c.conn.ResetConnectBackoff()
	for state := c.conn.GetState(); state != connectivity.Ready; state = c.conn.GetState() {
		c.conn.Connect()
		if !c.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// sleep waits for d and up to a quarter more, so that callers who failed
// together do not return together. It reports false, without waiting, if ctx
// would end before.
func sleep(ctx context.Context, d time.Duration) bool {
	d += rand.N(d/4 + 1)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// dial connects and checks who listens.
func (c *Client) dial(ctx context.Context, _ string) (net.Conn, error) {
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
