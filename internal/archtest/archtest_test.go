package archtest_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// checks are all checks by name. Each returns what is wrong, a line each.
func checks() map[string]func(*repo) []string {
	return map[string]func(*repo) []string{
		"ladder":       checkLadder,
		"imports":      checkImports,
		"fences":       checkFences,
		"functions":    checkFunctions,
		"median":       checkMedian,
		"sizes":        checkSizes,
		"interfaces":   checkInterfaces,
		"names":        checkNames,
		"sentinels":    checkSentinels,
		"tests":        checkTests,
		"secrets":      checkSecrets,
		"statuses":     checkStatuses,
		"error texts":  checkErrorTexts,
		"options":      checkOptions,
		"links":        checkLinks,
		"lengths":      checkLengths,
		"evidence":     checkEvidence,
		"dependencies": checkDependencies,
	}
}

func TestRepository(t *testing.T) {
	r := loaded(t, os.DirFS("../.."))
	for _, pkg := range []string{"internal/archtest", "tenant"} {
		if !slices.ContainsFunc(r.files, func(f *file) bool { return f.pkg() == pkg }) {
			t.Fatalf("no files of %s among %d: nothing is checked", pkg, len(r.files))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(checks())) {
		t.Run(name, func(t *testing.T) {
			for _, problem := range checks()[name](r) {
				t.Error(problem)
			}
		})
	}
}

const smallDesign = "| level | package | may import of ours |\n|---|---|---|\n" +
	"| 0 | a | nothing |\n| 0 | lone | nothing |\n| 1 | b | a |\n| 2 | c | levels 0 to 1 but lone |\n| - | side | nothing |\n\n" +
	"| outside package | only in |\n|---|---|\n| example.com/grpc | a, c |\n"

func goFile(pkg string, rest ...string) string {
	return "package " + pkg + "\n" + strings.Join(rest, "\n") + "\n"
}

func imports(pkgs ...string) string { return `import "` + strings.Join(pkgs, "\"\nimport \"") + `"` }

func ours(pkg string) string { return module + "/" + pkg }

func function(name string, lines int) string {
	return "func " + name + "() {" + strings.Repeat("\n", lines-1) + "}"
}

func repeated(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format+"\n", i)
	}
	return b.String()
}

// A tree is a small repository and what the check has to find in it: a part
// of the only line, or nothing.
type tree struct {
	check, name, want string
	files             map[string]string
}

func TestChecks(t *testing.T) {
	wrong := make(map[string]bool)
	trees := slices.Concat(importTrees(), budgetTrees(), codeTrees(), docTrees())
	for _, tr := range trees {
		wrong[tr.check] = wrong[tr.check] || tr.want != ""
		t.Run(tr.check+"/"+tr.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for p, text := range tr.files {
				fsys[p] = &fstest.MapFile{Data: []byte(text)}
			}
			got := checks()[tr.check](loaded(t, fsys))
			switch {
			case tr.want == "" && len(got) != 0:
				t.Errorf("found %q where nothing is wrong", got)
			case tr.want != "" && (len(got) != 1 || !strings.Contains(got[0], tr.want)):
				t.Errorf("found %q, want one line with %q", got, tr.want)
			}
		})
	}
	for name := range checks() {
		if !wrong[name] {
			t.Errorf("nothing shows that the check of %s can fail", name)
		}
	}
}

func importTrees() []tree {
	with := func(path, src string) map[string]string {
		return map[string]string{"docs/design.md": smallDesign, path: src}
	}
	design := func(row string) map[string]string {
		return map[string]string{"docs/design.md": strings.Replace(smallDesign, "| 1 | b | a |", row, 1)}
	}
	return []tree{
		{"ladder", "good", "", design("| 1 | b | a |")},
		{"ladder", "no table", "no table", nil},
		{"ladder", "upwards", "b (level 1) may not import c (level 2)", design("| 1 | b | c |")},
		{"ladder", "sideways", "may not import", design("| 1 | b | a |\n| 1 | d | b |")},
		{"ladder", "unknown package", `no row for "x"`, design("| 1 | b | x |")},
		{"ladder", "two rows", "two rows", design("| 1 | b | a |\n| 1 | b | a |")},
		{"ladder", "level", "level of b", design("| one | b | a |")},
		{"imports", "allowed", "", with("b/b.go", goFile("b", imports(ours("a"), "fmt")))},
		{"imports", "span", "", with("c/c.go", goFile("c", imports(ours("a"), ours("b"))))},
		{"imports", "test", "", with("a/a_test.go", goFile("a", imports(ours("b"))))},
		{"imports", "not allowed", "a may not import b", with("a/a.go", goFile("a", imports(ours("b"))))},
		{"imports", "other system", "a may not import b", with("a/a_plan9.go", "//go:build plan9\n\n"+goFile("a", imports(ours("b"))))},
		{"imports", "blank", "a may not import b", with("a/a.go", goFile("a", `import _ "`+ours("b")+`"`))},
		{"imports", "out of the span", "c may not import lone", with("c/c.go", goFile("c", imports(ours("lone"))))},
		{"imports", "no row", "package new has no row", with("new/new.go", goFile("new"))},
		{"fences", "inside", "", with("a/a.go", goFile("a", imports("example.com/grpc/codes")))},
		{"fences", "outside", "example.com/grpc/codes only in a, c", with("b/b.go", goFile("b", imports("example.com/grpc/codes")))},
		{"fences", "like-named", "", with("b/b.go", goFile("b", imports("example.com/grpcurl")))},
	}
}

func budgetTrees() []tree {
	one := func(src string) map[string]string { return map[string]string{"a/a.go": src} }
	generated := "// Code generated by hand. DO NOT EDIT.\n\n"
	return []tree{
		{"functions", "60", "", one(goFile("a", function("f", 60)))},
		{"functions", "61", "f has 61 lines", one(goFile("a", function("f", 61)))},
		{"functions", "test", "", map[string]string{"a/a_test.go": goFile("a", function("f", 61))}},
		{"functions", "generated", "", one(generated + goFile("a", function("f", 61)))},
		{"functions", "main 15", "", one(goFile("main", function("main", 15)))},
		{"functions", "main 16", "main has 16 lines, over 15", one(goFile("main", function("main", 16)))},
		{"median", "10", "", one(goFile("a", function("f", 60), function("g", 10), function("h", 1)))},
		{"median", "11", "has 11 lines", one(goFile("a", function("f", 60), function("g", 11), function("h", 1)))},
		{"sizes", "500", "", one(goFile("a", strings.Repeat("\n", 498)))},
		{"sizes", "501", "a/a.go has 501 lines", one(goFile("a", strings.Repeat("\n", 499)))},
		{"sizes", "package", "package a has 2001 lines", map[string]string{
			"a/a.go": goFile("a", strings.Repeat("\n", 498)), "a/b.go": goFile("a", strings.Repeat("\n", 498)), "a/c.go": goFile("a", strings.Repeat("\n", 498)),
			"a/d.go": goFile("a", strings.Repeat("\n", 498)), "a/e.go": "package a\n",
		}},
		{"interfaces", "eight", "", one(goFile("a", repeated(8, "type T%d interface{ F(); G(); H() }")))},
		{"interfaces", "nine", "9 interfaces", one(goFile("a", repeated(9, "type T%d interface{ F() }")))},
		{"interfaces", "four methods", "interface of 4 methods", one(goFile("a", "type T interface{ F(); G(); H(); I() }"))},
		{"interfaces", "nameless", "interface of 4 methods", one(goFile("a", "func f(_ interface{ F(); G(); H(); I() }) {}"))},
		{"interfaces", "constraints", "", one(goFile("a", repeated(9, "type T%d interface{ ~int | ~string }")))},
		{"names", "good", "", one(goFile("a"))},
		{"names", "directory", "util/a.go", map[string]string{"util/a.go": goFile("a")}},
		{"names", "clause", "package helpers", one(goFile("helpers"))},
		{"sentinels", "five", "", one(goFile("a", imports("errors"), repeated(5, `var Err%d = errors.New("x")`)))},
		{"sentinels", "six", "6 sentinel errors", one(goFile("a", imports("errors"), repeated(6, `var Err%d = errors.New("x")`)))},
	}
}

func codeTrees() []tree {
	one := func(path, pkg string, rest ...string) map[string]string {
		return map[string]string{path: goFile(pkg, rest...)}
	}
	secret := imports(ours("internal/secret"))
	status := imports("google.golang.org/grpc/status")
	return []tree{
		{"tests", "good", "", one("a/a_test.go", "a", imports("time"), "var _ = time.Now()")},
		{"tests", "sleep", "Sleep in a test", one("a/a_test.go", "a", imports("time"), "func f() { time.Sleep(1) }")},
		{"tests", "renamed", "Sleep in a test", one("a/a_test.go", "a", `import clock "time"`, "func f() { clock.Sleep(1) }")},
		{"tests", "skip", "SkipNow in a test", one("a/a_test.go", "a", imports("testing"), "func TestX(t *testing.T) { t.SkipNow() }")},
		{"tests", "short", "Short in a test", one("a/a_test.go", "a", imports("testing"), "var _ = testing.Short()")},
		{"tests", "nested module", "Skip in a test", map[string]string{
			"n/go.mod": "module n\n", "n/a_test.go": goFile("a", imports("testing"), "func TestX(t *testing.T) { t.Skip() }"),
		}},
		{"tests", "script", "", map[string]string{"a/testdata/a.txtar": "exec a --skip\n"}},
		{"tests", "script that skips", "[windows] skip", map[string]string{"a/testdata/a.txtar": "exec a\n[windows] skip\n"}},
		{"tests", "script that sleeps", "exec sleep 1", map[string]string{"a/testdata/a.txtar": "exec sleep 1\n"}},
		{"secrets", "reader", "", one("dek/a.go", "dek", secret, "func f(k *secret.Key) { secret.Do(func() { k.Expose() }) }")},
		{"secrets", "expose", "Expose only in", one("sealer/a.go", "sealer", secret, "func f(k *secret.Key) { k.Expose() }")},
		{"secrets", "method value", "Expose only in", one("sealer/a.go", "sealer", secret, "var f = (*secret.Key).Expose")},
		{"secrets", "do", "Do only in", one("sealer/a.go", "sealer", secret, "func f() { secret.Do(nil) }")},
		{"secrets", "another do", "", one("sealer/a.go", "sealer", "func f(c client) { c.Do() }")},
		{"statuses", "table", "", one("server/status.go", "server", status, "var _ = status.Error")},
		{"statuses", "elsewhere", "status.Errorf only in", one("server/seal.go", "server", status, "var _ = status.Errorf")},
		{"statuses", "reading", "", one("client/a.go", "client", status, "var _ = status.Code")},
		{"error texts", "gerund", "", one("a/a.go", "a", imports("errors"), `var _ = errors.New("reading errors")`)},
		{"error texts", "failed", "failed to read", one("a/a.go", "a", imports("errors"), `var _ = errors.New("failed to read")`)},
		{"error texts", "of a test", "", one("a/a.go", "a", `func f(t tb) { t.Errorf("error is %v", nil) }`)},
		{"error texts", "errorf", "Unable to", one("a/a.go", "a", imports("fmt"), `var _ = fmt.Errorf("Unable to read: %w", nil)`)},
		{"options", "client", "", one("client/a.go", "client", "type Option func()")},
		{"options", "elsewhere", "type DialOption", one("a/a.go", "a", "type DialOption func()")},
	}
}

func docTrees() []tree {
	docs := func(text string) map[string]string {
		return map[string]string{"README.md": text, "docs/a.md": "# A b\n\n## C: `d`, e\n\n## A b\n\n```\n# not one\n```\n"}
	}
	evidence := func(row string) map[string]string {
		return map[string]string{"docs/evidence.md": "| claim | command | figure | commit |\n|---|---|---|---|\n" + row + "\n"}
	}
	deps := func(modules, tools string) map[string]string {
		return map[string]string{
			"go.mod":               "module x\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.0.0 // indirect\n)\n\nrequire example.com/c v0.1.0\n",
			"tools/go.mod":         "module x/tools\n\ntool (\n\texample.com/t/cmd/t\n\texample.com/u\n)\n\nrequire (\n\texample.com/t v1.0.0 // indirect\n)\n",
			"docs/dependencies.md": "| module | reason |\n|---|---|\n" + modules + "\n\n| tool | reason |\n|---|---|\n" + tools + "\n",
		}
	}
	const a, c, tool, another = "| example.com/a | it is good |\n", "| example.com/c | so is this |", "| example.com/t/cmd/t | it works |\n", "| example.com/u | so does this |"
	return []tree{
		{"links", "good", "", docs("[a](docs/a.md) [b](docs/a.md#a-b) [c](docs/a.md#c-d-e) [d](docs/a.md#a-b-1) [e](#t) [f](https://x.y/z) [g](docs)\n# T\n")},
		{"links", "file", "b.md: no such file", docs("[a](docs/b.md)")},
		{"links", "by reference", "b.md: no such file", docs("see [a]\n\n[a]: docs/b.md\n")},
		{"links", "heading", "no such heading", docs("[a](docs/a.md#b)")},
		{"links", "heading in code", "no such heading", docs("[a](docs/a.md#not-one)")},
		{"links", "outside", "outside the repository", docs("[a](../b.md)")},
		{"links", "code", "", docs("`[a](b.md)`\n```\n[a](b.md)\n```\n")},
		{"lengths", "good", "", map[string]string{"README.md": strings.Repeat("\n", 150), "CONTRIBUTING.md": "\n"}},
		{"lengths", "long", "README.md has 151 lines", map[string]string{"README.md": strings.Repeat("\n", 151), "CONTRIBUTING.md": "\n"}},
		{"lengths", "missing", "README.md has 0 lines", map[string]string{"CONTRIBUTING.md": "\n"}},
		{"evidence", "good", "", evidence("| a | `b` | 1 | 0123abc |")},
		{"evidence", "three cells", "four cells", evidence("| a | b | 1 |")},
		{"evidence", "empty cell", "four cells", evidence("| a | b |  | 0123abc |")},
		{"evidence", "no rows", "nothing in it", evidence("")},
		{"dependencies", "good", "", deps(a+c, tool+another)},
		{"dependencies", "no row", "example.com/c has no row", deps(a, tool+another)},
		{"dependencies", "no tool", "example.com/t/cmd/t has no row", deps(a+c, another)},
		{"dependencies", "not required", "example.com/b is not required directly", deps(a+"| example.com/b | why |\n"+c, tool+another)},
		{"dependencies", "no reason", "example.com/c has no reason", deps(a+"| example.com/c | |", tool+another)},
	}
}
