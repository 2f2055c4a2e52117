package dek_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/tenant"
)

// refuse makes the vault refuse what op asks of version v, or of any if v is
// zero.
func refuse(op string, v kek.Version, reason kek.Reason) func(context.Context, kektest.Call) error {
	return func(_ context.Context, c kektest.Call) error {
		if c.Op == op && (v.IsZero() || c.Version == v) {
			return &kek.Error{Reason: reason}
		}
		return nil
	}
}

func TestRefusedProofDropsWhatIsCached(t *testing.T) {
	r := newRig(t, nil)
	r.seal(t)
	r.vault.SetHook(refuse("unwrap", kek.Version{}, kek.Disabled))
	other := *r.entry
	other.ID = id(t, "globex")
	if _, err := r.ForSeal(t.Context(), &other, 1, nil); kek.ReasonOf(err) != kek.Disabled {
		t.Fatalf("mint for globex: %v, want disabled", err)
	}
	if s := r.Stats(); s.Cached != 0 || s.Active != 0 {
		t.Errorf("%d DEKs cached, %d active after the KEK was refused", s.Cached, s.Active)
	}
}

// A refusal of one version says nothing of another.
func TestRefusedUnwrapDropsItsVersionOnly(t *testing.T) {
	r := newRig(t, nil)
	old, oldInfo := r.seal(t)
	second := r.vault.Rotate(testKEK)
	other := newRig(t, func(c *dek.Config) { c.KEKs = r.vault })
	young, youngInfo := other.seal(t)
	if youngInfo.KEKVersion != second {
		t.Fatalf("minted under %s, want %s", youngInfo.KEKVersion, second)
	}
	reader := newRig(t, func(c *dek.Config) { c.KEKs = r.vault })
	for _, sealed := range []struct {
		prefix []byte
		info   dek.Info
	}{{old, oldInfo}, {young, youngInfo}} {
		if err := reader.open(t.Context(), sealed.prefix, sealed.info.ID); err != nil {
			t.Fatal(err)
		}
	}
	r.vault.SetHook(refuse("unwrap", r.first, kek.Disabled))
	forged := append([]byte(nil), old...)
	forged[len(forged)-100] ^= 1 // any block that names the version
	cold := oldInfo.ID
	cold[0] ^= 1
	if err := reader.open(t.Context(), forged, cold); kek.ReasonOf(err) != kek.Disabled {
		t.Fatalf("ForOpen: %v, want disabled", err)
	}
	if n := reader.Stats().Cached; n != 1 {
		t.Errorf("%d DEKs cached, want the one under the other version", n)
	}
	if err := reader.open(t.Context(), young, youngInfo.ID); err != nil {
		t.Errorf("under the other version: %v", err)
	}
}

func TestVersionsThatNeverUnwrappedAreForgotten(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	leases := r.Leases()
	forged, cold := append([]byte(nil), prefix...), info.ID
	parent := len(forged) - 256 - 2 - 2 - 16 // of an RSA-2048 block without proof
	for i := range byte(20) {
		forged[parent], cold[0] = prefix[parent]^(i+1), info.ID[0]^(i+1)
		want := kek.NotFound
		if i >= 10 {
			want = kek.Unreachable
			r.vault.SetHook(down)
		}
		if err := r.open(t.Context(), forged, cold); err == nil || kek.ReasonOf(err) != want {
			t.Fatalf("ForOpen: %v, want %s", err, want)
		}
	}
	if n := r.Leases(); n != leases {
		t.Errorf("%d leases, then %d", leases, n)
	}
	if err := r.open(t.Context(), prefix, info.ID); err != nil || r.Stats().Cached != 1 {
		t.Errorf("ForOpen: %v, %d DEKs cached; want the honest one still", err, r.Stats().Cached)
	}
}

func TestRejectedProofIsNoAnswer(t *testing.T) {
	r := newRig(t, nil)
	r.vault.SetHook(refuse("unwrap", kek.Version{}, kek.Rejected))
	if _, err := r.ForSeal(t.Context(), r.entry, 1, nil); err == nil || kek.ReasonOf(err) != kek.Unreachable {
		t.Errorf("ForSeal: %v, want unreachable: the caller sent nothing that could be rejected", err)
	}
}

func TestLateCallerGetsTheMintThatIsDone(t *testing.T) {
	r := newRig(t, nil)
	_, info := r.seal(t)
	again, err := r.MintAgain(t.Context(), r.entry)
	if err != nil {
		t.Fatal(err)
	}
	if again != info.ID {
		t.Errorf("minted %s, although %s is active", again, info.ID)
	}
}

func TestFirstSilenceIsReported(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	second := testKEK
	second.Vault = "https://second.vault.localhost"
	cold := newRig(t, func(c *dek.Config) { c.KEKs = r.vault })
	r.vault.SetHook(func(_ context.Context, c kektest.Call) error {
		if c.Key == testKEK {
			return &kek.Error{Reason: kek.Throttled}
		}
		return &kek.Error{Reason: kek.Unreachable}
	})
	other := append([]byte(nil), rawBlock(prefix)...)
	other[len(other)-50] ^= 1
	_, err := cold.ForOpen(t.Context(), r.entry, info.ID,
		[]dek.Candidate{{Block: rawBlock(prefix), KEK: testKEK}, {Block: other, KEK: second}}, nil)
	if kek.ReasonOf(err) != kek.Throttled {
		t.Errorf("ForOpen: %v, want that of the first block: throttled", err)
	}
}

// While a replacement fails, it is tried four times a minute, not by every caller.
func TestFailedReplacementIsNotTriedByEverybody(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		_, first := r.seal(t)
		r.vault.Rotate(testKEK)
		sleepUntil(time.Now(), 30*time.Minute) // noticed
		r.vault.SetHook(refuse("wrap", kek.Version{}, kek.Unreachable))
		before := r.vault.Counts().Wrap
		start := time.Now()
		for i := range 600 { // ten minutes
			sleepUntil(start, time.Duration(i)*time.Second)
			if _, got := r.seal(t); got.ID != first.ID {
				t.Fatal("sealed with another DEK")
			}
		}
		if n := r.vault.Counts().Wrap - before; n < 30 || n > 45 {
			t.Errorf("%d mints tried in ten minutes, want one in 15 s", n)
		}
	})
}

// A tenant whose KEK is another now seals under that one at once.
func TestAnotherKEKInTheDirectory(t *testing.T) {
	r := newRig(t, nil)
	_, first := r.seal(t)
	second := testKEK
	second.Ref, second.Vault = "acme-us", "https://acme-us.vault.localhost"
	r.vault.Create(second)
	r.entry = &tenant.Entry{ID: r.entry.ID, KEKs: []kek.Key{second, testKEK}}
	if _, got := r.seal(t); got.KEKRef != "acme-us" || got.ID == first.ID {
		t.Errorf("sealed under KEK %s", got.KEKRef)
	}
}

// A KEK that expired wraps no more. Its data opens as before, and costs no
// more: a failed mint says nothing of the DEKs that are unwrapped.
func TestExpiredKEKKeepsItsDEKs(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		prefix, info := r.seal(t)
		r.vault.SetValidity(testKEK, r.first, time.Time{}, time.Now().Add(time.Minute))
		before := r.vault.Counts().Unwrap
		other := *r.entry
		start := time.Now()
		for i := range 40 { // 13 minutes
			sleepUntil(start, time.Duration(i+4)*20*time.Second)
			other.ID = id(t, "globex")
			if _, err := r.ForSeal(t.Context(), &other, 1, nil); i > 15 && kek.ReasonOf(err) != kek.Disabled {
				t.Fatalf("mint under an expired KEK: %v, want disabled", err)
			}
			if err := r.open(t.Context(), prefix, info.ID); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.vault.Counts().Unwrap - before; n > 1+6 { // a mint may be proved before the look-up is old; renewals
			t.Errorf("%d unwraps while the KEK was expired", n)
		}
	})
}

// Evict concerns the tenants that it is about: a DEK of another that is being
// unwrapped is unwrapped once, and stays.
func TestEvictLeavesLoadsOfOthers(t *testing.T) {
	minter := newRig(t, nil)
	prefix, info := minter.seal(t)
	for evicted, want := range map[string]int{"acme": 2, "globex": 1} {
		reader := newRig(t, func(c *dek.Config) { c.KEKs = minter.vault })
		before := minter.vault.Counts().Unwrap
		asked, answer := make(chan struct{}, 2), make(chan struct{})
		minter.vault.SetHook(func(context.Context, kektest.Call) error {
			asked <- struct{}{}
			<-answer
			return nil
		})
		var callers sync.WaitGroup
		call := func() {
			callers.Go(func() {
				if err := reader.open(context.Background(), prefix, info.ID); err != nil {
					t.Errorf("ForOpen: %v", err)
				}
			})
		}
		call()
		<-asked
		reader.Evict(func(id tenant.ID) bool { return id.String() == evicted })
		call()
		if want == 2 {
			<-asked
		}
		close(answer)
		callers.Wait()
		if got := minter.vault.Counts().Unwrap - before; got != want || reader.Stats().Cached != 1 {
			t.Errorf("%s evicted: %d unwraps, want %d; %d DEKs cached", evicted, got, want, reader.Stats().Cached)
		}
		minter.vault.SetHook(nil)
	}
}
