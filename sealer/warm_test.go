package sealer_test

import (
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// A KEK that a reload takes from a tenant opens nothing for it any more, also
// not what is in memory, under whatever name its block comes.
func TestWarmDEKOfARemovedKEK(t *testing.T) {
	r := newRig(t, nil)
	sealed := r.mustSeal(t, request("acme", []byte("data"))).Data
	relabelled := reblock(t, sealed, func(b *envelope.Block) {
		b.KEKRef, b.Alg, b.Wrapped = []byte("globex"), envelope.AlgA256KW, make([]byte, 40)
	})
	id := r.entries["acme"].ID
	for _, c := range []struct {
		keks []kek.Key
		want map[string]sealer.Reason
	}{
		{[]kek.Key{testKEK("globex"), testKEK("acme")}, map[string]sealer.Reason{"sealed": sealer.OK, "relabelled": sealer.OK}},
		{[]kek.Key{testKEK("globex")}, map[string]sealer.Reason{"sealed": sealer.KEKNotAllowed, "relabelled": sealer.KEKNotAllowed}},
	} {
		r.entries["acme"] = &tenant.Entry{ID: id, KEKs: c.keks}
		for name, data := range map[string][]byte{"sealed": sealed, "relabelled": relabelled} {
			_, err := r.Unseal(t.Context(), request("acme", data))
			if got := reasonOf(err); got != c.want[name] || (err == nil) != (got == sealer.OK) {
				t.Errorf("%s, with %d KEKs: %v, want %s", name, len(c.keks), err, c.want[name])
			}
		}
	}
}

// Every warm Unseal looks at the tenant's KEKs.
func TestWarmCheckAllocatesNothing(t *testing.T) {
	entry := &tenant.Entry{KEKs: []kek.Key{testKEK("globex"), testKEK("shared"), testKEK("acme")}}
	check := func() {
		if err := sealer.CheckWarm(entry, "acme"); err != nil {
			t.Error(err)
		}
	}
	if n := testing.AllocsPerRun(100, check); n != 0 {
		t.Errorf("the check allocates %v times", n)
	}
}
