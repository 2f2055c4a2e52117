package export

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keysidecar/keysidecar/audit/record"
)

// timeLayout is how a log writes times.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// printer writes records in a format.
type printer struct {
	format Format
	w      io.Writer
	csv    *csv.Writer
	row    []string
	line   []byte
}

// newPrinter returns a printer that has written what comes before all records.
func newPrinter(format Format, w io.Writer) *printer {
	p := &printer{format: format, w: w, csv: csv.NewWriter(w)}
	p.csv.UseCRLF = true // RFC 4180
	if format == CSV {
		p.row = append(p.row, "log", "seq", "time", "class")
		fields(&record.Event{}, func(name, _ string) { p.row = append(p.row, name) })
		_ = p.csv.Write(p.row) // flush has the error
	}
	return p
}

func (p *printer) flush() error {
	p.csv.Flush()
	return p.csv.Error()
}

// record writes a record whose event is intact.
func (p *printer) record(r *record.Record, e *record.Event) error {
	switch p.format {
	case CSV:
		return p.cells(r, e)
	case Text:
		return p.text(r, e)
	case JSONL:
	}
	h := r.Header
	if r.Pruned() {
		p.line = h.AppendPruned(p.line[:0])
	} else {
		p.line, _ = record.Append(p.line[:0], &h, r.Event)
	}
	_, err := p.w.Write(p.line)
	return err
}

func (p *printer) cells(r *record.Record, e *record.Event) error {
	p.row = append(p.row[:0], cell(r.Log), strconv.FormatInt(r.Seq, 10), r.Time.Format(timeLayout), r.Class.String())
	fields(e, func(name, value string) {
		if name != "context" && name != "files" { // objects, which are JSON already
			value = strings.ReplaceAll(value, `\`, `\\`)
		}
		p.row = append(p.row, cell(value))
	})
	return p.csv.Write(p.row)
}

// text writes a line for people.
func (p *printer) text(r *record.Record, e *record.Event) error {
	p.line = r.Time.AppendFormat(p.line[:0], timeLayout)
	p.line = fmt.Appendf(p.line, " %d ", r.Seq)
	if r.Pruned() {
		p.line = fmt.Appendf(p.line, "(event of class %s, removed)", r.Class)
	}
	fields(e, p.pair)
	_, err := p.w.Write(append(p.line, '\n'))
	return err
}

// maxPair is how much of a value a line for people has, in bytes.
const maxPair = 100

// pair appends a field to a line for people.
func (p *printer) pair(name, value string) {
	switch {
	case value == "" || name == "frontier":
		return
	case name == "kind":
		p.line = append(p.line, word(value)...)
		return
	case name == "note":
		name, value = noteInShort(value)
	case name == "certificate":
		if signer, ok := record.SignerOf(value); ok {
			value = signer
		}
	}
	p.line = append(append(append(p.line, ' '), name...), '=')
	p.line = append(p.line, word(value)...)
}

// noteInShort returns what a signed note is about: the size of a checkpoint, or who
// signed a certificate.
func noteInShort(value string) (name, short string) {
	if c, err := record.ParseCheckpoint(value); err == nil {
		return "size", strconv.FormatInt(c.Size, 10)
	}
	if signer, ok := record.SignerOf(value); ok {
		return "signer", signer
	}
	return "note", value
}

// word is a value of a line for people, quoted if it could be read as something
// else.
func word(s string) string {
	if len(s) > maxPair {
		s = strings.ToValidUTF8(s[:maxPair], "") + "..."
	}
	if printable(s) && !strings.ContainsAny(s, ` "=\`) {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// cell is a value of a CSV file, its backslashes doubled. What spreadsheets take
// for a formula gets an apostrophe, and what is not printable is escaped as in
// JSON. So is a semicolon: where it is the list separator, a spreadsheet would
// begin a cell after it.
func cell(s string) string {
	first, _ := utf8.DecodeRuneInString(s)
	formula := s != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠", first)
	if strings.ContainsFunc(s, isEscaped) {
		s = escape(s)
	}
	if formula {
		return "'" + s
	}
	return s
}

func isEscaped(c rune) bool { return c == ';' || !unicode.IsPrint(c) }

// escape escapes what isEscaped says.
func escape(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '\n':
			b.WriteString(`\n`)
		case !isEscaped(c):
			b.WriteRune(c)
		case c > 0xffff:
			c -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+c>>10, 0xdc00+c&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, c)
		}
	}
	return b.String()
}

// fields calls each with the fields of an event, in the order in which a log has
// them, by the names that it has for them. One that is zero is empty.
func fields(e *record.Event, each func(name, value string)) {
	each("kind", string(e.Kind))
	each("caller", e.Caller)
	each("identity", e.Identity)
	each("pid", number(int64(e.PID)))
	each("tenant", e.Tenant)
	each("verb", e.Verb)
	each("result", e.Result)
	each("request", e.Request)
	each("bytes", number(e.Bytes))
	each("dek", e.DEK)
	each("kek", e.KEK)
	each("kek_version", e.KEKVersion)
	each("region", e.Region)
	each("step", e.Step)
	each("context", object(e.Context))
	each("input_bytes", number(e.InputBytes))
	each("input_sha256", e.InputSHA256)
	each("count", number(e.Count))
	each("from", instant(e.From))
	each("to", instant(e.To))
	each("did", e.Did)
	each("detail", e.Detail)
	each("version", e.Version)
	each("key", e.Key)
	each("files", object(e.Files))
	each("previous_log", e.Log)
	each("previous_size", number(e.Size))
	each("previous_root", e.Root)
	each("frontier", strings.Join(e.Frontier, " "))
	each("note", e.Note)
	each("certificate", e.Certificate)
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

func object(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	text, _ := json.Marshal(m) // strings always marshal
	return string(text)
}
