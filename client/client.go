// Package client calls a keysidecar on the same machine over its Unix socket.
package client

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

const (
	// attempts is how often a call is made at most.
	attempts = 3
	// longestWait is the longest time that a call waits before it is repeated.
	// A sidecar that asks for more gets its answer handed to the caller.
	longestWait = 5 * time.Second
)

// Client calls one sidecar. It is safe for concurrent use, and meant to be
// kept: it connects at the first call, and again whenever the connection is
// lost.
type Client struct {
	*connection
	rpc    keysidecarv1.SealServiceClient
	health grpc_health_v1.HealthClient
}

// Dial returns a Client for the Unix socket at a path, which may have the
// prefix "unix:" or "unix://". It does not connect. The Client has to be closed.
//
// On Linux, every connection is used only if the user that listens is this
// process's own or root (WithServerUID changes that), so that data does not go
// to whoever got hold of the path. Elsewhere WithServerUID fails every call.
func Dial(socket string, opts ...Option) (*Client, error) {
	c, err := open(socket, opts)
	if err != nil {
		return nil, err
	}
	return &Client{c, keysidecarv1.NewSealServiceClient(c.grpc), grpc_health_v1.NewHealthClient(c.grpc)}, nil
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
