package sidecar_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/sidecar"
)

const (
	processBytes = "KEYSIDECAR_TEST_BYTES" // how many more its log gets before the system ends the process
	processEarly = "KEYSIDECAR_TEST_EARLY" // counted from the start, not from when it is ready

	// An auditedProcess is a sidecar that is watched for what its audit log
	// says.
	auditedProcess = "audited"
)

// Where an auditedProcess kills itself, besides within a write.
const (
	beforeKey   = "before a key event is recorded"
	afterDenied = "after a denial is recorded, before its answer"
	afterRecord = "after a seal is recorded, before its answer"
)

// runAudited serves as "keysidecar serve" does, with the audit log on standard
// output if that is its sink.
func runAudited(ctx context.Context, dir string) error {
	signal.Ignore(syscall.SIGPIPE)
	cfg, err := config.Load(filepath.Join(dir, "config.yaml"))
	if err != nil {
		return err
	}
	early := os.Getenv(processEarly) != ""
	if early {
		err = endInWrite(cfg.Audit.Dir)
	}
	k := &killer{point: os.Getenv(processPoint)}
	nth, _ := strconv.ParseInt(os.Getenv(processNth), 10, 64) // none: never
	k.left.Store(nth)
	if err != nil {
		return err
	}
	s, err := sidecar.New(cfg, sidecar.Options{
		Logger: slog.New(slog.DiscardHandler), AuditTo: os.Stdout,
		Record: func(context.Context, dek.Event) error {
			k.at(beforeKey)
			return nil
		},
		Observe: k.observeAudited,
	})
	if err == nil && !early {
		err = endInWrite(cfg.Audit.Dir)
	}
	if err != nil {
		return err
	}
	if cfg.Audit.Sink != "stdout" {
		say("ready")
	}
	err = s.Run(ctx)
	return errors.Join(err, s.Close())
}

func (k *killer) observeAudited(_ context.Context, e sealer.Event) {
	switch {
	case e.Reason.Denial():
		k.at(afterDenied)
	case e.Verb == policy.Seal && e.Reason == sealer.OK:
		k.at(afterRecord)
	}
}
