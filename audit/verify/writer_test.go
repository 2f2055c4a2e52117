package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

// writer writes a log as a sidecar does.
type writer struct {
	keyed       bool // segments have the log's key
	certificate string
	t           testing.TB
	log         string
	signer      note.Signer
	key         string
	tree        record.Frontier
	prev        record.Link
	now         time.Time
	lines       [][]byte // with line feeds
	notes       map[int64]string
	segments    []int // indexes of lines that begin files
}

func begin() time.Time { return time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC) }

// newWriter begins a log; before is the log before, if any.
func newWriter(t testing.TB, id string, before *writer) *writer {
	t.Helper()
	w := &writer{t: t, log: "keysidecar/t/" + id, now: begin(), notes: make(map[int64]string), segments: []int{0}}
	w.newKey()
	start := &record.Event{Kind: record.Start, Version: "1.0", Key: w.key}
	if before != nil {
		root := before.tree.Root()
		start.Log, start.Size, start.Root = before.log, before.tree.Size(), root.String()
		w.now = before.now
	}
	w.add(record.Keys, start)
	return w
}

func (w *writer) newKey() {
	var err error
	if w.signer, w.key, err = record.NewKey(w.log); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) add(class record.Class, e *record.Event) {
	w.now = w.now.Add(time.Second)
	w.append(class, e.Append(nil))
}

func (w *writer) append(class record.Class, event []byte) {
	h := record.Header{Log: w.log, Seq: w.tree.Size(), Time: w.now, Class: class, Prev: w.prev}
	line, leaf := record.Append(nil, &h, event)
	w.lines = append(w.lines, line)
	w.tree.Add(leaf)
	w.prev = record.LinkTo(leaf)
}

// calls adds n records of data.
func (w *writer) calls(n int) {
	for range n {
		w.add(record.Data, &record.Event{Kind: record.Call, Caller: "c", Result: "OK", Bytes: w.tree.Size()})
	}
}

func (w *writer) sign() string {
	signed, err := record.Checkpoint{Log: w.log, Size: w.tree.Size(), Root: w.tree.Root()}.Sign(w.signer)
	if err != nil {
		w.t.Fatal(err)
	}
	w.notes[w.tree.Size()] = signed
	return signed
}

func (w *writer) checkpoint() {
	w.add(record.Keys, &record.Event{Kind: record.CheckpointMade, Note: w.sign()})
}

func (w *writer) segment() {
	w.segments = append(w.segments, len(w.lines))
	e := &record.Event{Kind: record.Segment, Note: w.sign(), Certificate: w.certificate}
	if w.keyed {
		e.Key = w.key
	}
	for _, hash := range w.tree.Nodes() {
		e.Frontier = append(e.Frontier, base64.StdEncoding.EncodeToString(hash[:]))
	}
	w.add(record.Keys, e)
}

func (w *writer) stop() {
	w.add(record.Keys, &record.Event{Kind: record.Stop})
	w.checkpoint()
}

// certify adds a certificate of the log's key.
func (w *writer) certify(by *ecdsa.PrivateKey, key string) {
	c := record.Certificate{Key: key, Time: w.now}
	digest := c.Digest()
	r, s, err := ecdsa.Sign(rand.Reader, by, digest[:])
	if err != nil {
		w.t.Fatal(err)
	}
	signed, err := c.Sign("https://v.example/keys/a/1", &by.PublicKey, append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	if err != nil {
		w.t.Fatal(err)
	}
	w.certificate = signed
	w.add(record.Keys, &record.Event{Kind: record.Certified, Note: signed})
}

func newSigner(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// smallLog has 26 records, in three files, the fifth without its event, and five
// checkpoints, the last of which is of 25 records.
func smallLog(t testing.TB) *writer {
	t.Helper()
	w := newWriter(t, "a", nil)
	w.calls(4)
	w.prune(4)
	w.checkpoint()
	w.calls(3)
	w.segment()
	w.calls(4)
	w.checkpoint()
	w.calls(2)
	w.segment()
	w.add(record.Denials, &record.Event{Kind: record.Denied, Caller: "c", Result: "POLICY"})
	w.now = w.now.Add(-time.Hour)
	w.add(record.Keys, &record.Event{Kind: record.Clock})
	w.calls(4)
	w.stop()
	return w
}

// prune removes the event of line i.
func (w *writer) prune(i int) {
	r, err := record.Parse(bytes.TrimSuffix(w.lines[i], []byte("\n")))
	if err != nil {
		w.t.Fatal(err)
	}
	w.lines[i] = r.AppendPruned(nil)
}

// newest returns the log's newest checkpoint.
func (w *writer) newest() string {
	var newest int64
	for size := range w.notes {
		newest = max(newest, size)
	}
	return w.notes[newest]
}

// files returns the log's files by name.
func (w *writer) files() map[string][]byte {
	files := make(map[string][]byte)
	for i, from := range w.segments {
		to := len(w.lines)
		if i+1 < len(w.segments) {
			to = w.segments[i+1]
		}
		files[w.name(i)] = bytes.Join(w.lines[from:to], nil)
	}
	return files
}

func (w *writer) name(i int) string {
	return fmt.Sprintf("%s.%012d.jsonl", filepath.Base(w.log), w.segments[i])
}

// write writes the log's files into a directory.
func (w *writer) write(dir string) {
	for name, data := range w.files() {
		writeFile(w.t, filepath.Join(dir, name), data)
	}
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *writer) stream() []byte { return bytes.Join(w.lines, nil) }

// rewritten returns the log with edit done to its records, and all that can be
// made to fit without the key: sums, numbers and links.
func (w *writer) rewritten(edit func([]record.Record) []record.Record) *writer {
	out := *w
	out.lines, out.tree, out.prev = nil, record.Frontier{}, record.Link{}
	var all []record.Record
	for _, line := range w.lines {
		r, err := record.Parse(bytes.Clone(bytes.TrimSuffix(line, []byte("\n"))))
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, *r)
	}
	for _, r := range edit(all) {
		r.Seq, r.Prev = out.tree.Size(), out.prev
		var line []byte
		var leaf tlog.Hash
		if r.Pruned() {
			line = r.AppendPruned(nil)
			leaf = tlog.RecordHash(bytes.TrimSuffix(line, []byte("\n")))
		} else {
			line, leaf = record.Append(nil, &r.Header, r.Event)
		}
		out.lines = append(out.lines, line)
		out.tree.Add(leaf)
		out.prev = record.LinkTo(leaf)
	}
	return &out
}

func verifyDir(t testing.TB, dir string, trust verify.Trust) *verify.Report {
	t.Helper()
	r, err := verify.Verify([]string{dir}, nil, verify.Config{Trust: trust, Now: begin().AddDate(1, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func verifyStream(t testing.TB, data []byte, trust verify.Trust) *verify.Report {
	t.Helper()
	r, err := verify.Verify([]string{"-"}, bytes.NewReader(data), verify.Config{Trust: trust, Now: begin().AddDate(1, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// kinds returns the kinds of findings, each once.
func kinds(all []verify.Finding) []verify.Kind {
	var found []verify.Kind
	for _, f := range all {
		if !slices.Contains(found, f.Kind) {
			found = append(found, f.Kind)
		}
	}
	return found
}

// find returns the first finding of a kind.
func find(t testing.TB, all []verify.Finding, kind verify.Kind) verify.Finding {
	t.Helper()
	i := slices.IndexFunc(all, func(f verify.Finding) bool { return f.Kind == kind })
	if i < 0 {
		t.Fatalf("no %s among %+v", kind, all)
	}
	return all[i]
}
