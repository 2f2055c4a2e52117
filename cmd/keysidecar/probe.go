package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// probeTimeout is how long a sidecar has to answer.
const probeTimeout = 2 * time.Second

func (a *app) probe() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "probe [--wait DURATION]",
		Short: "Ask a running sidecar whether it serves: exit 0 if so, 1 if not",
		RunE: func(c *cobra.Command, _ []string) error {
			if wait < 0 {
				return usage(errors.New("--wait is negative"))
			}
			return a.runProbe(c.Context(), wait)
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "wait this long for the sidecar to come up; 0 asks once")
	return c
}

func (a *app) runProbe(ctx context.Context, wait time.Duration) error {
	path := strings.TrimPrefix(strings.TrimPrefix(a.socket, "unix:"), "//")
	// The socket is local, and nothing secret is sent: no TLS, and whoever
	// listens may answer.
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: probeTimeout,
		}))
	if err != nil {
		return permanent(fmt.Errorf("socket %s: %w", path, err))
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(wait, probeTimeout))
	defer cancel()
	res, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(wait > 0))
	if err != nil {
		return tryAgain(fmt.Errorf("asking %s: %s", path, status.Convert(err).Message()))
	}
	if res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return tryAgain(fmt.Errorf("sidecar at %s is %s", path, res.GetStatus()))
	}
	return a.print(map[string]string{"status": "SERVING"}, "serving\n")
}
