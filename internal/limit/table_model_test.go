package limit_test

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/internal/limit"
)

// A callOp is a step of the test of a Table: what it does first, if anything,
// is to let time pass.
type callOp struct {
	Advance time.Duration
	Wait    bool // for as long as the last refusal said
	Do      string
	Key     string
	Limit   limit.Limit
	Leave   int // which call of those under way
}

func genCallOps(keys int) *rapid.Generator[[]callOp] {
	limits := rapid.Custom(func(t *rapid.T) limit.Limit {
		return limit.Limit{
			// A token takes a whole number of nanoseconds, and twice the time
			// of the next: so floating point has nothing to round.
			Rate:  rapid.SampledFrom([]float64{0, 0.5, 1, 2, 4, 8}).Draw(t, "rate"),
			Burst: rapid.IntRange(0, 3).Draw(t, "burst"),
			Calls: rapid.IntRange(0, 3).Draw(t, "calls"),
		}
	})
	one := rapid.Just(limit.Limit{Rate: 1, Burst: 2, Calls: 2})
	op := rapid.Custom(func(t *rapid.T) callOp {
		return callOp{
			Advance: time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 125e6, 250e6, 1e9, 3e9}).Draw(t, "advance")),
			Wait:    rapid.Bool().Draw(t, "wait"),
			Do:      rapid.SampledFrom([]string{"nothing", "enter", "enter", "enter", "enter", "take", "take", "leave", "leave"}).Draw(t, "do"),
			Key:     fmt.Sprint(rapid.IntRange(1, keys).Draw(t, "key")),
			Limit:   rapid.OneOf(one, limits).Draw(t, "limit"),
			Leave:   rapid.IntRange(0, 9).Draw(t, "call"),
		}
	})
	return rapid.SliceOfN(op, 60, 150)
}

// modelKey is what should be known of a key. Its tokens are a fraction.
type modelKey struct {
	name        string
	tokens      *big.Rat // nil: there was no Rate yet
	rate, burst *big.Rat
	at          time.Time
	calls       int
}

// refill brings the bucket up to now, and then under l.
func (k *modelKey) refill(now time.Time, l limit.Limit) {
	if k.tokens != nil {
		gone := new(big.Rat).SetFrac64(int64(now.Sub(k.at)), int64(time.Second))
		k.tokens.Add(k.tokens, gone.Mul(gone, k.rate))
		k.cap()
	}
	k.at = now
	k.rate = new(big.Rat).SetFloat64(l.Rate)
	k.burst = new(big.Rat).SetInt64(int64(l.Burst))
	if l.Burst == 0 {
		k.burst.SetFloat64(max(1, math.Ceil(l.Rate)))
	}
	if k.tokens == nil {
		k.tokens = new(big.Rat).Set(k.burst)
	}
	k.cap()
}

func (k *modelKey) cap() {
	if k.tokens.Cmp(k.burst) > 0 {
		k.tokens.Set(k.burst)
	}
}

// take takes a token, or returns the nanoseconds until there is one.
func (k *modelKey) take(now time.Time, l limit.Limit) (time.Duration, bool) {
	if l.Rate == 0 {
		return 0, true
	}
	k.refill(now, l)
	missing := new(big.Rat).Sub(big.NewRat(1, 1), k.tokens)
	if missing.Sign() <= 0 {
		k.tokens.Sub(k.tokens, big.NewRat(1, 1))
		return 0, true
	}
	ns := missing.Mul(missing, big.NewRat(int64(time.Second), 1))
	ns.Quo(ns, k.rate)
	up := new(big.Int).Add(ns.Num(), new(big.Int).Sub(ns.Denom(), big.NewInt(1)))
	return time.Duration(up.Quo(up, ns.Denom()).Int64()), false
}

// isFull reports whether the bucket has as many tokens as it ever will.
func (k *modelKey) isFull(now time.Time) bool {
	if k.tokens == nil {
		return true
	}
	gone := new(big.Rat).SetFrac64(int64(now.Sub(k.at)), int64(time.Second))
	gone.Mul(gone, k.rate)
	return gone.Add(gone, k.tokens).Cmp(k.burst) >= 0
}

// callModel is what a Table should be: its keys, those asked for or passed over
// longest ago first.
type callModel struct {
	capacity int
	keys     []*modelKey
}

func (m *callModel) key(now time.Time, name string) *modelKey {
	i := slices.IndexFunc(m.keys, func(k *modelKey) bool { return k.name == name })
	if i >= 0 {
		k := m.keys[i]
		m.keys = append(slices.Delete(m.keys, i, i+1), k)
		return k
	}
	if len(m.keys) >= m.capacity {
		m.evict(now)
	}
	k := &modelKey{name: name}
	m.keys = append(m.keys, k)
	return k
}

// evict takes out the first of the 16 oldest that nobody will miss, else the
// oldest that is idle. All that come before who is found, or the 16, are then
// as good as just asked for.
func (m *callModel) evict(now time.Time) {
	passed := min(16, len(m.keys))
	idle := func(k *modelKey) bool { return k.calls == 0 }
	out := slices.IndexFunc(m.keys[:passed], func(k *modelKey) bool { return idle(k) && k.isFull(now) })
	if out >= 0 {
		passed = out + 1
	} else if out = slices.IndexFunc(m.keys, idle); out < 0 {
		return
	}
	gone := m.keys[out]
	passed = max(passed, out+1)
	m.keys = slices.Concat(m.keys[passed:], m.keys[:passed])
	m.keys = slices.DeleteFunc(m.keys, func(k *modelKey) bool { return k == gone })
}

func (m *callModel) enter(now time.Time, name string, l limit.Limit) (*modelKey, time.Duration, bool) {
	k := m.key(now, name)
	if l.Calls > 0 && k.calls >= l.Calls {
		return nil, 0, false
	}
	wait, ok := k.take(now, l)
	if ok {
		k.calls++
	}
	return k, wait, ok
}

func (m *callModel) take(now time.Time, name string, l limit.Limit) (time.Duration, bool) {
	if l.Rate == 0 {
		return 0, true
	}
	return m.key(now, name).take(now, l)
}

func (m *callModel) leave(k *modelKey) {
	k.calls--
	if k.calls == 0 && len(m.keys) > m.capacity {
		m.keys = slices.DeleteFunc(m.keys, func(o *modelKey) bool { return o == k })
	}
}

// callMachine drives a Table and its model.
type callMachine struct {
	table  *limit.Table
	m      *callModel
	passes []limit.Pass
	calls  []*modelKey
	wait   time.Duration
}

func (x *callMachine) step(op callOp) error {
	if op.Wait {
		pass(x.wait)
	}
	pass(op.Advance)
	now := time.Now()
	switch op.Do {
	case "enter":
		k, wantWait, want := x.m.enter(now, op.Key, op.Limit)
		p, wait, ok := x.table.Enter(op.Key, op.Limit)
		if ok != want || wait != wantWait {
			return fmt.Errorf("%+v: %s, %t; want %s, %t", op, wait, ok, wantWait, want)
		}
		if x.wait = wait; ok {
			x.passes, x.calls = append(x.passes, p), append(x.calls, k)
		}
	case "take":
		wantWait, want := x.m.take(now, op.Key, op.Limit)
		wait, ok := x.table.Take(op.Key, op.Limit)
		if ok != want || wait != wantWait {
			return fmt.Errorf("%+v: %s, %t; want %s, %t", op, wait, ok, wantWait, want)
		}
		x.wait = wait
	case "leave":
		if len(x.passes) > 0 {
			x.leave(op.Leave % len(x.passes))
		}
	}
	return x.check()
}

func (x *callMachine) leave(i int) {
	x.passes[i].Leave()
	x.m.leave(x.calls[i])
	x.passes, x.calls = slices.Delete(x.passes, i, i+1), slices.Delete(x.calls, i, i+1)
}

func (x *callMachine) check() error {
	idle := 0
	for _, k := range x.m.keys {
		if k.calls == 0 {
			idle++
		}
	}
	believed, counted := x.table.Idle()
	if n := x.table.Len(); n != len(x.m.keys) || believed != idle || counted != idle {
		return fmt.Errorf("%d entries, %d idle, in truth %d; want %d and %d", n, believed, counted, len(x.m.keys), idle)
	}
	return nil
}

func TestTableModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		entries, keys := rapid.IntRange(1, 4).Draw(rt, "entries"), 5
		if rapid.Bool().Draw(rt, "large") { // more than are looked at
			entries, keys = entries+16, 40
		}
		ops := genCallOps(keys).Draw(rt, "ops")
		synctest.Test(t, func(t *testing.T) {
			x := &callMachine{table: newTable(t, entries), m: &callModel{capacity: entries}}
			for i, op := range ops {
				if err := x.step(op); err != nil {
					rt.Errorf("step %d: %v", i, err)
					return
				}
			}
			for len(x.passes) > 0 {
				x.leave(0)
			}
			if err := x.check(); err != nil {
				rt.Errorf("at the end: %v", err)
			}
		})
	})
}
