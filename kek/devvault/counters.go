package devvault

import (
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/route"
)

// What a request asks: each one with a good token counts under exactly one of
// these, whatever the answer. They are also the values of Fault.Op.
const (
	OpGet          = route.Get
	OpListKeys     = route.ListKeys
	OpListVersions = route.ListVersions
	OpCreate       = route.Create
	OpRotate       = route.Rotate
	OpUpdate       = route.Update
	OpWrap         = route.Wrap
	OpUnwrap       = route.Unwrap
	OpEncrypt      = route.Encrypt
	OpDecrypt      = route.Decrypt
	OpSign         = route.Sign
	OpGetPolicy    = route.GetPolicy
	OpSetPolicy    = route.SetPolicy
	OpDelete       = route.Delete
	OpListDeleted  = route.ListDeleted
	OpGetDeleted   = route.GetDeleted
	OpRecover      = route.Recover
	OpPurge        = route.Purge
	// OpOther is everything that is not implemented or not a key operation.
	OpOther = route.Other
)

// Requests that never reach a vault count under one of these instead.
const (
	// CountChallenge: no token, answered 401 with a challenge.
	CountChallenge = "401 challenge"
	// CountBadToken: a token that is not good, answered 401.
	CountBadToken = "401 bad token"
	// CountUnknownVault: a host that is no vault, answered 421.
	CountUnknownVault = "unknown vault"
)

// Answers count in addition to what was asked.
const (
	// CountThrottled: answered 429 by a fault.
	CountThrottled = "throttled"
	// CountFaulted: another fault was applied.
	CountFaulted = "faulted"
	// CountRejected: the vault itself answered 4xx.
	CountRejected = "rejected"
)

// Counters tell what the vaults were asked since the process started or the
// counters were reset. They do not survive a restart. Calls of Server's own
// methods and of the control API do not count.
type Counters struct {
	// Since is when counting began.
	Since time.Time `json:"since"`
	// Kinds counts requests by Op and Count constants; absent means zero.
	Kinds map[string]int64 `json:"kinds"`
	// Keys counts by "vault/key/version", the key's name in lower case.
	Keys map[string]KeyCounters `json:"keys"`
}

// KeyCounters count requests that reached a key version: those that a fault
// answered beforehand are missing.
type KeyCounters struct {
	// Wraps and Unwraps were asked, encrypt and decrypt included.
	Wraps   int64 `json:"wraps"`
	Unwraps int64 `json:"unwraps"`
	// Unwrapped of the Unwraps succeeded, even if a fault then spoilt the
	// answer.
	Unwrapped int64 `json:"unwrapped"`
	// Signs were asked.
	Signs int64 `json:"signs"`
}

// Key sums the counters of all versions of a key.
func (c Counters) Key(vault, name string) KeyCounters {
	var sum KeyCounters
	prefix := countKey(vault, name, "")
	for k, v := range c.Keys {
		if strings.HasPrefix(k, prefix) {
			sum.Wraps += v.Wraps
			sum.Unwraps += v.Unwraps
			sum.Unwrapped += v.Unwrapped
			sum.Signs += v.Signs
		}
	}
	return sum
}

func countKey(vault, name, version string) string {
	return strings.ToLower(vault) + "/" + strings.ToLower(name) + "/" + version
}

type counters struct {
	now func() time.Time

	mu sync.Mutex
	c  Counters
}

func newCounters(now func() time.Time) *counters {
	c := &counters{now: now}
	c.reset()
	return c
}

func (c *counters) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c = Counters{Since: c.now(), Kinds: map[string]int64{}, Keys: map[string]KeyCounters{}}
}

func (c *counters) snapshot() Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Counters{Since: c.c.Since, Kinds: maps.Clone(c.c.Kinds), Keys: maps.Clone(c.c.Keys)}
}

func (c *counters) add(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c.Kinds[kind]++
}

// addKey counts what a version was asked.
func (c *counters) addKey(vault, name, version string, d KeyCounters) {
	k := countKey(vault, name, version)
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.c.Keys[k]
	v.Wraps += d.Wraps
	v.Unwraps += d.Unwraps
	v.Unwrapped += d.Unwrapped
	v.Signs += d.Signs
	c.c.Keys[k] = v
}

// Counters returns a copy of the counters.
func (s *Server) Counters() Counters { return s.counters.snapshot() }

// ResetCounters sets all counters to zero.
func (s *Server) ResetCounters() { s.counters.reset() }
