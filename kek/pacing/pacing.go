// Package pacing bounds how often each vault is asked, and decides who asks
// next when not all can.
//
// A vault has a rate, which begins low, grows while the vault keeps up, up to
// half of what Azure allows it, and is halved when the vault answers 429. What
// is over the rate waits, and goes in this order:
//
//   - Strictly by kek.Priority: a call goes only if none of a higher priority
//     waits. So a priority has what those above it leave, and that may be
//     nothing; who waits in vain is refused in time.
//   - Within a priority the tenants take turns, one call each. A tenant that
//     waits has its turn after at most one of each other. One that was refused
//     keeps its place, if it comes back when it was told, or up to 30 s later.
//   - Within a tenant, the earliest deadline first.
//   - Jobs are at most a fifth of the calls, however idle the vault. They have no
//     share of their own: they are the lowest priority.
//
// Nobody waits in vain: whose turn cannot come before its deadline, as far as can
// be told, is refused at once, and is told when its turn would have come. Calls of
// a higher priority, a 429 or a Retry-After may come after that was reckoned; then
// a call is refused as soon as it is certain, still before its deadline.
//
// Each process paces itself, and knows of others what the vault's answers tell.
// Time is Go's monotonic clock.
package pacing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/keysidecar/keysidecar/kek"
)

const (
	// defaultQuota is that of the slowest keys that are common: Azure allows a
	// vault 500 operations with RSA-3072 HSM keys in 10 s.
	defaultQuota    = 50
	defaultQueue    = 256
	defaultVaults   = 4096
	defaultCallTime = 500 * time.Millisecond

	// maxScan is how many vaults are looked at for one to forget.
	maxScan = 16
	// retryNoRoom is when to try again if no vault can be forgotten.
	retryNoRoom = time.Second
)

// ErrPaced is wrapped by what Wait returns when a call may not be made in time.
// It tells that refusal from a vault's own, which is kek.Throttled too, and has
// a Status.
var ErrPaced = errors.New("not asked, to stay within the vault's quota")

// Config configures a Pacer. Its zero value is usable.
type Config struct {
	// Quota is how many calls per second a vault allows in all, to everybody.
	// Zero means 50, what Azure Key Vault allows for RSA-3072 HSM keys: 500 in
	// 10 s. It is 25 for RSA-4096 HSM keys, and 200 for RSA-2048 HSM keys. A
	// subscription has five times that for all its vaults in a region. A process
	// takes half of it at most.
	Quota float64
	// FleetSize is how many processes ask the same vaults. Then each begins with
	// its share of half the Quota, and has saved up what it may do in 5 s: at
	// least one call, and not more than 10. Zero means unknown: each begins with
	// 2 per second, and 10 saved up.
	FleetSize int
	// Queue is how many calls may wait for one vault, and for how many tenants
	// that were refused it keeps their places. Zero means 256.
	Queue int
	// Vaults is how many vaults are remembered. Zero means 4,096. One that was
	// forgotten begins as a new one does.
	Vaults int
	// CallTime is how much of a deadline has to be left, for the call itself,
	// when its turn comes. Zero means 500 ms.
	CallTime time.Duration
	// Random returns a number in [0, 1): what part of a call a 429 or a
	// Retry-After costs besides, so that not all processes go on at the same
	// moment. Nil means math/rand/v2.
	Random func() float64
}

// Pacer paces the calls to vaults. It is safe for concurrent use, and has no
// goroutines of its own but those of timers that fire: one timer a vault, and
// only while calls wait for it.
type Pacer struct {
	cfg                    Config
	start, lowest, highest float64 // calls per second

	mu     sync.Mutex
	vaults *simplelru.LRU[string, *vault] // guarded by mu, and all that is in it
	counts Counts                         // guarded by mu
}

// New returns a Pacer, or an error for a config out of range.
func New(cfg Config) (*Pacer, error) {
	switch {
	case !(cfg.Quota >= 0) || math.IsInf(cfg.Quota, 1):
		return nil, fmt.Errorf("quota of %v calls per second: not 0 or more", cfg.Quota)
	case cfg.FleetSize < 0:
		return nil, fmt.Errorf("fleet size %d: negative", cfg.FleetSize)
	case cfg.Queue < 0:
		return nil, fmt.Errorf("queue of %d calls for a vault: negative", cfg.Queue)
	case cfg.Vaults < 0:
		return nil, fmt.Errorf("%d vaults: negative", cfg.Vaults)
	case cfg.CallTime < 0:
		return nil, fmt.Errorf("call time %s: negative", cfg.CallTime)
	}
	p := &Pacer{cfg: withDefaults(cfg)}
	p.highest = p.cfg.Quota / 2
	p.start = min(startRate, p.highest)
	if cfg.FleetSize > 0 {
		p.start = p.highest / float64(cfg.FleetSize)
	}
	p.lowest = min(lowestRate, p.start/2)
	var err error
	if p.vaults, err = simplelru.NewLRU[string, *vault](p.cfg.Vaults, nil); err != nil {
		return nil, err
	}
	return p, nil
}

func withDefaults(cfg Config) Config {
	cfg.Quota = cmp.Or(cfg.Quota, defaultQuota)
	cfg.Queue = cmp.Or(cfg.Queue, defaultQueue)
	cfg.Vaults = cmp.Or(cfg.Vaults, defaultVaults)
	cfg.CallTime = cmp.Or(cfg.CallTime, defaultCallTime)
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	return cfg
}

// Wait returns nil when one call may be made to vault, for what kek.WithCall
// told ctx. The caller makes it at once, and tells Answered what came of it.
//
// Every error is a *kek.Error without Op, Ref and Version, and means that the call
// may not be made. It is Throttled, and wraps ErrPaced, when the turn would come
// too late for ctx's deadline, the queue is full, or ctx ended while the call
// waited; its RetryAfter is when the turn would have come. It is Unreachable when
// ctx had ended before.
//
// A full queue keeps out, or puts out, who has the lowest priority in it; of these
// the tenant that has most there, or of equals whose turns come last; of its calls
// the one with the latest deadline.
//
// Wait allocates nothing if the call may be made at once, and the vault is
// remembered.
func (p *Pacer) Wait(ctx context.Context, vault string) error {
	if err := ctx.Err(); err != nil {
		return &kek.Error{Reason: kek.Unreachable, Vault: vault, Err: err}
	}
	w, err := p.enter(ctx, vault)
	if w == nil {
		return err
	}
	select {
	case err := <-w.turn:
		if err != nil || ctx.Err() == nil {
			return err
		}
	case <-ctx.Done():
	}
	return p.leave(ctx, w)
}

// enter takes a token, or returns a waiter that has been queued, or an error.
func (p *Pacer) enter(ctx context.Context, vault string) (*waiter, error) {
	class, tenant := kek.CallOf(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	v := p.vault(vault, now)
	if v == nil {
		return nil, p.refusal(vault, class, retryNoRoom, fmt.Sprintf("calls wait for %d vaults", p.cfg.Vaults))
	}
	if v.serve(now); v.free(class, now) {
		v.take(class)
		v.redeem(class, tenant, now)
		return nil, nil
	}
	latest := now.Add(forever)
	if deadline, ok := ctx.Deadline(); ok {
		latest = deadline.Add(-p.cfg.CallTime)
	}
	return v.join(&waiter{vault: v, class: class, tenant: tenant, since: now, latest: latest, turn: make(chan error, 1)}, now)
}

// leave is for a call whose context ended. It gives its turn to the next.
func (p *Pacer) leave(ctx context.Context, w *waiter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, now := w.vault, time.Now()
	v.advance(now)
	wait := time.Duration(0)
	switch {
	case w.granted:
		v.giveBack(w.class)
	case w.queued:
		wait = v.turnOf(w, now).Sub(now)
		v.queue.remove(w)
	default:
		return <-w.turn // refused in the meantime
	}
	err := p.refusal(v.name, w.class, wait, "the caller did not wait")
	err.Err = fmt.Errorf("%w: %w", err.Err, ctx.Err())
	v.serve(now)
	return err
}

// refusal counts and makes the error of a call that is not made.
func (p *Pacer) refusal(vault string, class kek.Priority, wait time.Duration, why string) *kek.Error {
	p.counts.Refused[class]++
	return &kek.Error{Reason: kek.Throttled, Vault: vault, RetryAfter: wait, Err: fmt.Errorf("%w: %s", ErrPaced, why)}
}

// Answered tells how vault answered a call. Throttled means 429: the rate is
// halved, but not again within 10 s. A retryAfter stops all calls to the vault
// for as long, but not for more than 30 s, whether throttled or not. Otherwise it
// was an answer, yes or no: after each 10 s with such answers, without a 429 and
// a retryAfter, and in which calls had to wait, the rate grows by a quarter.
//
// When there was no answer there is nothing to tell.
func (p *Pacer) Answered(vault string, throttled bool, retryAfter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if throttled {
		p.counts.Throttled++
	}
	if !throttled && retryAfter <= 0 {
		if v, ok := p.vaults.Peek(vault); ok {
			v.advance(now)
			v.clean = true
		}
		return
	}
	v := p.vault(vault, now)
	if v == nil {
		return
	}
	v.advance(now)
	if throttled {
		v.halve(now)
	}
	v.pause(now, retryAfter)
	v.serve(now)
}

// Charge tells of requests that vault was asked besides those that Wait let
// through: the pages of a list, a challenge, a retry. The calls to come make up
// for them, for 10 s or the time of one call at most: one key with a thousand
// versions must not stop the others in its vault for long.
func (p *Pacer) Charge(vault string, requests int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.vaults.Peek(vault)
	if !ok || requests <= 0 {
		return
	}
	now := time.Now()
	v.advance(now)
	v.all.tokens = max(v.all.tokens-float64(requests), min(v.all.tokens, -max(1, v.all.rate*window.Seconds())))
	p.counts.Charged += uint64(requests)
	v.serve(now)
}

// vault returns the vault of that name, which may be new; or nil, if there is no
// room for it since calls wait for all the others.
func (p *Pacer) vault(name string, now time.Time) *vault {
	if v, ok := p.vaults.Get(name); ok {
		return v
	}
	if p.vaults.Len() >= p.cfg.Vaults && !p.forget(now) {
		return nil
	}
	v := newVault(p, name, now)
	p.vaults.Add(name, v)
	return v
}

// forget makes room for a vault. Of those that were asked longest ago it takes
// the first that a new one would not be faster than: who invents vaults must not
// lift the brake on others. If there is none, it takes one that nobody waits for.
func (p *Pacer) forget(now time.Time) bool {
	spare, found := "", false
	for range maxScan {
		name, v, _ := p.vaults.GetOldest()
		if v.queue.n == 0 {
			v.advance(now)
			if v.atEase(now) {
				return p.vaults.Remove(name)
			}
			if !found {
				spare, found = name, true
			}
		}
		p.vaults.Get(name) // passed over: it is the newest now
	}
	return found && p.vaults.Remove(spare)
}
