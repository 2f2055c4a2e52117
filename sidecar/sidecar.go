// Package sidecar builds a running sidecar from a configuration, serves,
// reloads, answers its operators, and drains it. It is where the other packages
// are wired together.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keysidecar/keysidecar/audit/segments"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/internal/metrics"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek/azurekv"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/server/identity"
	"github.com/keysidecar/keysidecar/tenant"
)

// Options are what a sidecar needs besides its configuration.
type Options struct {
	// Logger gets everything an operator should know. Required.
	Logger *slog.Logger
	// Version is the program's, for metrics and status; it may be empty.
	Version string
	// Memory is how many bytes the process may use, from which the bytes of
	// calls in flight follow unless they are configured. 0 means 256 MiB.
	Memory int64
	// AuditTo gets the audit log if audit.sink is "stdout". Nil discards it.
	AuditTo io.Writer
	// Record, if set, is called before each event of a key's life takes
	// effect; an error stops it. See dek.Config.
	Record func(context.Context, dek.Event) error
	// Observe, if set, is told of every operation before its answer.
	Observe func(context.Context, sealer.Event)
}

// Sidecar is a sidecar that listens. It serves while Run runs.
type Sidecar struct {
	cfg         *config.Config // of the start: what a reload does not change
	log         *slog.Logger
	version     string
	started     time.Time
	clock       *policy.Clock
	loaded      atomic.Pointer[loaded]
	reloading   sync.Mutex
	problems    atomic.Pointer[[]string] // of the files as they are now
	refusedAt   int64                    // records of the audit log when a reload was refused last; under reloading
	suspensions *tenant.Suspensions
	audit       auditor
	auditDir    *segments.Dir               // nil unless that is the sink
	seen        atomic.Pointer[[]fileState] // the files that were read last
	wipeUntil   atomic.Int64                // ns since started: until then watch wipes again what is refused
	certs       *identity.Certificates      // nil without a TCP listener
	metrics     *metrics.Metrics
	slab        *secret.Slab
	vaults      *azurekv.Vaults
	deks        *dek.Source
	limits      *server.Limits // of the doors for data
	adminLimits *server.Limits
	bytesLimit  int64
	work        *sealer.Sealer
	doors       []*door
	http        *http.Server
	web         net.Listener
}

// door is a listener, and the server of those who come in by it.
type door struct {
	name, address string
	server        *server.Server
	listener      net.Listener
}

// New checks cfg, builds a sidecar and opens its listeners; no vault is asked.
// Close it, also when Run has returned.
func New(cfg *config.Config, opts Options) (_ *Sidecar, err error) {
	if opts.Logger == nil {
		return nil, errors.New("sidecar options: Logger is required")
	}
	s := &Sidecar{cfg: cfg, log: opts.Logger, version: opts.Version, started: time.Now(), clock: policy.NewClock()}
	s.problems.Store(new([]string))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, build := range []func(Options) error{
		s.buildState, s.buildCertificates, s.buildAudit, s.buildMemory, s.buildMetrics, s.buildVaults, s.buildDEKs, s.buildLimits,
		s.buildSealer, s.openDoors,
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
		slog.String("socket", s.cfg.Listen.Socket), slog.String("admin_socket", s.cfg.Listen.AdminSocket),
		slog.String("tcp", s.cfg.Listen.TCP.Address), slog.String("region", s.cfg.Region),
		slog.String("key_memory", s.slab.Level().String()), slog.Int("cache_entries", s.cfg.Cache.Entries),
		slog.Duration("kek_obeyed_within", s.cfg.KeyVault.Lease), slog.Duration("longer_in_an_outage", s.cfg.KeyVault.OutageGrace),
		slog.Int("policy_rules", len(s.cfg.Policy.Config.Rules)), slog.Int("tenants_suspended", len(s.suspensions.All())))
	group, ctx := errgroup.WithContext(ctx)
	for _, d := range s.doors {
		group.Go(func() error { return d.server.Serve(d.listener) })
	}
	if s.http != nil {
		group.Go(func() error {
			if err := s.http.Serve(s.web); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving metrics: %w", err)
			}
			return nil
		})
	}
	group.Go(func() error {
		s.keepAudit(ctx)
		return nil
	})
	group.Go(func() error {
		s.watch(ctx)
		return s.drain()
	})
	return group.Wait()
}

func (s *Sidecar) drain() error {
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "draining", slog.Duration("at_most", s.cfg.Limits.Drain))
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Limits.Drain)
	defer cancel()
	start := time.Now()
	var group errgroup.Group
	for _, d := range s.doors {
		group.Go(func() error { return d.server.Drain(ctx) })
	}
	err := group.Wait()
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
	for _, d := range s.doors {
		d.server.Close()
		if err := d.listener.Close(); !errors.Is(err, net.ErrClosed) {
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
	return errors.Join(append(errs, s.suspensions.Close(), s.closeAudit())...)
}
