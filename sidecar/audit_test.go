package sidecar_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// A teller makes calls, under the name and with the proof that records have.
type teller struct {
	name, identity string
	pid            bool
	rpc            keysidecarv1.SealServiceClient
}

// who is how a record begins that is about a call.
func (c *teller) who() string {
	text := "caller=" + c.name + " identity=" + c.identity
	if c.pid {
		text += " pid=" + strconv.Itoa(os.Getpid())
	}
	return text
}

// A tally is what calls come to that are counted.
type tally struct {
	text         string
	count, bytes int
}

// A story is a run of a sidecar in which everything happens once, and what the
// log has to say about it.
type story struct {
	*node
	t        *testing.T
	site     *site
	operator *client.Admin
	// full are the tenants whose calls get a record each; "" is for others.
	full                map[string]bool
	me, batch, stranger *teller

	names    aliases
	want     []string
	requests []string // ids that callers got
	tallies  map[string]*tally
	sealed   map[string][]byte
}

func denials() []string {
	return []string{"PERMISSION_DENIED", "UNKNOWN_TENANT", "TENANT_SUSPENDED", "AUTHENTICATION_FAILED", "INVALID_TENANT", "RESIDENCY", "KEK_NOT_ALLOWED"}
}

func (s *story) expect(format string, args ...any) {
	s.want = append(s.want, fmt.Sprintf(format, args...))
}

// count expects a call among those that are counted.
func (s *story) count(c *teller, tenant, verb, result string, bytes int) {
	text := "caller=" + c.name
	if tenant != "" {
		text += " tenant=" + tenant
	}
	text += " verb=" + verb + " result=" + result
	if s.tallies[text] == nil {
		s.tallies[text] = &tally{text: text}
	}
	s.tallies[text].count++
	s.tallies[text].bytes += bytes
}

// called expects what is recorded of a call on data. rest is what is known of
// the keys.
func (s *story) called(c *teller, tenant, verb, result string, bytes int, rest string) {
	full, own := s.full[tenant]
	if !own {
		full = s.full[""]
	}
	text := c.who()
	if tenant != "" {
		text += " tenant=" + tenant
	}
	text += fmt.Sprintf(" verb=%s result=%s request bytes=%d%s", verb, result, bytes, rest)
	switch {
	case slices.Contains(denials(), result):
		s.expect("denials denied %s", text)
	case full:
		s.expect("data call %s", text)
	default:
		s.count(c, tenant, verb, result, bytes)
	}
}

// reason returns the reason of an answer, and keeps its request id.
func (s *story) reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			s.requests = append(s.requests, info.GetMetadata()["request_id"])
		}
	}
	return reasonOf(err)
}

func (s *story) keys(k *keysidecarv1.KeyInfo) string {
	return fmt.Sprintf(" dek=%s kek=%s kek_version=%s region=%s",
		s.names.name("dek", hex.EncodeToString(k.GetDekId())), k.GetKekRef(), s.names.name("v", k.GetKekVersion()), k.GetRegion())
}

// seal seals, and expects the records of that, and of a mint if there was one.
func (s *story) seal(c *teller, tenant, text, want string) {
	s.t.Helper()
	r, err := c.rpc.Seal(s.t.Context(), &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: []byte(text), EncryptionContext: pairs()})
	if got := s.reason(err); got != want {
		s.t.Fatalf("Seal for %s: %s, want %s", tenant, got, want)
	}
	keys := ""
	if err == nil {
		known := s.names["dek"+hex.EncodeToString(r.GetKeyInfo().GetDekId())] != ""
		keys = s.keys(r.GetKeyInfo())
		for _, step := range []string{"wrapped", "proved", "activated"} {
			if !known {
				s.expect("keys key tenant=%s%s step=%s", tenant, keys, step)
			}
		}
		s.sealed[tenant] = r.GetSealed()
	}
	s.called(c, tenant, "seal", want, len(text), keys+` context={"purpose":"test"}`)
}

// pairs are an encryption context, of which the log has one entry.
func pairs() map[string]string { return map[string]string{"purpose": "test", "row": "17"} }

// unseal unseals what was sealed last for the tenant.
func (s *story) unseal(c *teller, tenant, want string, cold bool) {
	s.t.Helper()
	r, err := c.rpc.Unseal(s.t.Context(), &keysidecarv1.UnsealRequest{
		Tenant: tenant, Sealed: s.sealed[tenant], EncryptionContext: pairs(),
	})
	if got := s.reason(err); got != want {
		s.t.Fatalf("Unseal for %s: %s, want %s", tenant, got, want)
	}
	keys := ""
	if block, _ := firstBlock(s.t, s.sealed[tenant]); want != "TENANT_SUSPENDED" { // else it is not looked at
		keys = " dek=" + s.names.name("dek", block.KeyID.String())
	}
	if err == nil {
		keys = s.keys(r.GetKeyInfo())
	}
	if cold {
		s.expect("keys key tenant=%s%s step=unwrapped", tenant, keys)
	}
	s.called(c, tenant, "unseal", want, len(s.sealed[tenant]), keys+` context={"purpose":"test"}`)
}

// did expects the record of an operator's call.
func (s *story) did(verb, tenant, result, did, detail string) {
	text := "keys admin " + s.me.who()
	for _, f := range []eventField{{"tenant", tenant}, {"verb", verb}, {"result", result}} {
		if f.value != "" {
			text += " " + f.key + "=" + f.value
		}
	}
	text += " request did=" + did
	if detail != "" {
		text += " detail=" + detail
	}
	s.want = append(s.want, text)
}

func (s *story) must(_ any, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// calls are what callers do.
func (s *story) calls() {
	for _, tenant := range []string{"plain", "counted", "listed"} {
		s.seal(s.me, tenant, "first of "+tenant, "OK")
		s.seal(s.me, tenant, "second", "OK")
		s.unseal(s.me, tenant, "OK", false)
	}
	for tenant, reason := range map[string]string{"listed": "MALFORMED_ENVELOPE", "plain": "UNSUPPORTED_FORMAT"} {
		good := s.sealed[tenant]
		s.damaged(tenant, reason)
		s.sealed[tenant] = good
	}
	s.seal(s.me, "nobody", "data", "UNKNOWN_TENANT")
	s.seal(s.me, "asleep", "data", "TENANT_SUSPENDED")
	s.seal(s.me, "elsewhere", "data", "RESIDENCY")
	s.wrongContext("listed")
	s.illFormed("sp ace\x1b[31m")
	s.seal(s.me, "slow", "data", "OK")
	s.seal(s.me, "slow", "data", "RATE_LIMITED")
	s.seal(s.batch, "plain", "data", "OK")
	s.seal(s.batch, "other", "data", "PERMISSION_DENIED")
	// At the gate nothing is known of the tenant.
	s.atGate(s.batch, "RATE_LIMITED")
	s.count(s.batch, "", "seal", "RATE_LIMITED", 0)
	s.atGate(s.stranger, "PERMISSION_DENIED")
	s.expect("denials denied %s verb=seal result=PERMISSION_DENIED request", s.stranger.who())
}

func (s *story) atGate(c *teller, want string) {
	s.t.Helper()
	_, err := c.rpc.Seal(s.t.Context(), &keysidecarv1.SealRequest{Tenant: "plain", Plaintext: []byte("data")})
	if got := s.reason(err); got != want {
		s.t.Errorf("Seal by %s: %s, want %s", c.name, got, want)
	}
}

// damaged unseals what no sidecar takes apart: of its DEK nothing is known.
func (s *story) damaged(tenant, want string) {
	s.t.Helper()
	data := slices.Clone(s.sealed[tenant])
	if data[0] = 'X'; want == "UNSUPPORTED_FORMAT" {
		data[0], data[3] = s.sealed[tenant][0], 0xff
	}
	_, err := s.me.rpc.Unseal(s.t.Context(), &keysidecarv1.UnsealRequest{Tenant: tenant, Sealed: data, EncryptionContext: pairs()})
	if got := s.reason(err); got != want {
		s.t.Errorf("Unseal of damaged data: %s, want %s", got, want)
	}
	s.called(s.me, tenant, "unseal", want, len(data), ` context={"purpose":"test"}`)
}

func (s *story) wrongContext(tenant string) {
	s.t.Helper()
	sealed := s.sealed[tenant]
	_, err := s.me.rpc.Unseal(s.t.Context(), &keysidecarv1.UnsealRequest{
		Tenant: tenant, Sealed: sealed, EncryptionContext: map[string]string{"row": "18"},
	})
	if got := s.reason(err); got != "AUTHENTICATION_FAILED" {
		s.t.Errorf("Unseal with another context: %s", got)
	}
	block, _ := firstBlock(s.t, sealed)
	s.called(s.me, tenant, "unseal", "AUTHENTICATION_FAILED", len(sealed), " dek="+s.names.name("dek", block.KeyID.String()))
}

// illFormed seals for what is no tenant ID: the log has no part of it.
func (s *story) illFormed(tenant string) {
	s.t.Helper()
	_, err := s.me.rpc.Seal(s.t.Context(), &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: []byte("data"), EncryptionContext: pairs()})
	if got := s.reason(err); got != "INVALID_TENANT" {
		s.t.Errorf("Seal for %q: %s", tenant, got)
	}
	sum := sha256.Sum256([]byte(tenant))
	s.called(s.me, "", "seal", "INVALID_TENANT", 4, fmt.Sprintf(" input_bytes=%d input_sha256=%x", len(tenant), sum[:8]))
}

// operations are what operators do.
func (s *story) operations() {
	s.must(s.operator.Evict(s.t.Context(), "listed"))
	s.did("admin.evict", "listed", "OK", "evict", "1 DEKs of listed wiped")
	s.unseal(s.me, "listed", "OK", true)

	s.must(s.operator.Suspend(s.t.Context(), "plain", "INC-1: a leak"))
	s.did("admin.suspend", "plain", "OK", "suspend", "INC-1: a leak")
	s.unseal(s.me, "plain", "TENANT_SUSPENDED", false)
	s.must(s.operator.Resume(s.t.Context(), "plain"))
	s.did("admin.suspend", "plain", "", "resume", "")
	s.unseal(s.me, "plain", "OK", true)

	s.must(s.operator.EvictAll(s.t.Context()))
	s.did("admin.evict", "", "OK", "evict", fmt.Sprintf("%d DEKs of every tenant wiped", 4))

	s.must(s.operator.Status(s.t.Context()))
	s.count(s.me, "", "admin.status", "OK", 0)
	all(s.t, s.operator)
	s.count(s.me, "", "admin.tenants", "OK", 0)

	_, err := s.operator.Policy(s.t.Context()) // for which there is no rule
	s.refused(err, "PERMISSION_DENIED", "verb=admin.policy")
	_, err = s.operator.Suspend(s.t.Context(), "other", "not mine")
	s.refused(err, "PERMISSION_DENIED", "tenant=other verb=admin.suspend")
	_, err = s.operator.Evict(s.t.Context(), "\x1b]0;title\x07")
	s.refused(err, "INVALID_TENANT", "verb=admin.evict")
	s.reloads()
}

// refused expects the record of an operator who was refused.
func (s *story) refused(err error, want, about string) {
	s.t.Helper()
	if got := client.ReasonOf(err); got != want {
		s.t.Errorf("operator got %s, want %s", got, want)
	}
	s.expect("denials denied %s %s result=%s request", s.me.who(), about, want)
}

// reloads has files read again by an operator, and without one.
func (s *story) reloads() {
	s.must(s.operator.Reload(s.t.Context()))
	s.did("admin.reload", "", "", "reload", "")
	s.expect("keys reload result=OK files")
	policy, err := os.ReadFile(filepath.Join(s.dir, "policy.yaml"))
	s.must(nil, err)
	s.put(s.t, "policy.yaml", "\x1b[2J")
	if _, err := s.Reload(s.t.Context()); err == nil {
		s.t.Error("a bad policy.yaml is taken")
	}
	s.expect("keys reload result=REFUSED detail files")
	s.put(s.t, "policy.yaml", string(policy))
	s.must(s.Reload(s.t.Context()))
	s.expect("keys reload result=OK files")
}

// rotation has a new KEK version follow one that is disabled.
func (s *story) rotation() {
	s.seal(s.me, "cold-1", "data", "OK")
	s.seal(s.me, "cold-2", "data", "OK")
	s.must(s.operator.Evict(s.t.Context(), "cold-1"))
	s.did("admin.evict", "cold-1", "OK", "evict", "1 DEKs of cold-1 wiped")
	block, _ := firstBlock(s.t, s.sealed["cold-1"])
	s.must(nil, s.site.SetEnabled("frozen", kekName, block.Parent.String(), false))
	disabled := s.names.name("v", block.Parent.String())
	s.expect("keys key result=disabled kek=frozen kek_version=%s region=west step=fenced", disabled)
	s.unseal(s.me, "cold-1", "KEK_DISABLED", false)
	s.site.createOctKEK(s.t, "frozen")
	// A vault wraps under what it does not unwrap. The DEK is nobody's.
	s.expect("keys key tenant=cold-1 dek=dek8 kek=frozen kek_version=%s region=west step=wrapped", disabled)
	s.seal(s.me, "cold-1", "data", "OK")
}

// rowsAtEnd expects the records of what was counted, and the log's end.
func (s *story) rowsAtEnd() {
	var texts []string
	for _, n := range s.tallies {
		bytes := ""
		if n.bytes > 0 {
			bytes = fmt.Sprintf(" bytes=%d", n.bytes)
		}
		texts = append(texts, fmt.Sprintf("data calls %s%s count=%d from to", n.text, bytes, n.count))
	}
	slices.SortFunc(texts, func(a, b string) int { return strings.Compare(rowOrder(a), rowOrder(b)) })
	s.want = append(s.want, texts...)
	s.expect("keys stop")
	s.expect("keys checkpoint from note")
}

// rowOrder is by caller, tenant, verb and result, the empty ones first.
func rowOrder(text string) string {
	order := map[string]string{}
	for word := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(word, "=")
		order[key] = value
	}
	return strings.Join([]string{order["caller"], order["tenant"], order["verb"], order["result"]}, "\x00")
}

// checkDetails is about the fields that text leaves out.
func (s *story) checkDetails(all []logged, before, after time.Time) {
	s.t.Helper()
	seen := make(map[string]bool)
	for _, l := range all {
		e := l.Event
		if (l.Class == 2 || e.Kind == "call" || e.Kind == "admin") == (e.Request == "") || seen[e.Request] && e.Request != "" {
			s.t.Errorf("request id of %s", l.raw)
		}
		seen[e.Request] = true
		if e.Kind == "calls" && (e.From.Before(before.Add(-time.Microsecond)) || e.To.Before(e.From) || e.To.After(after)) {
			s.t.Errorf("counted from %s to %s, the test ran from %s to %s", e.From, e.To, before, after)
		}
		if l.Time.Before(before.Add(-time.Microsecond)) || l.Time.After(after) {
			s.t.Errorf("record of %s, the test ran from %s to %s", l.Time, before, after)
		}
	}
	for _, id := range s.requests {
		if !seen[id] && !strings.Contains(s.log.String(), id) {
			s.t.Errorf("request %q is unknown", id)
		}
	}
	s.checkFiles(all)
}

// checkFiles wants the hashes of the files as they were, but for that of a
// private key.
func (s *story) checkFiles(all []logged) {
	s.t.Helper()
	want := make(map[string]string)
	for _, name := range []string{"config.yaml", "tenants.yaml", "policy.yaml", "tls.crt", "callers.pem"} {
		path := filepath.Join(s.dir, name)
		raw, err := os.ReadFile(path)
		s.must(nil, err)
		want[path] = fmt.Sprintf("%x", sha256.Sum256(raw))
	}
	for _, l := range all {
		if l.Kind != "start" && l.Kind != "reload" {
			continue
		}
		got := l.Files
		if l.Result == "REFUSED" {
			bad := filepath.Join(s.dir, "policy.yaml")
			if got[bad] != fmt.Sprintf("%x", sha256.Sum256([]byte("\x1b[2J"))) || !strings.Contains(l.Detail, "policy.yaml") {
				s.t.Errorf("refused file: %s", l.raw)
			}
			got[bad] = want[bad]
			for _, unread := range []string{"tls.crt", "callers.pem"} { // policy.yaml was refused before
				path := filepath.Join(s.dir, unread)
				if got[path] != "" {
					s.t.Errorf("hash of a file that was not read: %s", l.raw)
				}
				got[path] = want[path]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			s.t.Errorf("files of %s (-want +got):\n%s", l.Kind, diff)
		}
	}
}

// TestAuditOfEverything lets everything happen that a log is about, and wants
// exactly these records, in this order, whatever is recorded one by one: for
// all tenants, for some that say so, or the other way round. In a stream there
// is the same as in files.
func TestAuditOfEverything(t *testing.T) {
	for _, mode := range []struct{ name, data, sink string }{
		{"aggregate", "aggregate", "dir"}, {"full", "full", "dir"}, {"stdout", "aggregate", "stdout"},
	} {
		t.Run(mode.name, func(t *testing.T) {
			site, p := newSite(t), newPKI(t)
			set := storyFiles(t, site, p)
			keys := "context: [purpose], data: " + mode.data
			var path string
			var stream *journal
			if mode.sink == "dir" {
				path = set.auditTo(t, keys)
			} else {
				path, stream = "-", set.auditToStream(keys)
			}
			before := time.Now()
			s := newStory(t, site, p, set, mode.data == "full")
			s.want = []string{"keys start version=v1.2.3 key files"}
			s.calls()
			s.operations()
			s.rotation()
			s.end(t)
			s.rowsAtEnd()
			all := logFrom(t, stream.reader(), path)
			s.compare(all)
			s.checkDetails(all, before, time.Now())
			logs := verified(t, stream.reader(), verify.Config{}, path)
			last := int64(len(all) - 1)
			if len(logs) != 1 || !logs[0].Stopped || logs[0].Last != last || logs[0].Signed != last || len(logs[0].Unaccounted) > 0 {
				t.Errorf("audit verify says %+v", logs)
			}
		})
	}
}

// compare wants these records and no others.
func (s *story) compare(all []logged) {
	s.t.Helper()
	var got []string
	for i := range all {
		bare := []string{"request", "key", "from", "to", "note", "files"}
		if all[i].Kind == "reload" {
			bare = append(bare, "detail")
		}
		got = append(got, all[i].text(s.t, s.names, bare...))
	}
	if diff := cmp.Diff(strings.Join(s.want, "\n"), strings.Join(got, "\n")); diff != "" {
		s.t.Errorf("records (-want +got):\n%s", diff)
	}
}
