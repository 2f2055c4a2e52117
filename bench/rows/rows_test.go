package rows_test

import (
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/bench/pairs"
	"github.com/keysidecar/keysidecar/bench/rows"
)

func newSet(t testing.TB) *rows.Set {
	t.Helper()
	set, err := rows.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	return set
}

func TestRows(t *testing.T) {
	claims := map[string]bool{}
	for _, row := range newSet(t).Rows {
		if claims[row.Claim] || row.Claim == "" || row.Bar <= 1 {
			t.Errorf("%q: a second row of that claim, or bar %v", row.Claim, row.Bar)
		}
		claims[row.Claim] = true
		row.Base()
		row.Subject()
		if got := pairs.Allocs(row.Subject); got > row.MaxAllocs {
			t.Errorf("%s: %d allocations, at most %d", row.Claim, got, row.MaxAllocs)
		}
		if got := pairs.Allocs(row.Base); got > row.MaxAllocs {
			t.Errorf("%s: the base makes %d allocations, at most %d", row.Claim, got, row.MaxAllocs)
		}
	}
	for _, name := range []string{"envelope.Seal", "envelope.Open", "cobblestone.Seal", "cobblestone.Open"} {
		for _, size := range []string{"64 B", "1 KiB", "64 KiB", "1 MiB"} {
			if claim := name + " of " + size + " / floor"; !claims[claim] {
				t.Errorf("no row %q", claim)
			}
		}
	}
	if len(claims) != 25 {
		t.Errorf("%d rows", len(claims))
	}
}

// The floor beside an envelope hashes what the envelope binds, to the byte: for a message of
// one chunk it makes the envelope's chunk.
func TestFloorOfEnvelope(t *testing.T) {
	got, want, err := rows.EnvelopeChunk([]byte("plaintext"))
	if err != nil || got != want || !strings.HasPrefix(got, "chunk ") {
		t.Errorf("the floor makes %s, the envelope %s, %v", got, want, err)
	}
}

// The decisions that are measured are what the policy's own explanation says.
func TestDecisions(t *testing.T) {
	for _, prefix := range []bool{false, true} {
		for _, allowed := range []bool{true, false} {
			if n, wrong := rows.Decisions(t, prefix, allowed); n < 1000 || wrong > 0 {
				t.Errorf("prefix %v, allowed %v: %d decisions, %d wrong", prefix, allowed, n, wrong)
			}
		}
	}
}

func BenchmarkRows(b *testing.B) {
	for _, row := range newSet(b).Rows {
		name := strings.NewReplacer(" / ", "/", " ", "_").Replace(row.Claim)
		b.Run(name+"/subject", func(b *testing.B) { run(b, row.Subject) })
		b.Run(name+"/base", func(b *testing.B) { run(b, row.Base) })
	}
}

func run(b *testing.B, f func()) {
	b.ReportAllocs()
	for b.Loop() {
		f()
	}
}
