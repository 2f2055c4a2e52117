package limit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/internal/limit"
)

// A byteOp is a step of the test of Bytes.
type byteOp struct {
	Do  string
	Key int
	N   int64
	At  int // which of the holds, or of those who wait
}

func genByteOps(keys int, perKey int64) *rapid.Generator[[]byteOp] {
	op := rapid.Custom(func(t *rapid.T) byteOp {
		return byteOp{
			Do: rapid.SampledFrom([]string{
				"nothing", "acquire", "acquire", "acquire", "acquire", "try", "shrink", "release", "release", "cancel",
			}).Draw(t, "do"),
			Key: rapid.IntRange(0, keys-1).Draw(t, "key"),
			N:   rapid.Int64Range(0, perKey).Draw(t, "n"),
			At:  rapid.IntRange(0, 20).Draw(t, "at"),
		}
	})
	return rapid.SliceOfN(op, 60, 120)
}

// byteRequest is one that holds bytes or waits for them: what it should have,
// and what it has.
type byteRequest struct {
	*request
	key     int
	n       int64
	granted bool
	ready   int // its number among those that have become ready, 0 if it is not
}

// byteModel is the rule of Bytes, as its comment has it: it looks at all
// requests whenever anything happens.
type byteModel struct {
	total, perKey int64
	holding       []*byteRequest
	waiting       []*byteRequest // in the order in which they came
	lastReady     int
	reserved      int64
}

func (m *byteModel) used(key int) (n int64) {
	for _, r := range m.holding {
		if r.key == key || key < 0 {
			n += r.n
		}
	}
	return n
}

// line returns those who are ready, the first one first. Before that the heads
// of the keys that are within their shares become so.
func (m *byteModel) line() []*byteRequest {
	var line []*byteRequest
	heads := map[int]bool{}
	for _, r := range m.waiting {
		if heads[r.key] {
			continue
		}
		heads[r.key] = true
		if r.ready == 0 && m.used(r.key)+r.n <= m.perKey {
			m.lastReady++
			r.ready = m.lastReady
		}
		if r.ready > 0 {
			line = append(line, r)
		}
	}
	slices.SortFunc(line, func(a, b *byteRequest) int { return a.ready - b.ready })
	return line
}

// settle grants what there is room for.
func (m *byteModel) settle() {
	for {
		line := m.line()
		i := slices.IndexFunc(line, func(r *byteRequest) bool { return r.n <= m.room(r == line[0]) })
		if i < 0 {
			return
		}
		m.remove(line[i])
		line[i].granted = true
		m.holding = append(m.holding, line[i])
	}
}

func (m *byteModel) room(first bool) int64 {
	if first {
		return m.total - m.used(-1)
	}
	return m.total - m.used(-1) - m.reserved
}

// remove takes r out of those who wait.
func (m *byteModel) remove(r *byteRequest) {
	if line := m.line(); len(line) > 0 && line[0] == r {
		m.reserved = 0
	}
	m.waiting = slices.DeleteFunc(m.waiting, func(o *byteRequest) bool { return o == r })
}

func (m *byteModel) try(r *byteRequest) bool {
	waits := slices.ContainsFunc(m.waiting, func(o *byteRequest) bool { return o.key == r.key })
	if r.n == 0 || !waits && m.used(r.key)+r.n <= m.perKey && r.n <= m.room(false) {
		r.granted = true
		m.holding = append(m.holding, r)
	}
	return r.granted
}

func (m *byteModel) acquire(r *byteRequest) {
	if !m.try(r) {
		m.waiting = append(m.waiting, r)
		m.settle()
	}
}

// shrink makes a hold smaller.
func (m *byteModel) shrink(r *byteRequest, n int64) {
	if line := m.line(); len(line) > 0 && n < r.n {
		m.reserved = min(m.reserved+r.n-n, line[0].n)
	}
	r.n = min(r.n, n)
	m.settle()
}

func (m *byteModel) release(r *byteRequest) {
	m.shrink(r, 0)
	m.holding = slices.DeleteFunc(m.holding, func(o *byteRequest) bool { return o == r })
}

// byteMachine drives Bytes and its model.
type byteMachine struct {
	b    *limit.Bytes
	m    *byteModel
	gone []*byteRequest // cancelled
}

func (x *byteMachine) step(op byteOp) {
	r := &byteRequest{key: op.Key, n: op.N}
	key := fmt.Sprint(op.Key)
	switch op.Do {
	case "acquire":
		r.request = ask(x.b, key, op.N)
		x.m.acquire(r)
	case "try":
		r.request = &request{cancel: func() {}}
		r.hold, r.done = x.b.TryAcquire(key, op.N)
		if !x.m.try(r) && r.done {
			x.m.waiting = append(x.m.waiting, r) // check finds that it should not have it
		} else if r.granted && !r.done {
			r.err = errors.New("TryAcquire is refused")
		}
	case "shrink", "release":
		if len(x.m.holding) == 0 {
			return
		}
		r = x.m.holding[op.At%len(x.m.holding)]
		if op.Do == "release" {
			r.hold.Release()
			x.m.release(r)
			return
		}
		r.hold.Shrink(op.N)
		x.m.shrink(r, op.N)
	case "cancel":
		if len(x.m.waiting) == 0 {
			return
		}
		r = x.m.waiting[op.At%len(x.m.waiting)]
		r.cancel()
		x.m.remove(r)
		x.m.settle()
		x.gone = append(x.gone, r)
	}
}

// check compares Bytes with the model.
func (x *byteMachine) check() error {
	synctest.Wait()
	for _, r := range slices.Concat(x.m.holding, x.m.waiting) {
		if r.done != r.granted || r.err != nil {
			return fmt.Errorf("%d bytes of key %d: done %t with %v, want %t", r.n, r.key, r.done, r.err, r.granted)
		}
	}
	for _, r := range x.gone {
		if !r.done || !errors.Is(r.err, context.Canceled) {
			return fmt.Errorf("cancelled: done %t with %v", r.done, r.err)
		}
	}
	keys := map[int]bool{}
	for _, r := range slices.Concat(x.m.holding, x.m.waiting) {
		if r.n > 0 {
			keys[r.key] = true
		}
		if used := x.m.used(r.key); used > x.m.perKey {
			return fmt.Errorf("key %d has %d of %d bytes", r.key, used, x.m.perKey)
		}
	}
	used := x.m.used(-1)
	if n, k, res := x.b.InUse(), x.b.Keys(), x.b.Reserved(); n != used || k != len(keys) || res != x.m.reserved {
		return fmt.Errorf("%d bytes of %d keys, %d reserved; want %d of %d, %d", n, k, res, used, len(keys), x.m.reserved)
	}
	return nil
}

// finish releases everything: then everybody gets what they wait for.
func (x *byteMachine) finish() error {
	for len(x.m.holding) > 0 {
		x.step(byteOp{Do: "release"})
		if err := x.check(); err != nil {
			return err
		}
	}
	if n := len(x.m.waiting); n > 0 {
		return fmt.Errorf("%d wait for nothing", n)
	}
	return nil
}

func TestBytesModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		total := rapid.Int64Range(1, 20).Draw(rt, "total")
		share := rapid.SampledFrom([]float64{0.1, 0.3, 0.5, 0.75, 1}).Draw(rt, "share")
		perKey := max(1, int64(share*float64(total)))
		ops := genByteOps(rapid.IntRange(1, 5).Draw(rt, "keys"), perKey).Draw(rt, "ops")
		synctest.Test(t, func(t *testing.T) {
			x := &byteMachine{b: newBytes(t, total, share), m: &byteModel{total: total, perKey: perKey}}
			defer x.cancelAll()
			for i, op := range ops {
				x.step(op)
				if err := x.check(); err != nil {
					rt.Errorf("step %d: %v", i, err)
					return
				}
			}
			if err := x.finish(); err != nil {
				rt.Errorf("at the end: %v", err)
				return
			}
			mustBeEmpty(t, x.b)
		})
	})
}

func (x *byteMachine) cancelAll() {
	for _, r := range slices.Concat(x.m.holding, x.m.waiting) {
		r.cancel()
	}
}
