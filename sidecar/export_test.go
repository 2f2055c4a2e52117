package sidecar

import (
	"context"
	"net"
	"net/http"
)

// Watch is what Run does besides serving.
func (s *Sidecar) Watch(ctx context.Context) { s.watch(ctx) }

// ReloadAgain is what Watch does when nothing has changed since a reload that was
// refused.
func (s *Sidecar) ReloadAgain(ctx context.Context) error {
	_, err := s.reload(ctx, true)
	return err
}

// NewWeb returns what serves metrics by ln.
func NewWeb(ln net.Listener, h http.Handler) (*http.Server, net.Listener) { return newWeb(ln, h) }
