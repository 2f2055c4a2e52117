package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"math"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

// tiers are lengths of buffers, so that there is one of every tier of gRPC's
// pool, of 256 bytes to 1 MiB, and one that has none.
var tiers = []int{0, 1, 256, 4 << 10, 16 << 10, 32 << 10, 1 << 20, 1<<20 + 1}

// search takes a buffer of every tier from pool and reports whether one holds
// the needle, as far as it reaches and not only as far as was asked for.
func search(pool mem.BufferPool, needle []byte) bool {
	found := false
	buffers := make([]*[]byte, len(tiers))
	for i, n := range tiers {
		buffers[i] = pool.Get(n)
		b := *buffers[i]
		found = found || bytes.Contains(b[:cap(b)], needle)
	}
	for _, b := range buffers {
		pool.Put(b)
	}
	return found
}

// dirty is a pool that clears nothing.
type dirty struct {
	mem.NopBufferPool
	last *[]byte
}

func (d *dirty) Get(n int) *[]byte {
	if d.last == nil || cap(*d.last) < n {
		return d.NopBufferPool.Get(n)
	}
	b := (*d.last)[:n]
	d.last = nil
	return &b
}

func (d *dirty) Put(b *[]byte) { d.last = b }

// TestSearchControl shows that search finds what a buffer still holds, also
// beyond its length.
func TestSearchControl(t *testing.T) {
	needle := []byte("needle")
	for _, at := range []int{0, 1, 4000} {
		pool := &dirty{}
		b := make([]byte, 4096)
		copy(b[at:], needle)
		pool.Put(&b)
		if !search(pool, needle) {
			t.Errorf("nothing found at %d", at)
		}
	}
	if search(&dirty{}, needle) {
		t.Error("found in new buffers")
	}
}

// TestPlaintextsDoNotMeet makes calls of two callers, whose plaintexts are all
// one marker over and over, while somebody looks into every buffer that the
// pool of gRPC's hands out. No buffer holds a marker, and no answer the other
// caller's.
func TestPlaintextsDoNotMeet(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) { asNamed(t, c) })
	markers := [][]byte{make([]byte, 16), make([]byte, 16)}
	for _, m := range markers {
		_, _ = rand.Read(m) // never fails
	}
	stop := make(chan struct{})
	looked := make(chan int)
	go func() {
		n := 0
		defer func() { looked <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for i, m := range markers {
				if search(mem.DefaultBufferPool(), m) {
					t.Errorf("a buffer of the pool holds a plaintext of caller %d", i)
					return
				}
			}
			n++
		}
	}()
	var wg sync.WaitGroup
	for i, caller := range []string{"dns:a.test", "dns:b.test"} {
		rpc := keysidecarv1.NewSealServiceClient(s.dialAs(t, caller))
		wg.Go(func() {
			for range 5 {
				for _, n := range []int{0, 1, 1 << 10, 16 << 10, 64 << 10, 1 << 20} {
					data := bytes.Repeat(markers[i], n/16+1)[:n]
					got, err := rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: data},
						grpc.MaxCallRecvMsgSize(math.MaxInt32))
					if err != nil || !bytes.Equal(got.GetSealed(), data) {
						t.Errorf("%d bytes of %s came back as %d other bytes, %v", n, caller, len(got.GetSealed()), err)
					}
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	if n := <-looked; n == 0 {
		t.Error("nobody looked")
	}
}

// TestHandlersGetTheirOwnMemory shows that a request's data is no part of a
// buffer that goes back to the pool: what a handler keeps stays as it is.
func TestHandlersGetTheirOwnMemory(t *testing.T) {
	var kept [][]byte
	s := start(t, answer(func(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		kept = append(kept, r.Data)
		return sealer.Result{}, nil
	}), nil)
	var want [][]byte
	for _, n := range []int{1, 1 << 10, 16 << 10, 64 << 10, 1 << 20} {
		data := bytes.Repeat([]byte{byte(len(want) + 1)}, n)
		want = append(want, data)
		if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: data}); err != nil {
			t.Fatal(err)
		}
	}
	other := bytes.Repeat([]byte{0xff}, 1<<20+1)
	for range 20 { // whoever gets the buffers now writes into them
		var taken []*[]byte
		for _, n := range tiers {
			b := mem.DefaultBufferPool().Get(n)
			copy(*b, other)
			taken = append(taken, b)
		}
		for _, b := range taken {
			mem.DefaultBufferPool().Put(b)
		}
	}
	if !slices.EqualFunc(kept, want, bytes.Equal) {
		t.Error("data changed after the call")
	}
}
