// Package strict reads YAML files into structs, with the position of every
// mistake. It refuses whatever makes a value differ from what is written in its
// place, and every key that is not a field.
//
// The tags of a field say what it takes:
//
//	yaml      the key, "-" for no key
//	required  "true": must be set, and not to an empty string
//	enum      the values allowed, of a list its elements', separated by spaces
//	min, max  bounds, in the notation of the files
//	default   of a field in a list, whose struct nobody can fill before
//	kind      "path": relative to the file that names it
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// File is one parsed file. Nothing in it is decoded yet.
type File struct {
	name     string
	root     *yaml.Node // nil if it is not YAML
	problems *Problems
}

// Read reads at most limit bytes. A file that cannot be read, or is longer, is
// a problem of its own, and then the result is nil.
func Read(name string, limit int64, ps *Problems) []byte {
	data, err := readLimited(name, limit)
	if err != nil {
		ps.Add(Problem{File: name, Text: err.Error()})
		return nil
	}
	return data
}

func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, cause(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("is over %s", Size(limit))
	}
	return data, nil
}

// cause takes the path out of an error, because Problem names it.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Parse reads one YAML document. Without any the File decodes nothing.
func Parse(name string, data []byte, ps *Problems) *File {
	f := &File{name: name, problems: ps}
	if !utf8.Valid(data) {
		ps.Add(Problem{File: name, Text: "is not UTF-8"})
		return f
	}
	var doc, second yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		ps.Add(Problem{File: name, Text: "is empty"})
		return f
	} else if err != nil {
		ps.Add(syntaxProblem(name, err))
		return f
	}
	if err := d.Decode(&second); err == nil {
		ps.Add(Problem{File: name, Line: second.Line, Text: "has a second document"})
		return f
	} else if !errors.Is(err, io.EOF) {
		ps.Add(syntaxProblem(name, err))
		return f
	}
	f.root = doc.Content[0]
	return f
}

// syntaxProblem takes the line out of the parser's "yaml: line 3: text".
func syntaxProblem(name string, err error) Problem {
	p := Problem{File: name, Text: shorten(strings.TrimPrefix(err.Error(), "yaml: "))}
	if rest, ok := strings.CutPrefix(p.Text, "line "); ok {
		if digits, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(digits); err == nil {
				p.Line, p.Text = n, text
			}
		}
	}
	return p
}

// Decode sets the struct that v points to, and makes its paths relative to the
// directory of the file. What the file does not set stays as it is.
func (f *File) Decode(v any) {
	if f.root == nil {
		return
	}
	d := decoder{file: f.name, problems: f.problems, schema: map[reflect.Type][]field{}}
	d.section(f.root, reflect.ValueOf(v).Elem(), nil)
	resolve(reflect.ValueOf(v).Elem(), filepath.Dir(f.name))
}

// resolve makes paths relative to dir.
func resolve(v reflect.Value, dir string) {
	switch {
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			resolve(v.Index(i), dir)
		}
	case IsSection(v.Type()):
		for _, f := range fields(v.Type()) {
			fv := v.Field(f.index)
			if f.tag.Get("kind") != "path" {
				resolve(fv, dir)
			} else if s := fv.String(); s != "" && !filepath.IsAbs(s) {
				fv.SetString(filepath.Join(dir, s))
			}
		}
	}
}

// Addf adds a problem with the field of that path, such as "keks[3].url", at
// its position, or at that of the innermost part of the path that is there.
func (f *File) Addf(at, format string, args ...any) {
	p := Problem{File: f.name, Path: at, Text: shorten(fmt.Sprintf(format, args...))}
	if f.root != nil {
		n := find(f.root, at)
		p.Line, p.Column = n.Line, n.Column
	}
	f.problems.Add(p)
}

// find walks down from n along a path as path.String writes it.
func find(n *yaml.Node, at string) *yaml.Node {
	for at != "" {
		var next *yaml.Node
		if rest, ok := strings.CutPrefix(at, "["); ok {
			digits, after, _ := strings.Cut(rest, "]")
			if i, err := strconv.Atoi(digits); err == nil && n.Kind == yaml.SequenceNode && i < len(n.Content) {
				next, at = n.Content[i], after
			}
		} else {
			at = strings.TrimPrefix(at, ".")
			name := at[:strings.IndexAny(at+".", ".[")]
			at = at[len(name):]
			for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == name {
					next = n.Content[i+1]
					break
				}
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return n
}

// Line returns the line of the field of that path, or that of the innermost part
// of the path that is there.
func (f *File) Line(at string) int { return find(f.root, at).Line }

// Lines returns where the elements of the list of that key begin.
func (f *File) Lines(key string) []int {
	list := find(f.root, key)
	out := make([]int, len(list.Content))
	for i, n := range list.Content {
		out[i] = n.Line
	}
	return out
}

// Full reports whether no more problems are taken.
func (f *File) Full() bool { return f.problems.Full() }
