package identity

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keysidecar/keysidecar/policy"
)

// peerOf asks the kernel who connected.
func peerOf(conn net.Conn) (policy.Caller, error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return policy.Caller{}, fmt.Errorf("%T does not let its socket be asked", conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return policy.Caller{}, fmt.Errorf("getting at the socket: %w", err)
	}
	var caller policy.Caller
	var askErr error
	if err := raw.Control(func(fd uintptr) { caller, askErr = ask(int(fd)) }); err != nil {
		return policy.Caller{}, fmt.Errorf("getting at the socket: %w", err)
	}
	return caller, askErr
}

// ask returns the peer of a Unix socket. The kernel answers for any socket, and
// for one that has no peer with user -1: neither may pass for somebody.
func ask(fd int) (policy.Caller, error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return policy.Caller{}, fmt.Errorf("reading the socket's family: %w", err)
	}
	if family != unix.AF_UNIX {
		return policy.Caller{}, fmt.Errorf("socket is of family %d: only a Unix socket knows who connected", family)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return policy.Caller{}, fmt.Errorf("reading peer credentials: %w", err)
	}
	caller := policy.PeerCaller(cred.Uid, cred.Gid, cred.Pid)
	if caller == (policy.Caller{}) {
		return policy.Caller{}, errors.New("socket has no peer")
	}
	return caller, nil
}
