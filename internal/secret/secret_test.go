package secret_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"sync"
	"testing"

	"github.com/keysidecar/keysidecar/internal/secret"
)

func newSlab(t *testing.T, slots int) *secret.Slab {
	t.Helper()
	s, err := secret.New(secret.Config{Slots: slots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func randomKey() [secret.Size]byte {
	var k [secret.Size]byte
	rand.Read(k[:])
	return k
}

func put(t *testing.T, s *secret.Slab) (*secret.Key, [secret.Size]byte) {
	t.Helper()
	want := randomKey()
	k := want
	key, err := s.Put(&k)
	if err != nil {
		t.Fatal(err)
	}
	if k != ([secret.Size]byte{}) {
		t.Fatal("Put left the caller's copy")
	}
	return key, want
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

func TestPutExposeWipe(t *testing.T) {
	s := newSlab(t, 3)
	a, wantA := put(t, s)
	b, wantB := put(t, s)
	if *a.Expose() != wantA || *b.Expose() != wantB {
		t.Fatal("Expose does not return the key that was put")
	}
	if s.InUse() != 2 {
		t.Fatalf("InUse = %d, want 2", s.InUse())
	}
	a.Wipe()
	a.Wipe()
	if s.InUse() != 1 {
		t.Fatalf("InUse after two Wipes of one key = %d, want 1", s.InUse())
	}
	if *a.Slot() != ([secret.Size]byte{}) {
		t.Error("slot is not zero after Wipe")
	}
	if *b.Expose() != wantB {
		t.Error("Wipe touched another key")
	}
	mustPanic(t, "Expose after Wipe", func() { a.Expose() })
}

func TestFullAndReuse(t *testing.T) {
	const slots = 5
	s := newSlab(t, slots)
	var keys []*secret.Key
	for range slots {
		k, _ := put(t, s)
		keys = append(keys, k)
	}
	late := randomKey()
	before := late
	if _, err := s.Put(&late); !errors.Is(err, secret.ErrFull) {
		t.Fatalf("Put into a full slab: %v, want ErrFull", err)
	}
	if late != before {
		t.Error("a refused Put changed the caller's key")
	}
	old := keys[2]
	old.Wipe()
	k, want := put(t, s)
	if k.Slot() != old.Slot() {
		t.Error("the freed slot was not reused")
	}
	old.Wipe() // must not wipe its successor
	if *k.Expose() != want {
		t.Error("a second Wipe of the old key wiped the slot's next key")
	}
	mustPanic(t, "Expose of the old key", func() { old.Expose() })
}

func TestSlotsNeverOverlapOrMove(t *testing.T) {
	const slots = 1000
	s := newSlab(t, slots)
	seen := map[*[secret.Size]byte]bool{}
	keys, wants := make([]*secret.Key, slots), make([][secret.Size]byte, slots)
	for i := range slots {
		keys[i], wants[i] = put(t, s)
		seen[keys[i].Expose()] = true
	}
	if len(seen) != slots {
		t.Fatalf("%d slots for %d keys", len(seen), slots)
	}
	for i, k := range keys {
		if *k.Expose() != wants[i] || !seen[k.Expose()] {
			t.Fatalf("key %d changed or moved", i)
		}
	}
}

func TestCloseWipes(t *testing.T) {
	for _, level := range levels(t) {
		s, err := secret.NewAt(level, 4)
		if err != nil {
			t.Fatal(err)
		}
		k, _ := put(t, s)
		put(t, s)
		var wiped bool
		s.BeforeUnmap(func(b []byte) { wiped = len(b) >= 4*secret.Size && len(bytes.Trim(b, "\x00")) == 0 })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !wiped {
			t.Errorf("%s: Close unmapped keys without wiping them", level)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: second Close: %v", level, err)
		}
		if s.InUse() != 0 {
			t.Errorf("%s: InUse after Close = %d", level, s.InUse())
		}
		late := randomKey()
		if _, err := s.Put(&late); !errors.Is(err, secret.ErrClosed) {
			t.Errorf("%s: Put after Close: %v, want ErrClosed", level, err)
		}
		mustPanic(t, "Expose after Close", func() { k.Expose() })
		k.Wipe() // must not touch unmapped memory
	}
}

func TestNewRefuses(t *testing.T) {
	for _, slots := range []int{-1, 0, secret.MaxSlots + 1} {
		if _, err := secret.New(secret.Config{Slots: slots}); err == nil {
			t.Errorf("New with %d slots succeeded", slots)
		}
	}
	if _, err := secret.New(secret.Config{Slots: 1, Require: secret.Memfd + 1}); err == nil {
		t.Error("New with an unknown level succeeded")
	}
}

func TestFallThrough(t *testing.T) {
	refusal := errors.New("refused by the kernel")
	for _, tc := range []struct {
		refused []secret.Level
		require secret.Level
		want    secret.Level
		err     error
	}{
		{refused: []secret.Level{secret.Memfd, secret.Locked}, want: secret.Heap},
		{refused: []secret.Level{secret.Memfd, secret.Locked}, require: secret.Locked, err: secret.ErrLevel},
		{refused: []secret.Level{secret.Memfd, secret.Locked}, require: secret.Memfd, err: secret.ErrLevel},
	} {
		s, err := secret.NewWithout(secret.Config{Slots: 1, Require: tc.require}, refusal, tc.refused...)
		if !errors.Is(err, tc.err) {
			t.Fatalf("%+v: error %v", tc, err)
		}
		if tc.err != nil {
			if s != nil || !errors.Is(err, refusal) {
				t.Errorf("%+v: got a slab, or the reason is lost: %v", tc, err)
			}
			continue
		}
		if s.Level() != tc.want || !errors.Is(s.Shortfall(), refusal) {
			t.Errorf("%+v: level %s, shortfall %v", tc, s.Level(), s.Shortfall())
		}
		k, want := put(t, s)
		if *k.Expose() != want {
			t.Errorf("%+v: wrong key", tc)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	const slots, goroutines, rounds = 64, 16, 2000
	s := newSlab(t, slots)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			var held []*secret.Key
			var wants [][secret.Size]byte
			for i := range rounds {
				want := randomKey()
				k := want
				key, err := s.Put(&k)
				switch {
				case err == nil:
					held, wants = append(held, key), append(wants, want)
				case !errors.Is(err, secret.ErrFull):
					t.Error(err)
				}
				if err != nil || i%3 == 0 && len(held) > 0 {
					for j, key := range held {
						if *key.Expose() != wants[j] {
							t.Error("another goroutine's key in my slot")
						}
						key.Wipe()
					}
					held, wants = nil, nil
				}
			}
			for _, key := range held {
				key.Wipe()
			}
		})
	}
	wg.Wait()
	if n := s.InUse(); n != 0 {
		t.Errorf("InUse = %d after every Wipe", n)
	}
	if len(bytes.Trim(s.Memory(), "\x00")) != 0 {
		t.Error("slab is not zero after every Wipe")
	}
}

func TestConcurrentWipeFreesOnce(t *testing.T) {
	s := newSlab(t, 2)
	for range 500 {
		k, _ := put(t, s)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(k.Wipe)
		}
		wg.Wait()
		if n := s.InUse(); n != 0 {
			t.Fatalf("InUse = %d after racing Wipes of one key", n)
		}
	}
}

func TestDo(t *testing.T) {
	ran := false
	secret.Do(func() { secret.Do(func() { ran = true }) })
	if !ran {
		t.Error("Do did not call f")
	}
	mustPanic(t, "Do of a panicking f", func() { secret.Do(func() { panic("f") }) })
}

func TestLevelString(t *testing.T) {
	for level, want := range map[secret.Level]string{
		secret.Heap: "heap", secret.Locked: "locked", secret.Memfd: "memfd_secret", 9: "level(9)",
	} {
		if got := level.String(); got != want {
			t.Errorf("Level(%d) = %q, want %q", uint8(level), got, want)
		}
	}
}
