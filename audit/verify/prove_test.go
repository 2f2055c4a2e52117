package verify_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

func TestProveEveryRecord(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	dir := t.TempDir()
	w.write(dir)
	trust := verify.Trust{Keys: []string{w.key}}
	for seq := range int64(covered) {
		text, err := verify.Prove([]string{dir}, nil, w.log, seq, nil)
		if err != nil {
			t.Fatalf("record %d: %v", seq, err)
		}
		r, err := verify.CheckProof(text, trust)
		if err != nil {
			t.Fatalf("record %d: %v\n%s", seq, err, text)
		}
		want, err := record.Parse(bytes.TrimSuffix(w.lines[seq], []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("record %d: %s", seq, diff)
		}
	}
	if _, err := verify.Prove([]string{dir}, nil, w.log, covered, nil); !errors.Is(err, verify.ErrProof) {
		t.Errorf("the last record: %v", err)
	}
}

// Records before a segment may be removed: proofs of those after it do not need
// them.
func TestProveWithoutTheRemoved(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	for _, from := range w.segments[1:] {
		stream := bytes.Join(w.lines[from:], nil)
		for seq := int64(from); seq < covered; seq++ {
			text, err := verify.Prove([]string{"-"}, bytes.NewReader(stream), "", seq, nil)
			if err != nil {
				t.Fatalf("record %d: %v", seq, err)
			}
			if _, err := verify.CheckProof(text, verify.Trust{Keys: []string{w.key}}); err != nil {
				t.Fatalf("record %d: %v", seq, err)
			}
		}
		if _, err := verify.Prove([]string{"-"}, bytes.NewReader(stream), "", int64(from)-1, nil); !errors.Is(err, verify.ErrProof) {
			t.Errorf("a removed record: %v", err)
		}
	}
	// With others removed there is no proof.
	stream := bytes.Join(slices.Delete(slices.Clone(w.lines), 6, 7), nil)
	if _, err := verify.Prove([]string{"-"}, bytes.NewReader(stream), "", 4, nil); !errors.Is(err, verify.ErrProof) ||
		!strings.Contains(err.Error(), "record 6") {
		t.Errorf("%v", err)
	}
}

func TestProveFromStreams(t *testing.T) {
	t.Parallel()
	w, other := smallLog(t), newWriter(t, "b", nil)
	slices.Reverse(w.lines)
	stream := append(bytes.Join(append(w.lines, w.lines[3:9]...), nil), other.stream()...)
	prove := func(log string, outside ...string) (string, error) {
		return verify.Prove([]string{"-"}, bytes.NewReader(stream), log, 2, outside)
	}
	if _, err := prove(w.log); err != nil {
		t.Error(err)
	}
	if _, err := prove(""); err == nil || !strings.Contains(err.Error(), "several logs") {
		t.Errorf("%v", err)
	}
	if _, err := prove("keysidecar/t/x"); !errors.Is(err, verify.ErrProof) {
		t.Errorf("%v", err)
	}
	// A checkpoint that was kept elsewhere is better than the log's own.
	text, err := prove(w.log, other.sign(), w.notes[5], w.notes[17])
	if err != nil || !strings.HasSuffix(text, w.notes[17]) {
		t.Errorf("%v:\n%s", err, text)
	}
	if _, err := verify.CheckProof(text, verify.Trust{Checkpoints: []string{w.notes[17]}}); err != nil {
		t.Errorf("with the checkpoint: %v", err)
	}
	if _, err := verify.CheckProof(text, verify.Trust{Keys: []string{other.key}}); !errors.Is(err, verify.ErrProof) {
		t.Errorf("with another's key: %v", err)
	}
	// Records that are not those of the checkpoint.
	fake := resigned(w)
	stream = fake.stream()
	if _, err := prove(w.log, w.newest()); err != nil {
		t.Errorf("the log's own should do: %v", err)
	}
	changed := w.rewritten(func(all []record.Record) []record.Record {
		slices.Reverse(all)
		all[1].Event = []byte(`{"kind":"call"}`)
		return all
	})
	stream = changed.stream()
	if _, err := prove(w.log); !errors.Is(err, verify.ErrProof) || !strings.Contains(err.Error(), "verify") {
		t.Errorf("changed records: %v", err)
	}
	stream = slices.Concat(smallLogWithKey(w), changed.stream())
	if _, err := prove(w.log); !errors.Is(err, verify.ErrProof) || !strings.Contains(err.Error(), "two different") {
		t.Errorf("a fork: %v", err)
	}
}

// smallLogWithKey returns the lines of w in their order.
func smallLogWithKey(w *writer) []byte {
	lines := slices.Clone(w.lines[:26])
	slices.Reverse(lines)
	return bytes.Join(lines, nil)
}

func TestCheckProofRefuses(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	trust := verify.Trust{Keys: []string{w.key}}
	text, err := verify.Prove([]string{"-"}, bytes.NewReader(w.stream()), w.log, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(text) {
		for _, bad := range []string{text[:i], text[:i] + text[i+1:], text[:i] + string(text[i]^1) + text[i+1:]} {
			r, err := verify.CheckProof(bad, trust)
			if err == nil && r.Seq == 2 && i > strings.Index(text, "— ") {
				continue // bits of the signature's base64 that mean nothing
			}
			if !errors.Is(err, verify.ErrProof) {
				t.Fatalf("byte %d:\n%s", i, bad)
			}
		}
	}
	line := func(seq int) string {
		return base64.StdEncoding.EncodeToString(bytes.TrimSuffix(w.lines[seq], []byte("\n")))
	}
	for name, bad := range map[string]string{
		"another record": strings.Replace(text, line(2), line(3), 1),
		"another place":  strings.Replace(text, "index 2", "index 3", 1),
		"a zero":         strings.Replace(text, "index 2", "index 02", 1),
		"too long":       text + strings.Repeat("x", 40_000),
	} {
		if _, err := verify.CheckProof(bad, trust); !errors.Is(err, verify.ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := verify.CheckProof(text, verify.Trust{}); !errors.Is(err, verify.ErrProof) {
		t.Errorf("nothing is known: %v", err)
	}
}

// A log that signs records of others, or in other places, proves nothing of them.
func TestProofOfAnotherRecord(t *testing.T) {
	t.Parallel()
	for _, h := range []record.Header{
		{Log: "keysidecar/t/b", Seq: 0, Time: begin(), Class: record.Data},
		{Log: "keysidecar/t/a", Seq: 1, Time: begin(), Class: record.Data},
		{Log: "keysidecar/t/a", Seq: 0, Time: begin(), Class: record.Data},
	} {
		w := newWriter(t, "a", nil)
		line, leaf := record.Append(nil, &h, []byte(`{"kind":"call"}`))
		w.tree = record.Frontier{}
		w.tree.Add(leaf)
		text := "c2sp.org/tlog-proof@v1\nextra " + base64.StdEncoding.EncodeToString(bytes.TrimSuffix(line, []byte("\n"))) +
			"\nindex 0\n\n" + w.sign()
		_, err := verify.CheckProof(text, verify.Trust{Keys: []string{w.key}})
		if right := h.Log == w.log && h.Seq == 0; right != (err == nil) {
			t.Errorf("record %d of %s: %v", h.Seq, h.Log, err)
		}
	}
}

func TestProveReadsFilesOfOneLog(t *testing.T) {
	t.Parallel()
	logs := three(t)
	dir := t.TempDir()
	for _, w := range logs {
		w.write(dir)
	}
	if _, err := verify.Prove([]string{dir}, nil, logs[1].log, 1, nil); err != nil {
		t.Error(err)
	}
	if _, err := verify.Prove([]string{filepath.Join(dir, "none")}, nil, "", 1, nil); err == nil {
		t.Error("no such file")
	}
}
