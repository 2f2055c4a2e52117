package verify_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

// three logs, each of which names the one before; the second was killed.
func three(t *testing.T) [3]*writer {
	t.Helper()
	a := smallLog(t)
	b := newWriter(t, "b", a)
	b.calls(3)
	b.checkpoint()
	b.calls(3)
	c := newWriter(t, "c", b)
	c.add(record.Keys, &record.Event{Kind: record.Unaccounted, From: b.now, To: b.now.Add(time.Minute)})
	c.add(record.Keys, &record.Event{Kind: record.Lost, Count: 7})
	c.stop()
	return [3]*writer{a, b, c}
}

func TestSeveralLogs(t *testing.T) {
	t.Parallel()
	logs := three(t)
	dir := t.TempDir()
	var stream []byte
	for _, w := range logs {
		w.write(dir)
		stream = append(w.stream(), stream...)
	}
	trust := verify.Trust{Keys: []string{logs[0].key, logs[1].key, logs[2].key}}
	for _, r := range []*verify.Report{verifyDir(t, dir, trust), verifyStream(t, stream, trust)} {
		if !r.Verified() || len(r.Logs) != 3 {
			t.Fatalf("%+v", r)
		}
		b, c := r.Logs[1], r.Logs[2]
		if b.Previous != logs[0].log || !b.PreviousLinked || b.Next != logs[2].log || b.Stopped || b.Signed != 4 {
			t.Errorf("%+v", b)
		}
		if len(c.Unaccounted) != 1 || c.Unaccounted[0].To.Sub(c.Unaccounted[0].From) != time.Minute || c.Lost != 7 {
			t.Errorf("%+v", c)
		}
		// What b did not sign itself, c has.
		if slices.ContainsFunc(r.Notes, func(f verify.Finding) bool { return f.Kind == verify.Unsigned && f.Log == b.Log }) {
			t.Errorf("%+v", r.Notes)
		}
	}
}

func TestGapsBetweenLogs(t *testing.T) {
	t.Parallel()
	logs := three(t)
	a, b, c := logs[0], logs[1], logs[2]
	all := func(parts ...[][]byte) []byte { return bytes.Join(slices.Concat(parts...), nil) }

	// Retention removes the oldest first: so nobody else has removed b.
	dir := t.TempDir()
	a.write(dir)
	c.write(dir)
	r := verifyDir(t, dir, verify.Trust{})
	if f := find(t, r.Problems, verify.MissingLog); f.Log != c.log || len(r.Problems) != 1 {
		t.Errorf("%+v", r.Problems)
	}
	// That it has removed both, nobody can tell who does not say when it does.
	r = verifyStream(t, c.stream(), verify.Trust{})
	if f := find(t, r.Notes, verify.LogRemoved); f.Log != c.log || !r.Verified() {
		t.Errorf("%+v", r.Problems)
	}
	r = verifyStream(t, all(a.lines, b.lines[:6], c.lines), verify.Trust{})
	if f := find(t, r.Problems, verify.Cut); f.Log != b.log || f.From != 6 || f.To != 7 {
		t.Errorf("%+v", f)
	}
	// Records of b that it did not sign were changed, or added, after c began.
	changed := b.rewritten(func(all []record.Record) []record.Record {
		all[6].Event = []byte(`{"kind":"call"}`)
		return all
	})
	r = verifyStream(t, all(a.lines, changed.lines, c.lines), verify.Trust{})
	if f := find(t, r.Problems, verify.PreviousDiffers); f.Log != b.log || f.To != 7 {
		t.Errorf("%+v", f)
	}
	b.calls(2)
	r = verifyStream(t, all(a.lines, b.lines, c.lines), verify.Trust{})
	if f := find(t, r.Problems, verify.PreviousDiffers); f.Log != b.log || f.From != 8 || f.To != 9 {
		t.Errorf("%+v", f)
	}
	// The time of the first is over.
	r, err := verify.Verify([]string{"-"}, bytes.NewReader(b.stream()), verify.Config{
		Kept: verify.Kept{Keys: time.Hour}, Now: begin().AddDate(1, 0, 0),
	})
	if err != nil || !r.Verified() || find(t, r.Notes, verify.LogRemoved).Log != b.log {
		t.Errorf("%+v, %v", r, err)
	}
}

// Lines of one log among those of another are of their own log.
func TestLogsMixedUp(t *testing.T) {
	t.Parallel()
	a, b := smallLog(t), newWriter(t, "b", nil)
	b.calls(5)
	b.stop()
	var mixed [][]byte
	for i, line := range a.lines {
		mixed = append(mixed, line)
		if i < len(b.lines) {
			mixed = append(mixed, b.lines[i])
		}
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, a.name(0)), bytes.Join(mixed, nil))
	for _, r := range []*verify.Report{verifyDir(t, dir, verify.Trust{}), verifyStream(t, bytes.Join(mixed, nil), verify.Trust{})} {
		if !r.Verified() || len(r.Logs) != 2 || r.Logs[0].Signed != 25 || r.Logs[1].Signed != 7 {
			t.Errorf("%+v", r)
		}
	}
	// One line of another log alone is no log.
	r := verifyStream(t, slices.Concat(a.stream(), b.lines[3]), verify.Trust{})
	if f := find(t, r.Problems, verify.BadBegin); f.Log != b.log || f.To != 3 {
		t.Errorf("%+v", f)
	}
}

// A copy of a log in another directory is another log of the same name.
func TestCopies(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	one, two := t.TempDir(), t.TempDir()
	w.write(one)
	w.write(two)
	r, err := verify.Verify([]string{one, two}, nil, verify.Config{})
	if err != nil || !r.Verified() || len(r.Logs) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	fake := resigned(w)
	r, err = verify.Verify([]string{one, "-"}, bytes.NewReader(fake.stream()), verify.Config{})
	if err != nil || find(t, r.Problems, verify.BadKey).Log != w.log {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestManyProblemsAreCounted(t *testing.T) {
	t.Parallel()
	w := newWriter(t, "a", nil)
	w.calls(5)
	junk := bytes.Repeat([]byte("{\"log\":\"keysidecar/t/a\"\n"), 1500)
	r := verifyStream(t, append(w.stream(), junk...), verify.Trust{})
	if r.Verified() || len(r.Problems) != 1000 || r.MoreProblems != 500 {
		t.Errorf("%d and %d", len(r.Problems), r.MoreProblems)
	}
}
