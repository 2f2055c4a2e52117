// Package sidecar builds a running sidecar from a configuration, serves, and
// drains it. It is where the other packages are wired together.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/internal/metrics"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek/azurekv"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/tenant"
)

// Options are what a sidecar needs besides its configuration.
type Options struct {
	// Logger gets everything an operator should know. Required.
	Logger *slog.Logger
	// Version is the program's, for metrics; it may be empty.
	Version string
	// Record, if set, is called before each event of a key's life takes
	// effect; an error stops it. See dek.Config.
	Record func(context.Context, dek.Event) error
	// Observe, if set, is told of every operation before its answer.
	Observe func(context.Context, sealer.Event)
}

// Sidecar is a sidecar that listens. It serves while Run runs.
type Sidecar struct {
	cfg     *config.Config
	log     *slog.Logger
	tenants atomic.Pointer[tenant.Directory]
	policy  atomic.Pointer[policy.Policy]
	metrics *metrics.Metrics
	slab    *secret.Slab
	vaults  *azurekv.Vaults
	deks    *dek.Source
	server  *server.Server
	socket  net.Listener
	http    *http.Server
	web     net.Listener
}

// New checks cfg, builds a sidecar and opens its listeners; no vault is asked.
// Close it, also when Run has returned.
func New(cfg *config.Config, opts Options) (_ *Sidecar, err error) {
	if opts.Logger == nil {
		return nil, errors.New("sidecar options: Logger is required")
	}
	s := &Sidecar{cfg: cfg, log: opts.Logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.tenants.Store(cfg.Tenants.Directory)
	s.policy.Store(policy.AdmitSocket())
	for _, build := range []func(Options) error{
		s.buildMemory, s.buildMetrics, s.buildVaults, s.buildDEKs, s.buildServer, s.listen,
	} {
		if err := build(opts); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run serves until ctx ends, then lets calls under way finish for at most the
// configured drain time. It is called once.
func (s *Sidecar) Run(ctx context.Context) error {
	s.log.LogAttrs(ctx, slog.LevelInfo, "serving",
		slog.String("socket", s.cfg.Listen.Socket), slog.String("region", s.cfg.Region),
		slog.String("key_memory", s.slab.Level().String()), slog.Int("cache_entries", s.cfg.Cache.Entries))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.server.Serve(s.socket) })
	if s.http != nil {
		group.Go(func() error {
			if err := s.http.Serve(s.web); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving metrics: %w", err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		return s.drain()
	})
	return group.Wait()
}

func (s *Sidecar) drain() error {
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "draining", slog.Duration("at_most", s.cfg.Limits.Drain))
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Limits.Drain)
	defer cancel()
	start := time.Now()
	err := s.server.Drain(ctx)
	if s.http != nil {
		err = errors.Join(err, s.http.Close())
	}
	if err != nil {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, "drain cut short",
			slog.Duration("after", time.Since(start)), slog.Any("cause", err))
		return err
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "drained", slog.Duration("after", time.Since(start)))
	return nil
}

// Stats returns the figures of the keys.
func (s *Sidecar) Stats() dek.Stats { return s.deks.Stats() }

// Close ends what Run has not ended, and wipes every key.
func (s *Sidecar) Close() error {
	var errs []error
	if s.server != nil {
		s.server.Close()
	}
	if s.socket != nil {
		if err := s.socket.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.http != nil {
		errs = append(errs, s.http.Close())
		if err := s.web.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.deks != nil {
		s.deks.Close()
	}
	if s.vaults != nil {
		errs = append(errs, s.vaults.Close())
	}
	if s.slab != nil {
		errs = append(errs, s.slab.Close())
	}
	return errors.Join(errs...)
}
