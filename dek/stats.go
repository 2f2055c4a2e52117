package dek

import "github.com/keysidecar/keysidecar/cache"

// Stats is a snapshot for metrics. Counters count since New.
type Stats struct {
	// Keys is the cache of unwrapped DEKs.
	Keys cache.Stats
	// Cached and Active are how many DEKs are unwrapped, and active.
	Cached, Active int
	// Minted and MintsFailed count mints by their end.
	Minted, MintsFailed uint64
}

// Stats returns the figures of now.
func (s *Source) Stats() Stats {
	return Stats{
		Keys: s.keys.Stats(), Cached: s.keys.Len(), Active: s.actives.Len(),
		Minted: s.minted.Load(), MintsFailed: s.failed.Load(),
	}
}
