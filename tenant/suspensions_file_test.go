package tenant_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/tenant"
)

const (
	recordA = `{"tenant":"a","by":"me","reason":"","at":"2026-01-02T03:04:05Z"}`
	recordB = `{"tenant":"b","by":"me","reason":"x","at":"2026-01-02T03:04:05.0012Z"}`
)

func file(records ...string) string {
	return `{"version":1,"suspensions":[` + strings.Join(records, ",") + `]}`
}

func TestOpenRefusesDamage(t *testing.T) {
	change := func(from, to string) string {
		out := strings.Replace(file(recordA), from, to, 1)
		if out == file(recordA) {
			t.Fatalf("no %q", from)
		}
		return out
	}
	for name, content := range map[string]string{
		"empty":                   "",
		"zeros":                   "\x00\x00\x00\x00",
		"cut":                     file(recordA)[:40],
		"null":                    "null",
		"object":                  "{}",
		"list":                    "[" + recordA + "]",
		"trailing data":           file(recordA) + "{}",
		"trailing byte":           file(recordA) + "x",
		"two documents":           file(recordA) + file(),
		"no version":              change(`"version":1,`, ""),
		"later version":           change(`"version":1`, `"version":2`),
		"version as text":         change(`"version":1`, `"version":"1"`),
		"version as a float":      change(`"version":1`, `"version":1.0`),
		"no list":                 `{"version":1}`,
		"null list":               `{"version":1,"suspensions":null}`,
		"unknown field":           change(`"version":1`, `"version":1,"x":1`),
		"unknown field inside":    change(`"by":"me"`, `"by":"me","until":""`),
		"two lists":               `{"version":1,"suspensions":[` + recordA + `],"suspensions":[]}`,
		"two tenants":             change(`"tenant":"a"`, `"tenant":"b","tenant":"a"`),
		"other case":              change(`"tenant"`, `"Tenant"`),
		"fields in another order": `{"suspensions":[` + recordA + `],"version":1}`,
		"no reason":               change(`"reason":"",`, ""),
		"null reason":             change(`"reason":""`, `"reason":null`),
		"null record":             file(recordA, "null"),
		"same tenant":             file(recordA, recordA),
		"same tenant otherwise":   file(recordA, strings.Replace(recordB, `"b"`, `"a"`, 1)),
		"out of order":            file(recordB, recordA),
		"bad tenant":              change(`"tenant":"a"`, `"tenant":"a b"`),
		"no tenant":               change(`"tenant":"a"`, `"tenant":""`),
		"escaped tenant":          change(`"tenant":"a"`, `"tenant":"\u0061"`),
		"no by":                   change(`"by":"me"`, `"by":""`),
		"long by":                 change(`"by":"me"`, `"by":"`+strings.Repeat("m", 257)+`"`),
		"long reason":             change(`"reason":""`, `"reason":"`+strings.Repeat("m", 257)+`"`),
		"escape in reason":        change(`"reason":""`, `"reason":"\u001b"`),
		"not UTF-8":               change(`"reason":""`, "\"reason\":\"\xff\""),
		"lone surrogate":          change(`"reason":""`, `"reason":"\ud800"`),
		"no time":                 change(`"at":"2026-01-02T03:04:05Z"`, `"at":""`),
		"time elsewhere":          change(`05Z"`, `05+01:00"`),
		"time of no zone's name":  change(`05Z"`, `05+00:00"`),
		"time with zeros":         change(`05Z"`, `05.10Z"`),
		"time with a comma":       change(`05Z"`, `05,1Z"`),
		"time of more than 1 ns":  change(`05Z"`, `05.0000000001Z"`),
		"early":                   change(`2026`, `1969`),
	} {
		t.Run(name, func(t *testing.T) {
			dir := stateDir(t)
			path := filepath.Join(dir, "suspensions.json")
			write(t, path, content)
			s, err := tenant.OpenSuspensions(dir)
			if err == nil || s != nil {
				t.Fatalf("OpenSuspensions = %v, %v", s.All(), err)
			}
			for _, want := range []string{path, "damaged", "restore or correct it"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if read(t, path) != content {
				t.Error("the file was changed")
			}
			write(t, path, file(recordA, recordB)) // and a refusal keeps no lock
			checkSuspended(t, openSuspensions(t, dir), "a", "b")
		})
	}
}

func TestDamageIsNamed(t *testing.T) {
	for content, want := range map[string]string{
		`{"version":2,"suspensions":[]}`:                  "version is 2, not 1",
		file(recordA, "{}"):                               `suspensions[1]: tenant ""`,
		file(recordB, recordA):                            "out of order",
		file(recordA)[:40]:                                "unexpected end of JSON",
		file(strings.Replace(recordA, `"me"`, `"\n"`, 1)): `suspensions[0]: by "\n" is not 1 to 256 bytes`,
	} {
		if all, err := tenant.DecodeSuspensions([]byte(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want ...%s...", content, all, err, want)
		}
	}
}

// TestOpenTakesWhiteSpace: a hand may take a tenant out of the file.
func TestOpenTakesWhiteSpace(t *testing.T) {
	dir := stateDir(t)
	write(t, filepath.Join(dir, "suspensions.json"), " \n"+strings.ReplaceAll(file(recordA), ",", "\t,\r\n "))
	checkSuspended(t, openSuspensions(t, dir), "a")
}

// many returns n suspensions, with remarks that double when they are written.
func many(t *testing.T, n, remark int) []tenant.Suspension {
	all := make([]tenant.Suspension, n)
	for i := range all {
		all[i] = suspension(t, fmt.Sprintf("c-%06d", i))
		all[i].At = all[i].At.UTC().Round(0)
		all[i].By, all[i].Reason = strings.Repeat(`"`, max(1, remark)), strings.Repeat(`"`, remark)
	}
	return all
}

func TestNoMoreThan100000Suspensions(t *testing.T) {
	dir := stateDir(t)
	path := filepath.Join(dir, "suspensions.json")
	all := many(t, 100_001, 0)
	write(t, path, file(recordA+strings.Repeat(","+recordA, 100_000)))
	if s, err := tenant.OpenSuspensions(dir); s != nil || err == nil || !strings.Contains(err.Error(), "100001 suspensions are over 100000") {
		t.Fatalf("OpenSuspensions: %v", err)
	}
	write(t, path, file(recordA))
	s := openSuspensions(t, dir)
	s.SetAll(all[:100_000])
	if err := s.Suspend(all[100_000]); err == nil || !strings.Contains(err.Error(), "over 100000") {
		t.Errorf("Suspend: %v", err)
	}
	s.SetAll(all[:99_999])
	if err := s.Suspend(all[99_999]); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(openSuspensions(t, dir).All()); n != 100_000 {
		t.Errorf("%d suspensions", n)
	}
}

// TestNoMoreThan64MiB: Suspend writes nothing that OpenSuspensions refuses.
func TestNoMoreThan64MiB(t *testing.T) {
	dir := stateDir(t)
	s := openSuspensions(t, dir)
	s.SetAll(many(t, 61_000, 256))
	if err := s.Suspend(suspension(t, "x")); err == nil || !strings.Contains(err.Error(), "67108864") {
		t.Errorf("Suspend: %v", err)
	}
	if _, ok := s.Get(mustParse(t, "x")); ok {
		t.Error("suspended without being kept")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"suspensions.json", "suspensions.lock"}, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	path := filepath.Join(dir, "suspensions.json")
	write(t, path, file(recordA))
	if err := os.Truncate(path, 64<<20+1); err != nil {
		t.Fatal(err)
	}
	if _, err := tenant.OpenSuspensions(dir); err == nil || !strings.Contains(err.Error(), path+" has 67108865 bytes, over") {
		t.Errorf("OpenSuspensions: %v", err)
	}
}

// FuzzSuspensions: what parses is written as it was, but for white space.
func FuzzSuspensions(f *testing.F) {
	for _, s := range []string{
		file(), file(recordA), file(recordA, recordB), string(tenant.EncodeSuspensions([]tenant.Suspension{suspension(f, "a:b.c_d-e")})),
		file(recordB, recordA), file(recordA) + " ", "{}", `{"version":1,"suspensions":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := tenant.DecodeSuspensions(raw)
		if err != nil {
			return
		}
		out := tenant.EncodeSuspensions(all)
		var want, got bytes.Buffer
		if err := json.Compact(&want, raw); err != nil {
			t.Fatalf("%q parses and is not JSON: %v", raw, err)
		}
		if err := json.Compact(&got, out); err != nil || got.String() != want.String() {
			t.Fatalf("%q is written as %q, %v", raw, out, err)
		}
		again, err := tenant.DecodeSuspensions(out)
		if err != nil {
			t.Fatalf("%q is written as %q: %v", raw, out, err)
		}
		if diff := cmp.Diff(all, again, cmp.Comparer(func(a, b tenant.Suspension) bool { return a == b })); diff != "" {
			t.Fatalf("%q changes (-first +second):\n%s", raw, diff)
		}
	})
}
