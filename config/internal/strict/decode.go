package strict

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder sets structs from YAML nodes, strictly. It goes no deeper than the
// structs do.
type decoder struct {
	file     string
	problems *Problems
	schema   map[reflect.Type][]field
}

func (d *decoder) add(n *yaml.Node, at *path, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.problems.Add(Problem{File: d.file, Line: n.Line, Column: n.Column, Path: at.String(), Text: text})
}

func (d *decoder) fields(t reflect.Type) []field {
	fs, ok := d.schema[t]
	if !ok {
		fs = fields(t)
		d.schema[t] = fs
	}
	return fs
}

// section sets the struct v from the mapping n.
func (d *decoder) section(n *yaml.Node, v reflect.Value, at *path) {
	if !d.plain(n, at) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.add(n, at, "is %s, not a section with keys", kindName(n))
		return
	}
	fs := d.fields(v.Type())
	set := make([]int, len(fs)) // the line that sets the field
	for i := 0; i+1 < len(n.Content) && !d.problems.Full(); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		f := d.key(key, fs, at)
		if f < 0 {
			continue
		}
		here := &path{up: at, key: fs[f].name}
		if set[f] > 0 {
			d.add(key, here, "is given twice, first on line %d", set[f])
			continue
		}
		set[f] = key.Line
		d.value(value, v.Field(fs[f].index), &fs[f], here)
	}
	for i := range fs {
		if set[i] == 0 {
			d.absent(n, v.Field(fs[i].index), &fs[i], at)
		}
	}
}

// absent is value for a field that the section n does not set.
func (d *decoder) absent(n *yaml.Node, v reflect.Value, f *field, at *path) {
	switch dflt := f.tag.Get("default"); {
	case dflt != "":
		if err := parseScalar(v, tagString, dflt); err != nil {
			panic("strict: internal error: default: " + err.Error())
		}
	case f.required && v.IsZero():
		d.add(n, &path{up: at, key: f.name}, "is required")
	}
}

// key returns which of fs the key n names, -1 for none.
func (d *decoder) key(n *yaml.Node, fs []field, at *path) int {
	if !d.plain(n, at) {
		return -1
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != tagString {
		d.add(n, at, "has a key that is not text")
		return -1
	}
	for i := range fs {
		if fs[i].name == n.Value {
			return i
		}
	}
	names := make([]string, len(fs))
	for i := range fs {
		names[i] = fs[i].name
	}
	d.add(n, &path{up: at, key: shorten(n.Value)}, "is not a known key%s", hint(n.Value, names))
	return -1
}

// value sets v, the field f, from n.
func (d *decoder) value(n *yaml.Node, v reflect.Value, f *field, at *path) {
	switch {
	case IsSection(v.Type()):
		d.section(n, v, at)
	case v.Kind() == reflect.Slice:
		d.list(n, v, f, at)
	default:
		d.scalar(n, v, f, at)
	}
}

// list replaces the slice v, the field f, by the sequence n.
func (d *decoder) list(n *yaml.Node, v reflect.Value, f *field, at *path) {
	if !d.plain(n, at) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.add(n, at, "is %s, not a list", kindName(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, e := range n.Content {
		if d.problems.Full() {
			return
		}
		d.value(e, v.Index(i), &field{enum: f.enum}, &path{up: at, index: i})
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, f *field, at *path) {
	if !d.plain(n, at) {
		return
	}
	if n.Kind != yaml.ScalarNode {
		d.add(n, at, "is %s, not a single value", kindName(n))
		return
	}
	err := parseScalar(v, n.ShortTag(), n.Value)
	if err == nil {
		err = f.checkBounds(v)
	}
	if err != nil {
		d.add(n, at, "%s", shorten(err.Error()))
	}
}

// plain reports whether n is free of the YAML that makes a value differ from
// what is written in its place, and has a value at all.
func (d *decoder) plain(n *yaml.Node, at *path) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		d.add(n, at, "is an alias: write the value itself")
	case n.Anchor != "":
		d.add(n, at, "has an anchor: write the value without it")
	case n.ShortTag() == "!!merge":
		d.add(n, at, "has a merge key: write the keys themselves")
	case n.Style&yaml.TaggedStyle != 0:
		d.add(n, at, "has a tag: write the value without it")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		d.add(n, at, "has no value: leave the key out, or write [] or \"\"")
	default:
		return true
	}
	return false
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section with keys"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// maxText bounds what of a file an error repeats.
const maxText = 200

func shorten(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

// hint asks for that of names which name is most likely to be a misspelling
// of. It returns "" if none is near.
func hint(name string, names []string) string {
	if len(name) > maxText {
		return ""
	}
	best, least := "", 3
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	for _, s := range names {
		if n := distance(fold(name), fold(s)); n < least && n < len(s) {
			best, least = s, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
