package segments_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
)

var _ audit.Sink = (*segments.Dir)(nil)

var epoch = time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC)

// tb is what testing.TB and *rapid.T have that is needed here.
type tb interface {
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// author writes the lines of a log.
type author struct {
	t        tb
	origin   string
	signer   note.Signer
	key      string
	frontier record.Frontier
	prev     record.Link
	at       time.Time
	step     time.Duration // between records
	leaves   []tlog.Hash
}

func newAuthor(t tb, id string, at time.Time) *author {
	t.Helper()
	a := &author{t: t, origin: "keysidecar/test/" + id, at: at, step: time.Second}
	// A fixed key: a failure can be repeated, and all processes of a fuzzer agree.
	seed := sha256.Sum256([]byte(id))
	public := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	var err error
	if a.key, err = note.NewEd25519VerifierKey(a.origin, public); err != nil {
		t.Fatal(err)
	}
	hash, _, _ := strings.Cut(strings.TrimPrefix(a.key, a.origin+"+"), "+")
	private := base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...)) // 1 is Ed25519
	if a.signer, err = note.NewSigner("PRIVATE+KEY+" + a.origin + "+" + hash + "+" + private); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *author) id() string { return a.origin[strings.LastIndexByte(a.origin, '/')+1:] }

// file returns the name of the file that begins with that record.
func (a *author) file(first int64) string { return fmt.Sprintf("%s.%012d.jsonl", a.id(), first) }

// size returns how many records there are.
func (a *author) size() int64 { return a.frontier.Size() }

func (a *author) add(class record.Class, e *record.Event) []byte {
	h := record.Header{Log: a.origin, Seq: a.size(), Time: a.at, Class: class, Prev: a.prev}
	line, leaf := record.Append(nil, &h, e.Append(nil))
	a.frontier.Add(leaf)
	a.prev, a.leaves, a.at = record.LinkTo(leaf), append(a.leaves, leaf), a.at.Add(a.step)
	return line
}

func (a *author) start(before string) []byte {
	return a.add(record.Keys, &record.Event{Kind: record.Start, Key: a.key, Log: before})
}

func (a *author) call(n int) []byte {
	var all []byte
	for range n {
		all = append(all, a.add(record.Data, &record.Event{Kind: record.Call, Verb: "seal", Bytes: a.size()})...)
	}
	return all
}

func (a *author) stop() []byte { return a.add(record.Keys, &record.Event{Kind: record.Stop}) }

// checkpoint is a record of kind Segment or CheckpointMade.
func (a *author) checkpoint(kind record.Kind) []byte {
	a.t.Helper()
	signed, err := record.Checkpoint{Log: a.origin, Size: a.size(), Root: a.frontier.Root()}.Sign(a.signer)
	if err != nil {
		a.t.Fatal(err)
	}
	e := &record.Event{Kind: kind, Note: signed}
	if kind == record.Segment {
		for _, n := range a.frontier.Nodes() {
			e.Frontier = append(e.Frontier, base64.StdEncoding.EncodeToString(n[:]))
		}
	}
	return a.add(record.Keys, e)
}

// previous returns what is known of the log when it has its first n records.
func (a *author) previous(n int64) segments.Previous {
	var f record.Frontier
	for _, leaf := range a.leaves[:n] {
		f.Add(leaf)
	}
	p := segments.Previous{Log: a.origin, Size: n, Root: f.Root()}
	return p
}

// newDir returns a directory that may be used.
func newDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func config(dir string, a *author) segments.Config {
	return segments.Config{Path: dir, Log: a.origin, Logger: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, cfg segments.Config) *segments.Dir {
	t.Helper()
	d, err := segments.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func must(t tb, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// write writes lines, the last that a made.
func write(t tb, d *segments.Dir, a *author, lines []byte, begin bool) {
	t.Helper()
	must(t, d.Write(a.size()-int64(bytes.Count(lines, []byte("\n"))), lines, begin))
}

// openFast is open, but leaves syncing to the kernel: nothing crashes.
func openFast(t tb, cfg segments.Config) *segments.Dir {
	t.Helper()
	d, err := segments.OpenWith(cfg, func(*os.File) error { return nil })
	must(t, err)
	return d
}

// reopen opens the directory for a log nobody has, and closes it again.
func reopen(t tb, dir string) (segments.Previous, bool) {
	t.Helper()
	d := openFast(t, segments.Config{Path: dir, Log: "keysidecar/test/next", Logger: slog.New(slog.DiscardHandler)})
	p, ok := d.Previous()
	must(t, d.Close())
	p.Counted = time.Time{} // see TestCounted
	return p, ok
}

// snapshot returns all files of a directory but the lock.
func snapshot(t tb, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	all := make(map[string]string)
	for _, e := range entries {
		if e.Name() == "audit.lock" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
		all[e.Name()] = string(raw)
	}
	return all
}

// restore makes a new directory with those files.
func restore(t testing.TB, all map[string]string) string {
	t.Helper()
	dir := newDir(t)
	refill(t, dir, all)
	return dir
}

// refill makes those files all that are in a directory.
func refill(t tb, dir string, all map[string]string) {
	t.Helper()
	for name := range snapshot(t, dir) {
		must(t, os.Remove(filepath.Join(dir, name)))
	}
	for name, text := range all {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
}

func names(all map[string]string) []string {
	var list []string
	for name := range all {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// failing returns an fsync that does not work from call first to call last.
func failing(first, last int) func(*os.File) error {
	n := 0
	return func(f *os.File) error {
		if n++; first <= n && n <= last {
			return errors.New("no fsync today")
		}
		return f.Sync()
	}
}
