package server

import (
	"context"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

// service implements keysidecar.v1.SealService.
type service struct {
	keysidecarv1.UnimplementedSealServiceServer
	sealer Sealer
}

func (s *service) Seal(ctx context.Context, req *keysidecarv1.SealRequest) (*keysidecarv1.SealResponse, error) {
	call := CallOf(ctx)
	res, err := s.sealer.Seal(ctx, sealer.Request{
		Caller: call.Caller, CallerName: call.CallerName,
		Tenant: req.GetTenant(), Context: req.GetEncryptionContext(), Data: req.GetPlaintext(),
	})
	if err != nil {
		return nil, err
	}
	return &keysidecarv1.SealResponse{Sealed: res.Data, KeyInfo: keyInfo(res)}, nil
}

func (s *service) Unseal(ctx context.Context, req *keysidecarv1.UnsealRequest) (*keysidecarv1.UnsealResponse, error) {
	call := CallOf(ctx)
	res, err := s.sealer.Unseal(ctx, sealer.Request{
		Caller: call.Caller, CallerName: call.CallerName,
		Tenant: req.GetTenant(), Context: req.GetEncryptionContext(), Data: req.GetSealed(),
	})
	if err != nil {
		return nil, err
	}
	return &keysidecarv1.UnsealResponse{Plaintext: res.Data, KeyInfo: keyInfo(res)}, nil
}

func keyInfo(res sealer.Result) *keysidecarv1.KeyInfo {
	return &keysidecarv1.KeyInfo{
		DekId:      res.Key.ID[:],
		KekRef:     res.Key.KEKRef,
		KekVersion: res.Key.KEKVersion.String(),
		Region:     res.Key.Region,
	}
}
