package server

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

// drainRetry is when a caller that got DRAINING may find a new sidecar.
const drainRetry = time.Second

// service implements keysidecar.v1.SealService. It returns errors of fail
// only.
type service struct {
	keysidecarv1.UnimplementedSealServiceServer
	sealer   Sealer
	caller   func(context.Context) (policy.Caller, error)
	draining *atomic.Bool
}

func (s *service) Seal(ctx context.Context, req *keysidecarv1.SealRequest) (*keysidecarv1.SealResponse, error) {
	caller, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	res, err := s.sealer.Seal(ctx, sealer.Request{
		Caller: caller, Tenant: req.GetTenant(), Context: req.GetEncryptionContext(), Data: req.GetPlaintext(),
	})
	if err != nil {
		return nil, fail(ctx, err)
	}
	return &keysidecarv1.SealResponse{Sealed: res.Data, KeyInfo: keyInfo(res)}, nil
}

func (s *service) Unseal(ctx context.Context, req *keysidecarv1.UnsealRequest) (*keysidecarv1.UnsealResponse, error) {
	caller, err := s.admit(ctx)
	if err != nil {
		return nil, err
	}
	res, err := s.sealer.Unseal(ctx, sealer.Request{
		Caller: caller, Tenant: req.GetTenant(), Context: req.GetEncryptionContext(), Data: req.GetSealed(),
	})
	if err != nil {
		return nil, fail(ctx, err)
	}
	return &keysidecarv1.UnsealResponse{Plaintext: res.Data, KeyInfo: keyInfo(res)}, nil
}

// admit returns who calls, unless the server is draining.
func (s *service) admit(ctx context.Context) (policy.Caller, error) {
	if s.draining.Load() {
		return policy.Caller{}, fail(ctx, &sealer.Error{Reason: sealer.Draining, RetryAfter: drainRetry})
	}
	caller, err := s.caller(ctx)
	if err == nil {
		return caller, nil
	}
	if _, ok := errors.AsType[*sealer.Error](err); ok {
		return policy.Caller{}, fail(ctx, err)
	}
	return policy.Caller{}, failFor(ctx, sealer.Unauthenticated, 0, err)
}

func keyInfo(res sealer.Result) *keysidecarv1.KeyInfo {
	return &keysidecarv1.KeyInfo{
		DekId:      res.Key.ID[:],
		KekRef:     res.Key.KEKRef,
		KekVersion: res.Key.KEKVersion.String(),
		Region:     res.Key.Region,
	}
}
