package archtest_test

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

const (
	maxReadme       = 150
	maxContributing = 100
)

// checkLinks finds links in Markdown whose file or heading is not there.
// Links out of the repository are not followed.
func checkLinks(r *repo) []string {
	link := regexp.MustCompile(`\]\(([^)\s]+)[^)]*\)|(?m)^\[[^\]]+\]:\s*(\S+)`)
	var bad []string
	for _, doc := range r.docs {
		for _, m := range link.FindAllStringSubmatch(prose(r.text(doc)), -1) {
			target := m[1] + m[2]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if problem := r.dead(doc, target); problem != "" {
				bad = append(bad, fmt.Sprintf("%s: link to %s: %s", doc, target, problem))
			}
		}
	}
	return bad
}

// dead says what is wrong with a link, or "".
func (r *repo) dead(doc, target string) string {
	to, anchor, _ := strings.Cut(target, "#")
	p := doc
	if to != "" {
		p = path.Join(path.Dir(doc), to)
	}
	if !fs.ValidPath(p) {
		return "outside the repository"
	}
	if _, err := fs.Stat(r.fsys, p); err != nil {
		return "no such file"
	}
	if anchor != "" && path.Ext(p) == ".md" && !slices.Contains(anchors(r.text(p)), anchor) {
		return "no such heading"
	}
	return ""
}

// prose returns a Markdown text without its code.
func prose(text string) string {
	text = regexp.MustCompile("(?ms)^ *```.*?^ *```").ReplaceAllString(text, "")
	return regexp.MustCompile("`[^`\n]*`").ReplaceAllString(text, "")
}

// anchors returns the anchors of a text's headings as GitHub makes them.
func anchors(text string) []string {
	var all []string
	seen := make(map[string]int)
	fences := regexp.MustCompile("(?ms)^ *```.*?^ *```").ReplaceAllString(text, "")
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.*?) *$`).FindAllStringSubmatch(fences, -1) {
		slug := strings.Map(func(c rune) rune {
			switch {
			case c == ' ':
				return '-'
			case c == '-' || c == '_' || unicode.IsLetter(c) || unicode.IsDigit(c):
				return unicode.ToLower(c)
			}
			return -1
		}, m[1])
		if n := seen[slug]; n > 0 {
			all = append(all, fmt.Sprintf("%s-%d", slug, n))
		} else {
			all = append(all, slug)
		}
		seen[slug]++
	}
	return all
}

// checkLengths finds documents that are missing, or too long to be read.
func checkLengths(r *repo) []string {
	var bad []string
	for _, d := range []struct {
		path  string
		lines int
	}{{"README.md", maxReadme}, {"CONTRIBUTING.md", maxContributing}} {
		if n := strings.Count(r.text(d.path), "\n"); n == 0 || n > d.lines {
			bad = append(bad, fmt.Sprintf("%s has %d lines, not 1 to %d", d.path, n, d.lines))
		}
	}
	return bad
}

// checkEvidence finds claims without a command, a figure or a commit.
func checkEvidence(r *repo) []string {
	const doc = "docs/evidence.md"
	rows, err := table(r.text(doc), "claim", "command", "figure", "commit")
	if err != nil {
		return []string{doc + ": " + err.Error()}
	}
	var bad []string
	for _, row := range rows {
		if len(row) != 4 || slices.Contains(row, "") {
			bad = append(bad, fmt.Sprintf("%s: row %q does not have four cells with something in each", doc, row))
		}
	}
	return bad
}

// checkDependencies compares what go.mod requires directly, and the tools of
// tools/go.mod, with the reasons given for them.
func checkDependencies(r *repo) []string {
	require := regexp.MustCompile(`(?m)^(?:require )?\s*([a-z0-9.-]+\.[a-z]+/\S+) v\S+$`)
	tool := regexp.MustCompile(`(?m)^(?:tool )?\t?([a-z0-9.-]+\.[a-z]+/\S+)$`)
	return append(r.compare("go.mod", require, "module"), r.compare("tools/go.mod", tool, "tool")...)
}

// compare reports what only one of the two has: the first group of re in mod,
// and the first column of the table in docs/dependencies.md.
func (r *repo) compare(mod string, re *regexp.Regexp, header string) []string {
	const doc = "docs/dependencies.md"
	rows, err := table(r.text(doc), header, "reason")
	if err != nil {
		return []string{doc + ": " + err.Error()}
	}
	var required, reasoned, bad []string
	for _, m := range re.FindAllStringSubmatch(r.text(mod), -1) {
		required = append(required, m[1])
	}
	for _, row := range rows {
		reasoned = append(reasoned, row[0])
		if !slices.Contains(required, row[0]) {
			bad = append(bad, fmt.Sprintf("%s: %s is not required directly by %s", doc, row[0], mod))
		}
		if len(row) != 2 || row[1] == "" {
			bad = append(bad, fmt.Sprintf("%s: %s has no reason", doc, row[0]))
		}
	}
	for _, m := range required {
		if !slices.Contains(reasoned, m) {
			bad = append(bad, fmt.Sprintf("%s: %s has no row in %s", mod, m, doc))
		}
	}
	return bad
}
