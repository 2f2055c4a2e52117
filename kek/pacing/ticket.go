package pacing

import (
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

const (
	// expectTime is how much later than it was told a tenant is still expected,
	// and ticketTime, how much later it still has its place.
	expectTime = 2 * time.Second
	ticketTime = 30 * time.Second
)

// ticket is for a tenant of which nobody waits any more, since it was refused.
// It keeps the tenant's place for when it comes back: else whoever happens to come
// when there is room would take it, and some would be refused again and again.
// It keeps no call from going: while there are tokens nobody needs a place.
type ticket struct {
	class       kek.Priority
	tenant      string
	since, back time.Time
}

// issue gives a ticket to the tenant of w, which was told to come back at that
// time, unless others of it wait. There are as many as places in the queue; the
// oldest is void then.
func (v *vault) issue(w *waiter, since, back time.Time) {
	if v.queue.classes[w.class].place(w.tenant) != nil {
		return
	}
	if len(v.tickets) >= v.p.cfg.Queue {
		v.tickets = slices.Delete(v.tickets, 0, 1)
	}
	v.tickets = append(v.tickets, ticket{class: w.class, tenant: w.tenant, since: since, back: back})
}

// redeem takes back a tenant's ticket, if it has one, and returns since when the
// tenant has been waiting.
func (v *vault) redeem(class kek.Priority, tenant string, now time.Time) time.Time {
	v.tickets = slices.DeleteFunc(v.tickets, func(t ticket) bool { return now.Sub(t.back) > ticketTime })
	for i, t := range v.tickets {
		if t.class == class && t.tenant == tenant {
			v.tickets = slices.Delete(v.tickets, i, i+1)
			return t.since
		}
	}
	return now
}

// expected returns how many tenants with tickets will come back ahead of w: with
// a higher priority, and with the same.
func (v *vault) expected(w *waiter, now time.Time) (higher, same int) {
	since := v.queue.classes[w.class].place(w.tenant).since
	for _, t := range v.tickets {
		switch {
		case now.Sub(t.back) > expectTime:
		case t.class < w.class:
			higher++
		case t.class == w.class && !since.Before(t.since):
			same++
		}
	}
	return higher, same
}
