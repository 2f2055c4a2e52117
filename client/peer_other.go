//go:build !linux

package client

import (
	"fmt"
	"net"
)

// checkServer refuses where WithServerUID asks for what it cannot find out.
func (c *connection) checkServer(net.Conn) error {
	if c.explicit {
		return fmt.Errorf("this system does not tell who listens on %s: %w", c.path, ErrServerUID)
	}
	return nil
}
