package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/audit/reconcile"
	"github.com/keysidecar/keysidecar/audit/record"
)

const (
	reconciledVersion = "0123456789abcdef0123456789abcdef"
	reconciledKey     = "https://kek.vault.azure.net/keys/tenants"
)

// reconciledDay is the day of which aDay writes.
var reconciledDay = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

// aDay returns the audit log of a day with one unwrapped key at each of these
// times of it, and one that ends with the day.
func aDay(unwrapped ...time.Duration) string {
	h := record.Header{Log: "keysidecar/test/1", Class: record.Keys}
	var lines []byte
	add := func(at time.Duration, e record.Event) {
		h.Time = reconciledDay.Add(at)
		lines, _ = record.Append(lines, &h, e.Append(nil))
		h.Seq++
	}
	add(0, record.Event{Kind: record.Start})
	for _, at := range unwrapped {
		add(at, record.Event{Kind: record.KeyStep, Step: "unwrapped", KEK: "eu", KEKVersion: reconciledVersion})
	}
	add(24*time.Hour, record.Event{Kind: record.Stop})
	return string(lines)
}

// asked returns the entry of a vault log.
func asked(at time.Duration, operation, who string, status int) string {
	return fmt.Sprintf(`{"time":%q,"category":"AuditEvent","operationName":%q,"resultType":"Success","callerIpAddress":"10.1.2.3",`+
		`"correlationId":"id-%d","identity":{"claim":{"upn":"%s"}},"properties":{"id":"%s/%s","httpStatusCode":%d}}`+"\n",
		reconciledDay.Add(at).Format(time.RFC3339), operation, at/time.Minute, who, reconciledKey, reconciledVersion, status)
}

// vaultDay returns the vault log of a day in which the key was looked at twice.
func vaultDay(entries ...string) string {
	return asked(0, "KeyGet", "ops", 200) + strings.Join(entries, "") + asked(24*time.Hour, "KeyGet", "ops", 200)
}

func TestReconcile(t *testing.T) {
	const hour = time.Hour
	audit := saved(t, aDay(8*hour, 9*hour))
	ours := asked(8*hour, "KeyUnwrap", "us", 200) + asked(9*hour, "KeyUnwrap", "us", 200)
	theirs := asked(8*hour+30*time.Minute, "KeyUnwrap", `m\u202ex\u001b[2J`, 200)
	for name, tt := range map[string]struct {
		args  []string
		vault string
		code  int
		want  []string
	}{
		"match": {nil, vaultDay(ours), exitDone, []string{
			"judged       2026-11-21T00:00:00Z to 2026-11-22T00:00:00Z\n",
			"KEK eu, version " + reconciledVersion + ", KeyUnwrap: 2 in both\n  " + reconciledKey + "\n",
			"besides      2 KeyGet of " + reconciledKey + "\n", "\nmatch: every use of a KEK is recorded (judged: 2026-11-21T00:00:00Z to 2026-11-22T00:00:00Z)\n",
		}},
		"unrecorded": {nil, vaultDay(ours, theirs), exitPermanent, []string{
			"  1 UNRECORDED: in Key Vault's log only\n",
			"UNRECORDED 2026-11-21T08:30:00Z KeyUnwrap " + reconciledKey + "/" + reconciledVersion +
				` from 10.1.2.3, user m\u202ex\x1b[2J, request id-510` + "\n",
			"\ndiffer: unrecorded uses of KEKs: 1 (judged: 2026-11-21T00:00:00Z to 2026-11-22T00:00:00Z)\n",
		}},
		"stranger": {[]string{"--identity", "US"}, vaultDay(asked(8*hour, "KeyUnwrap", "them", 200), ours[strings.Index(ours, "\n")+1:]),
			exitPermanent, []string{
				"request id-480 (not a sidecar's identity)\n",
				"  1 MISSING in Key Vault's log, 2026-11-21T08:00:00Z to 2026-11-21T08:00:00Z\n",
				"\ndiffer: unrecorded uses of KEKs: 1, records that Key Vault's log has no request for: 1 (judged: ",
			}},
		"undecided": {nil, vaultDay(ours, asked(24*hour-time.Minute, "KeyUnwrap", "us", 200)), exitTryAgain, []string{
			"  1 undecided: in Key Vault's log only, near an end of the audit logs or outside of them\n", "\nUNDECIDED 2026-11-21T23:59:00Z ",
			"\nundecided: give more of the logs, or an earlier --to or a later --from (judged: ",
		}},
		"after the audit logs": {[]string{"--identity", "us"}, vaultDay(ours, asked(25*hour, "KeyUnwrap", "us", 200)), exitTryAgain, []string{
			"\nUNDECIDED 2026-11-22T01:00:00Z ",
		}},
		"stranger after the audit logs": {[]string{"--identity", "us"}, vaultDay(ours, asked(25*hour, "KeyUnwrap", "them", 200)),
			exitPermanent, []string{"\nUNRECORDED 2026-11-22T01:00:00Z "}},
		"logs that end before": {[]string{"--to", "2026-11-22T01:00:00Z"}, vaultDay(ours), exitTryAgain, []string{
			"note         the audit logs do not cover all that is to be judged\n",
			"\nundecided: give more of the logs, or an earlier --to or a later --from (judged: 2026-11-21T00:00:00Z to 2026-11-22T00:00:00Z)\n",
		}},
		"unknown result": {nil, vaultDay(ours, strings.ReplaceAll(asked(hour, "keyunwrap", "them", 302), "Success", "Done")), exitPermanent, []string{
			`it is a KeyUnwrap with result "Done", which says neither`,
		}},
		"narrower tolerance": {[]string{"--tolerance", "10s"}, vaultDay(ours, asked(24*hour-time.Minute, "KeyUnwrap", "us", 200)),
			exitPermanent, []string{"\nUNRECORDED 2026-11-21T23:59:00Z "}},
		"judged part": {[]string{"--from", "2026-11-21T08:45:00Z", "--to", "2026-11-21T10:00:00Z"}, vaultDay(ours, theirs), exitDone, []string{
			"judged       2026-11-21T08:45:00Z to 2026-11-21T10:00:00Z\noutside      1 records and 2 uses of keys: not judged\n",
		}},
		"failures": {nil, vaultDay(ours, asked(hour, "KeyUnwrap", "them", 429)), exitDone, []string{
			"failed       1 KeyUnwrap, 429, from 10.1.2.3, user them\n",
		}},
		"unreadable": {nil, vaultDay(ours) + "time,\x1b[2J\n", exitPermanent, []string{
			"note         lines that could not be read: 1\n", ":5: not JSON\n", "\ndiffer: lines that could not be read: 1 (judged: ",
		}},
		"another key": {nil, vaultDay(ours, strings.Replace(theirs, reconciledKey+"/"+reconciledVersion, "https://v/keys/k", 1)), exitDone,
			[]string{"other key    1 KeyUnwrap of https://v/keys/k: no record names a version of it, not judged without --kek\n"}},
		"another key, named": {
			[]string{"--kek", "https://v"},
			vaultDay(ours, strings.Replace(theirs, reconciledKey+"/"+reconciledVersion, "https://v/keys/k", 1)), exitPermanent,
			[]string{"key without a name in the audit logs, version not told, KeyUnwrap: 0 in both\n", "UNRECORDED 2026-11-21T08:30:00Z KeyUnwrap https://v/keys/k from"},
		},
		"no time in common": {nil, asked(48*hour, "KeyUnwrap", "us", 200), exitPermanent, []string{
			"judged       none\n", "\nnothing to compare: the audit logs and the vault logs have no time in common\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"audit", "reconcile", audit, "--vault-log", saved(t, tt.vault)}, tt.args...)
			got := runWith(t, nil, args...)
			for _, want := range tt.want {
				got.want(t, tt.code, want, "")
			}
			asJSON := runWith(t, nil, append(args, "--output", "json")...)
			asJSON.want(t, tt.code, `{"verdict":"`, "")
			var report reconcile.Report
			if err := json.Unmarshal([]byte(asJSON.out), &report); err != nil || report.Rows == nil || report.Unrecorded == nil {
				t.Errorf("%v of %s", err, asJSON.out)
			}
		})
	}
}

// TestReconcileInputs reads either side from standard input, and several files.
func TestReconcileInputs(t *testing.T) {
	audit, vault := aDay(time.Hour), vaultDay(asked(time.Hour, "KeyUnwrap", "us", 200))
	first, second, _ := strings.Cut(vault, "\n")
	a, v := saved(t, audit), saved(t, vault)
	runWith(t, strings.NewReader(audit), "audit", "reconcile", "-", "--vault-log", v).want(t, exitDone, "\nmatch: ", "")
	runWith(t, strings.NewReader(vault), "audit", "reconcile", a, "--vault-log", "-").want(t, exitDone, "\nmatch: ", "")
	runWith(t, nil, "audit", "reconcile", a, a, "--vault-log", saved(t, first), "--vault-log", filepath.Dir(saved(t, second))).
		want(t, exitDone, "note         records that were there twice, and count once: 1\n", "")
	runWith(t, nil, "audit", "reconcile", a, "--vault-log", filepath.Join(t.TempDir(), "none")).
		want(t, exitPermanent, "", "reading a vault log: ")
	runWith(t, nil, "audit", "reconcile", filepath.Join(t.TempDir(), "none"), "--vault-log", v).
		want(t, exitPermanent, "", "reading an audit log: ")
	runWith(t, nil, "audit", "reconcile", saved(t), "--vault-log", v).want(t, exitPermanent, "have no time in common\n", "")
	runWith(t, nil, "audit", "reconcile", saved(t, aDay()), "--vault-log", v).
		want(t, exitPermanent, "no record names a KEK; name the KEKs or their vaults with --kek\n", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	in, w := io.Pipe()
	defer w.Close()
	if code := run(ctx, []string{"audit", "reconcile", a, "--vault-log", "-"}, stdio{in, io.Discard, io.Discard}); code != exitTryAgain {
		t.Errorf("interrupted: exit code %d", code)
	}
}

func TestReconcileUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"PATH is missing":                        {"--vault-log", "v"},
		"--vault-log is missing":                 {"a"},
		"only one of PATH and --vault-log can":   {"-", "--vault-log", "-"},
		"can be standard input twice":            {"a", "--vault-log", "-", "--vault-log", "-"},
		"--tolerance is 0s, not more than zero":  {"a", "--vault-log", "v", "--tolerance", "0s"},
		"tolerance is 48h0m0s, not between":      {"a", "--vault-log", "v", "--tolerance", "48h"},
		"--from: time \"noon\"":                  {"a", "--vault-log", "v", "--from", "noon"},
		"--to: time \"noon\"":                    {"a", "--vault-log", "v", "--to", "noon"},
		"there is no time from 2026-11-22":       {"a", "--vault-log", "v", "--from", "2026-11-22T00:00:00Z", "--to", "2026-11-21T00:00:00Z"},
		"an identity is empty":                   {"a", "--vault-log", "v", "--identity", ""},
		"key \"v\" is not like https://HOST or ": {"a", "--vault-log", "v", "--kek", "v"},
	} {
		t.Run(want, func(t *testing.T) {
			runWith(t, nil, append([]string{"audit", "reconcile"}, args...)...).want(t, exitUsage, "", strings.TrimSuffix(want, " twice"))
		})
	}
}
