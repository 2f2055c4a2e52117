package reconcile_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keysidecar/keysidecar/audit/reconcile"
)

// parse returns the entries of a vault log, and what is wrong with the rest.
func parse(t *testing.T, log string) (entries []reconcile.Entry, bad []string) {
	t.Helper()
	err := reconcile.ParseVaultLog(strings.NewReader(log), func(e *reconcile.Entry, err error) error {
		if err != nil {
			bad = append(bad, err.Error())
			return nil
		}
		entries = append(entries, *e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries, bad
}

// TestVariants reads the same three requests in each variant.
func TestVariants(t *testing.T) {
	const key = "https://contoso-kek.vault.azure.net/keys/tenants-eu"
	const version = "4c39bacace9a49b2bd542ce61bd6f312"
	who := reconcile.Who{App: "6f0e4e1c-91a5-4c0b-9c5e-6a6d3d3f2b11", Object: "0b6f1a52-64a4-4d4e-8f0e-2f9a0c9b7d10"}
	user := reconcile.Who{App: "04b07795-8ddb-461a-bbee-02f9e1bf7b46", Object: "9d1b2c3e-0000-4a5b-8c7d-1e2f3a4b5c6d", User: "mallory@contoso.example"}
	want := []reconcile.Entry{
		{
			Time: time.Date(2026, 11, 21, 9, 6, 13, 871927500, time.UTC), Operation: "KeyWrap", OK: true, Status: "200", Key: key,
			Version: version, IP: "203.0.113.7", Who: who, Correlation: "1e00f8e4-d4c8-46fe-ba9b-3863dde1ff54",
		},
		{
			Time: time.Date(2026, 11, 21, 9, 6, 14, 1000000, time.UTC), Operation: "KeyUnwrap", OK: true, Status: "200", Key: key,
			Version: version, IP: "198.51.100.23", Who: user, Correlation: "a6e326e5-cb0e-4f40-8bdf-f2645578c240",
		},
		{
			Time: time.Date(2026, 11, 21, 9, 6, 15, 0, time.UTC), Operation: "KeyUnwrap", Status: "403", Key: key,
			Version: version, IP: "198.51.100.23", Who: user, Correlation: "c0ffee00-cb0e-4f40-8bdf-f2645578c240",
		},
	}
	for _, file := range []string{"lines.json", "records.json", "azkvauditlogs.json", "azurediagnostics.json", "cli.json"} {
		t.Run(file, func(t *testing.T) {
			log, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			got, bad := parse(t, string(log))
			if diff := cmp.Diff(want, got); diff != "" || bad != nil {
				t.Errorf("entries differ (-want +got):\n%s\nunreadable: %q", diff, bad)
			}
		})
	}
}

const good = `{"time":"2026-11-21T09:00:00Z","category":"AuditEvent","operationName":"KeyGet","resultSignature":"OK","correlationId":"%s"}`

func line(id string) string { return fmt.Sprintf(good, id) }

// TestUnreadable keeps what is around broken pieces, and says where they are.
func TestUnreadable(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	long := `{"a":"` + strings.Repeat("x", 300<<10) + `"}`
	for name, tt := range map[string]struct {
		log  string
		want string // correlation ids
		bad  []string
	}{
		"empty":              {"", "", nil},
		"blank lines":        {"\n\r\n" + line("a") + "\r\n\n" + line("b"), "ab", nil},
		"byte order mark":    {"\ufeff" + line("a"), "a", nil},
		"array":              {"[" + line("a") + ",\n" + line("b") + "]\n", "ab", nil},
		"wrapper":            {`{ "records" : [` + line("a") + "," + line("b") + "]}\n" + `{"records":[` + line("c") + "]}", "abc", nil},
		"several lines":      {strings.ReplaceAll(line("a"), ",", ",\n  ") + "\n" + strings.ReplaceAll(line("b"), `":`, "\":\n"), "ab", nil},
		"csv":                {"TimeGenerated [UTC],OperationName\n11/21/2026,KeyWrap\n", "", []string{"line 1: not JSON", "line 2: not JSON"}},
		"garbage between":    {line("a") + "\n%%%\n" + line("b"), "ab", []string{"line 2: not JSON"}},
		"cut in a string":    {`{"time":"2026-1` + "\n" + line("b"), "b", []string{"line 1: an entry that is cut off"}},
		"cut after a comma":  {`{"time":"2026-11-21T09:00:00Z",` + "\n" + line("b"), "b", []string{"line 1: an entry that is cut off"}},
		"cut after a colon":  {line("a") + "\n" + `{"properties":` + "\n" + line("b"), "ab", []string{"line 2: an entry that is cut off"}},
		"cut at the end":     {line("a") + "\n" + `{"time":`, "a", []string{"line 2: the file ends inside an entry"}},
		"list cut":           {"[" + line("a") + ",", "a", []string{"line 1: the file ends inside a list: it is not whole"}},
		"wrapper cut":        {`{"records":[` + line("a") + "]", "a", []string{"line 1: the file ends inside a list: it is not whole"}},
		"closed too often":   {line("a") + "]\n" + line("b"), "ab", []string{"line 1: not JSON"}},
		"brackets crossed":   {`{"a":[1}]` + "\n" + line("b"), "b", []string{"line 1: brackets that do not match"}},
		"nested deep":        {deep + "\n" + line("b"), "b", []string{"line 1: nested too deep"}},
		"lists in lists":     {strings.Repeat("[", 100) + "\n" + line("b"), "b", []string{"line 1: nested too deep"}},
		"too long":           {long + "\n" + line("b"), "b", []string{"line 1: an entry of over 262144 bytes"}},
		"no JSON in braces":  {"{time}\n" + line("b"), "b", []string{"line 1: not JSON"}},
		"no time":            {`{"operationName":"KeyGet","resultType":"Success"}`, "", []string{"line 1: it has no time, as RFC 3339 writes it"}},
		"time without zone":  {strings.Replace(line("a"), "00Z", "00", 1), "", []string{"line 1: it has no time, as RFC 3339 writes it"}},
		"no operation":       {strings.Replace(line("a"), "KeyGet", "", 1), "", []string{"line 1: it has no operationName"}},
		"no result":          {strings.Replace(line("a"), `"OK"`, "null", 1), "", []string{"line 1: it says neither a status nor a result"}},
		"use without a key":  {strings.Replace(line("a"), "KeyGet", "KeyUnwrap", 1), "", []string{"line 1: it is a KeyUnwrap, and does not name a key"}},
		"of a policy":        {strings.Replace(line("a"), "AuditEvent", "AzurePolicyEvaluationDetails", 1) + line("b"), "b", nil},
		"of another service": {`{"ResourceProvider":"MICROSOFT.SQL","TimeGenerated":"x"}` + line("b"), "b", nil},
	} {
		t.Run(name, func(t *testing.T) {
			entries, bad := parse(t, tt.log)
			var got strings.Builder
			for _, e := range entries {
				got.WriteString(e.Correlation)
			}
			if got.String() != tt.want {
				t.Errorf("entries are %q, not %q", got.String(), tt.want)
			}
			if diff := cmp.Diff(tt.bad, bad); diff != "" {
				t.Errorf("unreadable lines differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResult(t *testing.T) {
	for _, tt := range []struct {
		fields string
		ok     bool
		status string
	}{
		{`"resultType":"Success","resultSignature":"Bad Request","properties":{"httpStatusCode":400}`, false, "400"},
		{`"resultType":"Success","resultSignature":"OK","properties":{"httpStatusCode":200}`, true, "200"},
		{`"resultType":"Success","resultSignature":"Forbidden"`, false, "Forbidden"},
		{`"resultType":"Success","resultSignature":"OK"`, true, "OK"},
		{`"resultSignature":"204"`, true, "204"},
		{`"resultType":"Success"`, true, "Success"},
		{`"resultType":"Failed"`, false, "Failed"},
		{`"httpStatusCode_d":429.0`, false, "429"},
		{`"httpStatusCode_d":"200.0"`, true, "200"},
		{`"HttpStatusCode":"201"`, true, "201"},
		{`"HttpStatusCode":0,"ResultType":"Success"`, true, "Success"},
		{`"HttpStatusCode":"NaN","ResultType":"x"`, true, "x"},
		{`"HttpStatusCode":302,"ResultType":"Failure"`, false, "Failure"},
		{`"resultType":"Success","resultSignature":"?"`, true, "?"},
		{`"resultSignature":"too many requests"`, false, "too many requests"},
		{`"resultSignature":"NotFound"`, false, "NotFound"},
	} {
		entries, bad := parse(t, `{"time":"2026-11-21T09:00:00Z","operationName":"KeyGet",`+tt.fields+`}`)
		if len(entries) != 1 || entries[0].OK != tt.ok || entries[0].Status != tt.status {
			t.Errorf("%s: %+v %q, not %v %q", tt.fields, entries, bad, tt.ok, tt.status)
		}
	}
}

// TestUnknownResult: a use that may have succeeded is neither left out nor said to
// have failed.
func TestUnknownResult(t *testing.T) {
	for fields, want := range map[string]string{
		`"operationName":"KeyUnwrap","resultType":"Completed"`:              `a KeyUnwrap with result "Completed", which says neither`,
		`"operationName":"keysign","resultSignature":"?"`:                   `a KeySign with result "?", which says neither`,
		`"operationName":"KeyWrap","httpStatusCode":302`:                    `a KeyWrap with result "302", which says neither`,
		`"operationName":"KeyWrap","httpStatusCode":1e300,"resultType":"x"`: `a KeyWrap with result "x", which says neither`,
		`"operationName":"KeyWrap","resultSignature":"a\u001bb"`:            `a KeyWrap with result "a\\x1bb", which says neither`,
	} {
		entries, bad := parse(t, `{"time":"2026-11-21T09:00:00Z","id":"https://v/keys/k",`+fields+`}`)
		if len(entries) != 0 || len(bad) != 1 || !strings.Contains(bad[0], want) {
			t.Errorf("%s: %+v, %q", fields, entries, bad)
		}
	}
}

// TestOperationNames: how a log writes an operation does not hide it.
func TestOperationNames(t *testing.T) {
	for name, want := range map[string]string{
		"keyunwrap": "KeyUnwrap", "KEYWRAP": "KeyWrap", " KeySign\t": "KeySign", "keydecrypt": "KeyDecrypt", "keyget": "keyget",
	} {
		entries, bad := parse(t, fmt.Sprintf(`{"time":"2026-11-21T09:00:00Z","operationName":%q,"httpStatusCode":200,"id":"https://v/keys/k"}`, name))
		if len(entries) != 1 || entries[0].Operation != want {
			t.Errorf("%q: %+v, %q", name, entries, bad)
		}
	}
}

func TestParseKeyURL(t *testing.T) {
	const v = "0123456789abcdef0123456789abcdef"
	for url, want := range map[string][2]string{
		"https://Vault.vault.azure.net/keys/KEK/" + strings.ToUpper(v):               {"https://vault.vault.azure.net/keys/kek", v},
		"https://v.vault.azure.net:443/keys/kek/" + v + "/unwrapkey?api-version=7.6": {"https://v.vault.azure.net/keys/kek", v},
		"https://h.managedhsm.azure.net/keys/kek":                                    {"https://h.managedhsm.azure.net/keys/kek", ""},
		"https://v/keys/kek/wrapkey":                                                 {"https://v/keys/kek", ""},
		"https://v/keys/kek/" + v + "0":                                              {"https://v/keys/kek", ""},
		"https://v/secrets/kek/" + v:                                                 {"", ""},
		"http://v/keys/kek/" + v:                                                     {"", ""},
		"https://v/keys/":                                                            {"", ""},
		"https://v/keys/a%1b%5b2Jb/" + v:                                             {"", ""},
		"https://v\u202e/keys/kek/" + v:                                              {"", ""},
		"://":                                                                        {"", ""},
		"":                                                                           {"", ""},
	} {
		if key, version := reconcile.ParseKeyURL(url); key != want[0] || version != want[1] {
			t.Errorf("%q is %q, %q, not %q", url, key, version, want)
		}
	}
}

// TestKeyOfRequest takes from the request what the id does not say.
func TestKeyOfRequest(t *testing.T) {
	const v = "0123456789abcdef0123456789abcdef"
	for fields, want := range map[string][2]string{
		`"id":"","requestUri":"https://v/keys/k/` + v + `/sign"`:                             {"https://v/keys/k", v},
		`"id":"https://v/keys/k","requestUri":"https://v/keys/K/` + v + `/sign"`:             {"https://v/keys/k", v},
		`"id":"https://v/keys/other","requestUri":"https://v/keys/k/` + v + `/sign"`:         {"https://v/keys/other", ""},
		`"id":"https://v/keys/k/` + v + `","requestUri":"https://v/keys/k/sign?api-version"`: {"https://v/keys/k", v},
	} {
		entries, _ := parse(t, `{"time":"2026-11-21T09:00:00Z","operationName":"KeySign","resultSignature":"OK","properties":{`+fields+`}}`)
		if len(entries) != 1 || entries[0].Key != want[0] || entries[0].Version != want[1] {
			t.Errorf("%s: %+v, not %q", fields, entries, want)
		}
	}
}

// TestControlCharacters: what others choose does nothing to a terminal.
func TestControlCharacters(t *testing.T) {
	entries, _ := parse(t, `{"time":"2026-11-21T09:00:00Z","operationName":"Key\u001b[2J\u202eGet","resultSignature":"OK",`+
		`"callerIpAddress":"1.2.3.4\r\n`+"\u009b"+`","correlationId":"`+strings.Repeat("é", 300)+`","identity":{"claim":{"upn":"m\u00fcller\"\u0007@x"}}}`)
	if len(entries) != 1 {
		t.Fatalf("%d entries", len(entries))
	}
	e := entries[0]
	if want := (reconcile.Who{User: `m\u00fcller"\a@x`}); e.Who != want || e.Operation != `Key\x1b[2J\u202eGet` || e.IP != `1.2.3.4\r\n\u009b` {
		t.Errorf("texts are %+v", e)
	}
	for _, s := range []string{e.Operation, e.IP, e.Correlation, e.Who.User} {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) || len(s) > 1000 {
			t.Errorf("%q has other characters, or is too long", s)
		}
	}
}

func TestReadError(t *testing.T) {
	broken := errors.New("the disk")
	for cut := range len(line("a")) + 2 {
		in := io.MultiReader(strings.NewReader((line("a") + "\n" + line("b"))[:cut]), iotest.ErrReader(broken))
		err := reconcile.ParseVaultLog(in, func(*reconcile.Entry, error) error { return nil })
		if !errors.Is(err, broken) {
			t.Fatalf("after %d bytes: %v", cut, err)
		}
	}
	stop := errors.New("enough")
	for _, log := range []string{line("a"), "garbage"} {
		err := reconcile.ParseVaultLog(strings.NewReader(log), func(*reconcile.Entry, error) error { return stop })
		if !errors.Is(err, stop) {
			t.Errorf("%s: %v", log, err)
		}
	}
}

func FuzzParseVaultLog(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		seed, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Add([]byte("[" + line("a") + ",\n" + line("b") + "]\n{\"records\":[{}]}"))
	f.Fuzz(func(t *testing.T, log []byte) {
		var found int
		err := reconcile.ParseVaultLog(bytes.NewReader(log), func(e *reconcile.Entry, err error) error {
			if found++; (e == nil) == (err == nil) {
				t.Fatalf("entry %v and error %v", e, err)
			}
			if e == nil {
				return nil
			}
			for _, s := range []string{e.Operation, e.Status, e.Key, e.Version, e.IP, e.Correlation, e.Who.String()} {
				if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) || len(s) > 8000 {
					t.Fatalf("text %q", s)
				}
			}
			if e.Version != "" && len(e.Version) != 32 || e.Time.IsZero() || e.Operation == "" {
				t.Fatalf("entry %+v", e)
			}
			return nil
		})
		if err != nil || found > len(log) {
			t.Fatalf("%d found in %d bytes, error %v", found, len(log), err)
		}
		// What stands on lines after it is found, whatever came before, unless it
		// was inside something that is still open.
		after := append(append([]byte(nil), log...), "\n"+line("marker")+"\n"+line("marker")+"\n"+line("marker")+"\n"...)
		seen, bad := 0, 0
		_ = reconcile.ParseVaultLog(bytes.NewReader(after), func(e *reconcile.Entry, err error) error {
			if err != nil {
				bad++
			} else if e.Correlation == "marker" {
				seen++
			}
			return nil
		})
		if seen < 3 && bad == 0 {
			t.Fatalf("%d of 3 entries found, and nothing said", seen)
		}
	})
}
