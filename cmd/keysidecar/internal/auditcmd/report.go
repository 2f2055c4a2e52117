package auditcmd

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
)

// text is a report for people: a paragraph for each log, then what is wrong, then
// what could not be checked. Nothing in it does anything to a terminal.
func text(r *verify.Report) string {
	var b strings.Builder
	for i := range r.Logs {
		logText(&b, &r.Logs[i])
	}
	findings(&b, "PROBLEM", r.Problems)
	if r.MoreProblems > 0 {
		fmt.Fprintf(&b, "PROBLEM  and %d more\n", r.MoreProblems)
	}
	findings(&b, "note", r.Notes)
	if !r.Verified() && len(r.Logs)+len(r.Problems) > 0 {
		advise(&b, r)
	}
	switch wrong := int64(len(r.Problems)) + r.MoreProblems; {
	case wrong > 0:
		fmt.Fprintf(&b, "NOT VERIFIED: %s in %s\n", number(wrong, "problem"), number(int64(len(r.Logs)), "log"))
	case !r.Verified():
		b.WriteString("NOT VERIFIED: there is nothing\n")
	case len(r.Notes) > 0:
		fmt.Fprintf(&b, "verified: %s, but for what the notes say\n", number(int64(len(r.Logs)), "log"))
	default:
		fmt.Fprintf(&b, "verified: %s\n", number(int64(len(r.Logs)), "log"))
	}
	return b.String()
}

func logText(b *strings.Builder, l *verify.LogReport) {
	fmt.Fprintf(b, "%s\n", shown(l.Log))
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "  "+name+"\t"+format+"\n", args...) }
	if l.Directory != "" {
		line("directory", "%s", shown(l.Directory))
	}
	line("records", "%d to %d, %s to %s", l.First, l.Last, instant(l.Begin), instant(l.End))
	line("program", "%s", shown(cmp.Or(l.Version, "unknown")))
	line("key", "%s", keyText(l))
	line("proved", "%s by checkpoints kept elsewhere, %s by its own", upTo(l.Outside), upTo(l.Signed))
	if l.Stopped {
		line("end", "stopped")
	} else {
		line("end", "open")
	}
	if l.Previous != "" {
		how := "not here"
		if l.PreviousLinked {
			how = "here, as this one saw it"
		}
		line("before", "%s, %s", shown(l.Previous), how)
	}
	if l.Next != "" {
		line("after", "%s, which has seen this one as it is here", shown(l.Next))
	}
	for _, u := range l.Unaccounted {
		line("unaccounted", "%s to %s: what happened then may not be recorded", instant(u.From), instant(u.To))
	}
	if l.Lost > 0 {
		line("lost", "%s, the log itself says", number(l.Lost, "record"))
	}
	for _, p := range l.Pruned {
		line("removed", "%s of class %s, of %s to %s", number(p.Count, "event"), shown(p.Class), instant(p.First), instant(p.Last))
	}
	_ = w.Flush() // to a strings.Builder
}

func keyText(l *verify.LogReport) string {
	var by []string
	if l.Trusted {
		by = append(by, "known")
	}
	if l.Certified != "" {
		by = append(by, "certified by a known signer, which calls itself "+shown(l.Certified))
	}
	switch {
	case l.Key == "":
		return "not here"
	case len(by) == 0:
		return "nobody else vouches for it: " + shown(l.Key)
	}
	return strings.Join(by, ", ") + ": " + shown(l.Key)
}

// upTo says which records a checkpoint of that size covers.
func upTo(size int64) string {
	if size == 0 {
		return "none"
	}
	return fmt.Sprintf("0 to %d", size-1)
}

// findings lists what was found, each with its place.
func findings(b *strings.Builder, title string, all []verify.Finding) {
	for len(all) > 0 {
		f, n := &all[0], alike(all)
		fmt.Fprintf(b, "%s  %s", title, shown(string(f.Kind)))
		if f.Log != "" {
			fmt.Fprintf(b, ", log %s", shown(f.Log))
		}
		switch {
		case f.From >= 0 && f.From == f.To:
			fmt.Fprintf(b, ", record %d", f.From)
		case f.From >= 0:
			fmt.Fprintf(b, ", records %d to %d", f.From, f.To)
		}
		if f.Source != "" {
			fmt.Fprintf(b, ", %s:%d", shown(f.Source), f.Line)
		}
		fmt.Fprintf(b, "\n    %s\n", shown(f.Text))
		if n > 1 {
			fmt.Fprintf(b, "    and %d more of this kind, up to record %d: --output json lists all\n", n-1, all[n-1].To)
		}
		all = all[n:]
	}
}

// mostAlike is how many findings of a kind that follow one another are listed.
const mostAlike = 3

// alike returns how many of the findings, which begin with the first, are told at
// once: one, unless many of one kind follow one another.
func alike(all []verify.Finding) int {
	n := 1
	for n < len(all) && all[n].Kind == all[0].Kind && all[n].Log == all[0].Log && all[0].From >= 0 {
		n++
	}
	if n <= mostAlike {
		return 1
	}
	return n
}

// provedRecord is what a proof proves.
type provedRecord struct {
	Log   string          `json:"log"`
	Seq   int64           `json:"seq"`
	Time  time.Time       `json:"time"`
	Class string          `json:"class"`
	Event json.RawMessage `json:"event,omitempty"`
}

// proved returns what the proof of a record proves.
func proved(r *record.Record) provedRecord {
	return provedRecord{Log: r.Log, Seq: r.Seq, Time: r.Time, Class: r.Class.String(), Event: r.Event}
}

// String returns the record for people.
func (r provedRecord) String() string {
	event := "(not in this proof: it was removed, or left out by whoever gave you the proof)"
	if r.Event != nil {
		event = shown(string(r.Event))
	}
	return fmt.Sprintf("proved: record %d of log %s\ntime    %s\nclass   %s\nevent   %s\n",
		r.Seq, shown(r.Log), r.Time.Format(time.RFC3339Nano), shown(r.Class), event)
}

// shown is s as a terminal may have it: quoted unless it is printable ASCII.
func shown(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

func instant(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// number is a number of things in words.
func number(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
