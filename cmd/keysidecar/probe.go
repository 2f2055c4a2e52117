package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func (a *app) probe() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "probe",
		Short: "Ask a running sidecar whether it serves: exit 0 if so, 1 if not",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.runProbe(c.Context(), wait)
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "wait this long for the sidecar to come up")
	return c
}

func (a *app) runProbe(ctx context.Context, wait time.Duration) error {
	// The socket is local: there is no network for TLS to protect.
	conn, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return permanent(fmt.Errorf("socket %s: %w", a.socket, err))
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, max(wait, 2*time.Second))
	defer cancel()
	res, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(wait > 0))
	if err != nil {
		return tryAgain(fmt.Errorf("asking %s: %w", a.socket, err))
	}
	if res.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return tryAgain(fmt.Errorf("sidecar at %s is %s", a.socket, res.Status))
	}
	return a.print(map[string]string{"status": "SERVING"}, "serving\n")
}
