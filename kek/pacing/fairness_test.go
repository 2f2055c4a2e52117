package pacing_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/pacing"
)

const azureWindow = 10 * time.Second

// azure is a vault that answers so many calls in each window of 10 s, and 429 to
// the others.
type azure struct {
	perWindow  int
	others     float64 // calls per second of somebody else
	countAll   bool    // those answered 429 too
	retryAfter bool    // 429s tell when the window ends

	mu            sync.Mutex
	window        int64
	used          int
	asked, denied int
}

func (a *azure) ask(now time.Time) (retryAfter time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	window, into := now.UnixNano()/int64(azureWindow), time.Duration(now.UnixNano()%int64(azureWindow))
	if window != a.window {
		a.window, a.used = window, 0
	}
	ok = a.used+int(a.others*into.Seconds()) < a.perWindow
	if ok || a.countAll {
		a.used++
	}
	if !ok {
		a.denied++
	}
	if ok || !a.retryAfter {
		return 0, ok
	}
	return (azureWindow - into + time.Second - 1).Truncate(time.Second), false
}

// A coldStart is one row of the table of TestColdStart: processes, each with
// 1,000 cold tenants and 64 callers.
type coldStart struct {
	name      string
	processes int
	cfg       pacing.Config
	vault     *azure
	deadline  time.Duration // of a call; 0: 5 s, that of a load
	within    time.Duration // the last success
}

const (
	coldTenants = 1000
	coldCallers = 64
	answerTime  = 40 * time.Millisecond
)

type coldResult struct {
	mu       sync.Mutex
	served   map[string]int
	paced    int // refused by the pacer
	late     int // refused later than at once
	overdue  int // answered after the deadline
	tries    int // most of one tenant
	unserved time.Duration
	last     time.Duration
}

func (c *coldStart) run(t *testing.T) (r *coldResult) {
	r = &coldResult{served: make(map[string]int)}
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var callers sync.WaitGroup
		for process := range c.processes {
			p := newPacer(t, c.cfg)
			tenants := make(chan string, coldTenants)
			for i := range coldTenants {
				tenants <- fmt.Sprintf("%d-%d", process, i)
			}
			close(tenants)
			for range coldCallers {
				callers.Go(func() {
					for tenant := range tenants {
						tries, first := c.warm(t, p, tenant, r)
						r.mu.Lock()
						r.served[tenant]++
						r.tries = max(r.tries, tries)
						r.unserved = max(r.unserved, time.Since(first))
						r.last = time.Since(begin)
						r.mu.Unlock()
					}
				})
			}
		}
		callers.Wait()
	})
	return r
}

// warm tries until the tenant's call is answered, and waits as long as it is told.
func (c *coldStart) warm(t *testing.T, p *pacing.Pacer, tenant string, r *coldResult) (tries int, first time.Time) {
	for first = time.Now(); ; tries++ {
		deadline := c.deadline
		if deadline == 0 {
			deadline = 5 * time.Second
		}
		start := time.Now()
		ctx, stop := context.WithTimeout(kek.WithCall(t.Context(), kek.UnsealMiss, tenant), deadline)
		err := p.Wait(ctx, kv)
		if err != nil {
			r.mu.Lock()
			r.paced++
			if time.Since(start) > 0 {
				r.late++
			}
			if !errors.Is(err, pacing.ErrPaced) || kek.RetryAfterOf(err) <= 0 || ctx.Err() != nil {
				t.Errorf("refused by the pacer: %v", err)
			}
			r.mu.Unlock()
			stop()
			<-time.After(kek.RetryAfterOf(err))
			continue
		}
		retryAfter, ok := c.vault.ask(time.Now())
		<-time.After(answerTime)
		p.Answered(kv, !ok, retryAfter)
		if stop(); ok {
			if time.Since(start) > deadline {
				r.mu.Lock()
				r.overdue++
				r.mu.Unlock()
			}
			return tries + 1, first
		}
		<-time.After(max(2*time.Second, retryAfter)) // as the sealer tells its callers
	}
}

// TestColdStart shows what a restart costs a vault of 50 calls per second, and
// who it keeps waiting.
func TestColdStart(t *testing.T) {
	polite := func(others float64) *azure { return &azure{perWindow: 500, others: others, retryAfter: true} }
	strict := func(others float64) *azure { return &azure{perWindow: 500, others: others, countAll: true} }
	var table strings.Builder
	fmt.Fprintf(&table, "%-44s %9s %9s %7s %9s %9s %6s %10s\n",
		"", "all warm", "asked", "429", "429 %", "paced", "tries", "one tenant")
	for _, c := range []*coldStart{
		{name: "1 process, fleet unknown", processes: 1, vault: polite(0), within: 130 * time.Second},
		{name: "1 process, fleet of 1", processes: 1, cfg: pacing.Config{FleetSize: 1}, vault: polite(0), within: 41 * time.Second},
		{name: "same, deadline 1 s", processes: 1, cfg: pacing.Config{FleetSize: 1}, vault: polite(0), deadline: time.Second, within: 60 * time.Second},
		{name: "same, others take 35/s", processes: 1, cfg: pacing.Config{FleetSize: 1}, vault: polite(35), within: 90 * time.Second},
		{name: "same, no Retry-After, 429s count", processes: 1, cfg: pacing.Config{FleetSize: 1}, vault: strict(35), within: 90 * time.Second},
		{name: "8 processes, fleet of 8", processes: 8, cfg: pacing.Config{FleetSize: 8}, vault: polite(0), within: 400 * time.Second},
		{name: "8 processes, fleet unknown", processes: 8, vault: polite(0), within: 400 * time.Second},
		{name: "8 processes, no Retry-After, 429s count", processes: 8, vault: strict(0), within: 400 * time.Second},
	} {
		r := c.run(t)
		percent := 100 * float64(c.vault.denied) / float64(c.vault.asked)
		fmt.Fprintf(&table, "%-44s %8.1fs %9d %7d %8.1f%% %9d %6d %9.1fs\n",
			c.name, r.last.Seconds(), c.vault.asked, c.vault.denied, percent, r.paced, r.tries, r.unserved.Seconds())
		if len(r.served) != c.processes*coldTenants {
			t.Errorf("%s: %d of %d tenants served", c.name, len(r.served), c.processes*coldTenants)
		}
		if percent > 5 || r.overdue > 0 || r.last > c.within {
			t.Errorf("%s: %.1f %% refused by the vault, %d answers after the deadline, the last after %s, want at most 5 %%, 0, %s",
				c.name, percent, r.overdue, r.last, c.within)
		}
		if r.unserved > 40*time.Second || r.tries > 8 {
			t.Errorf("%s: a tenant waited for %s, and tried %d times, want at most 40s and 8", c.name, r.unserved, r.tries)
		}
		if c.vault.denied == 0 && r.late > 0 {
			t.Errorf("%s: %d refused later than at once, though nothing unforeseen came", c.name, r.late)
		}
	}
	t.Log("\n" + table.String())
}
