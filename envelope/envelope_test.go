package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/tenant"
)

func genTenant() *rapid.Generator[string] {
	return rapid.StringMatching(`[A-Za-z0-9]([A-Za-z0-9_:-]{0,20}[A-Za-z0-9])?`)
}

func genPairs() *rapid.Generator[map[string]string] {
	key := rapid.StringN(1, 20, 60).Filter(func(s string) bool { return !strings.HasPrefix(s, envelope.ReservedContextKeys) })
	return rapid.MapOfN(key, rapid.StringN(0, 30, 100), 0, 8)
}

// bound is everything a message is bound to besides its DEK.
type bound struct {
	tenant  tenant.ID
	context envelope.Context
	shown   string
}

func drawBound(t *rapid.T, label string) bound {
	id := genTenant().Draw(t, label+" tenant")
	pairs := genPairs().Draw(t, label+" context")
	return bound{must(tenant.Parse(id)), must(envelope.ParseContext(pairs)), fmt.Sprintf("%q %q", id, pairs)}
}

func TestSealOpen(t *testing.T) {
	slab := newSlab(t)
	rapid.Check(t, func(t *rapid.T) {
		key := rapidKey(t, slab)
		defer key.Wipe()
		a, b := drawBound(t, "a"), drawBound(t, "b")
		plaintext := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "plaintext")
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "dst")
		id := envelope.DEKID(key, envelope.PurposeSeal, a.tenant)

		sealed := envelope.Seal(prefix, key, id, a.tenant, a.context, plaintext)
		if !bytes.HasPrefix(sealed, prefix) || len(sealed) != len(prefix)+envelope.SealedSize(len(plaintext)) {
			t.Fatalf("Seal returned %x", sealed)
		}
		env := sealed[len(prefix):]
		s, err := envelope.Parse(env)
		if err != nil || s.N != 0 || s.DEKID != id || !bytes.Equal(s.Envelope, env) {
			t.Fatalf("Parse = %+v, %v", s, err)
		}
		got, err := envelope.Open(prefix, key, a.tenant, a.context, env)
		if err != nil || !bytes.Equal(got, append(prefix, plaintext...)) {
			t.Fatalf("Open = %x, %v", got, err)
		}
		got, err = envelope.Open(nil, key, b.tenant, b.context, env)
		if a.shown != b.shown && (got != nil || !errors.Is(err, envelope.ErrOpen)) {
			t.Fatalf("sealed for %s, opens for %s: %x, %v", a.shown, b.shown, got, err)
		}
	})
}

func rapidKey(t *rapid.T, slab *secret.Slab) *secret.Key {
	b := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "dek")
	key, err := slab.Put((*[32]byte)(b))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestSealMatchesReference seals with the package and again, with the salt it
// drew, with the reference.
func TestSealMatchesReference(t *testing.T) {
	slab := newSlab(t)
	dek := derive("match", 32)
	key := putKey(t, slab, dek)
	pairs := messageContexts()["unicode"]
	id := must(tenant.Parse("tenant-a"))
	for _, n := range []int{0, 1, 16383, 16384, 16385, 3 * 16384} {
		p := (&plaintext{Pattern: &n}).bytes()
		dekID := envelope.DEKID(key, envelope.PurposeSeal, id)
		got := envelope.Seal(nil, key, dekID, id, must(parsePairs(pairs)), p)
		header := refHeader(refDEKID(dek, "tenant-a"))
		body, _ := refBody(dek, got[22:46], refBinding(header, "tenant-a", refContext(pairs)), p)
		if want := cat(header, body); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: sealed differs from the reference", n)
		}
	}
}

func TestDEKIDDependsOnTenant(t *testing.T) {
	key := putKey(t, newSlab(t), bytes.Repeat([]byte{0x42}, 32))
	a := envelope.DEKID(key, envelope.PurposeSeal, must(tenant.Parse("tenant-a")))
	if a.String() != "cfe015c231fe35be1c35b2862bb3f649" {
		t.Errorf("dek_id = %s", a)
	}
	if b := envelope.DEKID(key, envelope.PurposeSeal, must(tenant.Parse("tenant-b"))); a == b {
		t.Error("dek_id does not depend on the tenant")
	}
	if b := envelope.DEKID(key, 2, must(tenant.Parse("tenant-a"))); a == b {
		t.Error("dek_id does not depend on the purpose")
	}
}

func TestOpenIllFormed(t *testing.T) {
	v := mustLoad(t)
	key := putKey(t, newSlab(t), v.open("size-1").DEK)
	id := must(tenant.Parse("tenant-a"))
	for name, want := range map[string]error{
		"envelope-empty": envelope.ErrMalformed, "envelope-body-71": envelope.ErrMalformed,
		"envelope-suite-2": envelope.ErrUnsupported, "envelope-version-2": envelope.ErrUnsupported,
		"envelope-flag": envelope.ErrUnsupported, "envelope-body-72": envelope.ErrOpen,
		"bundle-deks-swapped": envelope.ErrMalformed, // Open takes no bundle
	} {
		got, err := envelope.Open(nil, key, id, envelope.Context{}, v.open(name).Sealed)
		if got != nil || !errors.Is(err, want) {
			t.Errorf("%s: %x, %v, want %v", name, got, err, want)
		}
	}
}

func TestZeroTenantPanics(t *testing.T) {
	key := putKey(t, newSlab(t), derive("zero", 32))
	v := mustLoad(t).open("bare")
	for name, f := range map[string]func(){
		"DEKID": func() { envelope.DEKID(key, envelope.PurposeSeal, tenant.ID{}) },
		"Seal":  func() { envelope.Seal(nil, key, envelope.ID{}, tenant.ID{}, envelope.Context{}, nil) },
		"Open":  func() { _, _ = envelope.Open(nil, key, tenant.ID{}, envelope.Context{}, v.Sealed) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

// TestConcurrentUse has messages of many contexts in flight: the buffers that
// are reused must not mix them up.
func TestConcurrentUse(t *testing.T) {
	slab := newSlab(t)
	key := putKey(t, slab, derive("concurrent", 32))
	id := must(tenant.Parse("tenant-a"))
	dekID := envelope.DEKID(key, envelope.PurposeSeal, id)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				pairs := map[string]string{"n": strings.Repeat("x", 100*g+i)}
				c := must(envelope.ParseContext(pairs))
				text := fmt.Append(nil, g, i)
				got, err := envelope.Open(nil, key, id, c, envelope.Seal(nil, key, dekID, id, c, text))
				if err != nil || !bytes.Equal(got, text) {
					t.Errorf("%d %d: %s, %v", g, i, got, err)
				}
			}
		})
	}
	wg.Wait()
}
