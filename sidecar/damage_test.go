package sidecar_test

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/kek/devvault"
)

// The classes of SPEC.md, section 11, by reason; opens is no failure.
const (
	opens        = ""
	malformed    = "MALFORMED_ENVELOPE"
	unsupported  = "UNSUPPORTED_FORMAT"
	notAuthentic = "AUTHENTICATION_FAILED"
	notAllowed   = "KEK_NOT_ALLOWED"
	notFound     = "KEK_NOT_FOUND"
)

// A stage is how far a cold reader gets with damaged data.
type stage int

const (
	offline stage = iota // what is wrong is seen without a vault
	atVault              // the vault does not unwrap the DEK
	withKey              // it does, and the damage is found then, or not at all
)

// A field is a part of a bundle, and what SPEC.md makes of a flipped bit in
// it, given the field after the flip. cold is nil where it is as warm.
type field struct {
	name       string
	size       int
	warm, cold func(field []byte) string
	stage      stage
}

func always(class string) func([]byte) string {
	return func([]byte) string { return class }
}

// fits is class where the field still has the form, else malformed.
func fits(form, class string) func([]byte) string {
	re := regexp.MustCompile("^(" + form + ")$")
	return func(field []byte) string {
		if re.Match(field) {
			return class
		}
		return malformed
	}
}

// known is class for a defined value, which then does not fit the others, and
// unsupported for all others.
func known(values string) func([]byte) string {
	return func(field []byte) string {
		if bytes.IndexByte([]byte(values), field[0]) >= 0 {
			return malformed
		}
		return unsupported
	}
}

// layout is a bundle of one DEK block of alg 1 or 2: SPEC.md, sections 3, 6 and 7.
func layout(tenant, ref string, wrapped, plaintext int) []field {
	return []field{
		{name: "bundle magic", size: 3, warm: always(malformed)},
		{name: "bundle version", size: 1, warm: always(unsupported)},
		{name: "n", size: 1, warm: always(malformed)},
		{name: "block length", size: 2, warm: always(malformed)},
		{name: "block version", size: 1, warm: always(unsupported)},
		{name: "kind", size: 1, warm: known("\x01\x02")},
		{name: "purpose", size: 1, warm: known("\x00\x01")},
		{name: "alg", size: 1, warm: known("\x01\x02\x03")},
		{name: "key_id", size: 16, warm: always(notAuthentic)},
		{name: "created", size: 8, warm: always(opens), stage: withKey},
		{name: "tenant length", size: 1, warm: always(malformed)},
		{name: "tenant", size: len(tenant), warm: fits("[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?", notAuthentic)},
		{name: "kek_ref length", size: 1, warm: always(malformed)},
		{name: "kek_ref", size: len(ref), warm: fits("[a-z0-9-]*[a-z0-9]", notAllowed)},
		{name: "parent", size: 16, warm: always(opens), cold: always(notFound), stage: atVault},
		{name: "wrapped length", size: 2, warm: always(malformed)},
		{name: "wrapped", size: wrapped, warm: always(opens), cold: always(notAuthentic), stage: atVault},
		{name: "proof length", size: 2, warm: always(malformed)},
		{name: "magic", size: 3, warm: always(malformed)},
		{name: "version", size: 1, warm: always(unsupported)},
		{name: "suite", size: 1, warm: always(unsupported)},
		{name: "flags", size: 1, warm: always(unsupported)},
		{name: "dek_id", size: 16, warm: always(notAuthentic)},
		{name: "salt", size: 24, warm: always(notAuthentic), stage: withKey},
		{name: "commitment", size: 32, warm: always(notAuthentic), stage: withKey},
		{name: "chunks", size: plaintext + 16, warm: always(notAuthentic), stage: withKey},
	}
}

// damaged is a bundle with something wrong in it.
type damaged struct {
	name       string
	bytes      []byte
	warm, cold string
	stage      stage
}

const damagedTenant, damagedText = "acme", "hello"

// flips returns sealed with each of its bits flipped.
func flips(t *testing.T, sealed []byte, wrapped int) []damaged {
	t.Helper()
	var all []damaged
	offset := 0
	for _, f := range layout(damagedTenant, "own", wrapped, len(damagedText)) {
		if f.cold == nil {
			f.cold = f.warm
		}
		for i := range f.size * 8 {
			b := bytes.Clone(sealed)
			b[offset+i/8] ^= 1 << (i % 8)
			whole := b[offset : offset+f.size]
			all = append(all, damaged{
				name:  fmt.Sprintf("bit %d of byte %d of %s", i%8, i/8, f.name),
				bytes: b, warm: f.warm(whole), cold: f.cold(whole), stage: f.stage,
			})
		}
		offset += f.size
	}
	if offset != len(sealed) {
		t.Fatalf("the layout has %d bytes, the bundle %d", offset, len(sealed))
	}
	return all
}

// cuts returns every proper prefix of sealed. Where only ciphertext is missing,
// the length is one that data can have.
func cuts(sealed []byte) []damaged {
	var all []damaged
	for n := range sealed {
		d := damaged{name: fmt.Sprintf("first %d bytes", n), bytes: sealed[:n], warm: malformed, cold: malformed}
		if n >= len(sealed)-len(damagedText) {
			d.warm, d.cold, d.stage = notAuthentic, notAuthentic, withKey
		}
		all = append(all, d)
	}
	return all
}

func filter(data []damaged, keep func(damaged) bool) []damaged {
	return slices.DeleteFunc(slices.Clone(data), func(d damaged) bool { return !keep(d) })
}

// tryAll unseals each of data, several at a time, and wants its class.
func (n *node) tryAll(t *testing.T, data []damaged, class func(damaged) string) {
	t.Helper()
	var group sync.WaitGroup
	next := make(chan damaged)
	for range 8 {
		group.Go(func() {
			for d := range next {
				n.tryOne(t, d, class(d))
			}
		})
	}
	for _, d := range data {
		next <- d
	}
	close(next)
	group.Wait()
}

func (n *node) tryOne(t *testing.T, d damaged, want string) {
	t.Helper()
	got, err := n.client.Unseal(t.Context(), damagedTenant, d.bytes, nil)
	switch {
	case want == opens && (err != nil || string(got.Plaintext) != damagedText):
		t.Errorf("%s: %q, %v, want it to open", d.name, got.Plaintext, err)
	case want != opens && (err == nil || client.ReasonOf(err) != want):
		t.Errorf("%s: %q, %v, want %s", d.name, got.Plaintext, err, want)
	}
}

// eachAlg runs test with a KEK of each algorithm that seals today.
func eachAlg(t *testing.T, test func(t *testing.T, s *site, set settings, wrapped int)) {
	t.Helper()
	for _, c := range []struct {
		alg, keyType string
		wrapped      int
	}{{"RSA-OAEP-256", "RSA", 256}, {"A256KW", "oct-HSM", 40}} {
		t.Run(c.alg, func(t *testing.T) {
			s := newSite(t)
			if _, err := s.CreateKey(damagedTenant, kekName, devvault.KeySpec{Type: c.keyType}); err != nil {
				t.Fatal(err)
			}
			test(t, s, settings{keks: []string{s.kek("own", damagedTenant, c.alg)}, tenants: []string{"{id: acme, kek: own}"}}, c.wrapped)
		})
	}
}

func TestDamagedWhileWarm(t *testing.T) {
	eachAlg(t, func(t *testing.T, s *site, set settings, wrapped int) {
		n := s.start(t, set)
		sealed := n.seal(t, damagedTenant, damagedText).Bytes
		data := append(flips(t, sealed, wrapped), cuts(sealed)...)
		before := s.asked()
		n.tryAll(t, data, func(d damaged) string { return d.warm })
		if diff := cmp.Diff(before, s.asked()); diff != "" {
			t.Errorf("Key Vault was asked (-want +got):\n%s", diff)
		}
		opened := filter(data, func(d damaged) bool { return d.warm == opens })
		t.Logf("%d bytes: %d bundles with one bit flipped, %d prefixes; %d open, as SPEC.md, 13.3, lists", len(sealed), 8*len(sealed), len(sealed), len(opened))
	})
}

func TestDamagedWhileCold(t *testing.T) {
	eachAlg(t, func(t *testing.T, s *site, set settings, wrapped int) {
		set.maxMessages = 1 // each bundle has a DEK of its own
		maker := s.start(t, set)
		sealed := maker.seal(t, damagedTenant, damagedText).Bytes
		other := maker.seal(t, damagedTenant, damagedText).Bytes
		data := append(flips(t, sealed, wrapped), cuts(sealed)...)
		at := func(stage stage) []damaged {
			return filter(data, func(d damaged) bool { return d.stage == stage })
		}
		key := func() devvault.KeyCounters { return s.Counters().Key(damagedTenant, kekName) }

		cold := s.start(t, set)
		before := s.asked()
		cold.tryAll(t, at(offline), func(d damaged) string { return d.cold })
		if diff := cmp.Diff(before, s.asked()); diff != "" || cold.Stats().Cached != 0 {
			t.Errorf("%d DEKs are cached; Key Vault was asked (-want +got):\n%s", cold.Stats().Cached, diff)
		}

		calls, unwrapped := s.asked()[devvault.OpUnwrap], key().Unwrapped
		refused := at(atVault)
		cold.tryAll(t, refused, func(d damaged) string { return d.cold })
		if got := s.asked()[devvault.OpUnwrap] - calls; got != int64(len(refused)) || key().Unwrapped != unwrapped || cold.Stats().Cached != 0 {
			t.Errorf("%d damaged key blocks: %d calls, want one each; %d were unwrapped, %d DEKs are cached",
				len(refused), got, key().Unwrapped-unwrapped, cold.Stats().Cached)
		}

		// A cache with room for one DEK of a tenant is cold again for it once
		// another has been used.
		set.tiny = true
		small := s.start(t, set)
		found := at(withKey)
		unwrapped = key().Unwrapped
		for _, d := range found {
			small.tryOne(t, d, d.cold)
			small.mustOpen(t, damagedTenant, other, damagedText)
		}
		if got := key().Unwrapped - unwrapped; got != int64(2*len(found)) {
			t.Errorf("%d damaged bundles, and after each a good one of another DEK: %d unwraps, want %d", len(found), got, 2*len(found))
		}
		t.Logf("%d refused without a vault call, %d with a call that failed; %d with their DEK unwrapped, or opened as SPEC.md, 13.3, lists",
			len(at(offline)), len(refused), len(found))
	})
}
