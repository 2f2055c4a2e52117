package cache

import "sync/atomic"

// Ref is a counted reference to a value. Whoever was given it releases it
// exactly once; the value must not be used afterwards. A Ref is small and may
// be copied and handed to another goroutine, but all copies are one reference.
// The zero Ref has the zero value and needs no Release.
type Ref[V any] struct{ val *value[V] }

// Value returns the value.
func (r Ref[V]) Value() V {
	if r.val == nil {
		var zero V
		return zero
	}
	return r.val.v
}

// Release gives the reference back. The last one of a value that has left the
// cache calls Config.Release. It panics if a value is released too often and
// that can be seen.
func (r Ref[V]) Release() {
	if r.val != nil {
		r.val.release()
	}
}

// value is a V with its count. refs counts the Refs, the place in the cache,
// and the load that delivers it. It only grows from zero before the value is
// shared, and otherwise while one of those is known to be held.
type value[V any] struct {
	v    V
	refs atomic.Int64
	free func(V) // may be nil
}

func (v *value[V]) release() {
	switch n := v.refs.Add(-1); {
	case n < 0:
		panic("cache: internal error: value released more often than referenced")
	case n == 0 && v.free != nil:
		v.free(v.v)
	}
}
