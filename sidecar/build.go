package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/internal/metrics"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek/azurekv"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/server/identity"
	"github.com/keysidecar/keysidecar/server/socket"
	"github.com/keysidecar/keysidecar/tenant"
)

// spareSlots is room in the slab for DEKs that are in use after they left the
// cache, and for those being unwrapped.
const spareSlots = 4096

// buildState opens what operators have said, and makes the rules of now.
func (s *Sidecar) buildState(Options) (err error) {
	if s.cfg.StateDir != "" {
		if s.suspensions, err = tenant.OpenSuspensions(s.cfg.StateDir); err != nil {
			return fmt.Errorf("state_dir: %w", err)
		}
	}
	files := fingerprint(s.cfg.Files())
	s.seen.Store(&files)
	s.loaded.Store(s.rulesOf(s.cfg))
	return nil
}

func (s *Sidecar) buildMemory(Options) (err error) {
	require := secret.Heap
	if s.cfg.Memory.RequireLocked {
		require = secret.Locked
	}
	if s.slab, err = secret.New(secret.Config{Slots: s.cfg.Cache.Entries + spareSlots, Require: require}); err != nil {
		return fmt.Errorf("reserving memory for keys: %w", err)
	}
	if s.slab.Level() < secret.Locked {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, "keys are in ordinary memory: raise RLIMIT_MEMLOCK, see memory.require_locked",
			slog.Any("cause", s.slab.Shortfall()))
	}
	return nil
}

func (s *Sidecar) buildMetrics(opts Options) (err error) {
	s.metrics, err = metrics.New(metrics.Config{
		Version: opts.Version, Slab: s.slab,
		DEKs:  func() dek.Stats { return s.deks.Stats() },
		Doors: s.doorStats, Bytes: func() int64 { return s.limits.Bytes.InUse() }, Audit: s.auditStats,
	})
	return err
}

func (s *Sidecar) buildDEKs(opts Options) (err error) {
	c := s.cfg
	s.deks, err = dek.New(dek.Config{
		KEKs: s.vaults, Slab: s.slab, Logger: s.log,
		CacheEntries: c.Cache.Entries, TenantShare: c.Cache.TenantShare,
		SoftAge: c.DEK.SoftAge, HardAge: c.DEK.HardAge(),
		MaxMessages: c.DEK.MaxMessages, MaxBytes: uint64(c.DEK.MaxBytes),
		PollInterval: c.KeyVault.PollInterval, Lease: c.KeyVault.Lease,
		LoadTimeout: c.KeyVault.LoadTimeout, PatientWaiters: c.Limits.Tenant.Waiting,
		Negative: dek.Negative(c.Cache.Negative),
		Record: func(ctx context.Context, e dek.Event) error {
			if opts.Record != nil {
				if err := opts.Record(ctx, e); err != nil && e.Kind != dek.Fenced {
					return err
				}
			}
			return s.audit.key(ctx, e)
		},
	})
	return err
}

func (s *Sidecar) buildVaults(Options) error {
	kv := &s.cfg.KeyVault
	cfg := azurekv.Config{
		Cloud: kv.Cloud, Hosts: kv.Hosts, Logger: s.log,
		Credentials: make(map[string]azcore.TokenCredential),
		Do:          secret.Do,
		Observe:     func(c azurekv.Call) { s.metrics.ObserveVault(c.Op, c.Status, c.Duration) },
	}
	if kv.Cloud == devCloud {
		cfg.Cloud = ""
		cfg.DevVault = &azurekv.DevVault{
			Address: kv.DevVault.Address, Suffix: kv.DevVault.Suffix,
			CAFile: kv.DevVault.CAFile, TokenFile: kv.DevVault.TokenFile,
		}
	}
	for _, c := range kv.Credentials {
		credential, err := newCredential(kv, c)
		if err != nil {
			return fmt.Errorf("credential %s: %w", c.Name, err)
		}
		cfg.Credentials[c.Name] = credential
	}
	vaults, err := azurekv.New(cfg)
	if err != nil {
		return err
	}
	s.vaults = vaults
	return nil
}

const devCloud = "devvault"

func newCredential(kv *config.KeyVault, c config.Credential) (azcore.TokenCredential, error) {
	cfg := azurekv.CredentialConfig{
		Type: c.Type, Cloud: kv.Cloud, TenantID: c.TenantID, ClientID: c.ClientID,
		AllowedTenants: c.AllowedTenants,
		TokenFile:      c.TokenFile, CertificateFile: c.CertificateFile,
	}
	if kv.Cloud == devCloud {
		cfg.Cloud, cfg.TokenFile = "", kv.DevVault.TokenFile
	}
	return azurekv.NewCredential(cfg)
}

// buildSealer builds what answers SealService, by whatever door a call comes.
func (s *Sidecar) buildSealer(opts Options) (err error) {
	c := &s.cfg.Limits
	tenants, err := limit.New(limit.Config{Entries: max(limitEntries, s.cfg.Cache.Entries)})
	if err != nil {
		return err
	}
	misses, err := limit.New(limit.Config{})
	if err != nil {
		return err
	}
	s.work, err = sealer.New(sealer.Config{
		DEKs:  s.deks,
		Rules: func() *sealer.Rules { return s.loaded.Load().rules },
		Limits: sealer.Limits{
			Tenants: tenants, Tenant: limit.Limit{Rate: c.Tenant.Rate, Burst: c.Tenant.Burst, Calls: c.Tenant.Calls},
			Misses: misses, Miss: limit.Limit{Rate: c.Misses.Rate, Burst: c.Misses.Burst},
		},
		Region:       s.cfg.Region,
		MaxPlaintext: int(c.UnaryBytes),
		Record:       s.audit.operation, Ready: s.audit.ready,
		Observe: func(ctx context.Context, e sealer.Event) {
			s.metrics.Observe(ctx, e)
			if opts.Observe != nil {
				opts.Observe(ctx, e)
			}
		},
	})
	return err
}

// limitEntries is how many callers or tenants have their own count at least.
const limitEntries = 10_000

// defaultMemory is what a process is taken to have if nobody says.
const defaultMemory = 256 << 20

// buildLimits makes the limits that all doors share.
func (s *Sidecar) buildLimits(opts Options) error {
	c := &s.cfg.Limits
	callers, err := limit.New(limit.Config{})
	if err != nil {
		return err
	}
	total := cmp.Or(int64(c.BytesInFlight), cmp.Or(opts.Memory, defaultMemory)/4)
	if share, need := int64(float64(total)*c.BytesShare), server.RoomForCall(int(c.UnaryBytes)); share < need {
		return fmt.Errorf("limits: a caller may have %v of the %v of bytes_in_flight, and one call of unary_bytes %v needs up to %v: "+
			"raise bytes_in_flight (or the memory limit, of which it is a quarter) or bytes_share, or lower unary_bytes",
			config.Size(share), config.Size(total), c.UnaryBytes, config.Size(need))
	}
	bytes, err := limit.NewBytes(limit.BytesConfig{Total: total, Share: c.BytesShare})
	if err != nil {
		return err
	}
	s.bytesLimit = total
	if s.adminLimits, err = newAdminLimits(limit.Limit{Rate: c.Caller.Rate, Burst: c.Caller.Burst, Calls: adminCalls}); err != nil {
		return err
	}
	s.limits = &server.Limits{
		Callers: callers, Bytes: bytes,
		Caller: limit.Limit{Rate: c.Caller.Rate, Burst: c.Caller.Burst, Calls: c.Caller.Calls},
	}
	return nil
}

// adminMessage is the longest message of an operator, in bytes.
const adminMessage = 64 << 10

// adminCalls is how many calls of one operator are under way at a time.
const adminCalls = 16

// newAdminLimits makes limits of operators' calls. They are apart, so that an
// operator gets in when callers have taken all there is.
func newAdminLimits(each limit.Limit) (*server.Limits, error) {
	callers, err := limit.New(limit.Config{})
	if err != nil {
		return nil, err
	}
	bytes, err := limit.NewBytes(limit.BytesConfig{Total: 16 * server.RoomForCall(adminMessage), Share: 0.5})
	return &server.Limits{Callers: callers, Bytes: bytes, Caller: each}, err
}

// openDoors opens the listeners: one for each way to prove who one is.
func (s *Sidecar) openDoors(Options) error {
	c := &s.cfg.Listen
	peers := identity.NewPeers()
	ln, err := socket.Listen(c.Socket, c.Mode)
	if err != nil {
		return err
	}
	if err := s.open("unix", ln, server.Config{Sealer: s.work, Source: peers, Reflection: s.cfg.Server.Reflection}); err != nil {
		return err
	}
	ln, err = socket.Listen(c.AdminSocket, c.AdminMode)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := s.open("admin", ln, server.Config{
		Admin: &admin{s: s}, Source: peers, Reflection: s.cfg.Server.Reflection, Limits: s.adminLimits, MaxUnary: adminMessage,
	}); err != nil {
		return err
	}
	return errors.Join(s.openTCP(), s.openMetrics())
}

// buildCertificates reads the certificates of the TCP listener, if there is one.
func (s *Sidecar) buildCertificates(Options) (err error) {
	c := &s.cfg.Listen.TCP
	if c.Address == "" {
		return nil
	}
	s.certs, err = identity.NewCertificates(identity.CertificatesConfig{
		CertFile: c.CertFile, KeyFile: c.KeyFile, ClientCAFile: c.ClientCAFile, TrustDomain: c.TrustDomain,
		MaxAge: c.MaxAge, Logger: s.log,
	})
	if err != nil {
		return fmt.Errorf("listen.tcp: %w", err)
	}
	return nil
}

// openTCP opens the TCP listener, if there is one.
func (s *Sidecar) openTCP() error {
	c := &s.cfg.Listen.TCP
	if c.Address == "" {
		return nil
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.Address)
	if err != nil {
		return fmt.Errorf("listen.tcp: %w", err)
	}
	return s.open("tcp", ln, server.Config{
		Sealer: s.work, Source: s.certs, Allow: c.Prefixes(), MaxConnectionAge: c.MaxAge / 4 * 3,
	})
}

// open adds a door. It closes ln if that does not work.
func (s *Sidecar) open(name string, ln net.Listener, cfg server.Config) error {
	c := &s.cfg.Limits
	cfg.Logger = s.log
	cfg.Refused = func(ctx context.Context, r sealer.Reason) error {
		s.metrics.ObserveRefusal(r)
		return s.audit.refusal(ctx, r)
	}
	if cfg.Limits == nil {
		cfg.Limits = s.limits
	}
	cfg.Policy = func() *policy.Policy { return s.loaded.Load().rules.Policy }
	cfg.MaxUnary = cmp.Or(cfg.MaxUnary, int(c.UnaryBytes))
	cfg.CallsPerConnection = uint32(c.CallsPerConnection) //nolint:gosec // config bounds it
	cfg.CallTimeout, cfg.Connections, cfg.ConnectionsPerCaller = c.CallTimeout, c.Connections, c.ConnectionsPerCaller
	cfg.Unary = []grpc.UnaryServerInterceptor{s.metrics.Unary()}
	cfg.Stream = []grpc.StreamServerInterceptor{s.metrics.Stream()}
	srv, err := server.New(cfg)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	s.doors = append(s.doors, &door{name: name, address: ln.Addr().String(), server: srv, listener: ln})
	return nil
}

// openMetrics opens the listener for Prometheus, if there is one.
func (s *Sidecar) openMetrics() error {
	if s.cfg.Metrics.Listen == "" {
		return nil
	}
	ln, err := net.Listen("tcp", s.cfg.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	s.http, s.web = newWeb(ln, s.metrics.Handler())
	return nil
}

// Limits of the listener for Prometheus, where nobody says who they are. Who is
// too many waits, at most until the others' time is over.
const (
	webConns   = 32
	webHeaders = 16 << 10         // bytes
	webRead    = 5 * time.Second  // for the first request, and for the whole of one
	webWrite   = 30 * time.Second // for the answer
	webIdle    = time.Second      // from an answer to the next request
)

// newWeb returns a server, and the listener for it to serve on.
func newWeb(ln net.Listener, h http.Handler) (*http.Server, net.Listener) {
	return &http.Server{
		Handler: h, ReadTimeout: webRead, WriteTimeout: webWrite, IdleTimeout: webIdle, MaxHeaderBytes: webHeaders,
	}, netutil.LimitListener(ln, webConns)
}
