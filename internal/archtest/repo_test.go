package archtest_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/keysidecar/keysidecar"

// A file is one parsed Go file.
type file struct {
	path      string // from the root, with slashes
	ast       *ast.File
	lines     int
	test      bool // *_test.go
	generated bool
	nested    bool // of another module than the root's
}

// pkg returns the directory that holds f: the package as the import table
// names it.
func (f *file) pkg() string { return path.Dir(f.path) }

// budgeted reports whether f counts for the budgets: it is of the root
// module, written by hand, and no test.
func (f *file) budgeted() bool { return !f.test && !f.generated && !f.nested }

// A repo is a tree of files, this repository's or a small one made for a test.
type repo struct {
	fsys  fs.FS
	fset  *token.FileSet
	files []*file
	docs  []string // *.md
	txtar []string // testscripts
}

// load reads every Go file of the tree, also those that build on other
// systems only, which `go list` would leave out.
func load(fsys fs.FS) (*repo, error) {
	r := &repo{fsys: fsys, fset: token.NewFileSet()}
	var modules []string
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || p == "bin" || d.Name() == "node_modules"):
			return fs.SkipDir
		case d.Name() == "go.mod":
			modules = append(modules, path.Dir(p))
		case path.Ext(p) == ".md":
			r.docs = append(r.docs, p)
		case path.Ext(p) == ".txtar" || path.Ext(p) == ".txt" && strings.Contains(p, "testdata/"):
			r.txtar = append(r.txtar, p)
		case path.Ext(p) == ".go" && !strings.Contains(p, "testdata/"):
			return r.parse(p)
		}
		return nil
	})
	for _, f := range r.files {
		f.nested = slices.ContainsFunc(modules, func(m string) bool { return m != "." && strings.HasPrefix(f.path, m+"/") })
	}
	return r, err
}

func (r *repo) parse(p string) error {
	src, err := fs.ReadFile(r.fsys, p)
	if err != nil {
		return err
	}
	tree, err := parser.ParseFile(r.fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parsing: %w", err)
	}
	r.files = append(r.files, &file{
		path: p, ast: tree, lines: strings.Count(string(src), "\n"),
		test: strings.HasSuffix(p, "_test.go"), generated: ast.IsGenerated(tree),
	})
	return nil
}

// at returns where n is.
func (r *repo) at(n ast.Node) string {
	pos := r.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", pos.Filename, pos.Line)
}

// length returns the lines that n takes, its first and last included.
func (r *repo) length(n ast.Node) int {
	return r.fset.Position(n.End()).Line - r.fset.Position(n.Pos()).Line + 1
}

// text returns the file at p, or "" if there is none.
func (r *repo) text(p string) string {
	b, err := fs.ReadFile(r.fsys, p)
	if err != nil {
		return ""
	}
	return string(b)
}

// imports returns the import paths of f by the name that f uses for each.
func (f *file) imports() map[string]string {
	m := make(map[string]string)
	for _, spec := range f.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has refused it already
		}
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "_" || name == "." || m[name] != "" {
			name = p
		}
		m[name] = p
	}
	return m
}

// selectors calls found for every x.Sel in f: imported is the import path
// that x names, or "" if x is no package.
func (f *file) selectors(found func(n *ast.SelectorExpr, imported, sel string)) {
	imports := f.imports()
	ast.Inspect(f.ast, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		imported := ""
		if x, ok := s.X.(*ast.Ident); ok {
			imported = imports[x.Name]
		}
		found(s, imported, s.Sel.Name)
		return true
	})
}

// table returns the cells of the first table of a Markdown text whose header
// starts with the cells given, without header and rule.
func table(text string, header ...string) ([][]string, error) {
	var rows [][]string
	in := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if in {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case in && strings.Trim(line, "|-: ") != "":
			rows = append(rows, cells)
		case !in:
			in = len(cells) >= len(header) && slices.Equal(cells[:len(header)], header)
		}
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("no table %q, or nothing in it", header)
	}
	return rows, nil
}

// loaded returns fsys as a repo, or ends the test.
func loaded(t *testing.T, fsys fs.FS) *repo {
	t.Helper()
	r, err := load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
