package sidecar_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/audit/reader"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

// auditTo makes a sidecar keep its audit log in an empty directory, which it
// returns; more are further keys of the section. Unless they are among those,
// nothing but the test has a record written.
func (set *settings) auditTo(t *testing.T, more string) (dir string) {
	t.Helper()
	dir = shortDir(t)
	set.config += fmt.Sprintf("\naudit: {sink: dir, dir: %s, name: test%s}\n", dir, orAll(more))
	return dir
}

// auditToStream makes a sidecar write its audit log to what it returns.
func (set *settings) auditToStream(more string) *journal {
	j := &journal{}
	set.config += fmt.Sprintf("\naudit: {sink: stdout, name: test%s}\n", orAll(more))
	set.AuditTo = j
	return j
}

// reader reads what was written so far.
func (j *journal) reader() io.Reader {
	if j == nil {
		return nil
	}
	return strings.NewReader(j.String())
}

// orAll adds to more what makes a log quiet, but for what is there already.
func orAll(more string) string {
	for key, value := range map[string]string{"interval": "10m", "checkpoint_interval": "10m"} {
		if !strings.Contains(", "+more, ", "+key+":") {
			more = key + ": " + value + ", " + more
		}
	}
	return ", " + strings.TrimSuffix(more, ", ")
}

// A logged is one record of a log, with its event.
type logged struct {
	*record.Record
	*record.Event

	source string
	raw    []byte // of the event
}

// logIn returns the records of all logs in a directory, file by file, and what
// of its files is no record.
func logIn(t *testing.T, dir string) []logged {
	t.Helper()
	return logFrom(t, nil, dir)
}

// logFrom is logIn for a stream, if from is not nil.
func logFrom(t *testing.T, from io.Reader, paths ...string) (all []logged) {
	t.Helper()
	err := reader.Read(paths, from, func(l reader.Line) error {
		if l.Record == nil {
			t.Errorf("%s:%d: %v", l.Source, l.Number, l.Err)
			return nil
		}
		e := logged{Record: l.Record, source: l.Source, raw: bytes.Clone(l.Record.Event)}
		var err error
		e.Event, err = record.ParseEvent(e.raw)
		all = append(all, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// verified wants that nothing is wrong with the logs, and returns what is said
// about each, the oldest first.
func verified(t *testing.T, from io.Reader, cfg verify.Config, paths ...string) []verify.LogReport {
	t.Helper()
	report, err := verify.Verify(paths, from, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("audit verify: %s: %s %d to %d, %s:%d: %s", p.Kind, p.Log, p.From, p.To, filepath.Base(p.Source), p.Line, p.Text)
	}
	if !report.Verified() {
		t.Errorf("not verified: %+v", report)
	}
	return report.Logs
}

// aliases are how logged.String calls what differs from run to run, by its value.
type aliases map[string]string

// name returns what a value is called: what it came to be called first, or
// else the kind and how many of it there are.
func (n aliases) name(kind, value string) string {
	if n[kind+value] == "" {
		count := 1
		for key := range n {
			if strings.HasPrefix(key, kind) {
				count++
			}
		}
		n[kind+value] = fmt.Sprint(kind, count)
	}
	return n[kind+value]
}

// text returns a record as class, kind, and fields. Of a field in bare, there is
// the name alone; DEKs and KEK versions are numbered.
func (l *logged) text(t *testing.T, names aliases, bare ...string) string {
	t.Helper()
	words := []string{l.Class.String()}
	for _, f := range fieldsOf(t, l.raw) {
		switch {
		case f.key == "kind":
			words = append(words, f.value)
		case f.key == "dek":
			words = append(words, "dek="+names.name("dek", f.value))
		case f.key == "kek_version":
			words = append(words, "kek_version="+names.name("v", f.value))
		case slices.Contains(bare, f.key):
			words = append(words, f.key)
		default:
			words = append(words, f.key+"="+f.value)
		}
	}
	return strings.Join(words, " ")
}

type eventField struct{ key, value string }

// fieldsOf returns the fields of a JSON object in their order.
func fieldsOf(t *testing.T, object []byte) (all []eventField) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil { // the brace
		t.Fatal(err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			t.Fatalf("%s: %v", object, err)
		}
		f := eventField{fmt.Sprint(key), string(raw)}
		if text := ""; json.Unmarshal(raw, &text) == nil {
			f.value = text
		}
		all = append(all, f)
	}
	return all
}
