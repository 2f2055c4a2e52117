package dek_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/tenant"
)

// otherKEK returns a KEK in a vault of its own.
func otherKEK(ref string) kek.Key {
	k := testKEK
	k.Ref, k.Vault, k.Alg = ref, "https://"+ref+".vault.localhost", kek.A256KW
	return k
}

// A block that names KEK version zero is about no version, least of all all.
func TestVersionZeroNamesNothing(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	forged := append([]byte(nil), prefix...)
	clear(forged[len(forged)-256-4-16 : len(forged)-256-4])
	before, cold := r.vault.Counts(), info.ID
	cold[0] ^= 1
	if err := r.open(t.Context(), forged, cold); kek.ReasonOf(err) != kek.NotFound {
		t.Errorf("ForOpen: %v, want not found", err)
	}
	if s := r.Stats(); s.Cached != 1 || s.Active != 1 {
		t.Errorf("%d DEKs cached, %d active after the forgery; want 1, 1", s.Cached, s.Active)
	}
	if got := r.vault.Counts(); got != before {
		t.Errorf("the vault was asked: %+v, then %+v", before, got)
	}
}

// anything accepts whatever it is asked to unwrap, under every version.
type anything struct{ kek.Wrapper }

func (anything) Unwrap(_ context.Context, _ kek.Key, _ kek.Version, wrapped []byte, out *[kek.Size]byte) error {
	copy(out[:], wrapped)
	return nil
}

// A vault that accepts everything cannot fill the table of leases.
func TestLeasesAreOfWhatIsHeld(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	lying := newRig(t, func(c *dek.Config) { c.KEKs = anything{r.vault} })
	for i := range 50 {
		forged := append([]byte(nil), prefix...)
		forged[len(forged)-256-4-16] ^= byte(i) // the version
		forged[len(forged)-100] = byte(i)
		if err := lying.open(t.Context(), forged, info.ID); !errors.Is(err, dek.ErrMismatch) {
			t.Fatalf("ForOpen: %v, want %v", err, dek.ErrMismatch)
		}
	}
	if got := lying.events; len(got) != 50 || got[0] != dek.Rejected {
		t.Errorf("recorded %v, want 50 times that it was rejected", got)
	}
	if n := lying.Leases(); n != 0 {
		t.Errorf("%d leases, and no DEK is held", n)
	}
	if n := r.Leases(); n != 1 {
		t.Errorf("%d leases for one active DEK, want 1", n)
	}
}

// The lease of an active DEK stays when its key is evicted, and goes with it.
func TestLeaseOfAnActiveDEK(t *testing.T) {
	minter := newRig(t, nil)
	prefix, info := minter.seal(t)
	minter.vault.Rotate(testKEK)
	r := newRig(t, func(c *dek.Config) { c.KEKs, c.CacheEntries = minter.vault, 1 })
	if _, got := r.seal(t); got.KEKVersion == info.KEKVersion {
		t.Fatal("minted under the old version")
	}
	if err := r.open(t.Context(), prefix, info.ID); err != nil { // evicts the key
		t.Fatal(err)
	}
	if n := r.Leases(); n != 2 {
		t.Errorf("%d leases for an active DEK and a cached one, want 2", n)
	}
	r.Close()
	if n := r.Leases(); n != 0 {
		t.Errorf("%d leases after Close", n)
	}
}

// A DEK whose KEK is refused while its unwrap is under way is not kept.
func TestFenceDuringALoad(t *testing.T) {
	minter := newRig(t, nil)
	prefix, info := minter.seal(t)
	second, secondInfo := func() ([]byte, dek.Info) {
		r := newRig(t, func(c *dek.Config) { c.KEKs = minter.vault })
		return r.seal(t)
	}()
	inBubble(t, func(c *dek.Config) { c.KEKs = minter.vault }, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		slow := true
		minter.vault.SetHook(func(context.Context, kektest.Call) error {
			if slow {
				slow = false
				<-gate
				return nil
			}
			return &kek.Error{Reason: kek.Disabled}
		})
		done := make(chan error)
		go func() { done <- r.open(t.Context(), prefix, info.ID) }()
		synctest.Wait()
		if err := r.open(t.Context(), second, secondInfo.ID); kek.ReasonOf(err) != kek.Disabled {
			t.Errorf("ForOpen: %v, want disabled", err)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Errorf("the load that had begun: %v", err)
		}
		synctest.Wait() // the load may end a moment after its caller
		if n := r.Stats().Cached; n != 0 {
			t.Errorf("%d DEKs are cached under a refused version", n)
		}
		minter.vault.SetHook(nil)
	})
}

// A tenant whose vault blows hot and cold costs other tenants nothing: their
// loads are shared and stored all the same.
func TestTogglingVaultOfANeighbour(t *testing.T) {
	minter := newRig(t, nil)
	prefix, info := minter.seal(t)
	hostile := otherKEK("hostile")
	minter.vault.Create(hostile)
	inBubble(t, func(c *dek.Config) { c.KEKs = minter.vault }, func(t *testing.T, r *rig) {
		calls, refusing := 0, false
		minter.vault.SetHook(func(_ context.Context, c kektest.Call) error {
			switch {
			case c.Key == testKEK && c.Op == "unwrap":
				calls++
				<-time.After(50 * time.Millisecond)
			case c.Key == hostile && refusing:
				return &kek.Error{Reason: kek.Forbidden}
			}
			return nil
		})
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				evil := &tenant.Entry{ID: id(t, fmt.Sprintf("evil-%d", i)), KEKs: []kek.Key{hostile}}
				refusing = i%2 == 1
				if ref, err := r.ForSeal(t.Context(), evil, 1, nil); err == nil {
					ref.Release()
				}
			}
		}()
		for range 50 {
			if err := r.open(t.Context(), prefix, info.ID); err != nil {
				t.Fatal(err)
			}
		}
		close(stop)
		<-stopped
		if calls != 1 {
			t.Errorf("%d unwraps for one DEK, want 1", calls)
		}
		minter.vault.SetHook(nil)
	})
}

// Vaults that hang do not keep another vault's rotation from being followed.
func TestHangingVaultsOfOthers(t *testing.T) {
	inBubble(t, func(c *dek.Config) { c.CacheEntries = 512 }, func(t *testing.T, r *rig) {
		r.seal(t)
		for i := range 40 {
			k := otherKEK(fmt.Sprintf("other-%d", i))
			r.vault.Create(k)
			ref, err := r.ForSeal(t.Context(), &tenant.Entry{ID: id(t, k.Ref), KEKs: []kek.Key{k}}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			ref.Release()
		}
		r.vault.SetHook(func(ctx context.Context, c kektest.Call) error {
			if c.Key != testKEK {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		sleepUntil(time.Now(), 11*time.Minute)
		second := r.vault.Rotate(testKEK)
		sleepUntil(time.Now(), 5*time.Minute)
		if _, got := r.seal(t); got.KEKVersion != second {
			t.Error("sealed under the old version after the poll interval")
		}
		r.vault.SetHook(nil)
	})
}

// The poll interval holds whenever the rotation and the first mint come.
func TestRotationInEveryPhase(t *testing.T) {
	for offset := range 12 {
		inBubble(t, func(c *dek.Config) { c.CacheEntries = 64 }, func(t *testing.T, r *rig) {
			sleepUntil(time.Now(), time.Duration(offset)*1300*time.Millisecond)
			r.seal(t)
			for i := range 6 {
				sleepUntil(time.Now(), time.Duration(7*60+i*37)*time.Second)
				newer := r.vault.Rotate(testKEK)
				sleepUntil(time.Now(), 5*time.Minute-time.Second)
				if _, got := r.seal(t); got.KEKVersion != newer {
					t.Errorf("offset %d, rotation %d: the old version after the poll interval", offset, i)
				}
			}
		})
	}
}

// Tenants move to a newer version one by one, before they have to.
func TestRotationIsSpread(t *testing.T) {
	inBubble(t, func(c *dek.Config) { c.CacheEntries = 64 }, func(t *testing.T, r *rig) {
		var entries []*tenant.Entry
		for i := range 20 {
			entries = append(entries, &tenant.Entry{ID: id(t, fmt.Sprintf("tenant-%d", i)), KEKs: []kek.Key{testKEK}})
		}
		sealAll := func() (moved int) {
			for _, e := range entries {
				ref, err := r.ForSeal(t.Context(), e, 1, nil)
				if err != nil {
					t.Fatal(err)
				}
				if ref.Info().KEKVersion != r.first {
					moved++
				}
				ref.Release()
			}
			synctest.Wait()
			return moved
		}
		sealAll()
		r.vault.Rotate(testKEK)
		var steps []int
		start := time.Now()
		for i := range 100 {
			sleepUntil(start, time.Duration(i)*3*time.Second)
			if n := sealAll(); !slices.Contains(steps, n) {
				steps = append(steps, n)
			}
		}
		if len(steps) < 6 || steps[len(steps)-1] != len(entries) {
			t.Errorf("%v tenants had moved, step by step; want many steps, up to %d", steps, len(entries))
		}
	})
}

// A rotation that was noticed just before the vault hangs costs nobody's seal.
func TestRotationThenTheVaultHangs(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		r.seal(t)
		r.vault.Rotate(testKEK)
		r.vault.SetHook(func(ctx context.Context, c kektest.Call) error {
			if c.Op == "newest" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		})
		start := time.Now()
		for i := range 600 {
			sleepUntil(start, 5*time.Minute+time.Duration(i)*time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			ref, err := r.ForSeal(ctx, r.entry, 1, nil)
			cancel()
			if err != nil {
				t.Fatalf("seal %d: %v", i, err)
			}
			if d := time.Since(began); d > 750*time.Millisecond { // for a mint and for the lease
				t.Errorf("seal %d took %s", i, d)
			}
			ref.Release()
		}
		r.vault.SetHook(nil)
	})
}

func TestRefusedLookUpIsNoGroundForAMint(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		start := time.Now()
		r.seal(t)
		r.vault.SetHook(refuse("newest", kek.Version{}, kek.Unreachable))
		sleepUntil(start, 6*time.Minute+5*time.Second) // the last answer is still good for a mint
		r.vault.SetHook(refuse("newest", kek.Version{}, kek.Forbidden))
		other := *r.entry
		other.ID = id(t, "globex")
		if _, err := r.ForSeal(t.Context(), &other, 1, nil); kek.ReasonOf(err) != kek.Forbidden {
			t.Errorf("ForSeal: %v, want forbidden", err)
		}
	})
}

// One failed look-up is the answer for all tenants of the KEK, for a while.
func TestFailedLookUpIsShared(t *testing.T) {
	r := newRig(t, nil)
	r.vault.SetHook(down)
	for i := range 10 {
		e := &tenant.Entry{ID: id(t, fmt.Sprintf("tenant-%d", i)), KEKs: []kek.Key{testKEK}}
		if _, err := r.ForSeal(t.Context(), e, 1, nil); err == nil {
			t.Fatal("minted")
		}
	}
	if n := r.vault.Counts().Newest; n != 1 {
		t.Errorf("the vault was asked %d times, want once", n)
	}
}

func TestUsageLimitMintsAhead(t *testing.T) {
	inBubble(t, func(c *dek.Config) { c.MaxMessages = 100 }, func(t *testing.T, r *rig) {
		var ids []envelope.ID
		for range 90 {
			_, info := r.seal(t)
			synctest.Wait()
			if !slices.Contains(ids, info.ID) {
				ids = append(ids, info.ID)
			}
		}
		if len(ids) != 2 {
			t.Errorf("%d DEKs for 90 messages of at most 100, want the next minted ahead", len(ids))
		}
	})
}

// A vault that does not answer is asked about one KEK a round, not about all.
func TestSilentVaultIsPolledOnce(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		for i := range 10 {
			k := otherKEK("shared")
			k.Ref, k.Name = fmt.Sprintf("shared-%d", i), fmt.Sprintf("kek-%d", i)
			r.vault.Create(k)
			ref, err := r.ForSeal(t.Context(), &tenant.Entry{ID: id(t, k.Ref), KEKs: []kek.Key{k}}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			ref.Release()
		}
		sleepUntil(time.Now(), 5*time.Minute)
		r.vault.SetHook(down)
		before := r.vault.Counts().Newest
		sleepUntil(time.Now(), 10*time.Minute)
		if n := r.vault.Counts().Newest - before; n < 20 || n > 41 {
			t.Errorf("%d questions in 40 rounds, want one a round", n)
		}
	})
}
