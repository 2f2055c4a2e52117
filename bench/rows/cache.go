package rows

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/keysidecar/keysidecar/cache"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

const (
	hitBar       = 3
	cacheEntries = 10_000
	cachedKeys   = 1024
	hitsPerCall  = 64
)

// dekKey is shaped like the key under which package dek caches.
type dekKey struct {
	purpose envelope.Purpose
	tenant  tenant.ID
	id      envelope.ID
}

// dekValue is as stale as a fenced DEK is.
type dekValue struct{ fenced atomic.Bool }

// cacheRows measures a hit, reference and release included, in a cache configured as
// package dek does, beside a bare golang-lru/v2 of the same size with the same keys.
func cacheRows() ([]Row, error) {
	ours, err := cache.New(cache.Config[dekKey, [32]byte, *dekValue]{
		Entries: cacheEntries,
		Hash:    func(k dekKey) uint64 { return binary.BigEndian.Uint64(k.id[:8]) },
		Group:   func(k dekKey) string { return k.tenant.String() },
		Release: func(*dekValue) {},
		Stale:   func(v *dekValue) bool { return v.fenced.Load() },
	})
	if err != nil {
		return nil, err
	}
	bare, err := lru.New[dekKey, *dekValue](cacheEntries)
	if err != nil {
		return nil, err
	}
	keys, err := dekKeys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		ours.Put(k, new(dekValue)).Release()
		bare.Add(k, new(dekValue))
	}
	return []Row{{
		Claim: fmt.Sprintf("%d cache hits / golang-lru Get", hitsPerCall),
		Subject: perCall(keys, func(k dekKey) {
			ref, ok := ours.Get(k)
			must(ok && ref.Value() != nil)
			ref.Release()
		}),
		Base: perCall(keys, func(k dekKey) {
			v, ok := bare.Get(k)
			must(ok && v != nil)
		}),
		Bar: hitBar,
	}}, nil
}

// dekKeys returns as many keys, of as many tenants, in no order of hash.
func dekKeys() ([]dekKey, error) {
	keys := make([]dekKey, cachedKeys)
	for i := range keys {
		t, err := tenant.Parse(fmt.Sprintf("tenant-%04d", i))
		if err != nil {
			return nil, err
		}
		keys[i] = dekKey{purpose: envelope.PurposeSeal, tenant: t}
		binary.BigEndian.PutUint64(keys[i].id[:8], uint64(i)*0x9e3779b97f4a7c15)
	}
	return keys, nil
}

// perCall returns a function that calls f for the next keys in turn, so many that the
// closure's own cost does not blur the ratio.
func perCall(keys []dekKey, f func(dekKey)) func() {
	next := 0
	return func() {
		for range hitsPerCall {
			f(keys[next%len(keys)])
			next++
		}
	}
}
