package sealer_test

import (
	"bytes"
	"crypto/rand"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// forger writes to where sealed data is kept, and has a DEK: one that it made,
// or one of somebody that leaked.
type forger struct {
	*world
	dek *secret.Key
}

func (w *world) forger(t *testing.T, dek [secret.Size]byte) *forger {
	t.Helper()
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slab.Close(); err != nil {
			t.Error(err)
		}
	})
	key, err := slab.Put(&dek)
	if err != nil {
		t.Fatal(err)
	}
	return &forger{w, key}
}

func randomDEK() (dek [secret.Size]byte) {
	rand.Read(dek[:])
	return dek
}

func parseTenant(t *testing.T, name string) tenant.ID {
	t.Helper()
	id, err := tenant.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// id is the dek_id of the forger's DEK for a tenant.
func (f *forger) id(t *testing.T, name string) envelope.ID {
	t.Helper()
	return envelope.DEKID(f.dek, envelope.PurposeSeal, parseTenant(t, name))
}

// wrap wraps the forger's DEK under the newest version of k. For an RSA key,
// that takes its public half only.
func (f *forger) wrap(t *testing.T, k kek.Key) (wrapped []byte, v kek.Version) {
	t.Helper()
	v, err := f.vault.Newest(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if wrapped, err = f.vault.Plant(k, v, f.dek.Expose()[:]); err != nil {
		t.Fatal(err)
	}
	return wrapped, v
}

// plant returns data of the forger for a tenant: a block for that tenant, by
// the tenant's KEK, and an envelope under the forger's DEK. The envelope is
// bound to the tenant bound.
func (f *forger) plant(t *testing.T, name, bound string) parts {
	t.Helper()
	k := f.kekOf(name)
	wrapped, v := f.wrap(t, k)
	block := envelope.Block{
		Kind: envelope.KindDEK, Purpose: envelope.PurposeSeal, Alg: envelope.Alg(k.Alg), KeyID: f.id(t, name),
		Tenant: []byte(name), KEKRef: []byte(k.Ref), Parent: envelope.ID(v), Wrapped: wrapped,
	}
	context, err := envelope.ParseContext(nil)
	if err != nil {
		t.Fatal(err)
	}
	planted := []byte("planted")
	env := envelope.Seal(nil, f.dek, block.KeyID, parseTenant(t, bound), context, planted)
	p := parts{tenant: name, plaintext: planted, blocks: []envelope.Block{block}}
	p.header, p.salt, p.commitment, p.chunks = env[:22], env[22:46], env[46:78], env[78:]
	return p
}

// original seals something for a tenant in a sidecar of the world.
func (w *world) original(t *testing.T, name string) parts {
	t.Helper()
	plaintext := []byte("what " + name + " sealed")
	return take(t, name, nil, plaintext, w.rigs[0].mustSeal(t, request(name, plaintext)).Data)
}

// refused checks that p does not open, warm or cold, that a cold sidecar has
// kept so many DEKs afterwards, and that honest data of p's tenant opens there.
func (w *world) refused(t *testing.T, what string, p parts, want sealer.Reason, kept int) {
	t.Helper()
	cold := w.cold(t)
	for where, r := range map[string]*rig{"warm": w.rigs[0], "cold": cold} {
		if res, err := r.Unseal(t.Context(), p.request()); err == nil || reasonOf(err) != want {
			t.Errorf("%s, %s, as %s: %q, %v, want %s", what, where, p.tenant, res.Data, err, want)
		}
	}
	if n := cold.deks.Stats().Cached; n != kept {
		t.Errorf("%s, as %s: %d DEKs are cached, want %d", what, p.tenant, n, kept)
	}
	w.opensIn(t, cold, what+", then honest", w.original(t, p.tenant))
}

func (*world) opensIn(t *testing.T, r *rig, what string, p parts) {
	t.Helper()
	if res, err := r.Unseal(t.Context(), p.request()); err != nil || !bytes.Equal(res.Data, p.plaintext) {
		t.Errorf("%s, as %s: %q, %v, want %q", what, p.tenant, res.Data, err, p.plaintext)
	}
}

// opens checks that p opens, cold and then warm.
func (w *world) opens(t *testing.T, what string, p parts) {
	t.Helper()
	r := w.cold(t)
	w.opensIn(t, r, what+", cold", p)
	w.opensIn(t, r, what+", warm", p)
}

// as returns p for another tenant, its blocks changed to agree.
func (w *world) as(p parts, name string) parts {
	p.tenant, p.blocks = name, slices.Clone(p.blocks)
	w.agree(&p)
	return p
}

// nothingElse checks that a forger whose DEK is wrapped under the KEK of a
// tenant gets no further than data of its own for this tenant.
func (f *forger) nothingElse(t *testing.T, name string) {
	t.Helper()
	planted, honest := f.plant(t, name, name), f.original(t, name)
	f.opensIn(t, f.rigs[0], "planted, to be warm", planted)
	for _, other := range f.tenants() {
		if other == name {
			continue
		}
		moved := planted
		moved.tenant = other
		f.refused(t, "planted for "+name, moved, sealer.AuthenticationFailed, 0)
		want := sealer.AuthenticationFailed
		if f.kekOf(other) != f.kekOf(name) {
			want = sealer.KEKNotFound // the other KEK has no such version
		}
		f.refused(t, "planted for "+name+", renamed", f.as(planted, other), want, 0)
		f.refused(t, "planted for "+name+", renamed, bound to "+other, f.as(f.plant(t, name, other), other), want, 0)
		// All but the derivation agree here: elsewhere the dek_id, which binds
		// the tenant too, refuses first.
		f.refused(t, "planted for "+name+", bound to "+other, f.plant(t, name, other), sealer.AuthenticationFailed, 1)
	}

	posing := planted // data of the forger that names the honest DEK
	posing.header = honest.header
	f.refused(t, "planted, with an honest dek_id", f.as(posing, name), sealer.AuthenticationFailed, 0)
	posing = honest // honest data that names the planted DEK
	posing.blocks, posing.header = planted.blocks, planted.header
	f.refused(t, "honest body, planted header and block", posing, sealer.AuthenticationFailed, 1)

	under := honest // the honest envelope, with other wrapped bytes
	under.blocks = planted.blocks
	under = f.as(under, name)
	cold := f.cold(t)
	if res, err := cold.Unseal(t.Context(), under.request()); reasonOf(err) != sealer.AuthenticationFailed {
		t.Errorf("planted wrapped bytes for an honest DEK, as %s: %q, %v", name, res.Data, err)
	}
	f.opensIn(t, cold, "after planted wrapped bytes, honest", honest)
	f.opensIn(t, cold, "planted wrapped bytes that are not needed", under) // SPEC.md, section 13.3
}

// RSA wrapping authenticates nobody (SPEC.md, section 13.2), and this is all
// of it: whoever has the public key of a tenant's KEK, and writes where sealed
// data is kept, plants a DEK and data under it, and that opens for this tenant.
// It does not open for another tenant, not even for one with the same KEK, and
// a planted DEK neither opens what is honest nor gets in the way of its DEK.
func TestPlantedDataOpensUnderRSA(t *testing.T) {
	w := newWorld(t, kek.RSAOAEP256)
	for _, name := range w.tenants() {
		f := w.forger(t, randomDEK())
		f.nothingElse(t, name)
		f.opens(t, "planted", f.plant(t, name, name))
	}
}

// A256KW wraps only for whom the vault lets wrap: what was not wrapped by the
// tenant's own KEK does not open. A forger that may wrap with it is as good as
// one with an RSA public key, and no better.
func TestPlantedDataNeedsTheKEKUnderA256KW(t *testing.T) {
	w := newWorld(t, kek.A256KW)
	own := kek.Key{Ref: "forger", Vault: "https://forger.vault.localhost", Name: "kek", Alg: kek.A256KW}
	w.vault.Create(own)
	for _, name := range w.tenants() {
		f := w.forger(t, randomDEK())
		wrapped, _ := f.wrap(t, own)
		attempts := map[string][]byte{
			"wrapped by the forger's own KEK": wrapped,
			"not wrapped":                     slices.Concat(f.dek.Expose()[:], make([]byte, 8)),
		}
		for _, other := range w.tenants() {
			attempts["copied from "+other] = w.original(t, other).blocks[0].Wrapped
			if w.kekOf(other) != w.kekOf(name) {
				attempts["wrapped by the KEK of "+other], _ = f.wrap(t, w.kekOf(other))
			}
		}
		for what, wrapped := range attempts {
			p := f.plant(t, name, name)
			p.blocks[0].Wrapped = wrapped
			w.refused(t, what, p, sealer.AuthenticationFailed, 0)
		}
		f.nothingElse(t, name)
		f.opens(t, "wrapped by the tenant's own KEK", f.plant(t, name, name))
	}
}

// Even a forger that knows a tenant's DEK, and wraps it under another tenant's
// KEK, does not open the one's envelopes as the other: the dek_id binds the
// tenant, and so does the envelope.
func TestLeakedDEKOpensNothingForAnother(t *testing.T) {
	for _, alg := range []kek.Alg{kek.RSAOAEP256, kek.A256KW} {
		w := newWorld(t, alg)
		for _, name := range w.tenants() {
			honest := w.original(t, name)
			var dek [secret.Size]byte
			block := honest.blocks[0]
			if err := w.vault.Unwrap(t.Context(), w.kekOf(name), kek.Version(block.Parent), block.Wrapped, &dek); err != nil {
				t.Fatal(err)
			}
			f := w.forger(t, dek)
			for _, other := range w.tenants() {
				if other == name {
					continue
				}
				moved, planted := honest, f.plant(t, other, other)
				moved.blocks = planted.blocks
				w.refused(t, alg.String()+", of "+name, w.as(moved, other), sealer.AuthenticationFailed, 0)
				moved.tenant, moved.header = other, planted.header
				w.refused(t, alg.String()+", with another dek_id, of "+name, moved, sealer.AuthenticationFailed, 1)
			}
		}
	}
}
