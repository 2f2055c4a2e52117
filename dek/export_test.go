package dek

import (
	"context"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

// MintAgain asks for a mint as a caller does who found no active DEK just
// before there was one, and returns the DEK's ID.
func (s *Source) MintAgain(ctx context.Context, t *tenant.Entry) (envelope.ID, error) {
	a, err := s.mintNow(ctx, t, nil, nil)
	if err != nil {
		return envelope.ID{}, err
	}
	return a.info.ID, nil
}

// Waiting returns for how many tenants somebody waits for a vault.
func (s *Source) Waiting() int {
	s.waiters.mu.Lock()
	defer s.waiters.mu.Unlock()
	return len(s.waiters.byTenant)
}

// Leases returns how many KEK versions have a lease.
func (s *Source) Leases() int {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	n := 0
	for _, versions := range s.leases.byKEK {
		n += len(versions)
	}
	return n
}
