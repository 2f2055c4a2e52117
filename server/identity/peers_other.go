//go:build !linux

package identity

import (
	"errors"
	"net"

	"github.com/keysidecar/keysidecar/policy"
)

// peerOf refuses everybody.
func peerOf(net.Conn) (policy.Caller, error) {
	return policy.Caller{}, errors.New("peer credentials of a Unix socket are read on Linux only: use client certificates")
}
