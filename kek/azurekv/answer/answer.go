// Package answer takes Key Vault's answers apart: what they say of a failure,
// and the public keys they name.
package answer

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/kek"
)

// maxRetryAfter bounds what a vault may ask us to wait.
const maxRetryAfter = time.Hour

// MaxWord bounds a word of an answer that is quoted, such as an error code or
// a request ID of 36: a DEK, which an answer may echo, has 43 in base64.
const MaxWord = 40

// Fault is what an answer says about a failure, less its text. The zero Fault
// is no answer.
type Fault struct {
	// Status is the HTTP status.
	Status int
	// Code is the innermost error code, error.innererror...code, else
	// error.code; empty if there is none that is fit for a log line.
	Code string
	// RequestID is the x-ms-request-id; empty if it is not fit for a log line.
	RequestID string
	// RetryAfter is how long the vault asks to wait, an hour at most; zero if
	// it does not.
	RetryAfter time.Duration

	outer      string // error.code
	challenged bool   // carries a vetted challenge
}

// NewFault reads an answer that came at now. Its challenge must be vetted.
func NewFault(status int, header http.Header, body []byte, now time.Time) Fault {
	f := Fault{
		Status:     status,
		RequestID:  Word(header.Get("x-ms-request-id"), MaxWord),
		RetryAfter: retryAfter(header, now),
		challenged: header.Get("WWW-Authenticate") != "",
	}
	f.outer, f.Code = errorCodes(body)
	return f
}

// errorCodes returns the outer and the innermost code of Key Vault's error
// JSON, empty if body is something else. The SDK reads only the outer one.
func errorCodes(body []byte) (outer, inner string) {
	type node struct {
		Code  string          `json:"code"`
		Inner json.RawMessage `json:"innererror"`
	}
	var top struct {
		Error node `json:"error"`
	}
	if json.Unmarshal(body, &top) != nil {
		return "", ""
	}
	outer = Word(top.Error.Code, MaxWord)
	inner = outer
	for n, depth := top.Error, 0; depth < 8 && len(n.Inner) > 0; depth++ {
		var next node
		if json.Unmarshal(n.Inner, &next) != nil {
			break
		}
		if code := Word(next.Code, MaxWord); code != "" {
			inner = code
		}
		n = next
	}
	return outer, inner
}

const wordBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

// Word returns s if it is fit for a log line and no longer than that, else "".
func Word(s string, longest int) string {
	if len(s) > longest || strings.Trim(s, wordBytes) != "" {
		return ""
	}
	return s
}

// Reason classifies an answer that is not a success. What is not recognisably
// Key Vault's own word is Unreachable: a proxy's page must not look like the
// key owner's decision. wrapped says that the request held wrapped bytes.
func (f Fault) Reason(wrapped bool) kek.Reason {
	switch f.Status {
	case http.StatusBadRequest:
		// Of a well-formed request, the wrapped bytes are what a vault can
		// find bad; of one without them, that the key cannot do it.
		if f.outer == "BadParameter" && wrapped {
			return kek.Rejected
		}
		if f.outer == "BadParameter" {
			return kek.Unusable
		}
	case http.StatusUnauthorized:
		if f.challenged || f.Code != "" {
			return kek.Forbidden
		}
	case http.StatusForbidden:
		return f.forbidden()
	case http.StatusNotFound:
		if f.Code == "KeyNotFound" {
			return kek.NotFound
		}
	case http.StatusTooManyRequests:
		return kek.Throttled
	}
	return kek.Unreachable
}

func (f Fault) forbidden() kek.Reason {
	switch f.Code {
	case "KeyDisabled", "KeyExpired", "KeyNotYetValid":
		return kek.Disabled
	case "KeyOperationForbidden":
		return kek.Unusable
	case "", "ForbiddenByFirewall", "ForbiddenByConnection":
		return kek.Unreachable
	}
	return kek.Forbidden
}

// retryAfter reads how long to wait, in the SDK's order of headers; zero if
// none says so.
func retryAfter(h http.Header, now time.Time) time.Duration {
	for _, header := range []struct {
		name string
		unit time.Duration
	}{
		{"retry-after-ms", time.Millisecond},
		{"x-ms-retry-after-ms", time.Millisecond},
		{"Retry-After", time.Second},
	} {
		value := h.Get(header.name)
		if n, err := strconv.ParseUint(value, 10, 32); err == nil && n > 0 {
			return min(time.Duration(n)*header.unit, maxRetryAfter)
		}
		if at, err := http.ParseTime(value); err == nil && header.unit == time.Second && at.After(now) {
			return min(at.Sub(now), maxRetryAfter)
		}
	}
	return 0
}
