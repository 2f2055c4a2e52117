package dek_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKEK = kek.Key{
	Ref: "acme-eu", Vault: "https://acme.vault.localhost", Name: "kek", Alg: kek.RSAOAEP256,
	Region: "westeurope", Credential: "test", EntraTenant: "11111111-2222-3333-4444-555555555555",
}

// rig is a Source over an in-memory vault, and the tenant "acme" with testKEK.
type rig struct {
	*dek.Source
	vault  *kektest.Memory
	first  kek.Version
	slab   *secret.Slab
	entry  *tenant.Entry
	mu     sync.Mutex
	events []dek.EventKind
}

func newRig(t *testing.T, change func(*dek.Config)) *rig {
	t.Helper()
	r := &rig{vault: kektest.NewMemory(), entry: &tenant.Entry{
		ID: id(t, "acme"), KEKs: []kek.Key{testKEK}, OutageGrace: time.Hour,
	}}
	r.first = r.vault.Create(testKEK)
	var err error
	if r.slab, err = secret.New(secret.Config{Slots: 64}); err != nil {
		t.Fatal(err)
	}
	cfg := dek.Config{
		KEKs: r.vault, Slab: r.slab, Logger: slog.New(slog.DiscardHandler), CacheEntries: 32,
		Record: func(_ context.Context, e dek.Event) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e.Kind)
			return nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	if r.Source, err = dek.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.shutdown(t) })
	return r
}

// shutdown closes everything, and checks that no DEK is left in the slab. It
// may be called twice: tests in a synctest bubble call it at their end.
func (r *rig) shutdown(t *testing.T) {
	if r.slab == nil {
		return
	}
	r.Close()
	if n := r.slab.InUse(); n != 0 {
		t.Errorf("%d DEKs are left in the slab", n)
	}
	if err := r.slab.Close(); err != nil {
		t.Error(err)
	}
	r.slab = nil
}

func id(t *testing.T, s string) tenant.ID {
	t.Helper()
	id, err := tenant.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// seal takes a ref for sealing, and returns the bundle prefix and the info.
func (r *rig) seal(t *testing.T) ([]byte, dek.Info) {
	t.Helper()
	ref, err := r.ForSeal(t.Context(), r.entry, 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	if got := envelope.DEKID(ref.Key(), envelope.PurposeSeal, r.entry.ID); got != ref.Info().ID {
		t.Fatalf("key has DEK ID %s, info says %s", got, ref.Info().ID)
	}
	return ref.BundlePrefix(), ref.Info()
}

// rawBlock returns the only key block of a bundle prefix.
func rawBlock(prefix []byte) []byte { return prefix[len("KSB")+2+2:] }

// open refs the DEK of a bundle prefix.
func (r *rig) open(ctx context.Context, prefix []byte, id envelope.ID) error {
	ref, err := r.ForOpen(ctx, r.entry, id, []dek.Candidate{{Block: rawBlock(prefix), KEK: testKEK}}, nil)
	if err == nil {
		ref.Release()
	}
	return err
}

func TestMintWrapsProvesSwaps(t *testing.T) {
	r := newRig(t, nil)
	_, info := r.seal(t)
	_, again := r.seal(t)
	if diff := cmp.Diff(info, again); diff != "" {
		t.Errorf("second seal used another DEK:\n%s", diff)
	}
	if want := (dek.Info{ID: info.ID, KEKRef: "acme-eu", KEKVersion: r.first, Region: "westeurope"}); info != want {
		t.Errorf("info = %+v, want %+v", info, want)
	}
	if got, want := r.vault.Counts(), (kektest.Counts{Newest: 1, Wrap: 1, Unwrap: 1}); got != want {
		t.Errorf("vault was asked %+v, want %+v", got, want)
	}
	want := []dek.EventKind{dek.Wrapped, dek.Proved, dek.Activated}
	if diff := cmp.Diff(want, r.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestBlockNamesTheDEK(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	block, err := envelope.ParseBlock(rawBlock(prefix))
	if err != nil {
		t.Fatal(err)
	}
	if block.KeyID != info.ID || string(block.Tenant) != "acme" || string(block.KEKRef) != "acme-eu" ||
		kek.Version(block.Parent) != r.first || block.Alg != envelope.AlgRSAOAEP256 {
		t.Errorf("block = %+v", block)
	}
}

// A version that is disabled after it was looked up wraps, and fails the
// proof: the vault is asked again, and the DEK is minted under another.
func TestNeverMintedUnderADisabledVersion(t *testing.T) {
	r := newRig(t, nil)
	second := r.vault.Rotate(testKEK)
	disabled := false
	r.vault.SetHook(func(_ context.Context, c kektest.Call) error {
		if c.Op == "wrap" && !disabled { // between the look-up and the wrap
			disabled = true
			r.vault.SetEnabled(testKEK, second, false)
		}
		return nil
	})
	_, info := r.seal(t)
	if info.KEKVersion != r.first {
		t.Errorf("minted under %s, want the enabled version %s", info.KEKVersion, r.first)
	}
}

func TestAllVersionsDisabled(t *testing.T) {
	r := newRig(t, nil)
	r.vault.SetEnabled(testKEK, r.first, false)
	_, err := r.ForSeal(t.Context(), r.entry, 1, nil)
	if got := kek.ReasonOf(err); got != kek.Disabled {
		t.Errorf("ForSeal: %v, want a refusal as disabled", err)
	}
}

// liar gives back other keys than were wrapped.
type liar struct{ kek.Wrapper }

func (l liar) Unwrap(ctx context.Context, k kek.Key, v kek.Version, wrapped []byte, out *[kek.Size]byte) error {
	err := l.Wrapper.Unwrap(ctx, k, v, wrapped, out)
	out[31] ^= 1
	return err
}

func TestProofComparesTheKey(t *testing.T) {
	r := newRig(t, func(c *dek.Config) { c.KEKs = liar{c.KEKs} })
	_, err := r.ForSeal(t.Context(), r.entry, 1, nil)
	var e *kek.Error
	if !errors.As(err, &e) || e.Op != "prove" || e.Reason != kek.Unreachable {
		t.Errorf("ForSeal: %v, want an untrusted answer to prove", err)
	}
	if n := r.Stats().Cached; n != 0 {
		t.Errorf("%d DEKs cached", n)
	}
}

func TestUnwrappedKeyIsCheckedAgainstItsID(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	other := newRig(t, func(c *dek.Config) { c.KEKs = liar{r.vault} })
	if err := other.open(t.Context(), prefix, info.ID); !errors.Is(err, dek.ErrMismatch) {
		t.Errorf("ForOpen: %v, want %v", err, dek.ErrMismatch)
	}
	if n := other.Stats().Cached; n != 0 {
		t.Errorf("%d DEKs cached", n)
	}
}

func TestRecordCanStopAMint(t *testing.T) {
	for _, stop := range []dek.EventKind{dek.Wrapped, dek.Proved, dek.Activated} {
		r := newRig(t, func(c *dek.Config) {
			c.Record = func(_ context.Context, e dek.Event) error {
				if e.Kind == stop {
					return errors.New("disk full")
				}
				return nil
			}
		})
		if _, err := r.ForSeal(t.Context(), r.entry, 1, nil); !errors.Is(err, dek.ErrNotRecorded) {
			t.Errorf("at %s: %v, want %v", stop, err, dek.ErrNotRecorded)
		}
		if s := r.Stats(); s.Active != 0 || s.Cached != 0 {
			t.Errorf("at %s: %d active, %d cached", stop, s.Active, s.Cached)
		}
	}
}

func TestRecordCanStopAnUnwrap(t *testing.T) {
	r := newRig(t, nil)
	prefix, info := r.seal(t)
	other := newRig(t, func(c *dek.Config) {
		c.KEKs = r.vault
		c.Record = func(context.Context, dek.Event) error { return errors.New("disk full") }
	})
	if err := other.open(t.Context(), prefix, info.ID); !errors.Is(err, dek.ErrNotRecorded) {
		t.Errorf("ForOpen: %v, want %v", err, dek.ErrNotRecorded)
	}
}

func TestAdmitIsAskedOnlyForMisses(t *testing.T) {
	r := newRig(t, nil)
	over := errors.New("over budget")
	asked := 0
	admit := func() error { asked++; return over }
	if _, err := r.ForSeal(t.Context(), r.entry, 1, admit); !errors.Is(err, over) {
		t.Fatalf("ForSeal: %v, want %v", err, over)
	}
	if got := r.vault.Counts(); got != (kektest.Counts{}) {
		t.Errorf("vault was asked %+v", got)
	}
	r.seal(t)
	ref, err := r.ForSeal(t.Context(), r.entry, 1, admit)
	if err != nil {
		t.Fatalf("warm ForSeal: %v", err)
	}
	ref.Release()
	if asked != 1 {
		t.Errorf("admit was asked %d times, want once", asked)
	}
}

func TestNoBlock(t *testing.T) {
	r := newRig(t, nil)
	_, err := r.ForOpen(t.Context(), r.entry, envelope.ID{1}, nil, nil)
	if !errors.Is(err, dek.ErrNoBlock) {
		t.Errorf("ForOpen: %v, want %v", err, dek.ErrNoBlock)
	}
}

func TestConfigIsChecked(t *testing.T) {
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer slab.Close()
	good := dek.Config{KEKs: kektest.NewMemory(), Slab: slab, Logger: slog.New(slog.DiscardHandler)}
	for name, change := range map[string]func(*dek.Config){
		"no wrapper":          func(c *dek.Config) { c.KEKs = nil },
		"no slab":             func(c *dek.Config) { c.Slab = nil },
		"no logger":           func(c *dek.Config) { c.Logger = nil },
		"negative entries":    func(c *dek.Config) { c.CacheEntries = -1 },
		"hard age under soft": func(c *dek.Config) { c.SoftAge, c.HardAge = 2, 1 },
		"negative poll":       func(c *dek.Config) { c.PollInterval = -1 },
		"negative waiters":    func(c *dek.Config) { c.PatientWaiters = -1 },
		"negative wait":       func(c *dek.Config) { c.ImpatientWait = -1 },
	} {
		cfg := good
		change(&cfg)
		if s, err := dek.New(cfg); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}
