package sealer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/kektest"
	"github.com/keysidecar/keysidecar/sealer"
)

// world is four tenants whose KEKs are of one algorithm, or as the rig has
// them: acme and globex with a KEK each, hooli and initech with one together.
type world struct {
	alg   kek.Alg // zero: the rig's own
	vault *kektest.Memory
	// rigs are two sidecars over the vault. Each mints DEKs of its own, the
	// second under a newer version of the shared KEK.
	rigs [2]*rig
}

func newWorld(t *testing.T, alg kek.Alg) *world {
	t.Helper()
	first := newRig(t, nil)
	w := &world{alg: alg, vault: first.vault}
	for _, ref := range []string{"acme", "globex", "shared"} {
		if k := w.kek(ref); k != testKEK(ref) {
			w.vault.Create(k)
		}
	}
	w.rigs[0] = w.adapt(first)
	for _, name := range w.tenants() {
		w.rigs[0].mustSeal(t, request(name, nil))
	}
	w.vault.Rotate(w.kek("shared"))
	w.rigs[1] = w.cold(t)
	return w
}

func (*world) tenants() []string { return []string{"acme", "globex", "hooli", "initech"} }

func (w *world) kek(ref string) kek.Key {
	k := testKEK(ref)
	if w.alg != 0 {
		k.Alg = w.alg
	}
	return k
}

// kekOf returns the KEK of a tenant.
func (w *world) kekOf(tenant string) kek.Key {
	if tenant == "hooli" || tenant == "initech" {
		return w.kek("shared")
	}
	return w.kek(tenant)
}

// adapt gives the tenants of a rig this world's KEKs.
func (w *world) adapt(r *rig) *rig {
	for _, name := range w.tenants() {
		r.entries[name].KEKs = []kek.Key{w.kekOf(name)}
	}
	return r
}

// cold returns a sidecar over this world's vault, with nothing in its cache.
func (w *world) cold(t *testing.T) *rig {
	t.Helper()
	return w.adapt(w.rigs[0].cold(t))
}

// parts is a request to unseal, taken to pieces. The pieces may be shared with
// other parts: they are replaced, never written to.
type parts struct {
	tenant    string
	context   map[string]string
	plaintext []byte // what an original opens to
	blocks    []envelope.Block
	// The first 6 bytes of the header are the same in all envelopes; the
	// rest is the dek_id.
	header, salt, commitment, chunks []byte
}

// take takes sealed data to pieces.
func take(t *testing.T, tenant string, context map[string]string, plaintext, sealed []byte) parts {
	t.Helper()
	parsed, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	env := parsed.Envelope
	return parts{tenant, context, plaintext, slices.Clone(parsed.Blocks()), env[:22:22], env[22:46:46], env[46:78:78], env[78:]}
}

// request asks for the pieces, put together.
func (p *parts) request() sealer.Request {
	r := request(p.tenant, p.sealed())
	r.Context = p.context
	return r
}

func (p *parts) envelope() []byte { return slices.Concat(p.header, p.salt, p.commitment, p.chunks) }

// sealed puts the pieces together, also where package envelope would refuse
// to. Without blocks it is an envelope alone.
func (p *parts) sealed() []byte {
	if len(p.blocks) == 0 {
		return p.envelope()
	}
	out := append([]byte("KSB\x01"), byte(len(p.blocks)))
	for i := range p.blocks {
		b := encode(&p.blocks[i])
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
	}
	return append(out, p.envelope()...)
}

// encode encodes a block by SPEC.md, section 6.1, whatever its fields are.
func encode(b *envelope.Block) []byte {
	out := append([]byte{1, byte(b.Kind), byte(b.Purpose), byte(b.Alg)}, b.KeyID[:]...)
	out = binary.BigEndian.AppendUint64(out, b.Created)
	out = append(append(out, byte(len(b.Tenant))), b.Tenant...)
	out = append(append(out, byte(len(b.KEKRef))), b.KEKRef...)
	out = append(out, b.Parent[:]...)
	for _, field := range [][]byte{b.Wrapped, b.Proof} {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(field))), field...)
	}
	return out
}

// A swap puts something of another original, o, into p.
type swap struct {
	name string
	do   func(p, o *parts)
}

// swapsOfRequests change what is asked for, or the envelope.
func swapsOfRequests() []swap {
	return []swap{
		{"tenant asked for", func(p, o *parts) { p.tenant = o.tenant }},
		{"context asked for", func(p, o *parts) { p.context = o.context }},
		{"both asked for", func(p, o *parts) { p.tenant, p.context = o.tenant, o.context }},
		{"context in part", func(p, o *parts) {
			p.context = maps.Clone(p.context)
			maps.Copy(p.context, o.context)
		}},
		{"header", func(p, o *parts) { p.header = o.header }},
		{"salt", func(p, o *parts) { p.salt = o.salt }},
		{"commitment", func(p, o *parts) { p.commitment = o.commitment }},
		{"chunks", func(p, o *parts) { p.chunks = o.chunks }},
		{"body", func(p, o *parts) { p.salt, p.commitment, p.chunks = o.salt, o.commitment, o.chunks }},
		{"envelope", func(p, o *parts) { p.header, p.salt, p.commitment, p.chunks = o.header, o.salt, o.commitment, o.chunks }},
	}
}

// swapsOfBlocks change which blocks there are.
func swapsOfBlocks() []swap {
	return []swap{
		{"all blocks", func(p, o *parts) { p.blocks = slices.Clone(o.blocks) }},
		{"block before", func(p, o *parts) { p.blocks = slices.Concat(o.blocks, p.blocks) }},
		{"block after", func(p, o *parts) { p.blocks = slices.Concat(p.blocks, o.blocks) }},
		{"no blocks", func(p, _ *parts) { p.blocks = nil }},
		{"order", func(p, _ *parts) { slices.Reverse(p.blocks) }},
	}
}

// swapsOfFields change a field of the first block. What all originals have in
// common comes from this test.
func swapsOfFields() []swap {
	field := func(name string, do func(b, o *envelope.Block)) swap {
		return swap{name, func(p, o *parts) {
			if len(p.blocks) > 0 && len(o.blocks) > 0 {
				do(&p.blocks[0], &o.blocks[0])
			}
		}}
	}
	return []swap{
		field("kind", func(b, _ *envelope.Block) { b.Kind, b.Purpose = envelope.KindBranch, 0 }),
		field("purpose", func(b, _ *envelope.Block) { b.Purpose ^= 1 }),
		field("key_id", func(b, o *envelope.Block) { b.KeyID = o.KeyID }),
		field("tenant", func(b, o *envelope.Block) { b.Tenant = o.Tenant }),
		field("kek_ref", func(b, o *envelope.Block) { b.KEKRef = o.KEKRef }),
		field("parent", func(b, o *envelope.Block) { b.Parent = o.Parent }),
		field("wrapped", func(b, o *envelope.Block) { b.Wrapped = o.Wrapped }),
		field("wrapped and where", func(b, o *envelope.Block) {
			b.Wrapped, b.Parent, b.KEKRef, b.Alg = o.Wrapped, o.Parent, o.KEKRef, o.Alg
		}),
		field("alg", func(b, o *envelope.Block) { b.Alg = o.Alg }),
		field("alg 2", func(b, _ *envelope.Block) { b.Alg, b.Wrapped = envelope.AlgA256KW, b.Wrapped[:40] }),
		field("alg 3", func(b, _ *envelope.Block) { b.Alg, b.KEKRef, b.Wrapped = envelope.AlgBranch, nil, make([]byte, 60) }),
		field("created", func(b, o *envelope.Block) { b.Created = o.Created + 1 }),
		field("proof", func(b, _ *envelope.Block) { b.Proof = append([]byte{1}, make([]byte, 80)...) }),
	}
}

// agree makes the blocks say what the request wants to hear, so that only keys
// can tell that they are not: what a forger does last.
func (w *world) agree(p *parts) {
	k := w.kekOf(p.tenant)
	for i := range p.blocks {
		b := &p.blocks[i]
		b.Tenant, b.KeyID = []byte(p.tenant), envelope.ID(p.header[6:])
		if b.Alg == envelope.Alg(k.Alg) {
			b.KEKRef = []byte(k.Ref)
		}
	}
}

// verdict is what SPEC.md, section 10, says in steps 6 to 10, before a key is
// used; OK if it is for the keys to say.
func (w *world) verdict(p *parts) sealer.Reason {
	sealed, err := envelope.Parse(p.sealed())
	switch {
	case errors.Is(err, envelope.ErrUnsupported):
		return sealer.UnsupportedFormat
	case err != nil:
		return sealer.MalformedEnvelope
	case sealed.N == 0:
		return sealer.NeedsRegistry
	}
	k := w.kekOf(p.tenant)
	for _, step := range []struct {
		refuses func(b envelope.Block) bool
		reason  sealer.Reason
	}{
		{func(b envelope.Block) bool {
			dek := b.Kind == envelope.KindDEK
			return string(b.Tenant) != p.tenant && (dek || len(b.Tenant) > 0) || dek && string(b.KeyID[:]) != string(p.header[6:])
		}, sealer.AuthenticationFailed},
		{func(b envelope.Block) bool {
			return b.Alg != envelope.AlgBranch && (string(b.KEKRef) != k.Ref || b.Alg != envelope.Alg(k.Alg))
		}, sealer.KEKNotAllowed},
		{func(b envelope.Block) bool { return len(b.Proof) > 0 }, sealer.AuthenticationFailed},
	} {
		if slices.ContainsFunc(sealed.Blocks(), step.refuses) {
			return step.reason
		}
	}
	return sealer.OK
}

// tally counts what the property test did, so that it cannot pass by doing
// nothing.
type tally struct{ tried, opened, early, late, unchanged int }

// check says whether enough was tried, opened, refused before a key was used,
// and refused because of a key.
func (n *tally) check(t *testing.T) {
	t.Helper()
	t.Logf("%d recombinations: %d opened, with the envelope, tenant and context of one Seal; %d were refused before a key "+
		"was used, %d by the keys; %d bundles opened unchanged", n.tried, n.opened, n.early, n.late, n.unchanged)
	if n.tried < 2000 || min(n.opened, n.early, n.late) < n.tried/50 || n.unchanged < n.tried/50 {
		t.Error("that is too few of some to show anything")
	}
}

// game is one run of the property: some originals, and sidecars to unseal in.
type game struct {
	*rapid.T
	*world
	*tally
	originals []parts
	outage    bool // the vault may be silent, or have been
}

// seal seals for tenants and contexts that are drawn. Contexts have few keys
// and values, so that many are nearly the same.
func (g *game) seal(t *testing.T) {
	text := rapid.SampledFrom([]string{"", "a", "b", "ab", "acme", "hooli"})
	contexts := rapid.MapOfN(rapid.SampledFrom([]string{"a", "ab", "table"}), text, 0, 2)
	for range rapid.IntRange(3, 6).Draw(g.T, "originals") {
		tenant := rapid.SampledFrom(g.tenants()).Draw(g.T, "tenant")
		context := contexts.Draw(g.T, "context")
		plaintext := rapid.SliceOfN(rapid.Byte(), 0, 48).Draw(g.T, "plaintext")
		req := request(tenant, plaintext)
		req.Context = context
		res := g.rigs[rapid.IntRange(0, 1).Draw(g.T, "sidecar")].mustSeal(t, req)
		g.originals = append(g.originals, take(t, tenant, context, plaintext, res.Data))
	}
}

// recombination draws an original and puts pieces of others into it.
func (g *game) recombination() parts {
	swaps := slices.Concat(swapsOfRequests(), swapsOfBlocks(), swapsOfFields())
	index := rapid.IntRange(0, len(g.originals)-1)
	p := g.originals[index.Draw(g.T, "original")]
	p.blocks = slices.Clone(p.blocks)
	for range rapid.IntRange(1, 4).Draw(g.T, "swaps") {
		s := rapid.SampledFrom(swaps).Draw(g.T, "swap")
		g.Log(s.name)
		s.do(&p, &g.originals[index.Draw(g.T, "other")])
	}
	if rapid.Bool().Draw(g.T, "agree") {
		g.agree(&p)
	}
	return p
}

// honest returns the original whose envelope, tenant and context these are.
func (g *game) honest(p *parts) *parts {
	i := slices.IndexFunc(g.originals, func(o parts) bool {
		return o.tenant == p.tenant && maps.Equal(o.context, p.context) && bytes.Equal(o.envelope(), p.envelope())
	})
	if i < 0 {
		return nil
	}
	return &g.originals[i]
}

// genuine reports whether the keys of p's blocks, in their order, are those of
// an original with p's tenant and header: what may enter the cache. Blocks of
// alg 3 are passed over, and silent vaults, but no refusal.
func (g *game) genuine(p *parts) bool {
	for i := range p.blocks {
		b := &p.blocks[i]
		if b.Alg == envelope.AlgBranch {
			continue
		}
		same := func(o parts) bool {
			return o.tenant == p.tenant && bytes.Equal(o.header, p.header) &&
				o.blocks[0].Parent == b.Parent && bytes.Equal(o.blocks[0].Wrapped, b.Wrapped)
		}
		if found := slices.ContainsFunc(g.originals, same); found || !g.outage {
			return found
		}
	}
	return false
}

// silence has the vault not answer the next call.
func (g *game) silence() {
	silent := false
	g.vault.SetHook(func(context.Context, kektest.Call) error {
		if silent {
			return nil
		}
		silent = true
		return errors.New("no answer")
	})
}

// open unseals p in r, and compares with what may happen.
func (g *game) open(r *rig, p *parts) {
	verdict, cached, unwraps := g.verdict(p), r.deks.Stats().Cached, g.vault.Counts().Unwrap
	res, err := r.Unseal(g.Context(), p.request())
	g.tried++
	switch {
	case err == nil:
		g.opened++
		g.mayOpen(p, verdict, res.Data)
	case res.Data != nil:
		g.Fatalf("plaintext %q beside %v", res.Data, err)
	case verdict != sealer.OK:
		g.early++
		if after := g.vault.Counts().Unwrap; reasonOf(err) != verdict || after != unwraps {
			g.Fatalf("%v after %d calls to the vault, want %s after none", err, after-unwraps, verdict)
		}
	default:
		g.late++
		g.mayRefuse(p, err)
	}
	if after := r.deks.Stats().Cached; after != cached && (after != cached+1 || verdict != sealer.OK || !g.genuine(p)) {
		g.Fatalf("%d DEKs in the cache, before there were %d: %v", after, cached, err)
	}
}

// mayOpen checks what was opened.
func (g *game) mayOpen(p *parts, verdict sealer.Reason, plaintext []byte) {
	o := g.honest(p)
	if o == nil || verdict != sealer.OK {
		g.Fatalf("opened as %s with %v: %q, want %s", p.tenant, p.context, plaintext, verdict)
	}
	if !bytes.Equal(plaintext, o.plaintext) {
		g.Fatalf("opened to %q, sealed was %q", plaintext, o.plaintext)
	}
}

// mayRefuse checks the reason where it is the keys that refuse.
func (g *game) mayRefuse(p *parts, err error) {
	alg3 := slices.ContainsFunc(p.blocks, func(b envelope.Block) bool { return b.Alg == envelope.AlgBranch })
	switch reason := reasonOf(err); {
	case reason == sealer.AuthenticationFailed, reason == sealer.KEKNotFound, reason == sealer.NeedsRegistry && alg3,
		reason == sealer.KeyVaultUnreachable && g.outage:
	default:
		g.Fatalf("the keys refuse with: %v", err)
	}
}

// unspoilt checks that every original still opens in r. A silence of the vault
// is remembered for 2 s.
func (g *game) unspoilt(r *rig, outage bool) {
	for i := range g.originals {
		o := &g.originals[i]
		res, err := r.Unseal(g.Context(), o.request())
		if outage && reasonOf(err) == sealer.KeyVaultUnreachable {
			continue
		}
		if err != nil || !bytes.Equal(res.Data, o.plaintext) {
			g.Fatalf("what was sealed for %s gives %q, %v", o.tenant, res.Data, err)
		}
		g.unchanged++
	}
}

// What opens is the envelope, tenant and context of one Seal call, and it
// opens to that call's plaintext, whatever is put together from headers,
// bodies, blocks, fields of blocks, tenants and contexts of several, whether
// the tenants have KEKs of their own or one together, and whatever a sidecar
// has opened and refused before. All else has the reason that SPEC.md gives,
// costs no call to a vault where it says so, leaves nothing in the cache, and
// never spoils what is honest.
func TestSwapsNeverCrossTenants(t *testing.T) {
	for name, alg := range map[string]kek.Alg{"RSA": kek.RSAOAEP256, "A256KW": kek.A256KW, "both": 0} {
		t.Run(name, func(t *testing.T) {
			w, n := newWorld(t, alg), &tally{}
			rapid.Check(t, func(rt *rapid.T) {
				g := &game{T: rt, world: w, tally: n}
				g.seal(t)
				cold := w.cold(t)
				outage := rapid.IntRange(0, 3).Draw(rt, "outage") == 3
				for i := range rapid.IntRange(20, 60).Draw(rt, "recombinations") {
					p := g.recombination()
					g.open(w.rigs[i%2], &p)
					if g.outage = outage; outage && len(p.blocks) > 1 {
						g.silence()
					}
					g.open(cold, &p)
					g.outage = false
					w.vault.SetHook(nil)
				}
				g.unspoilt(cold, outage)
				g.unspoilt(w.rigs[0], false)
			})
			n.check(t)
		})
	}
}
