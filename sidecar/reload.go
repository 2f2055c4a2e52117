package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server/identity"
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
	return s.reload(ctx, false)
}

// reload is Reload. Again, it does not log what was wrong before and still is.
func (s *Sidecar) reload(ctx context.Context, again bool) (warnings []string, err error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	next, err := s.read(s.loaded.Load().cfg)
	if err == nil {
		if err = s.audit.willReload(ctx, next.files); err != nil {
			err = fmt.Errorf("%w: see audit.dir, or whoever reads the standard output", err)
		}
	}
	s.metrics.ObserveReload(err == nil)
	if err != nil {
		s.refuse(ctx, next.files, err, again)
		return nil, err
	}
	// It is recorded that it took effect: nothing can go wrong from here.
	s.problems.Store(new([]string))
	if s.certs != nil {
		s.certs.Use(next.certs)
	}
	cfg, warnings := next.cfg, next.warnings
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

// refuse says that a reload is refused. Again, it does not say what it said
// before; unless the audit log, slow as it is, may by now have the record that
// the reload took effect, which has to be followed by one that it did not.
func (s *Sidecar) refuse(ctx context.Context, files map[string]string, err error, again bool) {
	lines := strings.Split(err.Error(), "\n")
	before := *s.problems.Swap(&lines)
	written := s.auditStats().Records
	late := errors.Is(err, audit.ErrUnavailable) && written != s.refusedAt
	s.refusedAt = written
	if again && slices.Equal(lines, before) && !late {
		return
	}
	s.log.LogAttrs(ctx, slog.LevelError, "reload refused: the files read before stay in effect", slog.Any("problems", lines))
	s.audit.notReloaded(files, err)
}

// reading is what reading the files once led to.
type reading struct {
	files    map[string]string // the hashes of what was read, by path
	cfg      *config.Config
	warnings []string
	certs    *identity.Loaded // nil without a TCP listener
}

// read reads and checks the files, all as they are at one time. After an error,
// files has those that were read until then, and nothing else counts.
func (s *Sidecar) read(old *config.Config) (next reading, err error) {
	states := fingerprint(s.cfg.Files())
	s.seen.Store(&states)
	if next.cfg, err = config.Reload(old); err != nil {
		next.files = config.HashesOf(err)
		return next, err
	}
	next.files = next.cfg.Hashes()
	if next.warnings, err = takenAway(old, next.cfg); err != nil {
		return next, err
	}
	if s.certs != nil {
		if next.certs, err = s.certs.Load(); err != nil {
			maps.Copy(next.files, identity.HashesOf(err))
			return next, err
		}
		maps.Copy(next.files, next.certs.Hashes())
	}
	if !slices.Equal(states, fingerprint(s.cfg.Files())) {
		return next, errChanged
	}
	return next, nil
}

// takenAway returns what the new files take away from data that is sealed
// already. What is never right is an error: what is sealed before somebody
// corrects it would be lost. Who means it restarts the sidecar.
func takenAway(old, cfg *config.Config) (warnings []string, err error) {
	refused := []string{"data that is sealed already would not open; if that is meant, restart:"}
	for _, f := range config.Check(old, cfg) {
		if f.Kind.Refuses() {
			refused = append(refused, f.String())
		} else {
			warnings = append(warnings, f.String())
		}
	}
	if len(refused) > 1 {
		return nil, errors.New(strings.Join(refused, "\n"))
	}
	return warnings, nil
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

// retryInterval is how long after a reload of its own that failed watch tries
// again, though no file has changed: what was wrong may not show in any, such as
// permissions, or too many open files.
const retryInterval = time.Minute

// watch reloads when files have changed, and when the last reload failed, until
// ctx ends.
func (s *Sidecar) watch(ctx context.Context) {
	wipe := time.NewTicker(wipeInterval)
	defer wipe.Stop()
	// Not a ticker: after a slow look, that would soon ask for the next one.
	look := time.NewTimer(s.cfg.ReloadInterval)
	defer look.Stop()
	if s.cfg.ReloadInterval == 0 {
		look.Stop()
	}
	w := watcher{Sidecar: s}
	for {
		select {
		case <-ctx.Done():
			return
		case <-wipe.C:
			if int64(time.Since(s.started)) < s.wipeUntil.Load() {
				s.wipeRefused()
			}
		case <-look.C:
			w.look(ctx)
			look.Reset(s.cfg.ReloadInterval)
		}
	}
}

// watcher is what watch remembers.
type watcher struct {
	*Sidecar
	before []fileState // what the last look saw
	tried  time.Time   // when a look last reloaded
}

// look reloads when the files are not those that were read last, or could not
// be read, and have stayed as they are for one interval: so that one that is
// being written is not read half.
func (w *watcher) look(ctx context.Context) {
	now := fingerprint(w.cfg.Files())
	settled := slices.Equal(now, w.before)
	w.before = now
	changed := !slices.Equal(now, *w.seen.Load())
	retry := len(*w.problems.Load()) > 0 && time.Since(w.tried) >= retryInterval
	if settled && (changed || retry) {
		w.tried = time.Now()
		_, _ = w.reload(ctx, !changed) // it has logged what is wrong
	}
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
