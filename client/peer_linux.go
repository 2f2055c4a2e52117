package client

import (
	"fmt"
	"net"
	"slices"
	"syscall"
)

// checkServer returns ErrServerUID unless the process that listens (its
// effective user when it called listen, SO_PEERCRED of unix(7)) may.
func (c *connection) checkServer(conn net.Conn) error {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return fmt.Errorf("reading who listens on %s: %w", c.path, err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("reading who listens on %s: %w", c.path, err)
	}
	if credErr != nil {
		return fmt.Errorf("reading who listens on %s: %w", c.path, credErr)
	}
	if !slices.Contains(c.uids, cred.Uid) {
		return fmt.Errorf("user %d listens on %s: %w", cred.Uid, c.path, ErrServerUID)
	}
	return nil
}
