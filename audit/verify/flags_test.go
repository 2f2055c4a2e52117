package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

// kept is a log as it was, with what others know of it.
type kept struct {
	w     *writer
	lines []record.Record
	note  string // the checkpoint of 25 records
}

const keptLog = "20261122T093000Z-1a2b3c4d5e6f"

func newKept(t *testing.T) kept {
	w := newWriter(t, keptLog, nil)
	w.keyed = true
	w.calls(8)
	w.segment()
	w.calls(15)
	w.checkpoint()
	w.calls(2)
	w.stop()
	k := kept{w: w, note: w.notes[25]}
	w.rewritten(func(all []record.Record) []record.Record { k.lines = all; return all })
	return k
}

// lone is a segment alone: a genuine checkpoint of size records, dated as the
// attacker likes, signed anew if there is another key.
func (k kept) lone(size int64, at time.Time, forged *writer) [][]byte {
	w := *k.w
	w.lines, w.tree, w.prev = nil, record.Frontier{}, record.Link{}
	for i := range k.lines[:size] {
		w.tree.Add(k.lines[i].Leaf)
	}
	key, note := w.key, w.notes[size]
	if forged != nil {
		key = forged.key
		var err error
		if note, err = (record.Checkpoint{Log: w.log, Size: size, Root: w.tree.Root()}).Sign(forged.signer); err != nil {
			w.t.Fatal(err)
		}
	}
	e := &record.Event{Kind: record.Segment, Note: note, Key: key}
	for _, hash := range w.tree.Nodes() {
		e.Frontier = append(e.Frontier, base64.StdEncoding.EncodeToString(hash[:]))
	}
	w.now = at
	w.append(record.Keys, e.Append(nil))
	if forged != nil {
		w.signer, w.notes = forged.signer, map[int64]string{}
		w.calls(3)
		w.stop()
	}
	return w.lines
}

// madeUp is the log's start, and n records that it never had, each step later.
func (k kept) madeUp(n int, at time.Time, step time.Duration) [][]byte {
	return k.w.rewritten(func(all []record.Record) []record.Record {
		all = all[:1]
		all[0].Time = at
		for i := range n {
			r := record.Record{Header: all[0].Header, Event: fmt.Appendf(nil, `{"kind":"call","bytes":%d}`, i+1)}
			r.Class, r.Time = record.Data, at.Add(time.Duration(i+1)*step)
			all = append(all, r)
		}
		return all
	}).lines
}

// tail is the log up to a checkpoint, and n records that it never had.
func (k kept) tail(n int, last time.Time) [][]byte {
	return k.w.rewritten(func(all []record.Record) []record.Record {
		all = all[:26]
		for range n {
			r := record.Record{Header: all[0].Header, Event: []byte(`{"kind":"call"}`)}
			r.Class, r.Time = record.Data, last
			all = append(all, r)
		}
		return all
	}).lines
}

// TestAttackersWithoutTheKey holds the files, copies what is genuine, dates the rest
// as he likes, and is found by what the flags make known.
func TestAttackersWithoutTheKey(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	now := begin().AddDate(2, 0, 0)
	old := now.AddDate(0, 0, -401)
	days := 400 * 24 * time.Hour
	another := newWriter(t, keptLog, nil)
	pruned := slices.Clone(k.w.lines)
	pruned[0] = k.lines[0].AppendPruned(nil)

	checkpoints, key := verify.Trust{Checkpoints: []string{k.note}}, verify.Trust{Keys: []string{k.w.key}}
	both := verify.Trust{Checkpoints: checkpoints.Checkpoints, Keys: key.Keys}
	retention := verify.Kept{Keys: days, Denials: days, Data: days}
	for name, test := range map[string]struct {
		lines [][]byte
		cfg   verify.Config
		want  verify.Kind // empty: nothing can be found
	}{
		"untouched":                   {k.w.lines, verify.Config{Trust: both, Kept: retention, MaxUnproved: 3 * 365 * 24 * time.Hour}, ""},
		"untouched, collector behind": {k.w.lines, verify.Config{Trust: both, MaxUnproved: time.Hour}, verify.Unproved},

		"one segment, backdated":           {k.lone(25, old, nil), verify.Config{Trust: both, Kept: retention}, verify.PrunedEarly},
		"one segment, no flag":             {k.lone(25, old, nil), verify.Config{}, ""},
		"one segment, now":                 {k.lone(25, now, nil), verify.Config{Trust: both, Kept: retention}, verify.PrunedEarly},
		"one segment, checkpoints only":    {k.lone(25, old, nil), verify.Config{Trust: checkpoints, Kept: retention}, verify.PrunedEarly},
		"own segment, later than all kept": {k.lone(26, old, another), verify.Config{Trust: checkpoints}, verify.OutsideForged},
		"own segment, retention":           {k.lone(26, old, another), verify.Config{Trust: checkpoints, Kept: retention}, verify.OutsideForged},
		"own segment, key":                 {k.lone(26, old, another), verify.Config{Trust: key}, verify.BadKey},

		"made up":                      {k.madeUp(200, now.AddDate(0, 0, -1), time.Minute), verify.Config{Trust: key}, verify.NeverSigned},
		"made up, as if now":           {k.madeUp(200, now.Add(-time.Minute), 0), verify.Config{Trust: key}, verify.NeverSigned},
		"made up, as if in the future": {k.madeUp(200, now.AddDate(1, 0, 0), 0), verify.Config{Trust: key}, verify.NeverSigned},
		"made up, no flag":             {k.madeUp(200, k.w.now, 0), verify.Config{}, ""},
		"made up, checkpoints":         {k.madeUp(20, k.w.now, 0), verify.Config{Trust: checkpoints}, verify.Cut},

		"a tail of a day":   {k.tail(5, k.lines[24].Time.AddDate(0, 0, 1)), verify.Config{Trust: key}, verify.UnsignedTail},
		"a tail of before":  {k.tail(5, k.lines[24].Time.AddDate(0, 0, -1)), verify.Config{Trust: key}, verify.UnsignedTail},
		"a tail of minutes": {k.tail(5, k.lines[24].Time.Add(9*time.Minute)), verify.Config{Trust: key}, ""},
		"a tail, strict":    {k.tail(5, now), verify.Config{Trust: both, MaxUnproved: time.Hour}, verify.Unproved},

		"a tail without events": {
			prunedFrom(t, k.tail(5, k.lines[24].Time), 26), verify.Config{Trust: both, Kept: retention}, verify.PrunedEarly,
		},
		"a segment without a key": {
			smallLog(t).lines[9:], verify.Config{Trust: verify.Trust{Checkpoints: []string{smallLog(t).notes[5]}}}, verify.OutsideUnchecked,
		},

		"start without its event":          {pruned, verify.Config{Trust: both}, verify.BadBegin},
		"start without its event, no flag": {pruned, verify.Config{}, verify.BadBegin},
		"nothing is left":                  {nil, verify.Config{Trust: checkpoints}, verify.MissingLog},
	} {
		test.cfg.Now = now
		r, err := verify.Verify([]string{"-"}, bytes.NewReader(bytes.Join(test.lines, nil)), test.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if test.want == "" && len(r.Problems) > 0 || test.want != "" && !slices.Contains(kinds(r.Problems), test.want) {
			t.Errorf("%s: %+v, want %q", name, r.Problems, test.want)
		}
	}
}

// prunedFrom returns lines, without the events of those from one on.
func prunedFrom(t *testing.T, lines [][]byte, from int) [][]byte {
	t.Helper()
	w := writer{t: t, lines: lines}
	for i := from; i < len(lines); i++ {
		w.prune(i)
	}
	return w.lines
}

// A log that has just begun has no checkpoint yet, neither here nor elsewhere.
func TestYoungLog(t *testing.T) {
	t.Parallel()
	k := newKept(t)
	for after, want := range map[time.Duration]bool{time.Minute: true, 2 * time.Hour: false} {
		for name, trust := range map[string]verify.Trust{
			"key":         {Keys: []string{k.w.key}},
			"checkpoints": {Checkpoints: []string{smallLog(t).newest()}},
		} {
			r, err := verify.Verify([]string{"-"}, bytes.NewReader(bytes.Join(k.w.lines[:3], nil)),
				verify.Config{Trust: trust, Now: begin().Add(after), MaxUnproved: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			problems := slices.DeleteFunc(r.Problems, func(f verify.Finding) bool { return f.Kind == verify.MissingLog })
			if (len(problems) == 0) != want {
				t.Errorf("%s after %v: %+v", name, after, problems)
			}
		}
	}
}

// What the next log has seen stands as that does.
func TestSeenByTheNext(t *testing.T) {
	t.Parallel()
	logs := three(t)
	stream := slices.Concat(logs[1].stream(), logs[2].stream())
	unsigned := func(trust verify.Trust) bool {
		r := verifyStream(t, stream, trust)
		return slices.ContainsFunc(r.Notes, func(f verify.Finding) bool { return f.Kind == verify.Unsigned && f.Log == logs[1].log })
	}
	if !unsigned(verify.Trust{}) || !unsigned(verify.Trust{Keys: []string{logs[1].key}}) {
		t.Error("the next log is nobody's, and its word is taken")
	}
	if unsigned(verify.Trust{Keys: []string{logs[2].key}}) || unsigned(verify.Trust{Checkpoints: []string{logs[2].newest()}}) {
		t.Error("the next log is known, and its word is not taken")
	}
	// That the one before was killed says record 1, which stays.
	logs[2].prune(1)
	r := verifyStream(t, slices.Concat(logs[1].stream(), logs[2].stream()), verify.Trust{})
	if f := find(t, r.Problems, verify.PrunedEarly); f.Log != logs[2].log || f.From != 1 || len(r.Problems) != 1 {
		t.Errorf("%+v", r.Problems)
	}
}

// Many records of one number take no more time than as many others.
func TestManyVariants(t *testing.T) {
	t.Parallel()
	w := smallLog(t)
	stream := w.stream()
	const variants = 40_000
	for i := range variants {
		h := record.Header{Log: w.log, Seq: int64(5 + i%2), Time: begin(), Class: record.Data, Sum: sha256.Sum256(fmt.Append(nil, i))}
		stream = h.AppendPruned(stream)
	}
	r := verifyStream(t, stream, verify.Trust{Checkpoints: []string{w.newest()}})
	if len(r.Problems) != 2 || r.Problems[0].Kind != verify.Fork || r.Logs[0].Outside != covered {
		t.Errorf("%d problems, the first %+v", len(r.Problems), r.Problems[0])
	}
}
