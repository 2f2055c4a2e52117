package archtest_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"
)

// checkTests finds tests that can pass without testing, or that sleep.
func checkTests(r *repo) []string {
	var bad []string
	for _, f := range r.files {
		if !f.test {
			continue
		}
		f.selectors(func(n *ast.SelectorExpr, imported, sel string) {
			switch {
			case imported == "time" && sel == "Sleep",
				imported == "testing" && sel == "Short",
				imported == "" && (sel == "Skip" || sel == "Skipf" || sel == "SkipNow"):
				bad = append(bad, fmt.Sprintf("%s: %s in a test", r.at(n), sel))
			}
		})
	}
	waits := regexp.MustCompile(`(?m)^(\[.*\] *)?(skip\b|[!?]? *exec sleep\b).*`)
	for _, p := range r.txtar {
		if m := waits.FindString(r.text(p)); m != "" {
			bad = append(bad, fmt.Sprintf("%s: %q in a test", p, m))
		}
	}
	return bad
}

// keyReaders are the packages that may read key bytes.
var keyReaders = []string{"dek", "envelope", "internal/secret"}

// doers are the packages that may name secret.Do besides: sidecar hands it to
// azurekv, whose calls run on goroutines of their own.
var doers = []string{"sidecar"}

// checkSecrets finds readers of key bytes elsewhere.
func checkSecrets(r *repo) []string {
	var bad []string
	for _, f := range r.files {
		if f.test || f.nested || slices.Contains(keyReaders, f.pkg()) {
			continue
		}
		f.selectors(func(n *ast.SelectorExpr, imported, sel string) {
			do := sel == "Do" && imported == module+"/internal/secret" && !slices.Contains(doers, f.pkg())
			if sel == "Expose" || do {
				bad = append(bad, fmt.Sprintf("%s: %s only in %s", r.at(n), sel, strings.Join(keyReaders, ", ")))
			}
		})
	}
	return bad
}

// checkStatuses finds gRPC statuses that are not made by the one table.
func checkStatuses(r *repo) []string {
	makers := []string{"New", "Newf", "Error", "Errorf", "ErrorProto", "FromProto", "FromContextError"}
	var bad []string
	for _, f := range r.files {
		if f.test || f.generated || f.path == "server/status.go" {
			continue
		}
		f.selectors(func(n *ast.SelectorExpr, imported, sel string) {
			if imported == "google.golang.org/grpc/status" && slices.Contains(makers, sel) {
				bad = append(bad, fmt.Sprintf("%s: status.%s only in server/status.go", r.at(n), sel))
			}
		})
	}
	return bad
}

// checkErrorTexts finds errors that say that they are errors.
func checkErrorTexts(r *repo) []string {
	says := regexp.MustCompile("(?i)^[\"`](fail(ed|ure)?|unable|could not|couldn't|error)\\b")
	var bad []string
	for _, f := range r.files {
		if f.test || f.generated {
			continue
		}
		imports := f.imports()
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 || !makesError(call, imports) {
				return true
			}
			if text, ok := call.Args[0].(*ast.BasicLit); ok && says.MatchString(text.Value) {
				bad = append(bad, fmt.Sprintf("%s: an error's text is a gerund or a noun: %s", r.at(n), text.Value))
			}
			return true
		})
	}
	return bad
}

// makesError reports whether a call is of errors.New or fmt.Errorf.
func makesError(call *ast.CallExpr, imports map[string]string) bool {
	fn, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := fn.X.(*ast.Ident)
	return ok && (imports[pkg.Name] == "errors" && fn.Sel.Name == "New" || imports[pkg.Name] == "fmt" && fn.Sel.Name == "Errorf")
}

// checkOptions finds functional options outside client.
func checkOptions(r *repo) []string {
	var bad []string
	for _, f := range r.files {
		if !f.budgeted() || f.pkg() == "client" {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				if name := s.(*ast.TypeSpec).Name.Name; strings.HasSuffix(name, "Option") {
					bad = append(bad, fmt.Sprintf("%s: type %s: functional options only in client", r.at(s), name))
				}
			}
		}
	}
	return bad
}
