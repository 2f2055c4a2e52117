package pacing

import (
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// free reports whether a newcomer may go at once. After serve, those who wait
// lack a token that it lacks too, or they are jobs.
func (v *vault) free(class kek.Priority, now time.Time) bool {
	return !v.due(class, 1, 1).After(now)
}

// turnOf returns when the turn of w comes, behind those who wait and those who
// have been told to come back, if nobody else comes before it.
func (v *vault) turnOf(w *waiter, now time.Time) time.Time {
	all, inClass := v.queue.ahead(w)
	higher, same := v.expected(w, now)
	return v.due(w.class, all+higher+same+1, inClass+same+1)
}

// join queues w, or returns why it cannot.
func (v *vault) join(w *waiter, now time.Time) (*waiter, error) {
	v.queue.push(w, v.redeem(w.class, w.tenant, now))
	v.short = true
	if v.turnOf(w, now).After(w.latest) {
		return nil, v.dismiss(w, now, "its turn would come too late for its deadline")
	}
	if v.queue.n > v.p.cfg.Queue {
		last := v.queue.last()
		err := v.dismiss(last, now, "too many calls wait already")
		if last == w {
			return nil, err
		}
		last.turn <- err
	}
	v.serve(now)
	return w, nil
}

// dismiss removes w, gives its tenant a ticket, and returns why.
func (v *vault) dismiss(w *waiter, now time.Time, why string) error {
	turn := v.turnOf(w, now)
	since := v.queue.classes[w.class].place(w.tenant).since
	v.queue.remove(w)
	v.issue(w, since, turn)
	return v.p.refusal(v.name, w.class, turn.Sub(now), why)
}

// serve lets go who may, refuses who would wait in vain, and sets the timer for
// the next turn.
func (v *vault) serve(now time.Time) {
	v.advance(now)
	for w := v.queue.first(); w != nil; w = v.queue.first() {
		turn := v.due(w.class, 1, 1)
		if !turn.After(now) {
			v.grant(w, now)
			continue
		}
		if !v.shed(turn, now) {
			v.arm(turn, now)
			return
		}
	}
	if v.timer != nil {
		v.timer.Stop()
		v.armed = time.Time{}
	}
}

func (v *vault) grant(w *waiter, now time.Time) {
	v.queue.pop(w, now)
	v.take(w.class)
	v.p.counts.Waited[w.class] += now.Sub(w.since)
	w.granted = true
	w.turn <- nil
}

// shed refuses who cannot wait for the next turn, and reports whether there was
// somebody.
func (v *vault) shed(turn, now time.Time) bool {
	gone := v.queue.hopeless(turn)
	for _, w := range gone {
		w.turn <- v.dismiss(w, now, "others took its turn, and the next is too late for its deadline")
	}
	return len(gone) > 0
}

// arm sets the timer.
func (v *vault) arm(at, now time.Time) {
	switch {
	case v.armed.Equal(at):
		return
	case v.timer == nil:
		v.timer = time.AfterFunc(at.Sub(now), v.fire)
	default:
		v.timer.Reset(at.Sub(now))
	}
	v.armed = at
}

// fire is run by the timer. One that was stopped too late does no harm.
func (v *vault) fire() {
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	v.serve(time.Now())
}
