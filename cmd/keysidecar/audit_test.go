package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/record"
)

// aLog has a sidecar's audit log written, with a denial in it, and returns its
// lines and its key.
func aLog(t *testing.T, name string) (lines []string, origin, key string) {
	t.Helper()
	var out bytes.Buffer
	origin = audit.NewOrigin(name, time.Now())
	l, err := audit.New(audit.Config{
		Log: origin, Sink: audit.NewStream(&out), Logger: slog.New(slog.DiscardHandler),
	}, &record.Event{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"acme", "globex"} {
		if err := l.Denied(t.Context(), &record.Event{Kind: record.Denied, Caller: "web", Tenant: tenant, Verb: "seal"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		lines = append(lines, line)
	}
	if len(lines) != 5 { // start, two denials, stop, checkpoint
		t.Fatalf("%d lines:\n%s", len(lines), out.String())
	}
	return lines, origin, l.Key()
}

// saved writes a file and returns its path.
func saved(t *testing.T, text ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(strings.Join(text, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ran is what a command did.
type ran struct {
	code     int
	out, err string
}

func runWith(t *testing.T, in io.Reader, args ...string) ran {
	t.Helper()
	var out, failed strings.Builder
	code := run(t.Context(), args, stdio{in, &out, &failed})
	for _, text := range []string{out.String(), failed.String()} {
		if i := strings.IndexFunc(text, func(c rune) bool { return c != '\n' && c < ' ' || c > '~' }); i >= 0 && !slices.Contains([]string{"export", "prove"}, args[min(1, len(args)-1)]) {
			t.Errorf("%s prints %q", args, text[i:])
		}
	}
	return ran{code, out.String(), failed.String()}
}

func (r ran) want(t *testing.T, code int, out, err string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, err) {
		t.Errorf("exit code %d, want %d; printed\n%s, want %q; and to standard error\n%s, want %q", r.code, code, r.out, out, r.err, err)
	}
	if out == "" && r.out != "" || err == "" && r.err != "" {
		t.Errorf("printed %q and %q", r.out, r.err)
	}
}

func TestAuditVerify(t *testing.T) {
	lines, origin, key := aLog(t, "test")
	whole := saved(t, lines...)
	edited := saved(t, lines[0], strings.Replace(lines[1], "acme", "ac\x1b[2Jme", 1), strings.Join(lines[2:], ""))
	cut := saved(t, lines[:3]...)
	_, _, otherKey := aLog(t, "other")
	keys := saved(t, "# what was noted at the start\n", key, "\n", otherKey, "\n")
	checkpoints := saved(t, lines[4])

	runWith(t, nil, "audit", "verify", whole).want(t, 0, "verified: 1 log, but for what the notes say", "")
	runWith(t, nil, "audit", "verify", whole, "--key", key, "--checkpoints", checkpoints).want(t, 0, "\n  key      known: "+origin, "")
	runWith(t, nil, "audit", "verify", whole, "--key", keys).want(t, 0, "known: ", "")
	runWith(t, strings.NewReader("started\n"+strings.Join(lines, "")+lines[2]), "audit", "verify", "-").want(t, 0, "verified: ", "")
	runWith(t, nil, "audit", "verify", edited).want(t, 42, "NOT VERIFIED: ", "")
	runWith(t, nil, "audit", "verify", edited).want(t, 42, "record 1", "")
	runWith(t, nil, "audit", "verify", edited).want(t, 42, "what to do:\n  copy the directory", "")
	runWith(t, nil, "audit", "verify", edited).want(t, 42, "  1 event-changed: records were changed", "")
	runWith(t, nil, "audit", "verify", whole, "--output", "json").want(t, 0, `"problems":[]`, "")
	runWith(t, nil, "audit", "verify", whole, "--key", key, "--checkpoints", checkpoints).want(t, 0, "\nverified: 1 log\n", "")
	runWith(t, nil, "audit", "verify", cut).want(t, 0, "verified: ", "")
	runWith(t, nil, "audit", "verify", cut, "--checkpoints", checkpoints).want(t, 42, "PROBLEM  cut, log "+origin+", record", "")
	runWith(t, nil, "audit", "verify", whole, "--key", strings.Replace(key, origin, "keysidecar/x", 1)).want(t, 42, "", "no log's key")
	runWith(t, nil, "audit", "verify", saved(t)).want(t, 42, "NOT VERIFIED: there is nothing", "")

	hostile := filepath.Join(t.TempDir(), "\x1b[2J")
	if err := os.WriteFile(hostile, []byte("{\"log\":\"keysidecar/\x1b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	runWith(t, nil, "audit", "verify", hostile).want(t, 42, `\x1b[2J":1`, "")

	var report struct {
		Logs     []struct{ Log, Key string }
		Problems []struct{ Kind string }
	}
	r := runWith(t, nil, "audit", "verify", edited, "--output", "json")
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.code != 42 {
		t.Fatalf("exit code %d, %v: %s", r.code, err, r.out)
	}
	if len(report.Problems) == 0 || len(report.Logs) != 1 || report.Logs[0].Key != key {
		t.Errorf("report is %s", r.out)
	}
}

// TestAuditTrust names files that are not what they should be.
func TestAuditTrust(t *testing.T) {
	lines, _, _ := aLog(t, "test")
	whole, garbage := saved(t, lines...), saved(t, "garbage\n")
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no checkpoints":     {[]string{"--checkpoints", saved(t, lines[:3]...)}, 42, "has no checkpoints"},
		"not checkpoints":    {[]string{"--checkpoints", garbage}, 42, "reading checkpoints"},
		"no such directory":  {[]string{"--checkpoints", "none"}, 42, "no such file"},
		"an empty directory": {[]string{"--checkpoints", t.TempDir()}, 42, "has no checkpoints"},
		"no key":             {[]string{"--key", garbage}, 42, "--key is no log's key, and no file of them"},
		"no signer":          {[]string{"--signer", garbage}, 42, "--signer is no file of a public key: reading signers' keys"},
		"no such class":      {[]string{"--min-retention", "key=1h"}, 2, "--min-retention: class \"key\" is not one of"},
		"no such time":       {[]string{"--min-retention", "keys=long"}, 2, "--min-retention: keys: duration"},
		"no such duration":   {[]string{"--max-unproved", "long"}, 2, "--max-unproved: duration"},
		"no pair":            {[]string{"--min-retention", "400d"}, 2, "must be formatted as key=value"},
	} {
		t.Run(name, func(t *testing.T) {
			runWith(t, nil, append([]string{"audit", "verify", whole}, c.args...)...).want(t, c.code, "", c.want)
		})
	}
}

// TestAuditRetention finds that events were removed before their time.
func TestAuditRetention(t *testing.T) {
	lines, _, _ := aLog(t, "test")
	r, err := record.Parse([]byte(strings.TrimSuffix(lines[1], "\n")))
	if err != nil {
		t.Fatal(err)
	}
	lines[1] = string(r.AppendPruned(nil))
	pruned := saved(t, lines...)
	runWith(t, nil, "audit", "verify", pruned).want(t, 0, "removed  1 event of class denials", "")
	runWith(t, nil, "audit", "verify", pruned, "--min-retention", "keys=1h,data=1d").want(t, 0, "verified: ", "")
	runWith(t, nil, "audit", "verify", pruned, "--min-retention", "denials=400d").want(t, 42, "PROBLEM  pruned-early", "")
	runWith(t, nil, "audit", "verify", pruned, "--min-retention", "denials=0d").want(t, 42, "kept for ever", "")
	runWith(t, nil, "audit", "verify", pruned, "--min-retention", "keys=1h").want(t, 0, "note  kept-unchecked", "")
	runWith(t, nil, "audit", "export", pruned, "--class", "denials").want(t, 0, lines[1]+lines[2], "")
	runWith(t, nil, "audit", "export", pruned, "--tenant", "acme").want(t, 0, "", "1 more records may be meant")
	runWith(t, nil, "audit", "prove", pruned, "1").want(t, 0, "c2sp.org/tlog-proof@v1\n", "")
}

func TestAuditProof(t *testing.T) {
	lines, origin, key := aLog(t, "test")
	other, otherOrigin, otherKey := aLog(t, "other")
	both, checkpoint := saved(t, append(lines, other...)...), saved(t, lines[4])
	runWith(t, nil, "audit", "prove", both, "1").want(t, 42, "", "name one (--log)")
	runWith(t, nil, "audit", "prove", both, "5", "--log", origin).want(t, 42, "", "record 5")
	runWith(t, nil, "audit", "prove", both, "1", "--log", "keysidecar/none").want(t, 42, "", "keysidecar/none")
	runWith(t, nil, "audit", "prove", "none", "1").want(t, 42, "", "no such file")
	r := runWith(t, nil, "audit", "prove", both, "1", "--log", origin)
	r.want(t, 0, "c2sp.org/tlog-proof@v1\n", "")
	proof := saved(t, r.out)

	unsigned := saved(t, lines[:4]...)
	runWith(t, nil, "audit", "prove", unsigned, "1").want(t, 42, "", "no checkpoint covers record 1")
	runWith(t, nil, "audit", "prove", unsigned, "1", "--checkpoints", checkpoint).want(t, 0, "c2sp.org/tlog-proof@v1\n", "")

	shows := "proved: record 1 of log " + origin + "\n"
	runWith(t, nil, "audit", "check-proof", proof, "--key", key).want(t, 0, shows, "")
	runWith(t, nil, "audit", "check-proof", proof, "--key", key).want(t, 0, `"tenant":"acme"`, "")
	runWith(t, nil, "audit", "check-proof", proof, "--checkpoints", checkpoint).want(t, 0, shows, "")
	runWith(t, strings.NewReader(r.out), "audit", "check-proof", "-", "--key", key).want(t, 0, shows, "")
	runWith(t, nil, "audit", "check-proof", proof, "--key", key, "--output", "json").want(t, 0, `"event":{"kind":"denied"`, "")
	runWith(t, nil, "audit", "check-proof", proof, "--key", otherKey).want(t, 42, "", "no key of log "+origin+" is known")
	runWith(t, nil, "audit", "check-proof", saved(t, strings.Replace(r.out, "index 1", "index 2", 1)), "--key", key).want(t, 42, "", "no proof of a record")
	runWith(t, nil, "audit", "check-proof", both, "--key", key).want(t, 42, "", "no proof of a record")
	runWith(t, nil, "audit", "check-proof", "none", "--key", key).want(t, 42, "", "no such file")

	removed := saved(t, runWith(t, nil, "audit", "prove", saved(t, other...), "0").out)
	runWith(t, nil, "audit", "check-proof", removed, "--key", otherKey).want(t, 0, otherOrigin, "")
}

func TestAuditExport(t *testing.T) {
	lines, _, _ := aLog(t, "test")
	whole := saved(t, lines...)
	runWith(t, nil, "audit", "export", whole).want(t, 0, strings.Join(lines, ""), "")
	runWith(t, strings.NewReader(lines[1]), "audit", "export", "-").want(t, 0, lines[1], "")
	if r := runWith(t, nil, "audit", "export", whole, "--kind", "denied", "--tenant", "acme", "--verb", "seal", "--caller", "web",
		"--class", "denials", "--from", "1h", "--to", "2126-11-22T09:30:00Z"); r != (ran{0, lines[1], ""}) {
		t.Errorf("with all flags: %+v", r)
	}
	if r := runWith(t, nil, "audit", "export", whole, "--to", "1h"); r != (ran{0, "", ""}) {
		t.Errorf("of an hour ago: %+v", r)
	}
	csv := runWith(t, nil, "audit", "export", whole, "--format", "csv")
	if rows := strings.Count(csv.out, "\r\n"); csv.code != 0 || rows != 6 || !strings.HasPrefix(csv.out, "log,seq,time,class,kind,") {
		t.Errorf("%d rows: %+v", rows, csv)
	}
	edited := saved(t, lines[0], strings.Replace(lines[1], "acme", "evil", 1), lines[2])
	r := runWith(t, nil, "audit", "export", edited)
	if r.code != 42 || r.out != lines[0]+lines[2] || !strings.Contains(r.err, "1 damaged lines were left out") ||
		!strings.HasSuffix(r.err, "\nrun: keysidecar audit verify\n") {
		t.Errorf("edited: %+v", r)
	}
	runWith(t, nil, "audit", "export", saved(t, lines[0], lines[1][:50])).want(t, 0, lines[0], "1 unfinished lines were left out")
	runWith(t, nil, "audit", "export", "none").want(t, 42, "", "none: no such file")
}

func TestAuditTail(t *testing.T) {
	lines, origin, _ := aLog(t, "test")
	whole := saved(t, lines...)
	r := runWith(t, nil, "audit", "tail", whole, "-n", "4")
	r.want(t, 0, "== "+origin+"\n", "")
	if !strings.Contains(r.out, " 1 denied caller=web tenant=acme verb=seal\n") || strings.Contains(r.out, " start") {
		t.Errorf("the last 4 are\n%s", r.out)
	}
	if r := runWith(t, nil, "audit", "tail", whole, "-n", "1", "--output", "json"); r != (ran{0, lines[4], ""}) {
		t.Errorf("as JSON: %+v", r)
	}
	runWith(t, strings.NewReader(lines[1]), "audit", "tail", "-").want(t, 0, " 1 denied ", "")
	runWith(t, strings.NewReader(lines[1]), "audit", "tail", "-", "-f").want(t, 0, " 1 denied ", "")
	runWith(t, nil, "audit", "tail", "none").want(t, 42, "", "none: no such file")
	runWith(t, nil, "audit", "tail", whole, "-n", "100001").want(t, 2, "", "--lines is 100001, over 100,000")
}

// TestAuditFollow follows a directory into a new file, until it is interrupted.
func TestAuditFollow(t *testing.T) {
	lines, origin, _ := aLog(t, "test")
	dir := t.TempDir()
	segment := func(name string, lines ...string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Error(err)
		}
	}
	segment("1.000000000000.jsonl", lines[:2]...)
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"audit", "tail", dir, "-n", "1", "-f"}, stdio{nil, w, io.Discard})
		w.Close()
	}()
	shown := bufio.NewScanner(r)
	for _, want := range []string{"== " + origin, "1 denied", "2 denied", "3 stop", "4 checkpoint"} {
		if want == "2 denied" { // now that the first file was read
			segment("1.000000000002.jsonl", lines[2:]...)
		}
		if !shown.Scan() || !strings.Contains(shown.Text(), want) {
			t.Fatalf("shown is %q, want %q", shown.Text(), want)
		}
	}
	stop()
	if shown.Scan() {
		t.Errorf("shown after all: %q", shown.Text())
	}
	if got := <-code; got != exitDone {
		t.Errorf("exit code %d", got)
	}
}

// TestAuditInterrupted reads a pipe that nobody writes to.
func TestAuditInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"verify", "-"}, {"export", "-"}, {"prove", "-", "1"}, {"tail", "-"}} {
		in, w := io.Pipe()
		if code := run(ctx, append([]string{"audit"}, args...), stdio{in, io.Discard, io.Discard}); code != exitTryAgain {
			t.Errorf("%s: exit code %d", args, code)
		}
		w.Close()
	}
	in, w := io.Pipe()
	defer w.Close()
	if code := run(ctx, []string{"audit", "tail", "-", "-f"}, stdio{in, io.Discard, io.Discard}); code != exitDone {
		t.Errorf("tail -f: exit code %d", code)
	}
}

func TestAuditUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"PATH is missing":                 {"verify"},
		"PATH is empty":                   {"verify", "a", ""},
		"standard input, -, is named":     {"export", "-", "a", "-"},
		"PATH, SEQ missing":               {"prove"},
		"SEQ missing":                     {"prove", "a"},
		"SEQ is \"-1\"":                   {"prove", "--", "a", "-1"},
		"SEQ is \"b\"":                    {"prove", "a", "b"},
		"FILE is missing":                 {"check-proof"},
		"argument \"b\" is not expected":  {"check-proof", "a", "b"},
		"neither --key nor --checkpoints": {"check-proof", "a"},
		"unknown flag: --signer":          {"check-proof", "a", "--signer", "b"},
		"--format: format \"json\"":       {"export", "a", "--format", "json"},
		"--format: format \"\"":           {"export", "a", "--format", ""},
		"--kind: kind \"mint\" is not":    {"export", "a", "--kind", "mint"},
		"--class: class \"key\"":          {"export", "a", "--class", "key"},
		"--from: time \"noon\"":           {"export", "a", "--from", "noon"},
		"--to: time \"noon\"":             {"export", "a", "--to", "noon"},
		"is not before --to":              {"export", "a", "--from", "1h", "--to", "2h"},
		"argument \"c\" is not expected":  {"tail", "a", "c"},
		"PATH is missing\nsee":            {"tail"},
		"verb missing: one of ":           {},
	} {
		t.Run(want, func(t *testing.T) {
			runWith(t, nil, append([]string{"audit"}, args...)...).want(t, exitUsage, "", want)
		})
	}
}
