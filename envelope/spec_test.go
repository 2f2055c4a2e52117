package envelope_test

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/tenant"
)

// TestSpecExamples: the worked examples of SPEC.md are the vectors.
func TestSpecExamples(t *testing.T) {
	spec := string(must(os.ReadFile("../SPEC.md")))
	_, rest, found1 := strings.Cut(spec, "### 16.1 ")
	bare, branch, found2 := strings.Cut(rest, "### 16.2 ")
	if !found1 || !found2 {
		t.Fatal("SPEC.md has no section 16.1 or 16.2")
	}
	v := mustLoad(t)
	o := v.open("bare")
	s := o.Steps
	checkDigits(t, bare, o.DEK, s.DEKIDInfo, s.DEKID, s.Header, s.Salt, s.Context, s.Binding, s.Info, s.OKM, s.MessageKey,
		s.BaseNonce, s.Commitment, o.Sealed)
	o = v.open("branch")
	s = o.Steps
	a, b, k, c := s.Blocks[0], s.Blocks[1], v.keys.kek("oct"), v.keys.signer("control-plane")
	checkDigits(t, branch, o.DEK, b.BranchKey, k.Key, k.Version, c.SPKI, s.DEKID, b.KeyID, a.WrappingKey, a.WrapNonce, a.Wrapped,
		a.Block, b.Wrapped, b.Signed, c.ID, b.Proof, b.Block, s.Salt, s.OKM, o.Sealed)
}

// checkDigits expects the values, in this order, in a section.
func checkDigits(t *testing.T, section string, values ...hexBytes) {
	t.Helper()
	text := strings.Join(strings.Fields(section), "")
	for i, v := range values {
		_, after, found := strings.Cut(text, hex.EncodeToString(v))
		if !found || len(v) == 0 {
			t.Errorf("value %d (%x) is not in SPEC.md, or not in this order", i, []byte(v))
			continue
		}
		text = after
	}
}

// TestSpecLimits: the lengths in SPEC.md, section 8, which follow from others.
func TestSpecLimits(t *testing.T) {
	id := make([]byte, 16)
	proof := cat([]byte{1}, make([]byte, 80))
	tenant128, ref63 := strings.Repeat("a", tenant.MaxID), strings.Repeat("a", envelope.MaxKEKRef)
	least := refBlock{1, 1, 1, 2, id, 0, "a", "a", id, make([]byte, 40), nil, nil}
	dek := refBlock{1, 1, 1, 1, id, 0, tenant128, ref63, id, make([]byte, 512), proof, nil}
	alg3 := refBlock{1, 1, 1, 3, id, 0, tenant128, "", id, make([]byte, 60), nil, nil}
	branch := refBlock{1, 2, 0, 1, id, 0, tenant128, ref63, derive("parent 1", 16), make([]byte, 512), proof, nil}
	other := branch
	other.parent = derive("parent 2", 16)
	for _, test := range []struct {
		want   int
		blocks []refBlock
	}{
		{99, []refBlock{least}},
		{5 + 2 + 834, []refBlock{dek}},
		{2753, []refBlock{dek, alg3, branch, other}},
	} {
		var encoded [][]byte
		for _, b := range test.blocks {
			encoded = append(encoded, b.encode())
		}
		header, err := envelope.AppendBundleHeader(nil, encoded...)
		if len(header) != test.want || err != nil {
			t.Errorf("%d bytes, %v; want %d", len(header), err, test.want)
		}
	}
	if envelope.MaxBundleHeader != 2753 {
		t.Errorf("MaxBundleHeader is %d", envelope.MaxBundleHeader)
	}
	for n, want := range map[int]int{0: 94, 16383: 16383 + 94, 16384: 16384 + 110} {
		if got := envelope.SealedSize(n); got != want {
			t.Errorf("SealedSize(%d) = %d, want %d", n, got, want)
		}
	}
}
