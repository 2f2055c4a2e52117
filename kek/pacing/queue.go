package pacing

import (
	"slices"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// forever is longer than any call waits.
const forever = 100 * 365 * 24 * time.Hour

// waiter is a call that waits for its turn.
type waiter struct {
	vault  *vault
	class  kek.Priority
	tenant string
	since  time.Time
	latest time.Time // when its turn has to come

	queued, granted bool       // guarded by Pacer.mu
	turn            chan error // gets one value: nil, or why there is no turn
}

// queue holds the waiters of one vault. There are a few hundred at most, so it
// looks through them.
type queue struct {
	n       int
	classes [kek.Job + 1]class
}

// class holds the waiters of one priority: a line for each tenant that has some,
// in the order of their turns, which is that of since.
type class struct {
	n     int
	lines []*line
}

// line holds the waiters of one tenant, the earliest deadline first; of those
// with the same, who came first.
type line struct {
	tenant  string
	since   time.Time // when it had its last turn, or came first
	waiting []*waiter
}

// place returns the line of a tenant, or nil.
func (c *class) place(tenant string) *line {
	i := slices.IndexFunc(c.lines, func(l *line) bool { return l.tenant == tenant })
	if i < 0 {
		return nil
	}
	return c.lines[i]
}

// join adds a line, behind those that came before it.
func (c *class) join(l *line) {
	at := len(c.lines)
	for at > 0 && l.since.Before(c.lines[at-1].since) {
		at--
	}
	c.lines = slices.Insert(c.lines, at, l)
}

// push queues w, whose tenant has been there since then if nobody of it waits.
func (q *queue) push(w *waiter, since time.Time) {
	c := &q.classes[w.class]
	q.n++
	c.n++
	w.queued = true
	l := c.place(w.tenant)
	if l == nil {
		l = &line{tenant: w.tenant, since: since}
		c.join(l)
	}
	at := len(l.waiting)
	for at > 0 && w.latest.Before(l.waiting[at-1].latest) {
		at--
	}
	l.waiting = slices.Insert(l.waiting, at, w)
}

// first returns the waiter whose turn is next, or nil.
func (q *queue) first() *waiter {
	for i := range q.classes {
		if c := &q.classes[i]; c.n > 0 {
			return c.lines[0].waiting[0]
		}
	}
	return nil
}

// pop removes the first waiter, and sends its tenant behind the others.
func (q *queue) pop(w *waiter, now time.Time) {
	c := &q.classes[w.class]
	l := c.lines[0]
	if q.remove(w); len(l.waiting) > 0 {
		c.lines = slices.Delete(c.lines, 0, 1)
		l.since = now
		c.join(l)
	}
}

// find returns where w, which is queued, is: its line, and its place there.
func (q *queue) find(w *waiter) (at, rank int) {
	lines := q.classes[w.class].lines
	at = slices.IndexFunc(lines, func(l *line) bool { return l.tenant == w.tenant })
	return at, slices.Index(lines[at].waiting, w)
}

// remove removes w, which is queued.
func (q *queue) remove(w *waiter) {
	c := &q.classes[w.class]
	at, rank := q.find(w)
	q.n--
	c.n--
	w.queued = false
	l := c.lines[at]
	if l.waiting = slices.Delete(l.waiting, rank, rank+1); len(l.waiting) == 0 {
		c.lines = slices.Delete(c.lines, at, at+1)
	}
}

// ahead returns how many turns come before w's if nobody else comes: in all, and
// in its class.
func (q *queue) ahead(w *waiter) (all, inClass int) {
	c := &q.classes[w.class]
	mine, rank := q.find(w)
	inClass = rank
	for i, l := range c.lines {
		switch {
		case i < mine:
			inClass += min(len(l.waiting), rank+1)
		case i > mine:
			inClass += min(len(l.waiting), rank)
		}
	}
	all = inClass
	for i := range q.classes[:w.class] {
		all += q.classes[i].n
	}
	return all, inClass
}

// last returns who has to go when there are too many: see Wait.
func (q *queue) last() *waiter {
	i := int(kek.Job)
	for q.classes[i].n == 0 {
		i--
	}
	var most *line
	for _, l := range q.classes[i].lines {
		if most == nil || len(l.waiting) >= len(most.waiting) {
			most = l
		}
	}
	return most.waiting[len(most.waiting)-1]
}

// hopeless returns who cannot wait until at.
func (q *queue) hopeless(at time.Time) []*waiter {
	var gone []*waiter
	for i := range q.classes {
		for _, l := range q.classes[i].lines {
			for _, w := range l.waiting {
				if !w.latest.Before(at) {
					break // nor are those behind it
				}
				gone = append(gone, w)
			}
		}
	}
	return gone
}
