package verify_test

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

func TestUntouchedLogVerifies(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	trust := verify.Trust{Checkpoints: []string{w.newest()}, Keys: []string{w.key}}
	dir := t.TempDir()
	w.write(dir)
	shuffled := slices.Concat(w.lines[7:], w.lines[:9], w.lines[3:20])
	for name, r := range map[string]*verify.Report{
		"dir":    verifyDir(t, dir, trust),
		"stream": verifyStream(t, w.stream(), trust),
		"order":  verifyStream(t, bytes.Join(shuffled, nil), trust),
	} {
		if !r.Verified() || len(r.Logs) != 1 {
			t.Fatalf("%s: %+v", name, r)
		}
		l := r.Logs[0]
		if l.Log != w.log || l.First != 0 || l.Last != 25 || l.Outside != 25 || l.Signed != 25 || !l.Stopped || !l.Trusted || l.Version != "1.0" {
			t.Errorf("%s: %+v", name, l)
		}
		if len(l.Pruned) != 1 || l.Pruned[0].Count != 1 || l.Pruned[0].Class != "data" {
			t.Errorf("%s: pruned %+v", name, l.Pruned)
		}
		if len(r.Notes) > 0 { // the last checkpoint covers all but itself
			t.Errorf("%s: notes %v", name, r.Notes)
		}
	}
}

// bench verifies one log, over and over, after small changes.
type bench struct {
	t     *testing.T
	w     *writer
	trust verify.Trust
	dir   string
	files map[string][]byte
	wrong string // the file that is not as it was
}

func newBench(t *testing.T) *bench {
	t.Helper()
	w := smallLog(t)
	b := &bench{t: t, w: w, dir: t.TempDir(), files: w.files(), trust: verify.Trust{Checkpoints: []string{w.newest()}}}
	w.write(b.dir)
	return b
}

// inDir verifies with one file of the directory replaced.
func (b *bench) inDir(name string, data []byte) *verify.Report {
	if b.wrong != "" && b.wrong != name {
		writeFile(b.t, filepath.Join(b.dir, b.wrong), b.files[b.wrong])
	}
	b.wrong = name
	writeFile(b.t, filepath.Join(b.dir, name), data)
	return verifyDir(b.t, b.dir, b.trust)
}

// covered is how many records the checkpoint that was kept elsewhere is of.
const covered = 25

// lineOf returns the record that the byte at offset is of.
func (b *bench) lineOf(offset int) int64 {
	for i, line := range b.w.lines {
		if offset < len(line) {
			return int64(i)
		}
		offset -= len(line)
	}
	return int64(len(b.w.lines))
}

// offsets calls each for every byte that the checkpoint covers: where it is in the
// stream, and in which file at which place.
func (b *bench) offsets(each func(offset int, name string, at int)) {
	offset := 0
	for _, name := range slices.Sorted(maps.Keys(b.files)) {
		for at := range b.files[name] {
			if b.lineOf(offset) < covered {
				each(offset, name, at)
			}
			offset++
		}
	}
}

// found checks that a problem is of record seq, and of not more than two.
func found(t *testing.T, r *verify.Report, seq int64, what string) {
	t.Helper()
	if r.Verified() {
		t.Fatalf("%s, record %d: not found", what, seq)
	}
	if !slices.ContainsFunc(r.Problems, func(f verify.Finding) bool {
		return f.From <= seq && seq <= f.To && f.To-f.From <= 1 && f.Log == "keysidecar/t/a"
	}) {
		t.Fatalf("%s, record %d: found elsewhere: %+v", what, seq, r.Problems)
	}
}

// edits are the changes to one byte that are tried at each place.
func edits(data []byte, at int) map[string][]byte {
	changed := bytes.Clone(data)
	changed[at] ^= 1 << (at % 7) // stays ASCII
	return map[string][]byte{"changed": changed, "deleted": slices.Delete(bytes.Clone(data), at, at+1)}
}

func TestEveryByteOfADirectory(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.offsets(func(offset int, name string, at int) {
		for what, data := range edits(b.files[name], at) {
			found(t, b.inDir(name, data), b.lineOf(offset), what)
		}
	})
}

func TestEveryByteOfAStream(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	data := b.w.stream()
	b.offsets(func(offset int, _ string, _ int) {
		for what, data := range edits(data, offset) {
			found(t, verifyStream(t, data, b.trust), b.lineOf(offset), what)
		}
	})
}

func TestTruncationAtEveryByte(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	data := b.w.stream()
	b.offsets(func(offset int, name string, at int) {
		seq := b.lineOf(offset)
		if seq == covered-1 && data[offset] == '\n' {
			return // all that is covered is there
		}
		for what, r := range map[string]*verify.Report{
			"file":   b.inDir(name, b.files[name][:at]),
			"stream": verifyStream(t, data[:offset], b.trust),
		} {
			if what == "file" && offset == 0 {
				// A whole file from the front: what retention does.
				find(t, r.Notes, verify.Removed)
				continue
			}
			if len(r.Logs) == 0 {
				if find(t, r.Problems, verify.MissingLog).Log != b.w.log {
					t.Fatalf("%s cut at %d: %+v", what, offset, r)
				}
				continue
			}
			// The cut record is the first that is not here; without its line feed
			// alone it is here.
			if r.Verified() || !slices.ContainsFunc(r.Problems, func(f verify.Finding) bool {
				return f.To >= seq && f.From <= seq+1 && f.From >= seq-1
			}) {
				t.Fatalf("%s cut at %d, record %d: %+v", what, offset, seq, r.Problems)
			}
		}
	})
}

func TestEveryRangeOfLinesDeleted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for from := range covered {
		for to := from + 1; to <= covered; to++ {
			data := slices.Delete(slices.Clone(b.w.lines), from, to)
			r := verifyStream(t, bytes.Join(data, nil), b.trust)
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, b.w.name(0)), bytes.Join(data, nil))
			for _, r := range []*verify.Report{r, verifyDir(t, dir, b.trust)} {
				switch {
				case from == 0 && slices.Contains(b.w.segments, to):
					// Whole files from the front: what retention does.
					if f := find(t, r.Notes, verify.Removed); !r.Verified() || f.To != int64(to-1) {
						t.Fatalf("removed to %d: %+v", to, r)
					}
				case from == 0:
					if f := find(t, r.Problems, verify.BadBegin); f.To != int64(to) {
						t.Fatalf("deleted to %d: %+v", to, r.Problems)
					}
				default:
					if f := find(t, r.Problems, verify.Missing); f.From != int64(from) || f.To != int64(to-1) {
						t.Fatalf("deleted %d to %d: %+v", from, to, r.Problems)
					}
				}
			}
		}
	}
}

func TestEveryLineSwappedOrInserted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	lines := b.w.lines
	inDir := func(lines [][]byte) *verify.Report {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, b.w.name(0)), bytes.Join(lines, nil))
		return verifyDir(t, dir, b.trust)
	}
	for i := range covered {
		swapped := slices.Clone(lines)
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
		found(t, inDir(swapped), int64(i), "swapped")
		if r := verifyStream(t, bytes.Join(swapped, nil), b.trust); !r.Verified() {
			t.Fatalf("swapped in a stream: %+v", r.Problems)
		}
		for at := range covered {
			again := slices.Insert(slices.Clone(lines), at, lines[i])
			r := inDir(again)
			if f := r.Problems; r.Verified() || !slices.ContainsFunc(f, func(f verify.Finding) bool {
				return f.Line == at+1 || f.Line == at+2
			}) {
				t.Fatalf("line %d again before %d: %+v", i, at, r.Problems)
			}
			if r := verifyStream(t, bytes.Join(again, nil), b.trust); !r.Verified() {
				t.Fatalf("twice in a stream: %+v", r.Problems)
			}
		}
		h := record.Header{Log: b.w.log, Seq: int64(i), Time: b.w.now, Class: record.Data}
		forged, _ := record.Append(nil, &h, []byte(`{"kind":"call"}`))
		inserted := slices.Insert(slices.Clone(lines), i, forged)
		found(t, inDir(inserted), int64(i), "inserted")
		found(t, verifyStream(t, bytes.Join(inserted, nil), b.trust), int64(i), "inserted in a stream")
	}
}
