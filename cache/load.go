package cache

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// PanicError is a load's error after it panicked.
type PanicError struct {
	// Value is what it panicked with; nil if it ended its goroutine
	// (runtime.Goexit).
	Value any
	// Stack is the stack of the panic: for a log, not for a caller.
	Stack []byte
}

// Error tells the panic value, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic in load: %v", e.Value) }

// flightKey names a load. The key is part of it: if one L came with two keys,
// neither may get the other's value.
type flightKey[K, L comparable] struct {
	k K
	l L
}

// flight is a load under way.
type flight[K, L comparable, V any] struct {
	key      flightKey[K, L]
	waiters  int64 // who are owed a reference; under the shard's missMu
	finished bool  // under missMu
	detached bool  // under missMu: no longer in flights, and not to be stored

	// done is closed when held and err are final. held is nil after an error.
	// Each waiter then owns one reference to held.
	done chan struct{}
	held *entry[K, V]
	err  error
}

// negative is a remembered error.
type negative struct {
	err   error
	until time.Time
}

// Load returns a Ref to the value under k, and loads it where that is
// missing. In order: a hit; the remembered error of k and flight; the outcome
// of a load of k and flight that is under way; else the outcome of load, if
// admit allows it.
//
// admit is called just before load is started and by nobody who only waits:
// it is for the caller's budget of misses. Its error goes to this caller
// alone, as it is. It runs under a lock that other misses need: it has to be
// quick and must not use the cache. Nil allows.
//
// load runs in its own goroutine, with ctx's values but not its cancellation,
// until Config.LoadTimeout; it has to return soon after its context ends. Its
// error goes to all who wait, as it is; a panic becomes a *PanicError. Its
// value is stored under k and goes to all who wait. If there is by then
// another value under k, that one stays and goes to all who wait, and the new
// one is released.
//
// When ctx ends first, Load returns its error. That concerns nobody else, and
// the load goes on even if nobody is left. A hit is returned whatever ctx says.
func (c *Cache[K, L, V]) Load(
	ctx context.Context, k K, flight L, admit func() error, load func(context.Context) (V, error),
) (Ref[V], error) {
	sh := c.shard(k)
	for {
		if r, ok := c.lookup(sh, k); ok {
			return r, nil
		}
		if err := ctx.Err(); err != nil {
			return Ref[V]{}, err
		}
		f, started, err := c.join(sh, flightKey[K, L]{k, flight}, admit)
		switch {
		case err != nil:
			return Ref[V]{}, err
		case started:
			go c.run(ctx, sh, f, load)
		}
		if f != nil {
			return sh.wait(ctx, f)
		}
		// k was stored since lookup.
	}
}

// join makes the caller a waiter of the flight under way, or of a new one,
// which it then has to run. It returns nil if k is stored.
func (c *Cache[K, L, V]) join(
	sh *shard[K, L, V], key flightKey[K, L], admit func() error,
) (f *flight[K, L, V], started bool, err error) {
	now := c.cfg.Now()
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	if sh.closed {
		return nil, false, ErrClosed
	}
	if sh.contains(key.k) {
		return nil, false, nil
	}
	if err := sh.remembered(key, now); err != nil {
		return nil, false, err
	}
	if f := sh.flights[key]; f != nil {
		f.waiters++
		return f, false, nil
	}
	if admit != nil {
		if err := admit(); err != nil {
			return nil, false, err
		}
	}
	f = &flight[K, L, V]{key: key, waiters: 1, done: make(chan struct{})}
	sh.flights[key] = f
	sh.running++
	sh.loads++
	c.loads.Add(1) // before Close takes missMu, so before it waits
	return f, true, nil
}

// wait returns the flight's outcome to one waiter.
func (sh *shard[K, L, V]) wait(ctx context.Context, f *flight[K, L, V]) (Ref[V], error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		if sh.giveUp(f) {
			return Ref[V]{}, ctx.Err()
		}
		<-f.done // The reference is this waiter's already: take it.
	}
	if f.err != nil {
		return Ref[V]{}, f.err
	}
	return Ref[V]{&f.held.value}, nil
}

// giveUp takes a waiter off the flight. It reports false if that is too late:
// the waiter has been given its reference.
func (sh *shard[K, L, V]) giveUp(f *flight[K, L, V]) bool {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	if f.finished {
		return false
	}
	f.waiters--
	return true
}

// run calls load and finishes the flight, whatever load does.
func (c *Cache[K, L, V]) run(
	ctx context.Context, sh *shard[K, L, V], f *flight[K, L, V], load func(context.Context) (V, error),
) {
	defer c.loads.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.LoadTimeout)
	defer cancel()
	defer context.AfterFunc(c.closing, cancel)()

	var v V
	var err error
	returned := false
	defer func() {
		if !returned {
			err = &PanicError{Value: recover(), Stack: debug.Stack()}
		}
		if err != nil {
			c.fail(sh, f, err)
		} else {
			c.deliver(sh, f, v)
		}
	}()
	v, err = load(ctx)
	returned = true
}

// deliver ends a flight with a value.
func (c *Cache[K, L, V]) deliver(sh *shard[K, L, V], f *flight[K, L, V], v V) {
	e := c.newEntry(f.key.k, v, 1) // this goroutine's reference
	c.dropIfStale(sh, f.key.k)
	gone := sh.land(f, e)
	close(f.done)
	gone.leave()
	c.keepFresh(sh, e)
	e.release()
}

// keepFresh takes e out again if it is stale. It is asked after e was stored:
// what becomes stale before that is found here, and later by DropStale.
func (c *Cache[K, L, V]) keepFresh(sh *shard[K, L, V], e *entry[K, V]) {
	if c.cfg.Stale != nil && c.cfg.Stale(e.v) && sh.remove(e) {
		e.leave()
	}
}

// dropIfStale keeps a stale value from outliving the load that replaces it.
func (c *Cache[K, L, V]) dropIfStale(sh *shard[K, L, V], k K) {
	if c.cfg.Stale == nil {
		return
	}
	e := sh.peek(k)
	if e == nil {
		return
	}
	if c.cfg.Stale(e.v) && sh.remove(e) {
		e.leave()
	}
	e.release()
}

// land stores e, unless the flight is detached, and gives every waiter its
// reference. The caller closes f.done, and calls leave of what it returns.
func (sh *shard[K, L, V]) land(f *flight[K, L, V], e *entry[K, V]) (gone *entry[K, V]) {
	sh.missMu.Lock()
	defer sh.missMu.Unlock()
	if f.detached {
		e.refs.Add(f.waiters)
		f.held = e
	} else {
		f.held, gone = sh.insert(e, f.waiters, false)
	}
	sh.finish(f)
	return gone
}

// fail ends a flight with an error.
func (c *Cache[K, L, V]) fail(sh *shard[K, L, V], f *flight[K, L, V], err error) {
	var ttl time.Duration
	if c.cfg.NegativeTTL != nil {
		ttl = c.cfg.NegativeTTL(err)
	}
	until := c.cfg.Now().Add(ttl)
	sh.missMu.Lock()
	switch {
	case sh.closed:
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	case ttl > 0:
		sh.negatives.Add(f.key, negative{err, until})
	}
	f.err = err
	sh.loadErrs++
	sh.finish(f)
	sh.missMu.Unlock()
	close(f.done)
}

// finish takes a flight off the table. Its missMu is held.
func (sh *shard[K, L, V]) finish(f *flight[K, L, V]) {
	f.finished = true
	sh.running--
	if !f.detached {
		delete(sh.flights, f.key)
	}
}

// remembered returns the error that answers key now, or nil.
func (sh *shard[K, L, V]) remembered(key flightKey[K, L], now time.Time) error {
	n, ok := sh.negatives.Get(key)
	if !ok {
		return nil
	}
	if !now.Before(n.until) {
		sh.negatives.Remove(key)
		return nil
	}
	sh.negHits++
	return n.err
}

// detach keeps the flights of k from being stored, and from being joined.
func (sh *shard[K, L, V]) detach(k K) {
	for key, f := range sh.flights {
		if key.k == k {
			f.detached = true
			delete(sh.flights, key)
		}
	}
}

// detachAll does so for every flight.
func (sh *shard[K, L, V]) detachAll() {
	for _, f := range sh.flights {
		f.detached = true
	}
	clear(sh.flights)
}
