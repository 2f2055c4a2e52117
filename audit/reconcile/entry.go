package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Who is whom Key Vault says a request came from, as far as it says so.
type Who struct {
	// App and Object are the IDs of the application and of the user or service
	// principal, User is the user's name.
	App    string `json:"app,omitempty"`
	Object string `json:"object,omitempty"`
	User   string `json:"user,omitempty"`
}

// String returns who in a few words.
func (w Who) String() string {
	var parts []string
	for _, p := range []struct{ what, v string }{{"user", w.User}, {"app", w.App}, {"object", w.Object}} {
		if p.v != "" {
			parts = append(parts, p.what+" "+p.v)
		}
	}
	if len(parts) == 0 {
		return "nobody named"
	}
	return strings.Join(parts, ", ")
}

// is reports whether w has one of these IDs or names.
func (w Who) is(names map[string]bool) bool {
	return names[strings.ToLower(w.App)] || names[strings.ToLower(w.Object)] || names[strings.ToLower(w.User)]
}

// Entry is one request in a vault log. All texts are printable ASCII: other
// characters are escaped as in Go, and what is over 200 bytes is cut.
type Entry struct {
	// Time is when Key Vault says that it was.
	Time time.Time
	// Operation is Key Vault's name of it, such as KeyUnwrap. Those that use a key
	// are written so, in whatever case the log has them.
	Operation string
	// OK says that it succeeded; of what does not use a key, only that nothing says
	// it failed. Status is the HTTP status, or what is there instead.
	OK     bool
	Status string
	// Key is the key's URL without version, in lower case; Version is 32
	// hex digits in lower case. Either is empty if the entry does not say.
	Key, Version string
	// IP is where it came from, Who whose token it had.
	IP  string
	Who Who
	// Correlation is the request id that Key Vault answered with.
	Correlation string
}

// ParseVaultLog reads a vault log and calls each with its entries, and with an
// error, which names the line, where something is none; it goes on after that.
// Objects that are of other categories or services are left out. It returns what
// each returned, or the error of in. Memory is bounded whatever in holds.
func ParseVaultLog(in io.Reader, each func(*Entry, error) error) error {
	s := newSplitter(in)
	for {
		text, line, err := s.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var e *Entry
		bad, isBad := errors.AsType[*unreadable](err)
		switch {
		case isBad:
			err = each(nil, bad)
		case err != nil:
			return err
		default:
			if e, err = parseEntry(text); err != nil {
				err = each(nil, &unreadable{line, err.Error()})
			} else if e != nil {
				err = each(e, nil)
			}
		}
		if err != nil {
			return err
		}
	}
}

// text is a JSON value that may be text or a number. Another is as if missing.
type text string

// UnmarshalJSON takes any value.
func (t *text) UnmarshalJSON(data []byte) error {
	*t = ""
	switch data[0] {
	case '"':
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*t = text(s)
	case '{', '[', 'n':
	default:
		*t = text(data)
	}
	return nil
}

// first returns the first that is not empty.
func first(all ...text) string {
	for _, t := range all {
		if t != "" {
			return string(t)
		}
	}
	return ""
}

// rawEntry has the fields of all variants. encoding/json compares names without
// regard to case.
type rawEntry struct {
	Time            text            `json:"time"`
	TimeGenerated   text            `json:"TimeGenerated"`
	Category        text            `json:"category"`
	Provider        text            `json:"ResourceProvider"`
	Operation       text            `json:"operationName"`
	ResultType      text            `json:"resultType"`
	ResultSignature text            `json:"resultSignature"`
	CallerIP        text            `json:"callerIpAddress"`
	Correlation     text            `json:"correlationId"`
	Identity        json.RawMessage `json:"identity"`
	Properties      json.RawMessage `json:"properties"`
	requested
	// AzureDiagnostics has a column for each claim and each property.
	StatusD    text `json:"httpStatusCode_d"`
	IDS        text `json:"id_s"`
	RequestS   text `json:"requestUri_s"`
	ClaimApp   text `json:"identity_claim_appid_g"`
	ClaimAppS  text `json:"identity_claim_appid_s"`
	ClaimOID   text `json:"identity_claim_oid_g"`
	ClaimOIDL  text `json:"identity_claim_http_schemas_microsoft_com_identity_claims_objectidentifier_g"`
	ClaimUPN   text `json:"identity_claim_upn_s"`
	ClaimUPNL  text `json:"identity_claim_http_schemas_xmlsoap_org_ws_2005_05_identity_claims_upn_s"`
	ClaimNameS text `json:"identity_claim_unique_name_s"`
}

// requested are fields that a resource log has in its properties, and
// AZKVAuditLogs beside the others.
type requested struct {
	Status  text `json:"httpStatusCode"`
	ID      text `json:"id"`
	Request text `json:"requestUri"`
}

// claims are those of a token that name somebody.
type claims struct {
	App     text `json:"appid"`
	OID     text `json:"oid"`
	OIDLong text `json:"http://schemas.microsoft.com/identity/claims/objectidentifier"`
	UPN     text `json:"upn"`
	UPNLong text `json:"http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn"`
	Name    text `json:"unique_name"`
}

// object decodes an object, or one that is JSON in a string. If it is neither,
// v stays as it is.
func object(raw json.RawMessage, v any) {
	var quoted string
	if json.Unmarshal(raw, &quoted) == nil {
		raw = json.RawMessage(quoted)
	}
	_ = json.Unmarshal(raw, v) // then it says nothing
}

// parseEntry returns nil for what is not an AuditEvent.
func parseEntry(data []byte) (*Entry, error) {
	var raw rawEntry
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, errors.New("not JSON")
	}
	if raw.Category != "" && !strings.EqualFold(string(raw.Category), "AuditEvent") ||
		raw.Provider != "" && !strings.EqualFold(string(raw.Provider), "MICROSOFT.KEYVAULT") {
		return nil, nil //nolint:nilnil // it is of something else, which is no error
	}
	var properties requested
	object(raw.Properties, &properties)
	at, err := time.Parse(time.RFC3339Nano, first(raw.Time, raw.TimeGenerated))
	if err != nil || at.Year() < 2000 || at.Year() > 2200 {
		return nil, errors.New("it has no time, as RFC 3339 writes it")
	}
	if raw.Operation == "" {
		return nil, errors.New("it has no operationName")
	}
	e := &Entry{
		Time: at.UTC(), Operation: operationName(string(raw.Operation)), IP: clean(string(raw.CallerIP)),
		Correlation: clean(string(raw.Correlation)), Who: raw.who(),
	}
	if err := e.setResult(&raw, first(raw.Status, raw.StatusD, properties.Status)); err != nil {
		return nil, err
	}
	e.setKey(first(raw.ID, raw.IDS, properties.ID), first(raw.Request, raw.RequestS, properties.Request))
	if e.OK && isUse(e.Operation) && e.Key == "" {
		return nil, fmt.Errorf("it is a %s, and does not name a key", e.Operation)
	}
	return e, nil
}

// who returns whom the claims name.
func (raw *rawEntry) who() Who {
	var identity struct {
		Claim claims `json:"claim"`
	}
	object(raw.Identity, &identity)
	c := identity.Claim
	return Who{
		App:    clean(first(c.App, raw.ClaimApp, raw.ClaimAppS)),
		Object: clean(first(c.OID, c.OIDLong, raw.ClaimOID, raw.ClaimOIDL)),
		User:   clean(first(c.UPN, c.UPNLong, c.Name, raw.ClaimUPN, raw.ClaimUPNL, raw.ClaimNameS)),
	}
}

// setResult says whether the request succeeded. The HTTP status is the best
// witness: see the package's comment.
func (e *Entry) setResult(raw *rawEntry, status string) error {
	if n, err := strconv.ParseFloat(status, 64); err == nil && n >= 0 && n < 1000 {
		status = strconv.Itoa(int(n))
	}
	if ok, known := outcome(status); known {
		e.OK, e.Status = ok, status
		return nil
	}
	e.Status = clean(first(raw.ResultSignature, raw.ResultType))
	for _, s := range []text{raw.ResultSignature, raw.ResultType} {
		if ok, known := outcome(string(s)); known {
			e.OK = ok
			return nil
		}
	}
	switch {
	case e.Status == "" && status == "":
		return errors.New("it says neither a status nor a result")
	case isUse(e.Operation):
		return fmt.Errorf("it is a %s with result %q, which says neither that it was done nor that it failed",
			e.Operation, first(text(e.Status), text(clean(status))))
	}
	e.OK = true
	return nil
}

// outcome returns what a result says: an HTTP status, its text, or one of Azure
// Monitor's words. It is not known if it could mean either.
func outcome(result string) (ok, known bool) {
	if n, err := strconv.Atoi(result); err == nil {
		return n >= 200 && n < 300, n >= 200 && n < 300 || n >= 400 && n < 600
	}
	result = strings.ReplaceAll(result, " ", "")
	for _, word := range []string{"OK", "Success", "Succeeded"} {
		if strings.EqualFold(result, word) {
			return true, true
		}
	}
	for _, word := range []string{"Failure", "Failed"} {
		if strings.EqualFold(result, word) {
			return false, true
		}
	}
	for code := 400; code < 600; code++ {
		if s := http.StatusText(code); s != "" && strings.EqualFold(result, strings.ReplaceAll(s, " ", "")) {
			return false, true
		}
	}
	return false, false
}

// setKey takes the key from its URL, and the version from the request's if the
// first has none.
func (e *Entry) setKey(id, request string) {
	e.Key, e.Version = ParseKeyURL(id)
	key, version := ParseKeyURL(request)
	if e.Key == "" {
		e.Key = key
	}
	if e.Version == "" && e.Key == key {
		e.Version = version
	}
}

// ParseKeyURL takes apart https://HOST/keys/NAME/VERSION, whatever comes after
// it: the URL without version, and the version, both in lower case. Either is
// empty if it is not there, or is not as Key Vault writes it.
func ParseKeyURL(s string) (key, version string) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return "", ""
	}
	path := strings.Split(strings.ToLower(strings.TrimPrefix(u.Path, "/")), "/")
	host := strings.ToLower(u.Hostname())
	if len(path) < 2 || path[0] != "keys" || !consists(path[1], 127, keyName) || !consists(host, 253, hostName) {
		return "", ""
	}
	key = "https://" + host + "/keys/" + path[1]
	if len(path) > 2 && len(path[2]) == 32 && consists(path[2], 32, "0123456789abcdef") {
		version = path[2]
	}
	return key, version
}

const (
	keyName  = "abcdefghijklmnopqrstuvwxyz0123456789-"
	hostName = keyName + "."
)

// consists reports whether s is 1 to most of these characters.
func consists(s string, most int, of string) bool {
	return s != "" && len(s) <= most && strings.Trim(s, of) == ""
}

// maxText is how much of a text of a vault log is kept, in bytes.
const maxText = 200

// clean makes a text that others chose harmless to a terminal and to memory.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			q := strconv.QuoteToASCII(s)
			return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
		}
	}
	return s
}
