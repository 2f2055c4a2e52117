package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// loaded is what one reading of the files gave. It never changes.
type loaded struct {
	cfg   *config.Config
	rules *sealer.Rules
	at    time.Time
}

func (s *Sidecar) rulesOf(cfg *config.Config) *loaded {
	directory := cfg.Tenants.Directory
	return &loaded{cfg: cfg, at: time.Now(), rules: &sealer.Rules{
		Policy: cfg.Policy.Policy,
		Tenants: func(id tenant.ID) (*tenant.Entry, error) {
			entry, err := directory.Lookup(id)
			if err != nil {
				return nil, err
			}
			if _, here := s.suspensions.Get(id); here && !entry.Suspended {
				suspended := *entry
				suspended.Suspended = true
				return &suspended, nil
			}
			return entry, nil
		},
	}}
}

// errChanged is why a reload is refused that read the files while they changed.
var errChanged = errors.New("a file changed while the files were read: reload again when all are written")

// Reload reads tenants.yaml, policy.yaml and the TCP listener's certificates
// again. They take effect together, for every call that begins from then on, or
// not at all: then the error names what is wrong, and everything stays as it
// was. warnings say what the new files take away from data that is sealed
// already.
func (s *Sidecar) Reload(ctx context.Context) (warnings []string, err error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	cfg, warnings, err := s.read(s.loaded.Load().cfg)
	s.metrics.ObserveReload(err == nil)
	if err != nil {
		lines := strings.Split(err.Error(), "\n")
		s.problems.Store(&lines)
		s.log.LogAttrs(ctx, slog.LevelError, "reload refused: the files read before stay in effect", slog.Any("problems", lines))
		return nil, err
	}
	s.problems.Store(new([]string))
	s.loaded.Store(s.rulesOf(cfg))
	wiped := s.evictRefused()
	s.log.LogAttrs(ctx, slog.LevelInfo, "reloaded", slog.Int("policy_rules", len(cfg.Policy.Config.Rules)),
		slog.Int("tenant_rules", len(cfg.Tenants.Config.Tenants)), slog.Int("keks", len(cfg.Tenants.Config.KEKs)),
		slog.Int("deks_wiped", wiped))
	if len(warnings) > 0 {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the new files take away from data that is sealed already", slog.Any("warnings", warnings))
	}
	return warnings, nil
}

// read reads the files, all as they are at one time, and puts the certificates
// in effect: the last that can go wrong.
func (s *Sidecar) read(old *config.Config) (cfg *config.Config, warnings []string, err error) {
	files := fingerprint(s.cfg.Files())
	s.seen.Store(&files)
	if cfg, err = config.Reload(old); err != nil {
		return nil, nil, err
	}
	for _, f := range config.Check(old, cfg) {
		warnings = append(warnings, f.String())
	}
	if !slices.Equal(files, fingerprint(s.cfg.Files())) {
		return nil, nil, errChanged
	}
	if s.certs != nil {
		err = s.certs.Reload()
	}
	return cfg, warnings, err
}

// evictRefused wipes the DEKs of tenants for which every operation is refused.
// It is done again by watch: calls that began before may be loading some.
func (s *Sidecar) evictRefused() int {
	calls := s.cfg.Limits.CallTimeout + s.cfg.KeyVault.LoadTimeout // a load outlives its caller
	s.wipeUntil.Store(int64(time.Since(s.started) + calls + 2*wipeInterval))
	return s.wipeRefused()
}

func (s *Sidecar) wipeRefused() int {
	tenants := s.loaded.Load().rules.Tenants
	return s.deks.Evict(func(id tenant.ID) bool {
		entry, err := tenants(id)
		return err != nil || entry.Suspended || !entry.Allows(s.cfg.Region)
	})
}

// wipeInterval is how often watch wipes what is refused, while there may be
// some.
const wipeInterval = 5 * time.Second

// watch reloads when files have changed, until ctx ends.
func (s *Sidecar) watch(ctx context.Context) {
	wipe := time.NewTicker(wipeInterval)
	defer wipe.Stop()
	// Not a ticker: after a slow look, that would soon ask for the next one.
	look := time.NewTimer(s.cfg.ReloadInterval)
	defer look.Stop()
	if s.cfg.ReloadInterval == 0 {
		look.Stop()
	}
	var before []fileState
	for {
		select {
		case <-ctx.Done():
			return
		case <-wipe.C:
			if int64(time.Since(s.started)) < s.wipeUntil.Load() {
				s.wipeRefused()
			}
		case <-look.C:
			before = s.look(ctx, before)
			look.Reset(s.cfg.ReloadInterval)
		}
	}
}

// look reloads when the files are not those that were read last, and have
// stayed as they are for one interval: so that one that is being written is
// not read half. It returns what it saw, before is what the last look saw.
func (s *Sidecar) look(ctx context.Context, before []fileState) []fileState {
	now := fingerprint(s.cfg.Files())
	if slices.Equal(now, before) && !slices.Equal(now, *s.seen.Load()) {
		_, _ = s.Reload(ctx) // it has logged what is wrong
	}
	return now
}

// fileState is what of a file changes when its content does.
type fileState struct {
	size, modified int64
	inode          uint64 // of the file that the name leads to
}

func fingerprint(names []string) []fileState {
	states := make([]fileState, len(names))
	for i, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			continue // a file that is gone differs from one that is there
		}
		states[i] = fileState{size: info.Size(), modified: info.ModTime().UnixNano()}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			states[i].inode = stat.Ino
		}
	}
	return states
}
