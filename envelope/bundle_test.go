package envelope_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

// TestAppendBundleHeader: the encoder refuses what Parse refuses, for the same
// reason. The vectors give the blocks, good and bad.
func TestAppendBundleHeader(t *testing.T) {
	refused := 0
	for _, v := range mustLoad(t).opens {
		blocks, env, framed := split(v.Sealed)
		if !framed {
			continue
		}
		_, want := envelope.Parse(v.Sealed)
		dst := make([]byte, 3, 5000)
		header, err := envelope.AppendBundleHeader(dst, blocks...)
		switch {
		case classOf(err) != classOf(want):
			t.Errorf("%s: %v, Parse: %v", v.Name, err, want)
		case err != nil:
			refused++
			if header != nil {
				t.Errorf("%s: %x with %v", v.Name, header, err)
			}
		case !bytes.Equal(append(header, env...), append(dst, v.Sealed...)):
			t.Errorf("%s: header %x", v.Name, header)
		}
	}
	if refused < 50 {
		t.Errorf("only %d bundles refused", refused)
	}
	for _, blocks := range [][][]byte{{}, make([][]byte, 5)} {
		if h, err := envelope.AppendBundleHeader(nil, blocks...); h != nil || !errors.Is(err, envelope.ErrMalformed) {
			t.Errorf("%d blocks: %x, %v", len(blocks), h, err)
		}
	}
}

// split takes a bundle apart whose framing and envelope are right.
func split(sealed []byte) (blocks [][]byte, env []byte, framed bool) {
	if !bytes.HasPrefix(sealed, []byte("KSB\x01")) || len(sealed) < 5 {
		return nil, nil, false
	}
	env = sealed[5:]
	for range sealed[4] {
		if len(env) < 2 || len(env) < 2+int(env[0])<<8+int(env[1]) {
			return nil, nil, false
		}
		n := 2 + int(env[0])<<8 + int(env[1])
		blocks = append(blocks, env[2:n])
		env = env[n:]
	}
	_, err := envelope.Parse(env)
	return blocks, env, err == nil && bytes.HasPrefix(env, []byte("KSE"))
}

func TestCheckTenant(t *testing.T) {
	v := mustLoad(t)
	a, b := must(tenant.Parse("tenant-a")), must(tenant.Parse("tenant-b"))
	for name, want := range map[string]bool{
		"two-deks": true, "branch": true, "branch-of-tenant": true, "bare": true,
		"check-second-tenant": false, "check-second-key_id": false, "check-branch-tenant": false, "check-blocks-of-another": false,
	} {
		s := must(envelope.Parse(v.open(name).Sealed))
		if err := s.CheckTenant(a); (err == nil) != want || !want && !errors.Is(err, envelope.ErrOpen) {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.CheckTenant(b); s.N > 0 && !errors.Is(err, envelope.ErrOpen) {
			t.Errorf("%s for another tenant: %v", name, err)
		}
	}
}

func TestParseAliases(t *testing.T) {
	o := mustLoad(t).open("four-two-branches")
	in := slices.Clone(o.Sealed)
	s := must(envelope.Parse(in))
	if s.N != 4 || len(s.Blocks()) != 4 {
		t.Fatalf("%d blocks", s.N)
	}
	clear(in)
	for i := range s.N {
		if raw := s.RawBlock(i); len(raw) == 0 || raw[0] != 0 {
			t.Errorf("block %d is a copy", i)
		}
	}
	if s.Envelope[0] != 0 || !bytes.Equal(s.DEKID[:], o.Steps.DEKID) {
		t.Error("envelope is a copy, or dek_id is not")
	}
}
