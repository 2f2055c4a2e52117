package dek

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"

	"github.com/keysidecar/keysidecar/internal/secret"
)

// The errors of this package. Others are *kek.Error, secret.ErrFull, what
// admit returned, or the caller's own context error.
var (
	// ErrMismatch says that an unwrapped key is not the DEK that the block
	// and the header name: somebody planted it.
	ErrMismatch = errors.New("unwrapped key does not have the DEK ID of its block")
	// ErrNoBlock says that a cold DEK has no key block that a KEK unwraps.
	ErrNoBlock = errors.New("no key block of a KEK for this DEK")
	// ErrNotRecorded says that Config.Record refused, so nothing happened.
	ErrNotRecorded = errors.New("recording the key event")
	// ErrBusy says that the tenant's vault did not answer soon, and that
	// Config.PatientWaiters wait for it already.
	ErrBusy = errors.New("too many operations of the tenant wait for its vault")
)

// Config configures a Source. Every zero field but the first three has a
// default.
type Config struct {
	// KEKs wraps and unwraps. Required.
	KEKs kek.Wrapper
	// Slab holds the unwrapped DEKs. Required; Source does not close it.
	// It needs CacheEntries slots, and some for keys in use and in flight.
	Slab *secret.Slab
	// Logger gets what an operator should know. Required.
	Logger *slog.Logger
	// CacheEntries bounds the unwrapped DEKs, and the active DEKs. Zero means
	// 10,000.
	CacheEntries int
	// TenantShare is the largest share of the cache that one tenant gets.
	// Zero means 0.25; 1 means no bound.
	TenantShare float64
	// SoftAge is the age at which the next DEK is minted, times U(0.9, 1).
	// Zero means 30 days.
	SoftAge time.Duration
	// HardAge is the age after which a DEK seals no more. Zero means 1.25
	// times SoftAge; it may not be less than SoftAge.
	HardAge time.Duration
	// MaxMessages and MaxBytes are the usage limit of one DEK in this
	// process. Zero means 2^32 messages and 2^50 bytes.
	MaxMessages, MaxBytes uint64
	// PollInterval bounds how long a new KEK version stays unused. Zero means
	// 5 minutes.
	PollInterval time.Duration
	// MaxVersionAge is how old the knowledge of a KEK's newest version may be
	// for a mint. Zero means 10 minutes.
	MaxVersionAge time.Duration
	// Lease is for how long a DEK may be used after its KEK version has said yes;
	// it is asked again in time. Zero means 5 minutes.
	Lease time.Duration
	// Slept returns for how long the machine has been suspended since it started.
	// Nil asks the system.
	Slept func() time.Duration
	// LoadTimeout bounds one mint or unwrap in all. Zero means 5 seconds.
	LoadTimeout time.Duration
	// PatientWaiters is how many operations of one tenant wait for its vault
	// for as long as LoadTimeout and their own deadlines let them. Zero means
	// 32.
	PatientWaiters int
	// ImpatientWait is how long further ones wait before ErrBusy. Zero means
	// 500 ms.
	ImpatientWait time.Duration
	// Negative says how long a failed unwrap or mint is remembered.
	Negative Negative
	// Record, if set, is called before each key event takes effect; an error
	// stops it. It must be safe for concurrent use.
	Record func(context.Context, Event) error
}

// Negative says how long failures are remembered, so that repeating a request
// does not repeat its Key Vault call. Zero fields have defaults.
type Negative struct {
	// Unknown is for wrapped bytes that open nothing. Zero means 5 s.
	Unknown time.Duration
	// Unreachable is for a vault that does not answer. Zero means 2 s.
	Unreachable time.Duration
	// Refused is for a KEK that is disabled, missing or forbidden. Zero
	// means 15 s.
	Refused time.Duration
	// Entries bounds them. Zero means 10,000.
	Entries int
}

// EventKind is what happens to a key.
type EventKind uint8

// The events of a key's life, the first ones in the order in which a mint goes
// through them.
const (
	// Wrapped: a new DEK has been wrapped and not yet been proved.
	Wrapped EventKind = 1 + iota
	// Proved: a new DEK has been unwrapped and compared.
	Proved
	// Activated: a new DEK is about to become its tenant's active DEK.
	Activated
	// Unwrapped: a cold DEK is about to enter the cache.
	Unwrapped
	// Fenced: a KEK version has been refused; its DEKs leave the cache.
	Fenced
	// Rejected: what was unwrapped is not the DEK that its block names.
	Rejected
	// Renewed: a DEK has been unwrapped again, to see whether its KEK still says
	// yes. An error does not stop it.
	Renewed
)

var eventNames = [...]string{
	Wrapped: "wrapped", Proved: "proved", Activated: "activated", Unwrapped: "unwrapped", Fenced: "fenced", Rejected: "rejected",
	Renewed: "renewed",
}

// String returns the event in a word.
func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event is one step in a key's life. It holds nothing secret.
type Event struct {
	Kind   EventKind
	Tenant tenant.ID // zero for Fenced: it is about all tenants of the KEK
	Info   Info
	Reason kek.Reason // for Fenced
}

// Info names the keys that an operation used.
type Info struct {
	// ID is the DEK's ID; zero in a Fenced event.
	ID envelope.ID
	// KEKRef and KEKVersion name the KEK version that unwrapped the DEK here.
	KEKRef     string
	KEKVersion kek.Version
	// Region is the configured region of that KEK.
	Region string
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) setDefaults() error {
	if c.KEKs == nil || c.Slab == nil || c.Logger == nil {
		return errors.New("dek config: KEKs, Slab and Logger are required")
	}
	orDefault(&c.CacheEntries, 10_000)
	orDefault(&c.TenantShare, 0.25)
	orDefault(&c.SoftAge, 30*24*time.Hour)
	orDefault(&c.HardAge, c.SoftAge+c.SoftAge/4)
	orDefault(&c.MaxMessages, 1<<32)
	orDefault(&c.MaxBytes, 1<<50)
	orDefault(&c.PollInterval, 5*time.Minute)
	orDefault(&c.MaxVersionAge, 10*time.Minute)
	orDefault(&c.Lease, 5*time.Minute)
	if c.Slept == nil {
		c.Slept = timeAsleep
	}
	orDefault(&c.LoadTimeout, 5*time.Second)
	orDefault(&c.PatientWaiters, 32)
	orDefault(&c.ImpatientWait, 500*time.Millisecond)
	orDefault(&c.Negative.Unknown, 5*time.Second)
	orDefault(&c.Negative.Unreachable, 2*time.Second)
	orDefault(&c.Negative.Refused, 15*time.Second)
	orDefault(&c.Negative.Entries, 10_000)
	if c.Record == nil {
		c.Record = func(context.Context, Event) error { return nil }
	}
	if c.CacheEntries < 1 || c.SoftAge < 0 || c.HardAge < c.SoftAge || c.PollInterval < 0 {
		return fmt.Errorf("dek config: cache entries %d, soft age %s, hard age %s, poll interval %s: "+
			"none may be negative, hard age not under soft age",
			c.CacheEntries, c.SoftAge, c.HardAge, c.PollInterval)
	}
	if c.PatientWaiters < 0 || c.ImpatientWait < 0 {
		return fmt.Errorf("dek config: patient waiters %d, impatient wait %s: none may be negative", c.PatientWaiters, c.ImpatientWait)
	}
	return nil
}
