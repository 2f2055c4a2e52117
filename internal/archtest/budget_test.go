package archtest_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// The budgets of docs/design.md section 3.
const (
	maxFunction         = 60
	maxMedian           = 10
	maxMain             = 15
	maxFile             = 500
	maxPackage          = 2000
	maxInterfaces       = 8
	maxInterfaceMethods = 3
	maxSentinels        = 5
)

// functions calls found for every function declared in a budgeted file.
func (r *repo) functions(found func(f *file, fn *ast.FuncDecl, lines int)) {
	for _, f := range r.files {
		if !f.budgeted() {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				found(f, fn, r.length(fn))
			}
		}
	}
}

func checkFunctions(r *repo) []string {
	var bad []string
	r.functions(func(f *file, fn *ast.FuncDecl, lines int) {
		budget := maxFunction
		if f.ast.Name.Name == "main" && fn.Name.Name == "main" && fn.Recv == nil {
			budget = maxMain
		}
		if lines > budget {
			bad = append(bad, fmt.Sprintf("%s: %s has %d lines, over %d", r.at(fn), fn.Name.Name, lines, budget))
		}
	})
	return bad
}

// medians returns the median length of the functions of each package, and of
// all under the name "".
func (r *repo) medians() map[string]int {
	lengths := make(map[string][]int)
	r.functions(func(f *file, _ *ast.FuncDecl, lines int) {
		lengths[f.pkg()] = append(lengths[f.pkg()], lines)
		lengths[""] = append(lengths[""], lines)
	})
	m := make(map[string]int)
	for pkg, l := range lengths {
		slices.Sort(l)
		m[pkg] = l[len(l)/2]
	}
	return m
}

func checkMedian(r *repo) []string {
	m := r.medians()
	if m[""] <= maxMedian {
		return nil
	}
	return []string{fmt.Sprintf("the median function has %d lines, over %d; by package: %v", m[""], maxMedian, m)}
}

func checkSizes(r *repo) []string {
	var bad []string
	pkgs := make(map[string]int)
	for _, f := range r.files {
		if !f.budgeted() {
			continue
		}
		pkgs[f.pkg()] += f.lines
		if f.lines > maxFile {
			bad = append(bad, fmt.Sprintf("%s has %d lines, over %d", f.path, f.lines, maxFile))
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(pkgs)) {
		if pkgs[pkg] > maxPackage {
			bad = append(bad, fmt.Sprintf("package %s has %d lines, over %d", pkg, pkgs[pkg], maxPackage))
		}
	}
	return bad
}

// checkInterfaces counts interfaces that have methods, named or not; those
// that only constrain a type parameter are not counted.
func checkInterfaces(r *repo) []string {
	var bad, all []string
	for _, f := range r.files {
		if !f.budgeted() {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			i, ok := n.(*ast.InterfaceType)
			if !ok || len(i.Methods.List) == 0 || slices.ContainsFunc(i.Methods.List, constraint) {
				return true
			}
			all = append(all, r.at(i))
			if m := i.Methods.NumFields(); m > maxInterfaceMethods {
				bad = append(bad, fmt.Sprintf("%s: interface of %d methods, over %d", r.at(i), m, maxInterfaceMethods))
			}
			return true
		})
	}
	if len(all) > maxInterfaces {
		bad = append(bad, fmt.Sprintf("%d interfaces, over %d: %s", len(all), maxInterfaces, strings.Join(all, ", ")))
	}
	return bad
}

// constraint reports whether an element of an interface is a union or an
// approximation of types.
func constraint(f *ast.Field) bool {
	switch f.Type.(type) {
	case *ast.BinaryExpr, *ast.UnaryExpr:
		return true
	}
	return false
}

// checkNames finds packages that are named after nothing in particular.
func checkNames(r *repo) []string {
	drawer := regexp.MustCompile(`^(utils?|common|core|types|pkg|helpers?|misc|shared|lib|base)$`)
	var bad []string
	for _, f := range r.files {
		if drawer.MatchString(path.Base(f.pkg())) || drawer.MatchString(f.ast.Name.Name) {
			bad = append(bad, fmt.Sprintf("%s: package %s is named after nothing in particular", f.path, f.ast.Name.Name))
		}
	}
	return bad
}

// checkSentinels counts the exported error variables of each package.
func checkSentinels(r *repo) []string {
	names := make(map[string][]string)
	for _, f := range r.files {
		if !f.budgeted() {
			continue
		}
		for _, d := range f.ast.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				names[f.pkg()] = append(names[f.pkg()], sentinels(g)...)
			}
		}
	}
	var bad []string
	for _, pkg := range slices.Sorted(maps.Keys(names)) {
		if n := len(names[pkg]); n > maxSentinels {
			bad = append(bad, fmt.Sprintf("package %s has %d sentinel errors, over %d: %s", pkg, n, maxSentinels, strings.Join(names[pkg], ", ")))
		}
	}
	return bad
}

func sentinels(g *ast.GenDecl) []string {
	var names []string
	for _, s := range g.Specs {
		for _, name := range s.(*ast.ValueSpec).Names {
			if strings.HasPrefix(name.Name, "Err") {
				names = append(names, name.Name)
			}
		}
	}
	return names
}
