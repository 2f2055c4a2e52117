package audited

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keysidecar/keysidecar/bench/load"
	"github.com/keysidecar/keysidecar/bench/process"
	"github.com/keysidecar/keysidecar/internal/devsetup"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// site is a directory with all files, the Key Vault, and the sidecars that use it.
type site struct {
	dir, binary           string
	vault                 *devvault.Server
	starts                int
	none, aggregate, full *sidecar // that run
	log                   logStats
}

// sidecar is one that runs, and its callers.
type sidecar struct {
	dir     string
	process *process.Process
	caller  *load.Caller
}

func newSite(binary string) (_ *site, err error) {
	dir, err := os.MkdirTemp("", "ksbench")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, binary: binary}
	if s.vault, err = devvault.Open(devvault.Config{Dir: filepath.Join(dir, "vault")}); err != nil {
		return nil, errors.Join(fmt.Errorf("opening Key Vault: %w", err), os.RemoveAll(dir))
	}
	return s, nil
}

func (s *site) close() error { return errors.Join(s.vault.Close(), os.RemoveAll(s.dir)) }

// start starts the sidecars, each time another one first.
func (s *site) start(ctx context.Context) error {
	kinds := []struct {
		to    **sidecar
		audit string
	}{
		{&s.none, "{sink: none}"},
		{&s.aggregate, "{sink: dir, dir: audit, data: aggregate}"},
		{&s.full, "{sink: dir, dir: audit, data: full}"},
	}
	for i := range kinds {
		k := kinds[(s.starts+i)%len(kinds)]
		var err error
		if *k.to, err = s.startSidecar(ctx, k.audit); err != nil {
			return fmt.Errorf("sidecar with audit %s: %w", k.audit, err)
		}
	}
	s.starts++
	return nil
}

// stop stops those that run.
func (s *site) stop() error {
	var errs []error
	for _, k := range []**sidecar{&s.none, &s.aggregate, &s.full} {
		if *k != nil {
			errs = append(errs, (*k).caller.Close(), (*k).process.Stop(), os.RemoveAll((*k).dir))
			*k = nil
		}
	}
	return errors.Join(errs...)
}

// startSidecar starts a sidecar with that section "audit", and calls it.
func (s *site) startSidecar(ctx context.Context, audit string) (*sidecar, error) {
	dir, err := os.MkdirTemp(s.dir, "")
	if err != nil {
		return nil, err
	}
	path, err := devsetup.Write(devsetup.Config{Dir: dir, Vault: s.vault, Tenants: []string{tenant}})
	if err != nil {
		return nil, fmt.Errorf("writing files: %w", err)
	}
	socket := filepath.Join(dir, "s.sock")
	text := fmt.Sprintf(configFile, socket, s.vault.Addr(), s.vault.CAFile(), s.vault.TokenFile(), audit)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p := process.Sidecar{
		Binary: s.binary, Config: path, Log: filepath.Join(dir, "log"), Network: "unix", Address: socket,
	}
	k := &sidecar{dir: dir}
	if k.process, err = p.Start(ctx); err != nil {
		return nil, err
	}
	k.caller, err = load.Dial(ctx, load.Target{Socket: socket, Connections: connections, Tenant: tenant, Bytes: size})
	if err != nil {
		return nil, errors.Join(err, k.process.Stop())
	}
	return k, nil
}

// cpu is a half: the sidecar's CPU time of a Seal.
func (k *sidecar) cpu(ctx context.Context, length time.Duration) (float64, error) {
	before := k.process.CPU()
	r, err := k.call(ctx, length)
	return (k.process.CPU() - before).Seconds() / float64(r.OK), err
}

// rate is a half: the time in which the sidecar does a Seal.
func (k *sidecar) rate(ctx context.Context, length time.Duration) (float64, error) {
	r, err := k.call(ctx, length)
	return r.Took.Seconds() / float64(r.OK), err
}

// call has all callers make calls, of which none may fail.
func (k *sidecar) call(ctx context.Context, length time.Duration) (load.Report, error) {
	r, err := k.caller.Do(ctx, load.Order{Start: time.Now(), For: length, Outstanding: callers})
	if err == nil && r.OK != r.Due {
		err = fmt.Errorf("%d calls answered, %d refused, %d failed: %s", r.OK, r.Refused, r.Failed, r.Failure)
	}
	return r, err
}

const tenant = "tenant"

// configFile sets no limit that the callers could reach, and otherwise what is the default.
const configFile = `apiVersion: keysidecar/v1
listen:
  socket: %s
region: local
key_vault:
  cloud: devvault
  devvault: {address: "%s", suffix: vault.localhost, ca_file: %s, token_file: %s}
  credentials: [{name: dev, type: devvault}]
audit: %s
limits:
  caller: {rate: 1000000, burst: 1000000}
  tenant: {rate: 1000000, burst: 1000000}
`
