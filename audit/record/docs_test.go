package record_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/record"
)

func document(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../docs/audit-log.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// rows returns the cells of the table whose first columns are headed so.
func rows(t *testing.T, doc string, heads ...string) [][]string {
	t.Helper()
	_, table, ok := strings.Cut(doc, "\n| "+strings.Join(heads, " | ")+" |\n")
	if !ok {
		t.Fatalf("no table of %s", heads)
	}
	var all [][]string
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|\n"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		if len(cells) != len(heads) {
			t.Fatalf("row %q has %d cells", line, len(cells))
		}
		all = append(all, cells)
	}
	return all[1:]
}

// names returns the words of a cell that are code.
func names(cell string) (all []string) {
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}

// fieldsOfEvent returns the fields of record.Event by their names in Go, with
// those that they have in a log and what they are there, and the latter in order.
func fieldsOfEvent() (json, kinds map[string]string, order []string) {
	json, kinds = make(map[string]string), make(map[string]string)
	for field := range reflect.TypeFor[record.Event]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		json[field.Name] = name
		order = append(order, name)
		switch field.Type.String() {
		case "int64", "int32":
			kinds[name] = "number"
		case "map[string]string":
			kinds[name] = "object"
		case "[]string":
			kinds[name] = "array"
		default:
			kinds[name] = "string"
		}
	}
	return json, kinds, order
}

// TestDocumentedFields compares the table of fields with record.Event.
func TestDocumentedFields(t *testing.T) {
	_, kinds, order := fieldsOfEvent()
	var documented []string
	for _, row := range rows(t, document(t), "field", "JSON", "meaning") {
		name := names(row[0])[0]
		documented = append(documented, name)
		if row[1] != kinds[name] || row[2] == "" {
			t.Errorf("field %s is a %s, %q", name, row[1], row[2])
		}
	}
	if diff := cmp.Diff(order, documented); diff != "" {
		t.Errorf("fields (-code +docs/audit-log.md):\n%s", diff)
	}
}

// documentedKinds returns the fields that each kind has, and its class.
func documentedKinds(t *testing.T) (fields map[string][]string, classes map[string]string) {
	t.Helper()
	fields, classes = make(map[string][]string), make(map[string]string)
	for _, row := range rows(t, document(t), "kind", "class", "what happened", "fields") {
		kind := names(row[0])[0]
		if _, twice := fields[kind]; twice {
			t.Errorf("kind %s has two rows", kind)
		}
		fields[kind], classes[kind] = names(row[3]), row[1]
	}
	return fields, classes
}

// TestDocumentedKinds compares the table of kinds with the constants, and with
// the table of fields.
func TestDocumentedKinds(t *testing.T) {
	fields, classes := documentedKinds(t)
	kinds, _ := sources(t)
	if diff := cmp.Diff(slices.Sorted(maps.Values(kinds)), slices.Sorted(maps.Keys(fields))); diff != "" {
		t.Errorf("kinds (-code +docs/audit-log.md):\n%s", diff)
	}
	_, _, order := fieldsOfEvent()
	used := map[string]bool{"kind": true}
	for kind, names := range fields {
		if _, err := record.ParseClass(classes[kind]); err != nil {
			t.Errorf("kind %s: %v", kind, err)
		}
		last := -1
		for _, name := range names {
			used[name] = true
			at := slices.Index(order, name)
			if at <= last {
				t.Errorf("kind %s: field %s is none, or not in the order of the log", kind, name)
			}
			last = at
		}
	}
	for _, name := range order {
		if !used[name] {
			t.Errorf("field %s is of no kind", name)
		}
	}
}

// TestEventsAreDocumented finds where the program makes events, and has every
// field that is set there in the table.
func TestEventsAreDocumented(t *testing.T) {
	fields, _ := documentedKinds(t)
	kinds, made := sources(t)
	byGo, _, _ := fieldsOfEvent()
	met := make(map[string]bool)
	for _, m := range made {
		kind := kinds[m.kind]
		met[kind] = true
		for _, field := range m.fields {
			if name := byGo[field]; name != "kind" && !slices.Contains(fields[kind], name) {
				t.Errorf("%s: a %s has the field %s, which docs/audit-log.md does not tell", m.at, kind, name)
			}
		}
	}
	if len(met) < 8 {
		t.Errorf("only %d kinds are made: %v", len(met), met)
	}
}

// made is an event that the program makes.
type made struct {
	at, kind string
	fields   []string
}

// sources reads the program: the constants of kinds, by their names in Go, and
// the events whose kind is written where they are made.
func sources(t *testing.T) (kinds map[string]string, all []made) {
	t.Helper()
	kinds = make(map[string]string)
	fset := token.NewFileSet()
	for _, root := range []string{"..", "../../sidecar"} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ValueSpec:
					if id, ok := n.Type.(*ast.Ident); ok && id.Name == "Kind" && file.Name.Name == "record" {
						value, err := strconv.Unquote(n.Values[0].(*ast.BasicLit).Value)
						if err != nil {
							t.Fatal(err)
						}
						kinds[n.Names[0].Name] = value
					}
				case *ast.CompositeLit:
					if m, ok := event(n); ok {
						m.at = fset.Position(n.Pos()).String()
						all = append(all, m)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(kinds) == 0 || len(all) == 0 {
		t.Fatalf("%d kinds, %d events", len(kinds), len(all))
	}
	return kinds, all
}

// event takes a record.Event{Kind: record.X, ...} apart.
func event(lit *ast.CompositeLit) (m made, ok bool) {
	if !isRecord(lit.Type, "Event") {
		return m, false
	}
	for _, e := range lit.Elts {
		pair, isPair := e.(*ast.KeyValueExpr)
		if !isPair {
			return m, false
		}
		field := pair.Key.(*ast.Ident).Name
		m.fields = append(m.fields, field)
		if kind, isName := pair.Value.(*ast.SelectorExpr); field == "Kind" && isName && isRecord(kind, "") {
			m.kind, ok = kind.Sel.Name, true
		}
	}
	return m, ok
}

// isRecord reports whether e is record.name; any name if it is empty.
func isRecord(e ast.Expr, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "record" && (name == "" || sel.Sel.Name == name)
}

// TestDocumentedRule takes the rule for Fluent Bit apart as that does: words between
// blanks, but one that begins with a quotation mark ends with the next. It has to
// take the checkpoint of the example, and that alone, and name a blob for its log
// and day.
func TestDocumentedRule(t *testing.T) {
	doc := document(t)
	rule := regexp.MustCompile(`(?m)^ +Rule +(.*)$`).FindStringSubmatch(doc)
	match := regexp.MustCompile(`(?m)^ +Match +(checkpoints.*)$`).FindStringSubmatch(doc)
	if rule == nil || match == nil {
		t.Fatalf("rule %q, match %q", rule, match)
	}
	words := strings.Fields(rule[1])
	if len(words) != 4 || words[0] != "$log" || words[3] != "true" || strings.ContainsAny(rule[1][:1]+words[1][:1], `"/`) {
		t.Fatalf("rule is %q", words)
	}
	expression := regexp.MustCompile(words[1])
	_, example, _ := strings.Cut(doc, "\n### An example\n")
	lines := strings.Split(strings.TrimSpace(strings.Split(example, "```\n")[1]), "\n")
	lines = append(lines, strings.Replace(lines[2], `"checkpoint"`, `"segment"`, 1),
		strings.Replace(lines[1], `"bytes":419`, `"context":{"kind":"checkpoint"}`, 1),
		strings.Replace(lines[1], "acme", `\"event\":{\"kind\":\"checkpoint\"`, 1))
	for i, line := range lines {
		tag := ""
		if at := expression.FindStringSubmatchIndex(line); at != nil {
			tag = string(expression.ExpandString(nil, strings.NewReplacer("$1", "${1}", "$2", "${2}").Replace(words[2]), line, at))
		}
		want := ""
		if i == 2 || i == 3 {
			want = "checkpoints.20261122T093000Z-1a2b3c4d5e6f.2026-11-22"
		}
		if tag != want {
			t.Errorf("line %d has tag %q, not %q", i, tag, want)
		}
		if ok, err := filepath.Match(match[1], tag); err != nil || ok != (want != "") {
			t.Errorf("line %d, tag %q: the output matches: %v, %v", i, tag, ok, err)
		}
	}
}

// TestDocumentedExample reads the example as the text says how: by hand, not with
// this package.
func TestDocumentedExample(t *testing.T) {
	_, example, ok := strings.Cut(document(t), "\n### An example\n")
	if !ok {
		t.Fatal("no example")
	}
	blocks := strings.Split(example, "```\n") // text, lines, text, hashes, text, line
	lines := strings.Split(strings.TrimSpace(blocks[1]), "\n")
	said := make(map[string]string)
	for line := range strings.Lines(blocks[3]) {
		i := strings.LastIndexByte(strings.TrimSpace(line), ' ')
		said[strings.TrimSpace(line[:i])] = strings.TrimSpace(line[i:])
	}
	if len(lines) != 3 || len(said) != 6 {
		t.Fatalf("%d lines, %d hashes", len(lines), len(said))
	}
	leaves := make([][32]byte, 3)
	prev := make([]byte, 9)
	for i, line := range lines {
		head, event, _ := strings.Cut(line, `,"event":`)
		event = strings.TrimSuffix(event, "}")
		leaf := head + "}"
		if i == 1 && strings.TrimSpace(blocks[5]) != leaf {
			t.Errorf("record 1 without its event is\n%s", leaf)
		}
		var h struct {
			Seq          int
			Prev, SHA256 []byte
		}
		if err := json.Unmarshal([]byte(leaf), &h); err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256([]byte(event)); h.Seq != i || !bytes.Equal(h.SHA256, sum[:]) || !bytes.Equal(h.Prev, prev) {
			t.Errorf("record %d: its number, hash or link is wrong", i)
		}
		leaves[i] = sha256.Sum256([]byte("\x00" + leaf))
		prev = leaves[i][:9]
		wantHash(t, said, fmt.Sprintf("leaf hash of record %d", i), leaves[i])
	}
	two := sha256.Sum256(slices.Concat([]byte{1}, leaves[0][:], leaves[1][:]))
	wantHash(t, said, "root of 2 records", two)
	wantHash(t, said, "root of 3 records", sha256.Sum256(slices.Concat([]byte{1}, two[:], leaves[2][:])))
	exampleVerifies(t, lines, said["key"], two)
}

func wantHash(t *testing.T, said map[string]string, name string, hash [32]byte) {
	t.Helper()
	if got := base64.StdEncoding.EncodeToString(hash[:]); got != said[name] {
		t.Errorf("%s is %s, docs/audit-log.md says %q", name, got, said[name])
	}
}

// exampleVerifies has this package read the example.
func exampleVerifies(t *testing.T, lines []string, key string, root [32]byte) {
	t.Helper()
	var events []*record.Event
	for _, line := range lines {
		r, err := record.Parse([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		e, err := record.ParseEvent(r.Event)
		if err != nil || !r.Intact() || !bytes.Equal(e.Append(nil), r.Event) {
			t.Fatalf("event of record %d: %v", r.Seq, err)
		}
		events = append(events, e)
	}
	verifier, err := record.NewVerifier(key)
	if err != nil || key != events[0].Key {
		t.Fatalf("key is %s, record 0 has %s: %v", key, events[0].Key, err)
	}
	c, err := record.OpenCheckpoint(events[2].Note, verifier)
	if err != nil || c.Size != 2 || c.Root != root {
		t.Errorf("checkpoint is %+v, %v", c, err)
	}
}
