package verify_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/keysidecar/keysidecar/audit/verify"
)

// FuzzVerify changes a log and verifies what comes out: it must not verify, unless
// every record that the checkpoint covers is there.
func FuzzVerify(f *testing.F) {
	w := smallLog(f)
	data, trust := w.stream(), verify.Trust{Checkpoints: []string{w.newest()}, Keys: []string{w.key}}
	f.Add(0, 0, []byte{})
	f.Add(10, 500, w.lines[7])
	f.Add(len(data)/2, 1, []byte("x"))
	f.Add(0, len(data), bytes.Join(slices.Concat(w.lines[9:], w.lines[:10]), nil))
	f.Add(0, len(data), append(w.stream(), smallLog(f).stream()...))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, at, removed int, inserted []byte) {
		at = min(max(at, 0), len(data))
		removed = min(max(removed, 0), len(data)-at)
		changed := slices.Concat(data[:at], inserted, data[at+removed:])
		r := verifyStream(t, changed, trust)
		writeFile(t, dir+"/"+w.name(0), changed)
		inDir := verifyDir(t, dir, trust)
		if !r.Verified() && !inDir.Verified() {
			return
		}
		lines := bytes.Split(changed, []byte{'\n'})
		for _, l := range r.Logs {
			if l.Log != w.log {
				continue
			}
			for i, line := range w.lines[:covered] {
				if int64(i) >= l.First && !slices.ContainsFunc(lines, func(l []byte) bool { return ours(l, line) }) {
					t.Fatalf("verified without record %d: %q", i, changed)
				}
			}
			return
		}
		t.Fatalf("verified without the log: %q", changed)
	})
}

// ours reports whether line is the record of want, or that without its event.
func ours(line, want []byte) bool {
	head, _, full := bytes.Cut(bytes.TrimSuffix(want, []byte{'\n'}), []byte(`,"event":`))
	if !full {
		head = bytes.TrimSuffix(head, []byte{'}'})
	}
	return bytes.Contains(line, head)
}

func FuzzCheckProof(f *testing.F) {
	w := smallLog(f)
	for _, seq := range []int64{0, 4, 9, 24} {
		text, err := verify.Prove([]string{"-"}, bytes.NewReader(w.stream()), w.log, seq, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	trust := verify.Trust{Keys: []string{w.key}, Checkpoints: []string{w.newest()}}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := verify.CheckProof(text, trust)
		if err != nil {
			if r != nil {
				t.Fatal("an error and a record")
			}
			return
		}
		if line := w.lines[r.Seq]; !ours(r.AppendPruned(nil), line) {
			t.Fatalf("proven: %q", r.AppendPruned(nil))
		}
	})
}
