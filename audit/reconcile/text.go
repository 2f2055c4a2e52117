package reconcile

import (
	"fmt"
	"strings"
	"time"
)

// Text returns the report for people, in printable ASCII.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "audit logs   %s, logs: %d\nvault logs   %s\njudged       %s\n",
		spanText(r.Audit.Span), r.Audit.Total, spanText(r.Vault.Span), spanText(r.Judged))
	if r.Outside.Records+r.Outside.Uses > 0 {
		fmt.Fprintf(&b, "outside      %d records and %d uses of keys: not judged\n", r.Outside.Records, r.Outside.Uses)
	}
	b.WriteString("\n")
	for i := range r.Rows {
		rowText(&b, &r.Rows[i])
	}
	usesText(&b, "UNRECORDED", r.Unrecorded)
	usesText(&b, "UNDECIDED", r.Undecided)
	countsText(&b, r)
	notesText(&b, r)
	fmt.Fprintf(&b, "%s\n", r.verdictText())
	return b.String()
}

func spanText(s Span) string {
	if s.IsZero() {
		return "none"
	}
	return s.From.UTC().Format(time.RFC3339) + " to " + s.To.UTC().Format(time.RFC3339)
}

func rowText(b *strings.Builder, row *Row) {
	kek := "KEK " + row.KEK
	if row.KEK == "" {
		kek = "key without a name in the audit logs"
	}
	version := row.Version
	if version == "" {
		version = "not told"
	}
	fmt.Fprintf(b, "%s, version %s, %s: %d in both\n", kek, version, row.Operation, row.Both)
	for _, key := range row.Keys {
		fmt.Fprintf(b, "  %s\n", key)
	}
	if row.Unrecorded > 0 {
		fmt.Fprintf(b, "  %d UNRECORDED: in Key Vault's log only\n", row.Unrecorded)
	}
	if row.Undecided > 0 {
		fmt.Fprintf(b, "  %d undecided: in Key Vault's log only, near an end of the audit logs or outside of them\n", row.Undecided)
	}
	if row.Missing.Count > 0 {
		fmt.Fprintf(b, "  %d MISSING in Key Vault's log, %s\n", row.Missing.Count, spanText(row.Missing.Span))
	}
	if row.MissingAtEnd.Count > 0 {
		fmt.Fprintf(b, "  %d not yet in Key Vault's log, near an end of it, %s\n", row.MissingAtEnd.Count, spanText(row.MissingAtEnd.Span))
	}
}

// usesText lists uses without a record.
func usesText(b *strings.Builder, title string, uses []Unrecorded) {
	for i := range uses {
		u := &uses[i]
		fmt.Fprintf(b, "%s %s %s %s", title, u.Time.UTC().Format(time.RFC3339Nano), u.Operation, u.Key)
		if u.Version != "" {
			fmt.Fprintf(b, "/%s", u.Version)
		}
		fmt.Fprintf(b, " from %s, %s, request %s", orNone(u.IP), u.Who, orNone(u.Correlation))
		if u.Stranger {
			b.WriteString(" (not a sidecar's identity)")
		}
		if u.Unaccounted {
			b.WriteString(" (in an interval that a log calls unaccounted)")
		}
		b.WriteString("\n")
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// countsText lists what is only counted.
func countsText(b *strings.Builder, r *Report) {
	for _, f := range r.Failed {
		fmt.Fprintf(b, "failed       %d %s, %s, from %s, %s\n", f.Count, f.Operation, f.Status, orNone(f.IP), f.Who)
	}
	for _, k := range r.Management {
		fmt.Fprintf(b, "besides      %d %s of %s\n", k.Count, k.Operation, k.Key)
	}
	for _, k := range r.OtherKeys {
		fmt.Fprintf(b, "other key    %d %s of %s: no record names a version of it, not judged without --kek\n", k.Count, k.Operation, k.Key)
	}
}

// notesText tells what to bear in mind.
func notesText(b *strings.Builder, r *Report) {
	note := func(n int64, what string) {
		if n > 0 {
			fmt.Fprintf(b, "note         %s: %d\n", what, n)
		}
	}
	note(r.Audit.Pruned.Count, "records of keys removed by retention, whose uses look unrecorded, "+spanText(r.Audit.Pruned.Span))
	note(r.Audit.Lost, "records that the audit logs call lost")
	note(int64(len(r.Audit.Unaccounted)), "intervals that the audit logs call unaccounted, since a sidecar was killed")
	note(r.Audit.Duplicates, "records that were there twice, and count once")
	note(r.Vault.Duplicates, "uses that were there twice, and count once")
	note(r.Audit.Torn, "audit logs that end in half a line")
	for _, log := range r.Audit.Logs {
		fmt.Fprintf(b, "note         log %s ends without a stop at %s\n", log.Log, log.Last.UTC().Format(time.RFC3339))
	}
	if r.Audit.Short {
		b.WriteString("note         the audit logs do not cover all that is to be judged\n")
	}
	if r.Vault.Short {
		b.WriteString("note         the vault logs do not cover all that is to be judged\n")
	}
	note(r.Unreadable.Count, "lines that could not be read")
	for _, line := range r.Unreadable.First {
		fmt.Fprintf(b, "  %s\n", line)
	}
}

// verdictText says what it comes to, and what to do.
func (r *Report) verdictText() string {
	judged := " (judged: " + spanText(r.Judged) + ")"
	switch r.Verdict {
	case Match:
		return "match: every use of a KEK is recorded" + judged
	case Undecided:
		return "undecided: give more of the logs, or an earlier --to or a later --from" + judged
	case Nothing:
		if r.Judged.IsZero() {
			return "nothing to compare: the audit logs and the vault logs have no time in common"
		}
		return "nothing to compare: no record names a KEK; name the KEKs or their vaults with --kek"
	case Differ:
	}
	var what []string
	if n := len(r.Unrecorded); n > 0 {
		what = append(what, fmt.Sprintf("unrecorded uses of KEKs: %d", n))
	}
	missing := int64(0)
	for i := range r.Rows {
		missing += r.Rows[i].Missing.Count
	}
	if missing > 0 {
		what = append(what, fmt.Sprintf("records that Key Vault's log has no request for: %d", missing))
	}
	if r.Unreadable.Count > 0 {
		what = append(what, fmt.Sprintf("lines that could not be read: %d", r.Unreadable.Count))
	}
	return "differ: " + strings.Join(what, ", ") + judged
}
