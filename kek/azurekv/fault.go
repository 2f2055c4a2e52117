package azurekv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv/answer"
)

// newFault reads what an answer says about a failure.
func newFault(resp *http.Response, now time.Time) answer.Fault {
	body, err := runtime.Payload(resp)
	if err != nil {
		body = nil
	}
	return answer.NewFault(resp.StatusCode, resp.Header, body, now)
}

// trace follows one call of a method through its HTTP requests.
type trace struct {
	vault, ref, op string

	mu       sync.Mutex
	attempts int          // guarded by mu
	last     answer.Fault // guarded by mu; zero while a request is under way
	tokens   *tokenTrace  // guarded by mu; nil while no token is waited for
}

type traceKey struct{}

func withTrace(ctx context.Context, op string, k kek.Key) (context.Context, *trace) {
	tr := &trace{vault: k.Vault, ref: k.Ref, op: op}
	return context.WithValue(ctx, traceKey{}, tr), tr
}

// opOf returns what a request of that HTTP method is for.
func (tr *trace) opOf(method string) string {
	if tr.op == kek.OpSign && method == http.MethodGet {
		return opGet
	}
	return tr.op
}

func (tr *trace) begin() (attempt int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.attempts++
	tr.last = answer.Fault{}
	return tr.attempts
}

func (tr *trace) end(f answer.Fault) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.last = f
}

func (tr *trace) lastFault() answer.Fault {
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
	call := Call{Vault: tr.vault, Ref: tr.ref, Op: tr.opOf(req.Raw().Method), Attempt: tr.begin()}
	start := time.Now()
	resp, err := req.Next()
	call.Duration = time.Since(start)
	if err == nil {
		call.Status = resp.StatusCode
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		f := newFault(resp, r.v.cfg.Now())
		call.Code = f.Code
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
		return tr.explain(newFault(e.RawResponse, v.cfg.Now()))
	}
	if ctx.Err() != nil {
		// A deadline while the SDK waits to try again would hide the 429.
		f := tr.lastFault()
		if f.Status != http.StatusTooManyRequests && f.Status < 500 {
			f = answer.Fault{}
		}
		e := tr.explain(f)
		e.Err = tr.ended(ctx.Err())
		return e
	}
	e := &kek.Error{Reason: kek.Unreachable, Err: cause(err)}
	if t, ok := errors.AsType[*tokenError](err); ok && t.denied() != "" {
		e.Reason, e.Code, e.Err = kek.Forbidden, t.denied(), errors.New("Entra refuses the credential"+t.answer.details())
	}
	return e
}

func (tr *trace) explain(f answer.Fault) *kek.Error {
	return &kek.Error{
		Reason: f.Reason(tr.op == opUnwrap), Status: f.Status, Code: f.Code, RequestID: f.RequestID, RetryAfter: f.RetryAfter,
	}
}

// reasonOf classifies an error on the way to the newest version.
func reasonOf(err error) kek.Reason {
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok && e.RawResponse != nil {
		return newFault(e.RawResponse, time.Time{}).Reason(false)
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
