package config_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/config"
)

var update = flag.Bool("update", false, "write the generated files")

// TestReferenceIsGenerated compares the generated files with what they would
// be now. With -update it writes them.
func TestReferenceIsGenerated(t *testing.T) {
	docs := comments(t)
	for name, want := range map[string]string{
		"reference.config.yaml":  newYAML(docs).file(reflect.ValueOf(*config.Default())),
		"reference.tenants.yaml": newYAML(docs).file(reflect.ValueOf(config.TenantsFile())),
		"reference.policy.yaml":  newYAML(docs).file(reflect.ValueOf(config.PolicyFile())),
		"../docs/config.md":      manual(docs),
	} {
		if *update {
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s is not up to date: run go generate (-want +got):\n%s", name, diff)
		}
	}
}

// comments returns the doc comment of each struct ("Listen") and of each of
// its fields ("Listen.Socket").
func comments(t *testing.T) map[string]string {
	docs := map[string]string{}
	for _, name := range []string{"config.go", "audit.go", "tenants.go", "policy.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			g, ok := n.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				return true
			}
			spec := g.Specs[0].(*ast.TypeSpec)
			if s, ok := spec.Type.(*ast.StructType); ok {
				docs[spec.Name.Name] = g.Doc.Text()
				for _, field := range s.Fields.List {
					docs[spec.Name.Name+"."+field.Names[0].Name] = field.Doc.Text()
				}
			}
			return true
		})
	}
	return docs
}

// key is one key of a section.
type key struct {
	name  string
	doc   string // without the name
	facts []string
	value reflect.Value
	tag   reflect.StructTag
}

func keys(docs map[string]string, section reflect.Value) []key {
	var out []key
	for i := range section.NumField() {
		f := section.Type().Field(i)
		name := f.Tag.Get("yaml")
		if name == "-" {
			continue
		}
		doc := docs[section.Type().Name()+"."+f.Name]
		rest, ok := strings.CutPrefix(doc, f.Name+" ")
		if !ok {
			panic(fmt.Sprintf("no comment about %s.%s", section.Type().Name(), f.Name))
		}
		k := key{name: name, doc: strings.TrimSpace(rest), value: section.Field(i), tag: f.Tag}
		k.facts = k.allFacts()
		out = append(out, k)
	}
	return out
}

func (k *key) allFacts() []string {
	var facts []string
	enum := strings.Fields(k.tag.Get("enum"))
	switch {
	case k.defaultText() != "":
		facts = append(facts, "Default: "+k.defaultText()+".")
	case k.tag.Get("required") == "true" && len(enum) == 1:
		facts = append(facts, "Required: "+enum[0]+".")
	case k.tag.Get("required") == "true":
		facts = append(facts, "Required.")
	}
	switch {
	case len(enum) > 1 && k.value.Kind() == reflect.Slice:
		facts = append(facts, "Each one of: "+strings.Join(enum, ", ")+".")
	case len(enum) > 1:
		facts = append(facts, "One of: "+strings.Join(enum, ", ")+".")
	}
	if k.tag.Get("min") != "" {
		facts = append(facts, "From "+k.tag.Get("min")+" to "+k.tag.Get("max")+".")
	}
	return facts
}

// defaultText is "" where there is no default, or one that goes without saying.
func (k *key) defaultText() string {
	switch k.value.Kind() {
	case reflect.Struct, reflect.Pointer:
		return ""
	case reflect.Slice:
		var all []string
		for i := range k.value.Len() {
			all = append(all, config.FormatScalar(k.value.Index(i)))
		}
		return strings.Join(all, ", ")
	case reflect.String:
		if d := k.tag.Get("default"); d != "" {
			return d
		}
	}
	return config.FormatScalar(k.value)
}

// setting is what stands after the key; commented says that it is not set.
func (k *key) setting() (text string, commented bool) {
	if d := k.defaultText(); d != "" {
		return k.quote(d), false
	}
	example := k.tag.Get("example")
	switch {
	case k.tag.Get("show") == "empty":
		return `""`, false
	case example == "":
		example = strings.Fields(k.tag.Get("enum"))[0]
	}
	return k.quote(example), k.tag.Get("required") != "true" && k.tag.Get("show") != "true"
}

// quote writes a value, or the values of a list with commas between them.
func (k *key) quote(s string) string {
	t := k.value.Type()
	if t.Kind() == reflect.Slice {
		all := strings.Split(s, ", ")
		for i := range all {
			all[i] = quote(t.Elem(), all[i])
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	return quote(t, s)
}

func quote(t reflect.Type, s string) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Uint32, reflect.Uint64, reflect.Float64:
		if t.PkgPath() == "" {
			return s
		}
	}
	if t.PkgPath() != "" && t.Kind() == reflect.Int64 || t == reflect.TypeFor[time.Time]() || regexp.MustCompile(`^[a-zA-Z/][a-zA-Z0-9_./-]*$`).MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}

// yamlWriter writes a reference file.
type yamlWriter struct {
	docs map[string]string
	b    strings.Builder
}

func newYAML(docs map[string]string) *yamlWriter { return &yamlWriter{docs: docs} }

func (w *yamlWriter) file(v reflect.Value) string {
	w.b.WriteString("# Generated from the comments in package config: do not edit.\n")
	w.section(v, "", false)
	return w.b.String()
}

func (w *yamlWriter) section(v reflect.Value, indent string, commented bool) {
	for _, k := range keys(w.docs, v) {
		if indent == "" {
			w.b.WriteString("\n")
		}
		for l := range strings.SplitSeq(k.name+" "+k.paragraph(), "\n") {
			w.b.WriteString(strings.TrimRight(indent+"# "+l, " ") + "\n")
		}
		inner, ok := k.section()
		switch {
		case k.name == "devvault": // goes with another cloud only
			w.b.WriteString(indent + "# " + k.name + ":\n")
			w.section(inner, indent+"  ", true)
		case ok && k.value.Kind() == reflect.Slice:
			w.b.WriteString(indent + k.name + ":\n" + indent + "  -\n")
			w.section(inner, indent+"    ", false)
		case ok:
			w.b.WriteString(indent + k.name + ":\n")
			w.section(inner, indent+"  ", false)
		default:
			text, unset := k.setting()
			mark := ""
			if unset || commented {
				mark = "# "
			}
			w.b.WriteString(indent + mark + k.name + ": " + text + "\n")
		}
	}
}

// manual writes docs/config.md.
func manual(docs map[string]string) string {
	var b strings.Builder
	b.WriteString(`<!-- Generated from the comments in package config: do not edit. -->

# Configuration

Three files. ` + "`config.yaml`" + ` names ` + "`tenants.yaml` and `policy.yaml`" + `. A change of config.yaml needs a restart. The other two
are read again when they change, on SIGHUP and by ` + "`keysidecar sidecar reload`" + `: they are checked together and take effect
together, and while there is a mistake in either, both stay as they were.

All files are strict: an unknown or repeated key, a value of another type, an anchor, an alias, a merge key, a tag, an empty
value, a second document are errors that name file, line and column. Text that looks like a number, a date or true/false has
to be in quotes. Relative paths are relative to the file that names them. Nothing in the environment and no flag overrides a
file. Secrets do not belong in the files, only paths to them.

Durations are written ` + "`250ms`, `1h30m`, `30d`" + `; sizes ` + "`512KiB`, `64MiB`" + `. ` +
		fmt.Sprintf("`config.yaml` is %s at most, `tenants.yaml` %s, `policy.yaml` %s.", config.Size(config.MaxConfigFile),
			config.Size(config.MaxTenantsFile), config.Size(config.MaxPolicyFile)) + `

` + "`keysidecar config check --against OLD`" + ` compares with the files of before. It refuses a KEK that is gone, renamed, in use
again after it was retired, or has another URL or algorithm, a tenant that lost a KEK which its data may be wrapped with,
and a rule with tenant IDs that no longer fit the URL template of a KEK; it warns of a tenant that is gone, suspended,
no longer allowed in the sidecar's region, or whose calls are no longer recorded one by one, and of an audit log that is off.

` + "`keysidecar config reference`" + ` prints all files with every key.

## config.yaml

`)
	writeManual(&b, docs, reflect.ValueOf(*config.Default()), "")
	b.WriteString("\n## tenants.yaml\n\n")
	writeManual(&b, docs, reflect.ValueOf(config.TenantsFile()), "")
	b.WriteString("\n## policy.yaml\n\n")
	writeManual(&b, docs, reflect.ValueOf(config.PolicyFile()), "")
	return b.String()
}

// writeManual writes the section's own keys first, then the sections in it.
func writeManual(b *strings.Builder, docs map[string]string, section reflect.Value, prefix string) {
	var sections []key
	for _, k := range keys(docs, section) {
		if _, ok := k.section(); ok {
			sections = append(sections, k)
			continue
		}
		fmt.Fprintf(b, "- **`%s%s`** %s\n", prefix, k.name, strings.ReplaceAll(k.paragraph(), "\n", "\n  "))
	}
	for _, k := range sections {
		fmt.Fprintf(b, "\n### `%s%s`\n\n`%s` %s\n\n", prefix, k.name, k.name, k.paragraph())
		inner, _ := k.section()
		name := prefix + k.name + "."
		if k.value.Kind() == reflect.Slice {
			name = prefix + k.name + "[]."
		}
		writeManual(b, docs, inner, name)
	}
}

func (k *key) paragraph() string {
	return strings.TrimSpace(k.doc + "\n" + strings.Join(k.facts, " "))
}

// section returns the struct that k holds, or holds a list of.
func (k *key) section() (reflect.Value, bool) {
	switch {
	case config.IsSection(k.value.Type()):
		return k.value, true
	case k.value.Kind() == reflect.Slice && config.IsSection(k.value.Type().Elem()):
		return reflect.Zero(k.value.Type().Elem()), true
	}
	return reflect.Value{}, false
}
