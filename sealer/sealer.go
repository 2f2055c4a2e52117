package sealer

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

// DefaultMaxPlaintext is the unary limit: 1 MiB.
const DefaultMaxPlaintext = 1 << 20

// MaxPlaintext is the highest unary limit that can be configured: 64 MiB.
const MaxPlaintext = 64 << 20

// Config configures a Sealer.
type Config struct {
	// DEKs hands out data keys. Required; Sealer does not close it.
	DEKs *dek.Source
	// Tenants looks a tenant up in the directory of now. Required. Its errors
	// are tenant.ErrUnknown and tenant.ErrTemplate.
	Tenants func(tenant.ID) (*tenant.Entry, error)
	// Policy decides. Required.
	Policy func() *policy.Policy
	// Region is where this sidecar runs, for tenants that have a residency.
	// Empty means that no such tenant is served.
	Region string
	// MaxPlaintext is the unary limit in bytes. Zero means
	// DefaultMaxPlaintext.
	MaxPlaintext int
	// Signers are the pinned public keys (P-256) that may prove key blocks,
	// by envelope.SignerID. None means that no proven block is accepted.
	Signers map[envelope.ID]*ecdsa.PublicKey
	// Observe, if set, is told of every operation, before its answer. It must
	// be safe for concurrent use and quick.
	Observe func(context.Context, Event)
}

// Event is the outcome of one operation. It holds nothing secret.
type Event struct {
	// Verb is what was asked for.
	Verb policy.Verb
	// Caller asked.
	Caller policy.Caller
	// Tenant is the tenant ID as requested if it is well-formed, else empty.
	Tenant string
	// Reason is why it was refused. It is OK if it was done, and also if Err
	// is the caller's context error or an internal one.
	Reason Reason
	// Duration is how long the operation took in the sealer.
	Duration time.Duration
	// Bytes is the size of the request's data.
	Bytes int
	// Err is the error with its cause, for logs; nil if done.
	Err error
}

// Request is one operation.
type Request struct {
	// Caller asks.
	Caller policy.Caller
	// Tenant is the tenant ID, not yet checked.
	Tenant string
	// Context is the encryption context, not yet checked.
	Context map[string]string
	// Data is plaintext for Seal, a bundle or envelope for Unseal. It is not
	// changed and not retained.
	Data []byte
}

// Result is what an operation gives.
type Result struct {
	// Data is the bundle from Seal, the plaintext from Unseal. The caller
	// owns it.
	Data []byte
	// Key names the keys that were used.
	Key dek.Info
}

// Sealer seals and unseals. It is safe for concurrent use.
type Sealer struct{ cfg Config }

// New returns a Sealer.
func New(cfg Config) (*Sealer, error) {
	if cfg.DEKs == nil || cfg.Tenants == nil || cfg.Policy == nil {
		return nil, errors.New("sealer config: DEKs, Tenants and Policy are required")
	}
	if cfg.MaxPlaintext == 0 {
		cfg.MaxPlaintext = DefaultMaxPlaintext
	}
	if cfg.MaxPlaintext < 1 || cfg.MaxPlaintext > MaxPlaintext {
		return nil, fmt.Errorf("sealer config: plaintext limit %d is not 1 to %d bytes", cfg.MaxPlaintext, MaxPlaintext)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(context.Context, Event) {}
	}
	return &Sealer{cfg}, nil
}

// Seal encrypts r.Data under the tenant's active DEK. The error is an *Error,
// the context's own, or an internal one.
func (s *Sealer) Seal(ctx context.Context, r Request) (Result, error) {
	op, err := s.begin(policy.Seal, r)
	if err != nil {
		return op.done(ctx, Result{}, err)
	}
	res, err := s.seal(ctx, op, r)
	return op.done(ctx, res, err)
}

func (s *Sealer) seal(ctx context.Context, op *op, r Request) (Result, error) {
	ref, err := s.cfg.DEKs.ForSeal(ctx, op.entry, len(r.Data), nil)
	if err != nil {
		return Result{}, keyError(ctx, err)
	}
	defer ref.Release()
	prefix := ref.BundlePrefix()
	out := make([]byte, 0, len(prefix)+envelope.SealedSize(len(r.Data)))
	out = append(out, prefix...)
	out = envelope.Seal(out, ref.Key(), ref.Info().ID, op.entry.ID, op.context, r.Data)
	return Result{Data: out, Key: ref.Info()}, nil
}

// Unseal opens what Seal returned for the same tenant and encryption context.
// The error is an *Error, or the context's own.
func (s *Sealer) Unseal(ctx context.Context, r Request) (Result, error) {
	op, err := s.begin(policy.Unseal, r)
	if err != nil {
		return op.done(ctx, Result{}, err)
	}
	res, err := s.unseal(ctx, op, r)
	return op.done(ctx, res, err)
}

func (s *Sealer) unseal(ctx context.Context, op *op, r Request) (Result, error) {
	sealed, err := envelope.Parse(r.Data)
	if err != nil {
		return Result{}, formatError(err)
	}
	var space [envelope.MaxBlocks]dek.Candidate
	candidates, err := s.candidates(space[:0], op.entry, sealed)
	if err != nil {
		return Result{}, err
	}
	ref, err := s.cfg.DEKs.ForOpen(ctx, op.entry.ID, sealed.DEKID, candidates, nil)
	if err != nil {
		return Result{}, keyError(ctx, err)
	}
	defer ref.Release()
	plaintext, err := envelope.Open(nil, ref.Key(), op.entry.ID, op.context, sealed.Envelope)
	if err != nil {
		return Result{}, fail(AuthenticationFailed, err)
	}
	return Result{Data: plaintext, Key: ref.Info()}, nil
}
