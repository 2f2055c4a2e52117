package pacing

import (
	"slices"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// Counts count what has happened since New. The arrays are indexed by
// kek.Priority; index 0 is not used.
type Counts struct {
	// Granted is how many calls Wait let through, and Refused how many not.
	Granted, Refused [kek.Job + 1]uint64
	// Waited is for how long those that were let through have waited, in all.
	Waited [kek.Job + 1]time.Duration
	// Throttled is how many 429s Answered was told of, and Charged how many
	// requests Charge.
	Throttled, Charged uint64
}

// Stats is a Pacer as it is now, for metrics and status.
type Stats struct {
	Counts
	// Vaults are those that are remembered, by name.
	Vaults []VaultStats
}

// VaultStats is one vault as it is now.
type VaultStats struct {
	// Vault is its name, as Wait was given it.
	Vault string
	// Rate is in calls per second.
	Rate float64
	// Waiting is how many calls wait, indexed by kek.Priority.
	Waiting [kek.Job + 1]int
	// Paused is for how long no call goes; zero if they do.
	Paused time.Duration
}

// Stats returns the Pacer as it is now.
func (p *Pacer) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := Stats{Counts: p.counts, Vaults: make([]VaultStats, 0, p.vaults.Len())}
	for _, v := range p.vaults.Values() {
		v.advance(now)
		row := VaultStats{Vault: v.name, Rate: v.all.rate, Paused: max(0, v.at.Sub(now))}
		for i := range v.queue.classes {
			row.Waiting[i] = v.queue.classes[i].n
		}
		s.Vaults = append(s.Vaults, row)
	}
	slices.SortFunc(s.Vaults, func(a, b VaultStats) int { return strings.Compare(a.Vault, b.Vault) })
	return s
}
