package server_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

func TestDrainLetsCallsFinish(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		close(entered)
		<-leave
		return sealer.Result{Data: []byte("late")}, nil
	}), nil)
	type result struct {
		resp *keysidecarv1.SealResponse
		err  error
	}
	call := make(chan result)
	go func() {
		resp, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{})
		call <- result{resp, err}
	}()
	<-entered
	// An open Watch is told, and does not hold Drain up.
	watch, err := grpc_health_v1.NewHealthClient(s.conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := watch.Recv(); err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("Watch began with %v, %v", resp, err)
	}

	drained := make(chan error)
	go func() { drained <- s.Drain(t.Context()) }()
	if resp, err := watch.Recv(); err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("Watch reported %v, %v while draining", resp, err)
	}
	if resp, err := watch.Recv(); err == nil {
		t.Errorf("Watch went on with %v", resp)
	}
	select {
	case err := <-drained:
		t.Fatalf("Drain returned %v with a call under way", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(leave)
	if got := <-call; got.err != nil || string(got.resp.GetSealed()) != "late" {
		t.Errorf("call under way got %v", got)
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain returned %v", err)
	}
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("call after Drain returned %v", err)
	}
	if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket file after Drain: %v", err)
	}
}

func TestDrainIsBounded(t *testing.T) {
	entered := make(chan struct{})
	var ended atomic.Bool
	s := start(t, answer(func(ctx context.Context, _ policy.Verb, _ sealer.Request) (sealer.Result, error) {
		close(entered)
		<-ctx.Done()
		<-time.After(20 * time.Millisecond)
		ended.Store(true)
		return sealer.Result{}, ctx.Err()
	}), nil)
	call := make(chan error)
	go func() {
		_, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{})
		call <- err
	}()
	<-entered
	cause := errors.New("drain time is over")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, cause)
	defer cancel()
	if err := s.Drain(ctx); !errors.Is(err, cause) {
		t.Errorf("Drain with a call that hangs returned %v", err)
	}
	if !ended.Load() {
		t.Error("Drain returned before the handler did")
	}
	if err := <-call; status.Code(err) != codes.Unavailable {
		t.Errorf("call that was cut off returned %v", err)
	}
}

// A peer that connects and says nothing takes no answer from anybody: it can
// neither hold a drain up nor make it a failure.
func TestDrainDoesNotWaitForSilentPeers(t *testing.T) {
	s := start(t, answer(echo), nil)
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil { // another peer, idle since
		t.Fatal(err)
	}
	silent, err := (&net.Dialer{}).DialContext(t.Context(), "unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); err != nil {
		t.Errorf("Drain returned %v", err)
	}
	if d := time.Since(began); d > 900*time.Millisecond { // a handshake may take a second
		t.Errorf("Drain took %s", d)
	}
}

func TestDrainInNoTime(t *testing.T) {
	s := start(t, answer(echo), nil)
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if err := s.Drain(ctx); err != nil {
		t.Errorf("Drain with no call under way returned %v", err)
	}
}

func TestCloseWaitsForHandlers(t *testing.T) {
	entered := make(chan struct{})
	var ended atomic.Bool
	s := start(t, answer(func(ctx context.Context, _ policy.Verb, _ sealer.Request) (sealer.Result, error) {
		close(entered)
		<-ctx.Done()
		<-time.After(20 * time.Millisecond)
		ended.Store(true)
		return sealer.Result{}, ctx.Err()
	}), nil)
	go s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{})
	<-entered
	s.Close()
	if !ended.Load() {
		t.Error("Close returned before the handler did")
	}
}

func TestDraining(t *testing.T) {
	s := start(t, answer(echo), nil)
	s.StartDraining()
	got := seen(t, s, &keysidecarv1.UnsealRequest{})
	got.RequestID = ""
	want := wire{codes.Unavailable, sealer.Draining.Text(), "DRAINING", time.Second, ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer while draining (-want +got):\n%s", diff)
	}
	health := grpc_health_v1.NewHealthClient(s.conn)
	if _, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("health while draining returned %v", err)
	}
}
