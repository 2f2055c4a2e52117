package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"google.golang.org/grpc"

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

// spareSlots is room in the slab for DEKs that are in use after they left the
// cache, and for those being unwrapped.
const spareSlots = 4096

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
		DEKs: func() dek.Stats { return s.deks.Stats() },
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
		PollInterval: c.KeyVault.PollInterval, LoadTimeout: c.KeyVault.LoadTimeout,
		Negative: dek.Negative(c.Cache.Negative),
		Record:   opts.Record,
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

// buildServer builds the sealer and the gRPC server around it.
func (s *Sidecar) buildServer(opts Options) error {
	work, err := sealer.New(sealer.Config{
		DEKs:         s.deks,
		Tenants:      func(id tenant.ID) (*tenant.Entry, error) { return s.tenants.Load().Lookup(id) },
		Policy:       s.policy.Load,
		Region:       s.cfg.Region,
		MaxPlaintext: int(s.cfg.Limits.UnaryBytes),
		Observe: func(ctx context.Context, e sealer.Event) {
			s.metrics.Observe(ctx, e)
			if opts.Observe != nil {
				opts.Observe(ctx, e)
			}
		},
	})
	if err != nil {
		return err
	}
	s.server, err = server.New(server.Config{
		Sealer: work,
		// One listener is one source of identity: whom the socket's mode admits.
		Caller:             func(context.Context) (policy.Caller, error) { return policy.SocketCaller(), nil },
		Logger:             s.log,
		MaxUnary:           int(s.cfg.Limits.UnaryBytes),
		CallsPerConnection: uint32(s.cfg.Limits.CallsPerConnection), //nolint:gosec // config bounds it
		Reflection:         s.cfg.Server.Reflection,
		Unary:              []grpc.UnaryServerInterceptor{s.metrics.Unary()},
		Stream:             []grpc.StreamServerInterceptor{s.metrics.Stream()},
	})
	return err
}

// listen opens the listeners.
func (s *Sidecar) listen(Options) error {
	socket, err := server.ListenUnix(s.cfg.Listen.Socket, s.cfg.Listen.Mode)
	if err != nil {
		return err
	}
	s.socket = socket
	if s.cfg.Metrics.Listen == "" {
		return nil
	}
	if s.web, err = net.Listen("tcp", s.cfg.Metrics.Listen); err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	s.http = &http.Server{Handler: s.metrics.Handler(), ReadHeaderTimeout: 5 * time.Second}
	return nil
}
