package archtest_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const design = "docs/design.md"

// unlevelled is the level of a package that stands beside the ladder.
const unlevelled = -1

// A rule is one row of the import table.
type rule struct {
	level   int
	imports []string
}

// rules parses the import table, which is written in docs/design.md only.
func (r *repo) rules() (map[string]rule, error) {
	rows, err := table(r.text(design), "level", "package", "may import of ours")
	if err != nil {
		return nil, err
	}
	rules := make(map[string]rule)
	for _, row := range rows {
		level := unlevelled
		if row[0] != "-" {
			if level, err = strconv.Atoi(row[0]); err != nil {
				return nil, fmt.Errorf("level of %s: %w", row[1], err)
			}
		}
		if _, twice := rules[row[1]]; twice {
			return nil, fmt.Errorf("package %s has two rows", row[1])
		}
		rules[row[1]] = rule{level: level}
	}
	for _, row := range rows {
		this := rules[row[1]]
		if this.imports, err = allowed(row[2], rules); err != nil {
			return nil, fmt.Errorf("row of %s: %w", row[1], err)
		}
		rules[row[1]] = this
	}
	return rules, nil
}

// allowed expands the third cell of a row: "nothing", "levels A to B", "levels
// A to B but X, Y", or packages separated by commas.
func allowed(cell string, rules map[string]rule) ([]string, error) {
	if cell == "nothing" {
		return nil, nil
	}
	span, list, _ := strings.Cut(cell, " but ")
	var low, high int
	if n, _ := fmt.Sscanf(span, "levels %d to %d", &low, &high); n != 2 {
		return named(cell, rules)
	}
	but, err := named(list, rules)
	if err != nil {
		return nil, err
	}
	var all []string
	for pkg, r := range rules {
		if low <= r.level && r.level <= high && !slices.Contains(but, pkg) {
			all = append(all, pkg)
		}
	}
	return all, nil
}

// named splits a list of packages, each of which has to have a row.
func named(list string, rules map[string]rule) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	pkgs := strings.Split(list, ", ")
	for _, pkg := range pkgs {
		if _, ok := rules[pkg]; !ok {
			return nil, fmt.Errorf("no row for %q", pkg)
		}
	}
	return pkgs, nil
}

// checkLadder finds rows that allow an import of the same or a higher level.
func checkLadder(r *repo) []string {
	rules, err := r.rules()
	if err != nil {
		return []string{design + ": " + err.Error()}
	}
	var bad []string
	for pkg, this := range rules {
		for _, imported := range this.imports {
			if level := rules[imported].level; level >= this.level && level != unlevelled {
				bad = append(bad, fmt.Sprintf("%s: %s (level %d) may not import %s (level %d)", design, pkg, this.level, imported, level))
			}
		}
	}
	return bad
}

// checkImports finds packages without a row and imports that no row allows.
func checkImports(r *repo) []string {
	rules, err := r.rules()
	if err != nil {
		return []string{design + ": " + err.Error()}
	}
	var bad []string
	for _, f := range r.files {
		if f.test || f.nested {
			continue
		}
		this, ok := rules[f.pkg()]
		if !ok {
			bad = append(bad, fmt.Sprintf("%s: package %s has no row in %s section 3", f.path, f.pkg(), design))
			continue
		}
		for _, p := range slices.Sorted(maps.Values(f.imports())) {
			pkg, ours := strings.CutPrefix(p, module+"/")
			if ours && !slices.Contains(this.imports, pkg) {
				bad = append(bad, fmt.Sprintf("%s: %s may not import %s: %s section 3", f.path, f.pkg(), pkg, design))
			}
		}
	}
	return bad
}

// checkFences finds imports of an outside package in a room that the second
// table of docs/design.md section 3 does not name.
func checkFences(r *repo) []string {
	rows, err := table(r.text(design), "outside package", "only in")
	if err != nil {
		return []string{design + ": " + err.Error()}
	}
	var bad []string
	for _, f := range r.files {
		if f.test || f.generated || f.nested {
			continue
		}
		for _, p := range slices.Sorted(maps.Values(f.imports())) {
			for _, row := range rows {
				within := p == row[0] || strings.HasPrefix(p, row[0]+"/")
				if within && !slices.Contains(strings.Split(row[1], ", "), f.pkg()) {
					bad = append(bad, fmt.Sprintf("%s: %s only in %s: %s section 3", f.path, p, row[1], design))
				}
			}
		}
	}
	return bad
}
