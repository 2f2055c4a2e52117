// Package identity proves who is at the other end of a connection: a process
// on this machine by its Unix socket's peer credentials, or the holder of a
// client certificate over TLS. It decides nothing about what a caller may do.
package identity

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/keysidecar/keysidecar/policy"
)

// Source is one way of proving who calls. A listener has exactly one, so that
// no caller can choose the weaker of two. Peers and Certificates are Sources.
//
// A third is to come: projected service-account tokens. Its Credentials are TLS
// without client certificates, or those of a Unix socket whose credentials it
// does not use, and its Caller reads the token from the call's metadata, so an
// identity is then one call's and not a connection's. It returns an Info for
// the connection all the same, and keeps what a token proved in a bounded cache
// by the token's hash, until the token ends.
type Source interface {
	// Credentials returns the server's side of the handshake. Nothing but an
	// identity that was proved gets past it, unless the identity comes with
	// each call.
	Credentials() credentials.TransportCredentials
	// Caller returns who makes the call that ctx belongs to, if the identity
	// still holds. It is safe for concurrent use and does not allocate when it
	// succeeds. The error's text is for the log, never for the caller.
	Caller(ctx context.Context) (policy.Caller, error)
}

// errUnproven is about calls whose connection has no Info of the Source asked.
var errUnproven = errors.New("connection carries no identity of this listener's: its credentials have to be the same source's")

// Info is the credentials.AuthInfo of a connection whose peer proved who it
// is. The zero Info is nobody.
type Info struct {
	credentials.CommonAuthInfo
	authType string
	caller   policy.Caller
	session  *session // of a certificate; nil otherwise
}

var _ credentials.AuthInfo = Info{}

// AuthType returns how the peer proved who it is: "peer" or "certificate".
func (i Info) AuthType() string { return i.authType }

// Caller returns who the peer was when it connected. Whether that still holds
// is what Source.Caller says.
func (i Info) Caller() policy.Caller { return i.caller }

// infoOf returns the Info of the connection of the call that ctx belongs to.
func infoOf(ctx context.Context) (Info, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Info{}, false
	}
	info, ok := p.AuthInfo.(Info)
	if wrapped, is := p.AuthInfo.(interface{ Unwrap() credentials.AuthInfo }); is {
		info, ok = wrapped.Unwrap().(Info) // a server may add what it knows of the connection
	}
	return info, ok
}

// secured is what both Sources say about their connections: the kernel carries
// bytes between processes of one machine where nobody else reads or writes
// them, as TLS does elsewhere. gRPC's own local credentials say the same of a
// Unix socket, and clients that attach tokens ask for it.
func secured() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

// serverCredentials are TransportCredentials of a server only.
type serverCredentials struct {
	protocol string
	shake    func(net.Conn) (net.Conn, credentials.AuthInfo, error)
}

var _ credentials.TransportCredentials = serverCredentials{}

// ServerHandshake returns the connection to speak on and its Info. The
// connection's deadline, which gRPC sets, bounds it.
func (s serverCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return s.shake(conn)
}

// ClientHandshake refuses.
func (serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a server do not connect to one")
}

// Info returns the name of the protocol.
func (s serverCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: s.protocol}
}

// Clone returns the credentials, which nobody changes.
func (s serverCredentials) Clone() credentials.TransportCredentials { return s }

// OverrideServerName refuses: it is for clients.
func (serverCredentials) OverrideServerName(string) error {
	return errors.New("credentials of a server have no server name to override")
}
