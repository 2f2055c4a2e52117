package sidecar

import (
	"context"
	"net"
	"net/http"
)

// Watch is what Run does besides serving.
func (s *Sidecar) Watch(ctx context.Context) { s.watch(ctx) }

// NewWeb returns what serves metrics by ln.
func NewWeb(ln net.Listener, h http.Handler) (*http.Server, net.Listener) { return newWeb(ln, h) }
