package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/sidecar"
)

func (a *app) serve() *cobra.Command {
	return &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the sidecar until SIGTERM, then drain",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkEnvironment(os.Getenv); err != nil {
				return err
			}
			cfg, err := config.Load(a.config)
			if err != nil {
				return permanent(err)
			}
			return a.runServe(c.Context(), cfg, func() error { return nil })
		},
	}
}

// runServe calls ready as soon as the sidecar listens.
func (a *app) runServe(ctx context.Context, cfg *config.Config, ready func() error) error {
	log, err := a.configuredLogger(cfg.Log)
	if err != nil {
		return permanent(err)
	}
	if err := secret.HardenProcess(); err != nil {
		return permanent(fmt.Errorf("keeping this process out of core dumps: %w", err))
	}
	limits := limitRuntime(os.Getenv, os.DirFS("/"))
	logLimits(ctx, log, limits)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // from here on it does not end the process
	signal.Ignore(syscall.SIGPIPE)         // who reads the audit log may go away: that is an error to live with
	s, err := sidecar.New(cfg, sidecar.Options{Logger: log, Version: buildInfo().Version, Memory: limits.available, AuditTo: a.out})
	if err != nil {
		signal.Stop(hangups)
		return startError(err)
	}
	defer reloadAtHangup(ctx, s, hangups)()
	if err = ready(); err == nil {
		err = s.Run(ctx)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return tryAgain(err)
	}
	return nil
}

// reloadAtHangup reloads at every SIGHUP until stop is called. What is wrong
// with the files is in the log.
func reloadAtHangup(ctx context.Context, s *sidecar.Sidecar, hangups chan os.Signal) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range hangups {
			_, _ = s.Reload(ctx)
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
		<-done
	}
}

func logLimits(ctx context.Context, log *slog.Logger, limits runtimeLimits) {
	attrs := []slog.Attr{slog.Int("gomaxprocs", limits.procs)}
	if limits.memory < math.MaxInt64 {
		attrs = append(attrs, slog.Int64("gomemlimit_bytes", limits.memory))
	}
	log.LogAttrs(ctx, slog.LevelInfo, "runtime limits", attrs...)
}

// configuredLogger returns the logger to standard error that cfg asks for.
func (a *app) configuredLogger(cfg config.Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "text" {
		return slog.New(slog.NewTextHandler(a.err, options)), nil
	}
	return slog.New(slog.NewJSONHandler(a.err, options)), nil
}
