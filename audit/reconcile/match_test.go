package reconcile_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/audit/reconcile"
)

const none = -1

func TestMatch(t *testing.T) {
	for name, tt := range map[string]struct {
		records, uses []int64
		want          []int
	}{
		"nothing":                    {nil, nil, []int{}},
		"only records":               {[]int64{1, 2}, nil, []int{}},
		"only uses":                  {nil, []int64{1, 2}, []int{none, none}},
		"at the tolerance":           {[]int64{0, 100}, []int64{10, 90}, []int{0, 1}},
		"beyond it":                  {[]int64{0, 100}, []int64{11, 89}, []int{none, none}},
		"one record, two uses":       {[]int64{5}, []int64{4, 7}, []int{0, none}},
		"the nearer one":             {[]int64{8}, []int64{1, 7}, []int{none, 0}},
		"the stranger in between":    {[]int64{0, 10, 20}, []int64{0, 6, 10, 20}, []int{0, none, 1, 2}},
		"the stranger before":        {[]int64{5, 10, 15}, []int64{0, 5, 10, 15}, []int{none, 0, 1, 2}},
		"a skew of the clock":        {[]int64{0, 4, 8}, []int64{9, 13, 17}, []int{0, 1, 2}},
		"more pairs before nearer":   {[]int64{0, 9}, []int64{9, 19}, []int{0, 1}},
		"one missing on each side":   {[]int64{0, 5, 10, 15}, []int64{0, 9, 14, 26}, []int{0, 2, 3, none}},
		"clusters":                   {[]int64{0, 1000, 2000}, []int64{1001, 2001}, []int{1, 2}},
		"as many, none of them near": {[]int64{0, 100}, []int64{50, 150}, []int{none, none}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, reconcile.Pair(tt.records, tt.uses, 10)); diff != "" {
				t.Errorf("pairs differ (-want +got):\n%s", diff)
			}
		})
	}
}

// best returns the most pairs that there can be, and the least sum of their
// distances, by trying all ways.
func best(records, uses []int64, tolerance int64) (pairs int, sum int64) {
	if len(uses) == 0 {
		return 0, 0
	}
	pairs, sum = best(records, uses[1:], tolerance)
	for i, r := range records {
		d := max(r-uses[0], uses[0]-r)
		if d > tolerance {
			continue
		}
		n, s := best(slices.Delete(slices.Clone(records), i, i+1), uses[1:], tolerance)
		if n, s = n+1, s+d; n > pairs || n == pairs && s < sum {
			pairs, sum = n, s
		}
	}
	return pairs, sum
}

func TestMatchIsBest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		times := rapid.Custom(func(t *rapid.T) []int64 {
			s := rapid.SliceOfN(rapid.Int64Range(0, 40), 0, 6).Draw(t, "times")
			slices.Sort(s)
			return s
		})
		records, uses := times.Draw(t, "records"), times.Draw(t, "uses")
		tolerance := rapid.Int64Range(0, 15).Draw(t, "tolerance")
		of := reconcile.Pair(records, uses, tolerance)
		pairs, sum, seen := 0, int64(0), map[int]bool{}
		for u, r := range of {
			if r == none {
				continue
			}
			d := max(records[r]-uses[u], uses[u]-records[r])
			if seen[r] || d > tolerance {
				t.Fatalf("use %d at %d got record %d at %d: taken %v, distance %d", u, uses[u], r, records[r], seen[r], d)
			}
			seen[r] = true
			pairs, sum = pairs+1, sum+d
		}
		if n, s := best(records, uses, tolerance); n != pairs || s != sum {
			t.Fatalf("%d pairs with sum %d; there are ways to have %d with %d", pairs, sum, n, s)
		}
	})
}

// TestMatchMany finds one stranger among very many uses, and keeps the count
// right where there are too many ways to weigh.
func TestMatchMany(t *testing.T) {
	const n = 100_000
	var records, uses []int64
	for i := range int64(n) {
		records, uses = append(records, 100*i), append(uses, 100*i+3)
	}
	stranger := 60_000
	uses = slices.Insert(uses, stranger, uses[stranger-1]+50)
	of := reconcile.Pair(records, uses, 10_000)
	if got := slices.Index(of, none); got != stranger {
		t.Errorf("use %d has no record, not the stranger, %d", got, stranger)
	}
	half := slices.DeleteFunc(slices.Clone(records), func(at int64) bool { return at%300 == 0 })
	var unmatched int
	for _, r := range reconcile.Pair(half, uses, 1_000_000_000) {
		if r == none {
			unmatched++
		}
	}
	if want := len(uses) - len(half); unmatched != want {
		t.Errorf("%d uses have no record, not %d", unmatched, want)
	}
}
