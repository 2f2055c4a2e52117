package server

import (
	"net"
	"sync"
)

// connections are those that a Server has accepted and that are open. gRPC
// waits for handshakes under way before it stops, whoever does not shake.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

// listen returns ln with its connections counted.
func (c *connections) listen(ln net.Listener) net.Listener { return &countedListener{ln, c} }

// closeAll closes every connection, so that nothing waits for a peer.
func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Close() // the peer is being cut off
	}
}

func (c *connections) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[net.Conn]struct{})
	}
	c.open[conn] = struct{}{}
}

func (c *connections) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

type countedListener struct {
	net.Listener
	all *connections
}

// Accept waits for the next connection.
func (l *countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.all.add(conn)
	return &countedConn{conn, l.all}, nil
}

type countedConn struct {
	net.Conn
	all *connections
}

// Close closes the connection.
func (c *countedConn) Close() error {
	c.all.remove(c.Conn)
	return c.Conn.Close()
}
