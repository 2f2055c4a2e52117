package identity

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/keysidecar/keysidecar/policy"
)

// Peers is the Source of a Unix socket: the kernel says which user and primary
// group connected (SO_PEERCRED of unix(7)), as they were at that moment and as
// this process's user namespace numbers them; who has no number there is 65534.
// Whoever the connecting process hands the connection to is the same caller,
// and so are all processes of one user. The identity lasts as long as the
// connection does. It works on Linux only.
type Peers struct{}

var _ Source = (*Peers)(nil)

// NewPeers returns a Peers.
func NewPeers() *Peers { return &Peers{} }

// Credentials returns credentials that send and expect nothing. A connection
// that is no Unix socket, or does not let its socket be asked (syscall.Conn),
// is refused.
func (*Peers) Credentials() credentials.TransportCredentials {
	return serverCredentials{protocol: "peer", shake: func(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
		caller, err := peerOf(conn)
		if err != nil {
			return nil, nil, fmt.Errorf("finding out who connected: %w", err)
		}
		return conn, Info{CommonAuthInfo: secured(), authType: "peer", caller: caller}, nil
	}}
}

// Caller returns who connected.
func (*Peers) Caller(ctx context.Context) (policy.Caller, error) {
	info, ok := infoOf(ctx)
	if !ok || info.caller.Source != policy.Peer {
		return policy.Caller{}, errUnproven
	}
	return info.caller, nil
}
