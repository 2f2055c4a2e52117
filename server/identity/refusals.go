package identity

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"

	"golang.org/x/time/rate"
)

const (
	refusalsPerSecond = 1
	refusalsAtOnce    = 10
	maxRefusal        = 300 // bytes of a reason: a peer can put names into it
)

// refusals logs refused handshakes, of which anybody who can connect makes as
// many as they like.
type refusals struct {
	logger     *slog.Logger
	limit      *rate.Limiter
	suppressed atomic.Int64 // since the last record
}

func newRefusals(logger *slog.Logger) *refusals {
	return &refusals{logger: logger, limit: rate.NewLimiter(refusalsPerSecond, refusalsAtOnce)}
}

// log writes a record, or counts it for the next one.
func (r *refusals) log(from net.Addr, err error) {
	if !r.limit.Allow() {
		r.suppressed.Add(1)
		return
	}
	r.logger.LogAttrs(context.Background(), slog.LevelWarn, "handshake refused",
		slog.String("remote", from.String()),
		slog.String("error", clip(err.Error(), maxRefusal)),
		slog.Int64("suppressed", r.suppressed.Swap(0)))
}
