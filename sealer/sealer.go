package sealer

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/limit"
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
	// Rules returns the rules of now, all of one reload. Required. It has to be
	// quick.
	Rules func() *Rules
	// Limits bound what tenants and callers get. Required.
	Limits Limits
	// Region is where this sidecar runs, for tenants that have a residency.
	// Empty means that no such tenant is served.
	Region string
	// MaxPlaintext is the unary limit in bytes. Zero means
	// DefaultMaxPlaintext.
	MaxPlaintext int
	// Signers are the pinned public keys (P-256) that may prove key blocks,
	// by envelope.SignerID. None means that no proven block is accepted.
	Signers map[envelope.ID]*ecdsa.PublicKey
	// Record, if set, is told of every operation, before its answer. When it
	// returns an error, the answer is AuditUnavailable instead, or ctx's error
	// if it is that. It must be safe for concurrent use.
	Record func(context.Context, Event) error
	// Ready, if set, returns an error where an operation that Record has to
	// agree to would be in vain. It is asked before a vault is. It has to be
	// quick.
	Ready func() error
	// Observe, if set, is told of every operation after Record, before its
	// answer. It must be safe for concurrent use and quick.
	Observe func(context.Context, Event)
}

// Rules are what is checked before an operation. They never change: a reload
// makes others.
type Rules struct {
	// Policy decides. Required.
	Policy *policy.Policy
	// Tenants looks a tenant up. Its errors are tenant.ErrUnknown and
	// tenant.ErrTemplate. Required.
	Tenants func(tenant.ID) (*tenant.Entry, error)
}

// Limits are counted by a Sealer, after policy has allowed an operation: who may
// not act for a tenant cannot use its limits up.
type Limits struct {
	// Tenants counts the operations of each tenant. Required.
	Tenants *limit.Table
	// Tenant is the limit of a tenant whose Entry says nothing else.
	Tenant limit.Limit
	// Misses counts, for each caller and vault, the loads and mints of DEKs
	// that cost Key Vault calls. Required.
	Misses *limit.Table
	// Miss is the limit of each caller and vault. Its Calls are not used.
	Miss limit.Limit
}

// Event is the outcome of one operation. It holds nothing secret but what Listed
// returns.
type Event struct {
	// Verb is what was asked for.
	Verb policy.Verb
	// Caller asked. CallerName is what the policy calls it.
	Caller     policy.Caller
	CallerName string
	// Tenant is the tenant ID as requested if it is well-formed, else empty;
	// then InputBytes and InputSum are its length, and the beginning of its
	// SHA-256.
	Tenant     string
	InputBytes int
	InputSum   [8]byte
	// Audit is what the tenant's directory entry says, zero if there is none.
	Audit tenant.AuditMode
	// Allowed reports whether policy has allowed the caller to do this for
	// Tenant: else the caller may have made the tenant up.
	Allowed bool
	// Key names the keys that were used, or the DEK alone where the operation
	// got no further.
	Key dek.Info
	// Reason is why it was refused. It is OK if it was done, and also if Err
	// is the caller's context error or an internal one.
	Reason Reason
	// Duration is how long the operation took in the sealer.
	Duration time.Duration
	// Bytes is the size of the request's data.
	Bytes int
	// Err is the error with its cause, for logs; nil if done.
	Err error

	context map[string]string
}

// Listed returns the entries of the encryption context whose keys are listed; nil
// if there are none.
func (e *Event) Listed(keys []string) map[string]string {
	var out map[string]string
	for _, k := range keys {
		if v, ok := e.context[k]; ok {
			if out == nil {
				out = make(map[string]string)
			}
			out[k] = v
		}
	}
	return out
}

// Request is one operation.
type Request struct {
	// Caller asks. CallerName is what the policy calls it: its own limits are
	// kept under that name.
	Caller     policy.Caller
	CallerName string
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
type Sealer struct {
	cfg   Config
	clock *policy.Clock
}

// New returns a Sealer.
func New(cfg Config) (*Sealer, error) {
	if cfg.DEKs == nil || cfg.Rules == nil || cfg.Limits.Tenants == nil || cfg.Limits.Misses == nil {
		return nil, errors.New("sealer config: DEKs, Rules and the tables of Limits are required")
	}
	if cfg.MaxPlaintext == 0 {
		cfg.MaxPlaintext = DefaultMaxPlaintext
	}
	if cfg.MaxPlaintext < 1 || cfg.MaxPlaintext > MaxPlaintext {
		return nil, fmt.Errorf("sealer config: plaintext limit %d is not 1 to %d bytes", cfg.MaxPlaintext, MaxPlaintext)
	}
	if cfg.Record == nil {
		cfg.Record = func(context.Context, Event) error { return nil }
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	if cfg.Observe == nil {
		cfg.Observe = func(context.Context, Event) {}
	}
	return &Sealer{cfg: cfg, clock: policy.NewClock()}, nil
}

// Seal encrypts r.Data under the tenant's active DEK. The error is an *Error,
// the context's own, or an internal one.
func (s *Sealer) Seal(ctx context.Context, r Request) (Result, error) {
	op, err := s.begin(policy.Seal, r)
	defer op.end(ctx) // after a panic, too
	if err != nil {
		return op.finish(ctx, Result{}, err)
	}
	res, err := s.seal(ctx, op, r)
	return op.finish(ctx, res, err)
}

func (s *Sealer) seal(ctx context.Context, op *op, r Request) (Result, error) {
	ref, err := s.cfg.DEKs.ForSeal(ctx, op.entry, len(r.Data), op.admitMiss)
	if err != nil {
		return Result{}, keyError(ctx, err)
	}
	defer ref.Release()
	prefix := ref.BundlePrefix()
	out := make([]byte, 0, len(prefix)+envelope.SealedSize(len(r.Data)))
	out = append(out, prefix...)
	out = envelope.Seal(out, ref.Key(), ref.Info().ID, op.entry.ID, op.context, r.Data)
	if err := ref.Permitted(); err != nil {
		return Result{}, keyError(ctx, err)
	}
	return Result{Data: out, Key: ref.Info()}, nil
}

// Unseal opens what Seal returned for the same tenant and encryption context.
// The error is an *Error, or the context's own.
func (s *Sealer) Unseal(ctx context.Context, r Request) (Result, error) {
	op, err := s.begin(policy.Unseal, r)
	defer op.end(ctx) // after a panic, too
	if err != nil {
		return op.finish(ctx, Result{}, err)
	}
	res, err := s.unseal(ctx, op, r)
	return op.finish(ctx, res, err)
}

func (s *Sealer) unseal(ctx context.Context, op *op, r Request) (Result, error) {
	sealed, err := envelope.Parse(r.Data)
	if err != nil {
		return Result{}, formatError(err)
	}
	op.event.Key.ID = sealed.DEKID
	var space [envelope.MaxBlocks]dek.Candidate
	candidates, err := s.candidates(space[:0], op.entry, sealed)
	if err != nil {
		return Result{}, err
	}
	ref, err := s.cfg.DEKs.ForOpen(ctx, op.entry, sealed.DEKID, candidates, op.admitMiss)
	if err != nil {
		return Result{}, keyError(ctx, err)
	}
	defer ref.Release()
	if err := checkWarm(op.entry, ref.Info().KEKRef); err != nil {
		return Result{}, err
	}
	plaintext, err := envelope.Open(nil, ref.Key(), op.entry.ID, op.context, sealed.Envelope)
	if err != nil {
		return Result{}, fail(AuthenticationFailed, err)
	}
	if err := ref.Permitted(); err != nil {
		return Result{}, keyError(ctx, err)
	}
	return Result{Data: plaintext, Key: ref.Info()}, nil
}
