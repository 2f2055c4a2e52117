package dek

import (
	"hash/maphash"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/tenant"
)

// phase says what an active DEK is still good for.
type phase uint8

const (
	fresh phase = iota // seal with it
	due                // seal with it, and mint the next in the background
	wait               // mint the next first; seal with it if that does not work
	over               // seal no more
)

const (
	// maxRetry is how long after a failed replacement the next is tried, at
	// most: less where PollInterval is short.
	maxRetry = 30 * time.Second
	// maxWait is how long a message waits for a replacement that has to come
	// first, while the old DEK is still good.
	maxWait = 500 * time.Millisecond
)

// active is a tenant's active DEK, without the key itself: that is in the
// cache under its ID, and is unwrapped again when it has been evicted.
type active struct {
	tenant tenant.ID
	info   Info
	kek    kek.Key
	block  []byte // the encoded key block
	prefix []byte // the bundle up to the envelope
	lease  *lease
	view   *view

	made, soft, hard time.Time
	messages         atomic.Uint64
	bytes            atomic.Uint64
	// retryAt is the age before which no replacement is tried: an age, since
	// the wall clock can be set back.
	retryAt atomic.Int64
}

// charge counts one message of n bytes. It reports false, and the message may
// not be sealed, when that is over the usage limit.
func (a *active) charge(cfg *Config, n int) bool {
	return a.messages.Add(1) <= cfg.MaxMessages && a.bytes.Add(uint64(n)) <= cfg.MaxBytes
}

// phase returns what a is good for now. KEK versions are followed within one
// PollInterval: each tenant starts at a moment of its own, and from the end of
// that time on nobody seals under the old version while the vault answers
// within maxWait.
func (a *active) phase(cfg *Config, seed maphash.Seed, now time.Time) phase {
	messages, bytes := a.messages.Load(), a.bytes.Load()
	if !now.Before(a.hard) || messages >= cfg.MaxMessages || bytes >= cfg.MaxBytes {
		return over
	}
	p := fresh
	if !now.Before(a.soft) || messages > cfg.MaxMessages/4*3 || bytes > cfg.MaxBytes/4*3 {
		p = due
	}
	if n := a.view.newest.Load(); n != nil && n.version != a.info.KEKVersion {
		spread := time.Duration(spreadShare * float64(cfg.PollInterval))
		turn := time.Duration(maphash.String(seed, a.tenant.String()) % uint64(spread+1)) //nolint:gosec // at most spread
		switch since := now.Sub(n.since); {
		case since >= spread:
			p = wait
		case since >= turn:
			p = max(p, due)
		}
	}
	if p != fresh && now.Sub(a.made) < time.Duration(a.retryAt.Load()) {
		return fresh
	}
	return p
}

// claimRetry reports whether the caller is the one to try a replacement now.
// Others seal on with the old DEK meanwhile.
func (a *active) claimRetry(cfg *Config, now time.Time) bool {
	age, old := now.Sub(a.made), a.retryAt.Load()
	pause := min(maxRetry, time.Duration(tickShare*float64(cfg.PollInterval)))
	return age >= time.Duration(old) && a.retryAt.CompareAndSwap(old, int64(age+pause))
}

func (a *active) logAttrs(err error) []slog.Attr {
	return []slog.Attr{
		slog.String("tenant", a.tenant.String()), slog.String("dek_id", a.info.ID.String()),
		slog.String("kek", a.info.KEKRef), slog.Time("seals_until", a.hard), slog.Any("cause", err),
	}
}
