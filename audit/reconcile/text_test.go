package reconcile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/audit/reconcile"
)

// TestText names in words what a report only counts.
func TestText(t *testing.T) {
	day := reconcile.Span{From: noon, To: noon.Add(time.Hour)}
	r := &reconcile.Report{
		Verdict: reconcile.Match,
		Audit: reconcile.AuditSide{
			Pruned: reconcile.Counted{Count: 1, Span: day}, Unaccounted: []reconcile.Span{day, day}, Lost: 3, Torn: 4,
			Logs: []reconcile.OpenLog{{Log: "keysidecar/a/b", Last: noon}},
		},
		Vault:      reconcile.VaultSide{Duplicates: 5},
		Rows:       []reconcile.Row{{KEK: "eu", Operation: "KeyWrap", MissingAtEnd: reconcile.Counted{Count: 6, Span: day}}},
		Unrecorded: []reconcile.Unrecorded{{Unaccounted: true}},
	}
	text := r.Text()
	for _, want := range []string{
		"note         records of keys removed by retention, whose uses look unrecorded, 2026-11-21T12:00:00Z to 2026-11-21T13:00:00Z: 1\n",
		"note         records that the audit logs call lost: 3\n", "unaccounted, since a sidecar was killed: 2\n",
		"note         uses that were there twice, and count once: 5\n", "note         audit logs that end in half a line: 4\n",
		"note         log keysidecar/a/b ends without a stop at 2026-11-21T12:00:00Z\n",
		"  6 not yet in Key Vault's log, near an end of it, 2026-11-21T12:00:00Z to 2026-11-21T13:00:00Z\n",
		"from none, nobody named, request none (in an interval that a log calls unaccounted)\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}
