package azurekv

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/keysidecar/keysidecar/kek"
)

// maxRetryAfter bounds what a vault may ask us to wait.
const maxRetryAfter = time.Hour

// fault is what an answer says about a failure, less its text.
type fault struct {
	status     int
	outer      string // error.code
	code       string // the innermost code: error.innererror...code, else outer
	challenged bool   // carries a vetted challenge
	requestID  string
	retryAfter time.Duration
}

func newFault(resp *http.Response, now time.Time) fault {
	f := fault{
		status:     resp.StatusCode,
		challenged: resp.Header.Get("WWW-Authenticate") != "",
		requestID:  token(resp.Header.Get("x-ms-request-id"), maxWord),
		retryAfter: retryAfter(resp.Header, now),
	}
	if body, err := runtime.Payload(resp); err == nil {
		f.outer, f.code = errorCodes(body)
	}
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
	outer = token(top.Error.Code, maxWord)
	inner = outer
	for n, depth := top.Error, 0; depth < 8 && len(n.Inner) > 0; depth++ {
		var next node
		if json.Unmarshal(n.Inner, &next) != nil {
			break
		}
		if code := token(next.Code, maxWord); code != "" {
			inner = code
		}
		n = next
	}
	return outer, inner
}

const (
	// maxWord bounds a word of an answer that is quoted, such as an error code
	// or a request ID of 36: a DEK, which an answer may echo, has 43 in base64.
	maxWord = 40
	// maxHost bounds a host name that is quoted.
	maxHost = 64
)

// token returns s if it is fit for a log line and no longer than that, else "".
func token(s string, longest int) string {
	if len(s) > longest {
		return ""
	}
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) && !strings.ContainsRune("-_.", rune(c)) {
			return ""
		}
	}
	return s
}

// reason classifies an answer that is not a success. What is not recognisably
// Key Vault's own word is Unreachable: a proxy's page must not look like the
// key owner's decision.
func (f fault) reason(op string) kek.Reason {
	switch f.status {
	case http.StatusBadRequest:
		// Of a well-formed request, the wrapped bytes are what a vault can
		// find bad; of one without them, that the key cannot do it.
		if f.outer == "BadParameter" && op == opUnwrap {
			return kek.Rejected
		}
		if f.outer == "BadParameter" {
			return kek.Unusable
		}
	case http.StatusUnauthorized:
		if f.challenged || f.code != "" {
			return kek.Forbidden
		}
	case http.StatusForbidden:
		return f.forbidden()
	case http.StatusNotFound:
		if f.code == "KeyNotFound" {
			return kek.NotFound
		}
	case http.StatusTooManyRequests:
		return kek.Throttled
	}
	return kek.Unreachable
}

func (f fault) forbidden() kek.Reason {
	switch f.code {
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

// trace follows one call of a method through its HTTP requests.
type trace struct {
	vault, ref, op string

	mu       sync.Mutex
	attempts int         // guarded by mu
	last     fault       // guarded by mu; zero while a request is under way
	tokens   *tokenTrace // guarded by mu; nil while no token is waited for
}

type traceKey struct{}

func withTrace(ctx context.Context, op string, k kek.Key) (context.Context, *trace) {
	tr := &trace{vault: k.Vault, ref: k.Ref, op: op}
	return context.WithValue(ctx, traceKey{}, tr), tr
}

func (tr *trace) begin() (attempt int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.attempts++
	tr.last = fault{}
	return tr.attempts
}

func (tr *trace) end(f fault) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.last = f
}

func (tr *trace) lastFault() fault {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.last
}

// await says that the call waits for a token, or with nil that it no longer does.
func (tr *trace) await(tokens *tokenTrace) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.tokens = tokens
}

// ended returns why the call ended with its context, which ended with err.
func (tr *trace) ended(err error) error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.tokens == nil {
		return err
	}
	if problem := tr.tokens.lastAnswer().problem(); problem != nil {
		return fmt.Errorf("no token yet: %w: %w", problem, err)
	}
	return fmt.Errorf("no token yet: %w", err)
}

// recorder is a policy that runs on each try, after authentication.
type recorder struct{ v *Vaults }

// Do implements policy.Policy.
func (r recorder) Do(req *policy.Request) (*http.Response, error) {
	tr, ok := req.Raw().Context().Value(traceKey{}).(*trace)
	if !ok {
		return req.Next()
	}
	call := Call{Vault: tr.vault, Ref: tr.ref, Op: tr.op, Attempt: tr.begin()}
	start := time.Now()
	resp, err := req.Next()
	call.Duration = time.Since(start)
	if err == nil {
		call.Status = resp.StatusCode
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		f := newFault(resp, r.v.cfg.Now())
		call.Code = f.code
		tr.end(f)
	}
	r.v.cfg.Observe(call)
	return resp, err
}

// fail makes the error that a method returns, and drops what is remembered of
// a version that the vault refused.
func (v *Vaults) fail(ctx context.Context, tr *trace, k kek.Key, version kek.Version, err error) error {
	e := v.explain(ctx, tr, err)
	e.Op, e.Ref, e.Version, e.Vault = tr.op, k.Ref, version, k.Vault
	if e.Reason == kek.Disabled || e.Reason == kek.NotFound || e.Reason == kek.Unusable {
		v.forget(k, version)
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		v.cfg.Logger.WarnContext(ctx, "answer of a vault refused",
			slog.String("vault", k.Vault), slog.String("ref", k.Ref), slog.String("why", r.Error()))
	}
	return e
}

func (v *Vaults) explain(ctx context.Context, tr *trace, err error) *kek.Error {
	if e, ok := errors.AsType[*kek.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok && e.RawResponse != nil {
		return newFault(e.RawResponse, v.cfg.Now()).explain(tr.op)
	}
	if ctx.Err() != nil {
		// A deadline while the SDK waits to try again would hide the 429.
		f := tr.lastFault()
		if f.status != http.StatusTooManyRequests && f.status < 500 {
			f = fault{}
		}
		e := f.explain(tr.op)
		e.Err = tr.ended(ctx.Err())
		return e
	}
	e := &kek.Error{Reason: kek.Unreachable, Err: cause(err)}
	if t, ok := errors.AsType[*tokenError](err); ok && t.denied() != "" {
		e.Reason, e.Code, e.Err = kek.Forbidden, t.denied(), errors.New("Entra refuses the credential"+t.answer.details())
	}
	return e
}

func (f fault) explain(op string) *kek.Error {
	return &kek.Error{Reason: f.reason(op), Status: f.status, Code: f.code, RequestID: f.requestID, RetryAfter: f.retryAfter}
}

// reasonOf classifies an error on the way.
func reasonOf(op string, err error) kek.Reason {
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok && e.RawResponse != nil {
		return newFault(e.RawResponse, time.Time{}).reason(op)
	}
	return kek.ReasonOf(err)
}

// cause says in our own words what went wrong without an answer. The SDK's and
// net/http's texts quote URLs and bodies.
func cause(err error) error {
	if errors.Is(err, errPanic) {
		return errPanic
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if t, ok := errors.AsType[*tokenError](err); ok {
		return t.cause()
	}
	return networkCause("vault", err)
}

// networkCause is cause for a host, called name, that gave no answer.
func networkCause(name string, err error) error {
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("%s's host name does not resolve", name)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%s's certificate does not verify", name)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return fmt.Errorf("%s: %w", name, errno)
	}
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return fmt.Errorf("%s did not answer in time", name)
	}
	return fmt.Errorf("%s gave no valid answer", name)
}
