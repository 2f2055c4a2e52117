package cache_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/keysidecar/keysidecar/cache"
)

// benchKey is shaped like the key of a DEK: purpose, tenant, dek_id.
type benchKey struct {
	purpose byte
	tenant  string
	id      [16]byte
}

const benchEntries = 10_000

func benchKeys() []benchKey {
	ks := make([]benchKey, benchEntries/2) // all fit, wherever their hash leads
	for i := range ks {
		ks[i] = benchKey{purpose: 1, tenant: fmt.Sprintf("tenant-%05d", i)}
		binary.BigEndian.PutUint64(ks[i].id[:], uint64(i)*0x9E3779B97F4A7C15)
	}
	return ks
}

func benchCache(tb testing.TB, cfg cache.Config[benchKey, [32]byte, *thing]) *cache.Cache[benchKey, [32]byte, *thing] {
	tb.Helper()
	cfg.Entries = benchEntries
	cfg.Release = func(*thing) {}
	cfg.Stale = func(th *thing) bool { return th.stale.Load() }
	cfg.Group = func(k benchKey) string { return k.tenant }
	c, err := cache.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	for _, k := range benchKeys() {
		c.Put(k, &thing{}).Release()
	}
	return c
}

func idHash(k benchKey) uint64 { return binary.BigEndian.Uint64(k.id[:]) }

func TestHitAllocatesNothing(t *testing.T) {
	keys := benchKeys()
	for name, hash := range map[string]func(benchKey) uint64{"default": nil, "own": idHash} {
		c := benchCache(t, cache.Config[benchKey, [32]byte, *thing]{Hash: hash})
		i := 0
		hit := func() {
			r, ok := c.Get(keys[i%len(keys)])
			if !ok {
				t.Error("miss")
			}
			r.Value()
			r.Release()
			i++
		}
		load := func() {
			r, err := c.Load(t.Context(), keys[i%len(keys)], [32]byte{}, nil, nil)
			if err != nil {
				t.Error(err)
			}
			r.Release()
			i++
		}
		if n := testing.AllocsPerRun(1000, hit); n != 0 {
			t.Errorf("%s hash: Get allocates %v times", name, n)
		}
		if n := testing.AllocsPerRun(1000, load); n != 0 {
			t.Errorf("%s hash: a Load that hits allocates %v times", name, n)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	keys := benchKeys()
	for name, hash := range map[string]func(benchKey) uint64{"default": nil, "own": idHash} {
		c := benchCache(b, cache.Config[benchKey, [32]byte, *thing]{Hash: hash})
		get := func(i int) {
			r, ok := c.Get(keys[i%len(keys)])
			if !ok {
				b.Error("miss")
			}
			r.Release()
		}
		benchBoth(b, "hash="+name+"/", get)
	}
}

func BenchmarkBareLRUGet(b *testing.B) {
	keys := benchKeys()
	c, err := lru.New[benchKey, *thing](benchEntries)
	if err != nil {
		b.Fatal(err)
	}
	for _, k := range keys {
		c.Add(k, &thing{})
	}
	benchBoth(b, "", func(i int) {
		if _, ok := c.Get(keys[i%len(keys)]); !ok {
			b.Error("miss")
		}
	})
}

func benchBoth(b *testing.B, prefix string, get func(i int)) {
	b.Run(prefix+"serial", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			get(i)
			i += 7919
		}
	})
	b.Run(prefix+"parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			i := 0
			for pb.Next() {
				get(i)
				i += 7919
			}
		})
	})
}
