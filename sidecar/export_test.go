package sidecar

import "context"

// Watch is what Run does besides serving.
func (s *Sidecar) Watch(ctx context.Context) { s.watch(ctx) }
