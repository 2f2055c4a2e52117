package verify_test

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

// interval returns the sizes of the checkpoints around record seq: the newest that
// is in a record before it, and the oldest that covers it.
func (w *writer) interval(seq int64) (from, to int64) {
	to = w.tree.Size()
	for size := range w.notes {
		switch {
		case size < seq:
			from = max(from, size)
		case size > seq:
			to = min(to, size)
		}
	}
	return from, to
}

// Who has not the key, and makes everything else fit again, is found between two
// checkpoints of the log.
func TestRewrittenWithoutTheKey(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	for seq := range int64(covered) {
		edits := map[string]func([]record.Record) []record.Record{
			"changed": func(all []record.Record) []record.Record {
				all[seq].Event, all[seq].Class = []byte(`{"kind":"call","caller":"m"}`), record.Data
				return all
			},
			"removed":  func(all []record.Record) []record.Record { return slices.Delete(all, int(seq), int(seq)+1) },
			"inserted": func(all []record.Record) []record.Record { return slices.Insert(all, int(seq), all[seq]) },
			"class": func(all []record.Record) []record.Record {
				all[seq].Class = all[seq].Class%record.Data + 1
				return all
			},
		}
		for what, edit := range edits {
			bad := w.rewritten(edit)
			r := verifyStream(t, bad.stream(), verify.Trust{})
			from, to := w.interval(seq)
			if r.Verified() || !slices.ContainsFunc(r.Problems, func(f verify.Finding) bool {
				return f.From >= from-1 && f.To <= to+1 && f.From <= seq && seq <= f.To
			}) {
				t.Errorf("record %d %s, of checkpoints %d and %d: %+v", seq, what, from, to, r.Problems)
			}
		}
	}
}

// resigned returns a log with the same events as w, signed with another key.
func resigned(w *writer) *writer {
	fake := newWriter(w.t, "a", nil)
	fake.calls(5)
	fake.checkpoint()
	fake.calls(20)
	fake.stop()
	return fake
}

func TestAnotherKey(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	fake := resigned(w)
	for name, test := range map[string]struct {
		trust verify.Trust
		want  []verify.Kind
	}{
		"nothing is known":   {verify.Trust{}, nil},
		"outside checkpoint": {verify.Trust{Checkpoints: []string{w.newest()}}, []verify.Kind{verify.OutsideForged}},
		"key": {
			verify.Trust{Keys: []string{w.key}},
			[]verify.Kind{verify.BadKey, verify.Unvouched, verify.BadSignature},
		},
		"key of another": {verify.Trust{Keys: []string{newWriter(t, "b", nil).key}}, []verify.Kind{verify.Unvouched}},
		"signer":         {verify.Trust{Signers: []*ecdsa.PublicKey{&newSigner(t).PublicKey}}, []verify.Kind{verify.Unvouched}},
	} {
		r := verifyStream(t, fake.stream(), test.trust)
		if got := kinds(r.Problems); !slices.Equal(got, test.want) {
			t.Errorf("%s: problems %v, want %v", name, got, test.want)
		}
		if test.want == nil {
			find(t, r.Notes, verify.OwnWord)
			find(t, r.Notes, verify.NoOutside)
		}
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	signer, other := newSigner(t), newSigner(t)
	for name, test := range map[string]struct {
		by    *ecdsa.PrivateKey
		key   string // empty: that of the log
		want  []verify.Kind
		trust []*ecdsa.PublicKey
	}{
		"right":          {by: signer, want: nil, trust: []*ecdsa.PublicKey{&other.PublicKey, &signer.PublicKey}},
		"another signer": {by: other, want: []verify.Kind{verify.Unvouched, verify.BadCertificate}, trust: []*ecdsa.PublicKey{&signer.PublicKey}},
		"of another log": {
			by: signer, key: newWriter(t, "b", nil).key, want: []verify.Kind{verify.Unvouched, verify.BadCertificate},
			trust: []*ecdsa.PublicKey{&signer.PublicKey},
		},
		"nobody is known": {by: other, want: nil},
	} {
		w := newWriter(t, "a", nil)
		w.certify(test.by, cmp.Or(test.key, w.key))
		w.stop()
		r := verifyStream(t, w.stream(), verify.Trust{Signers: test.trust})
		if got := kinds(r.Problems); !slices.Equal(got, test.want) {
			t.Errorf("%s: problems %v, want %v: %+v", name, got, test.want, r.Problems)
		}
		if certified := r.Logs[0].Certified == "https://v.example/keys/a/1"; certified != (name == "right") {
			t.Errorf("%s: certified %q", name, r.Logs[0].Certified)
		}
	}
}

// When the first file is gone, its key and certificate are in the next.
func TestKeyInSegment(t *testing.T) {
	t.Parallel()
	signer := newSigner(t)
	w := newWriter(t, "a", nil)
	w.keyed = true
	w.certify(signer, w.key)
	w.calls(3)
	w.segment()
	w.calls(2)
	w.stop()
	rest := w.stream()
	for range w.segments[len(w.segments)-1] {
		_, rest, _ = bytes.Cut(rest, []byte{'\n'})
	}
	r := verifyStream(t, rest, verify.Trust{Signers: []*ecdsa.PublicKey{&signer.PublicKey}})
	if !r.Verified() || r.Logs[0].Certified == "" || r.Logs[0].Signed != r.Logs[0].Last {
		t.Errorf("%+v", r)
	}
	r = verifyStream(t, rest, verify.Trust{Signers: []*ecdsa.PublicKey{&newSigner(t).PublicKey}})
	if got := kinds(r.Problems); !slices.Contains(got, verify.BadCertificate) {
		t.Errorf("by another signer: problems %v", got)
	}
}

// The start of a log, with its key, is never removed alone.
func TestKeyRemoved(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	w.prune(0)
	r := verifyStream(t, w.stream(), verify.Trust{})
	if find(t, r.Notes, verify.NoKey); r.Logs[0].Signed != 0 || !slices.Equal(kinds(r.Problems), []verify.Kind{verify.BadBegin}) {
		t.Errorf("%+v", r)
	}
	r = verifyStream(t, w.stream(), verify.Trust{Signers: []*ecdsa.PublicKey{&newSigner(t).PublicKey}})
	find(t, r.Problems, verify.Unvouched)
	r = verifyStream(t, w.stream(), verify.Trust{Keys: []string{w.key}, Checkpoints: []string{w.newest()}})
	if f := find(t, r.Problems, verify.BadBegin); len(r.Problems) != 1 || f.To != 0 || r.Logs[0].Outside != covered {
		t.Errorf("%+v", r)
	}
	// A wrong event is told once.
	w = smallLog(t)
	w.lines[0] = bytes.Replace(w.lines[0], []byte(`"1.0"`), []byte(`"1.1"`), 1)
	r = verifyStream(t, w.stream(), verify.Trust{Keys: []string{w.key}, Checkpoints: []string{w.newest()}})
	if !slices.Equal(kinds(r.Problems), []verify.Kind{verify.EventChanged}) || len(r.Problems) != 1 {
		t.Errorf("%+v", r.Problems)
	}
}

// What cannot be found is not claimed.
func TestWhatCannotBeFound(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	// The tail is cut off after a checkpoint of the log, and the newest one that was
	// kept elsewhere is older.
	var cut int64
	for size := range w.notes {
		if size < covered {
			cut = max(cut, size)
		}
	}
	r := verifyStream(t, bytes.Join(w.lines[:cut+1], nil), verify.Trust{Checkpoints: []string{w.notes[cut]}})
	if !r.Verified() || r.Logs[0].Outside != cut || r.Logs[0].Last != cut {
		t.Fatalf("%+v", r)
	}
	if f := find(t, r.Notes, verify.AfterOutside); f.From != cut || f.To != cut {
		t.Errorf("%+v", f)
	}
	find(t, r.Notes, verify.OpenEnd)
	if f := find(t, r.Notes, verify.Unsigned); f.From != cut {
		t.Errorf("%+v", f)
	}
	// The same with a newer one is found.
	r = verifyStream(t, bytes.Join(w.lines[:cut+1], nil), verify.Trust{Checkpoints: []string{w.newest()}})
	if f := find(t, r.Problems, verify.Cut); f.From != cut+1 || f.To != covered-1 {
		t.Errorf("%+v", f)
	}
	// A log that nobody names is missing.
	other := newWriter(t, "b", nil)
	other.stop()
	r = verifyStream(t, other.stream(), verify.Trust{})
	if find(t, r.Notes, verify.NoOutside); !r.Verified() || len(r.Logs) != 1 {
		t.Errorf("%+v", r)
	}
	// With a checkpoint of it, it is found.
	r = verifyStream(t, other.stream(), verify.Trust{Checkpoints: []string{w.newest()}})
	if f := find(t, r.Problems, verify.MissingLog); f.Log != w.log {
		t.Errorf("%+v", f)
	}
	// What was written after the newest checkpoint can be made up.
	fake := newWriter(t, "c", nil)
	fake.checkpoint()
	fake.calls(3)
	r = verifyStream(t, fake.stream(), verify.Trust{Checkpoints: []string{fake.newest()}})
	if f := find(t, r.Notes, verify.Unsigned); !r.Verified() || f.From != 1 || f.To != 4 {
		t.Errorf("%+v", r)
	}
	// And nothing at all is not a log that verifies.
	if r = verifyStream(t, nil, verify.Trust{}); r.Verified() || find(t, r.Notes, verify.Empty).From != -1 {
		t.Errorf("%+v", r)
	}
}

// A log whose key has signed two histories is found by what was kept elsewhere.
func TestTwoHistories(t *testing.T) {
	t.Parallel()
	w := newWriter(t, "a", nil)
	w.calls(3)
	w.checkpoint()
	w.calls(3)
	twin := *w
	twin.notes, twin.lines = map[int64]string{}, slices.Clone(w.lines)
	w.calls(2)
	w.stop()
	twin.now = twin.now.Add(time.Second)
	twin.calls(2)
	twin.stop()
	r := verifyStream(t, w.stream(), verify.Trust{Checkpoints: []string{w.notes[4], twin.newest()}})
	if f := find(t, r.Problems, verify.OutsideDiffers); f.From != 4 || f.To != 10 {
		t.Errorf("%+v", f)
	}
	find(t, r.Problems, verify.TwoRoots)
	if r.Logs[0].Outside != 4 {
		t.Errorf("%+v", r.Logs[0])
	}
	// Both in one stream.
	r = verifyStream(t, append(w.stream(), twin.stream()...), verify.Trust{})
	if f := find(t, r.Problems, verify.Fork); f.From != 8 && f.From != 9 {
		t.Errorf("%+v", f)
	}
	find(t, r.Problems, verify.TwoRoots)
	// Of a log that is not here, two.
	r = verifyStream(t, w.stream(), verify.Trust{Checkpoints: []string{w.newest(), twin.newest(), w.newest()}})
	find(t, r.Problems, verify.TwoRoots)
}

func TestForgedCheckpoints(t *testing.T) {
	t.Parallel()
	w, other := smallLog(t), newWriter(t, "b", nil)
	forger, _, err := record.NewKey(w.log)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(size int64) string {
		signed, err := record.Checkpoint{Log: w.log, Size: size, Root: other.tree.Root()}.Sign(forger)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	for _, size := range []int64{0, 5, 26, 1000, 1 << 62} {
		r := verifyStream(t, w.stream(), verify.Trust{Checkpoints: []string{sign(size), w.newest()}})
		if f := find(t, r.Problems, verify.OutsideForged); f.Log != w.log || len(r.Problems) != 1 || r.Logs[0].Outside != covered {
			t.Errorf("size %d: %+v", size, r)
		}
	}
	r := verifyStream(t, w.stream(), verify.Trust{Checkpoints: []string{"nothing"}})
	find(t, r.Problems, verify.OutsideForged)

	// In the log, by the log's key: of another size, and of another log.
	bad := newWriter(t, "a", nil)
	bad.calls(3)
	note := bad.sign()
	bad.calls(1)
	bad.add(record.Keys, &record.Event{Kind: record.CheckpointMade, Note: note})
	r = verifyStream(t, bad.stream(), verify.Trust{})
	if f := find(t, r.Problems, verify.SizeDiffers); f.From != 0 || f.To != 5 {
		t.Errorf("%+v", f)
	}
	bad = newWriter(t, "a", nil)
	bad.add(record.Keys, &record.Event{Kind: record.CheckpointMade, Note: other.sign()})
	r = verifyStream(t, bad.stream(), verify.Trust{})
	if f := find(t, r.Problems, verify.BadSignature); f.From != 1 {
		t.Errorf("%+v", f)
	}
}

func TestSegmentsFrontier(t *testing.T) {
	t.Parallel()
	for name, nodes := range map[string]int{"too few": 1, "others": 2} {
		w := newWriter(t, "a", nil)
		w.calls(4)
		node := w.tree.Nodes()[0].String()
		w.add(record.Keys, &record.Event{Kind: record.Segment, Note: w.sign(), Frontier: slices.Repeat([]string{node}, nodes)})
		w.calls(2)
		w.stop()
		r := verifyStream(t, w.stream(), verify.Trust{})
		if f := find(t, r.Problems, verify.BadFrontier); f.From != 5 || f.To != 5 || len(r.Problems) != 1 {
			t.Errorf("%s: %+v", name, r.Problems)
		}
		r = verifyStream(t, bytes.Join(w.lines[5:], nil), verify.Trust{})
		find(t, r.Problems, verify.BadFrontier)
		find(t, r.Notes, verify.Unchecked)
	}
}

// A forged record beside the right one, which links as that does, does not hide
// the right one.
func TestForkBeside(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	for i := 1; i < covered; i++ {
		r, err := record.Parse(bytes.TrimSuffix(w.lines[i], []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		forged, _ := record.Append(nil, &r.Header, []byte(`{"kind":"call","caller":"m"}`))
		report := verifyStream(t, append(forged, w.stream()...), verify.Trust{Checkpoints: []string{w.newest()}})
		if f := report.Problems; len(f) != 1 || f[0].Kind != verify.Fork || f[0].From != int64(i) || f[0].Line != 1 || report.Logs[0].Outside != covered {
			t.Errorf("record %d: %+v", i, report)
		}
	}
}

func TestClockBack(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		back time.Duration
		then func(w *writer)
		want []verify.Kind
	}{
		"a little":           {time.Second, func(w *writer) { w.calls(1) }, nil},
		"unsaid":             {time.Minute, func(w *writer) { w.calls(1) }, []verify.Kind{verify.ClockBack}},
		"said":               {time.Minute, func(w *writer) { w.add(record.Keys, &record.Event{Kind: record.Clock}) }, nil},
		"after segment":      {time.Minute, func(w *writer) { w.segment(); w.add(record.Keys, &record.Event{Kind: record.Clock}) }, nil},
		"segment, unsaid":    {time.Minute, func(w *writer) { w.segment(); w.calls(1) }, []verify.Kind{verify.ClockBack}},
		"segment, the end":   {time.Minute, func(w *writer) { w.segment() }, []verify.Kind{verify.ClockBack}},
		"said, but removed":  {time.Minute, func(w *writer) { w.add(record.Keys, &record.Event{Kind: record.Clock}); w.prune(3) }, nil},
		"more than a second": {time.Second + time.Microsecond, func(w *writer) { w.calls(1) }, []verify.Kind{verify.ClockBack}},
	} {
		w := newWriter(t, "a", nil)
		w.calls(2)
		w.now = w.now.Add(-test.back - time.Second)
		test.then(w)
		r := verifyStream(t, w.stream(), verify.Trust{})
		if got := kinds(r.Problems); !slices.Equal(got, test.want) {
			t.Errorf("%s: %+v", name, r.Problems)
		}
	}
}

func TestAfterStop(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	w.calls(1)
	r := verifyStream(t, w.stream(), verify.Trust{})
	if f := find(t, r.Problems, verify.AfterStop); f.From != 26 || f.Line != 27 {
		t.Errorf("%+v", f)
	}
}

func TestKept(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	for i := 10; i < 13; i++ {
		w.prune(i)
	}
	check := func(lines [][]byte, kept verify.Kept, after time.Duration) *verify.Report {
		t.Helper()
		r, err := verify.Verify([]string{"-"}, bytes.NewReader(bytes.Join(lines, nil)), verify.Config{
			Trust: verify.Trust{Keys: []string{w.key}}, Kept: kept, Now: begin().Add(after),
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	kept := verify.Kept{Data: 24 * time.Hour}
	r := check(w.lines, kept, time.Hour)
	if f := r.Problems; len(f) != 2 || f[0].Kind != verify.PrunedEarly || f[0].From != 4 || f[1].From != 10 || f[1].To != 12 {
		t.Errorf("%+v", f)
	}
	if r = check(w.lines, kept, 25*time.Hour); !r.Verified() {
		t.Errorf("%+v", r.Problems)
	}
	if r = check(w.lines, verify.Kept{Keys: 24 * time.Hour}, time.Hour); !r.Verified() {
		t.Errorf("another class: %+v", r.Problems)
	}
	// Whole segments.
	if r = check(w.lines[9:], verify.Kept{Keys: 24 * time.Hour}, time.Hour); find(t, r.Problems, verify.PrunedEarly).To != 8 {
		t.Errorf("%+v", r.Problems)
	}
	if r = check(w.lines[9:], verify.Kept{Keys: 24 * time.Hour}, 25*time.Hour); !r.Verified() {
		t.Errorf("%+v", r.Problems)
	}
}

// tampering is a change to up to three records of a log.
type tampering struct {
	from, n, how, at, to int
	bytes                []byte
}

func anyTampering(records int) *rapid.Generator[tampering] {
	return rapid.Custom(func(t *rapid.T) tampering {
		return tampering{
			from: rapid.IntRange(1, records-5).Draw(t, "record"), n: rapid.IntRange(1, 3).Draw(t, "records"),
			how: rapid.IntRange(0, 3).Draw(t, "how"), at: rapid.IntRange(0, 1000).Draw(t, "at"), to: rapid.IntRange(0, 1000).Draw(t, "to"),
			bytes: rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "bytes"),
		}
	})
}

// do returns the log's stream with the change, and whether it changes anything:
// other lines of a stream are not ours, and may be there.
func (c tampering) do(w *writer) ([]byte, bool) {
	old := bytes.Join(w.lines[c.from:c.from+c.n], nil)
	at := c.at % len(old)
	to := at + 1 + c.to%(len(old)-at)
	var middle []byte
	switch c.how {
	case 0:
		middle = bytes.Clone(old)
		middle[at] = c.bytes[0]
	case 1:
		middle = slices.Concat(old[:at], old[to:])
	case 2:
		middle = slices.Concat(old[:at], c.bytes, old[at:])
	}
	before, after := bytes.Join(w.lines[:c.from], nil), bytes.Join(w.lines[c.from+c.n:], nil)
	return slices.Concat(before, middle, after), !sameLines(old, middle)
}

// check verifies the changed log: the change is found near its place.
func (c tampering) check(t interface{ Fatalf(string, ...any) }, tb testing.TB, w *writer, trust verify.Trust) {
	changed, really := c.do(w)
	if !really {
		return
	}
	r := verifyStream(tb, changed, trust)
	if r.Verified() || !slices.ContainsFunc(r.Problems, func(f verify.Finding) bool {
		return f.From >= int64(c.from)-1 && f.To <= int64(c.from+c.n)
	}) {
		t.Fatalf("%+v: %+v", c, r.Problems)
	}
}

// longLog has 100 records for each checkpoint.
func longLog(t *testing.T, checkpoints int) *writer {
	t.Helper()
	w := newWriter(t, "a", nil)
	for i := range checkpoints {
		w.calls(98)
		if i%20 == 19 {
			w.segment()
		} else {
			w.calls(1)
		}
		w.checkpoint()
	}
	return w
}

func TestTampering(t *testing.T) {
	t.Parallel()
	w := longLog(t, 10)
	trust := verify.Trust{Checkpoints: []string{w.newest()}}
	rapid.Check(t, func(rt *rapid.T) { anyTampering(len(w.lines)).Draw(rt, "tampering").check(rt, t, w, trust) })
}

func TestTamperingWithALargeLog(t *testing.T) {
	t.Parallel()
	w := longLog(t, 200)
	size, trust := w.tree.Size(), verify.Trust{Checkpoints: []string{w.newest()}}
	if r := verifyStream(t, w.stream(), trust); !r.Verified() || r.Logs[0].Outside != size-1 || size < 20_000 {
		t.Fatalf("%d records: %+v", size, r)
	}
	for range 20 {
		anyTampering(int(size)).Example().check(t, t, w, trust)
	}
}

// sameLines reports whether all lines of old are lines of changed.
func sameLines(old, changed []byte) bool {
	lines := bytes.Split(changed, []byte{'\n'})
	for line := range bytes.SplitSeq(bytes.TrimSuffix(old, []byte{'\n'}), []byte{'\n'}) {
		if !slices.ContainsFunc(lines, func(l []byte) bool { return bytes.Equal(l, line) }) {
			return false
		}
	}
	return true
}
