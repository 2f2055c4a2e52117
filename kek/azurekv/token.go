package azurekv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/keysidecar/keysidecar/kek/azurekv/answer"
)

const (
	// maxEntraCodes bounds the numbers of Entra's errors that are quoted.
	maxEntraCodes = 4
	// maxHost bounds a host name that is quoted.
	maxHost = 64
)

// patientCredential asks for tokens under its own deadline. The SDK asks once
// for all callers that wait, on the first one's context: without this, an
// impatient caller makes the others start over. A panic becomes an error: the
// SDK would leave the others waiting for ever.
type patientCredential struct{ azcore.TokenCredential }

// GetToken implements azcore.TokenCredential.
func (c patientCredential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (t azcore.AccessToken, err error) {
	tokens := &tokenTrace{}
	if tr, ok := ctx.Value(traceKey{}).(*trace); ok {
		tr.await(tokens)
		defer tr.await(nil)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenTimeout)
	defer cancel()
	defer func() {
		if recover() != nil {
			t, err = azcore.AccessToken{}, errPanic
		}
	}()
	t, err = c.TokenCredential.GetToken(context.WithValue(ctx, tokenTraceKey{}, tokens), o)
	if err != nil {
		err = newTokenError(tokens.lastAnswer(), err)
	}
	return t, err
}

// tokenError tells a failure of the credential from one of the vault.
type tokenError struct {
	error

	answer tokenAnswer
}

func (e *tokenError) Unwrap() error { return e.error }

func newTokenError(last tokenAnswer, err error) *tokenError {
	if last == (tokenAnswer{}) {
		if e, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok && e.RawResponse != nil {
			last = newTokenAnswer(e.RawResponse)
		}
	}
	return &tokenError{error: err, answer: last}
}

// denied returns the OAuth error (RFC 6749, 5.2) with which Entra refused the
// credential itself, or "" for any other failure to get a token.
func (e *tokenError) denied() string {
	switch e.answer.word {
	case "invalid_client", "unauthorized_client", "invalid_grant":
		return e.answer.word
	}
	return ""
}

// cause says in our own words why there is no token.
func (e *tokenError) cause() error {
	if err := e.answer.problem(); err != nil {
		return fmt.Errorf("no token: %w", err)
	}
	switch {
	case errors.Is(e.error, errNoToken):
		return fmt.Errorf("no token: %w", errNoToken)
	case errors.Is(e.error, fs.ErrNotExist):
		return errors.New("no token: token file does not exist")
	case errors.Is(e.error, fs.ErrPermission):
		return errors.New("no token: token file may not be read by this user")
	}
	if _, ok := errors.AsType[*tokenFileError](e.error); ok {
		return errors.New("no token: token file cannot be read")
	}
	if e.answer.status != 0 {
		return fmt.Errorf("no token: %s gave no valid answer", e.answer.name())
	}
	return errors.New("no token")
}

// tokenAnswer is what came of a request for a token, or for what azidentity
// asks before it. The zero tokenAnswer is none.
type tokenAnswer struct {
	host   string // that was asked; empty if not fit for a log line
	err    error  // why there was no answer
	status int
	word   string // of OAuth: error; empty if there is none
	codes  string // Entra's error_codes, as "AADSTS700027 AADSTS70021"
}

func newTokenAnswer(resp *http.Response) tokenAnswer {
	a := tokenAnswer{status: resp.StatusCode}
	if resp.StatusCode == http.StatusOK {
		return a
	}
	var failed struct {
		Error string   `json:"error"`
		Codes []uint32 `json:"error_codes"`
	}
	body, err := runtime.Payload(resp)
	if err != nil || json.Unmarshal(body, &failed) != nil {
		return a
	}
	a.word = answer.Word(failed.Error, answer.MaxWord)
	var codes []string
	for _, code := range failed.Codes[:min(len(failed.Codes), maxEntraCodes)] {
		codes = append(codes, fmt.Sprintf("AADSTS%d", code))
	}
	a.codes = strings.Join(codes, " ")
	return a
}

// problem returns what was wrong with the answer, nil if nothing was.
func (a tokenAnswer) problem() error {
	switch {
	case a.err != nil:
		return networkCause(a.name(), a.err)
	case a.status == 0 || a.status == http.StatusOK:
		return nil
	}
	return fmt.Errorf("%s answered status %d%s", a.name(), a.status, a.details())
}

// details returns the words and numbers of the answer, ": " before them.
func (a tokenAnswer) details() string {
	words := slices.DeleteFunc([]string{a.word, a.codes}, func(s string) bool { return s == "" })
	if len(words) == 0 {
		return ""
	}
	return ": " + strings.Join(words, " ")
}

func (a tokenAnswer) name() string {
	if a.host == "" {
		return "token endpoint"
	}
	return a.host
}

// tokenTrace follows one call of a credential through its HTTP requests:
// azidentity's errors keep no more of their causes than text, which quotes
// URLs and bodies.
type tokenTrace struct {
	mu   sync.Mutex
	last tokenAnswer // guarded by mu
}

type tokenTraceKey struct{}

func (tt *tokenTrace) note(a tokenAnswer) {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	tt.last = a
}

func (tt *tokenTrace) lastAnswer() tokenAnswer {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	return tt.last
}

// tokenRecorder is a policy of a credential's requests that runs on each try.
type tokenRecorder struct{}

// Do implements policy.Policy.
func (tokenRecorder) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if tt, ok := req.Raw().Context().Value(tokenTraceKey{}).(*tokenTrace); ok {
		a := tokenAnswer{err: err}
		if err == nil {
			a = newTokenAnswer(resp)
		}
		a.host = answer.Word(req.Raw().URL.Hostname(), maxHost)
		tt.note(a)
	}
	return resp, err
}

// tokenFileError says what is wrong with the file that a token comes from.
type tokenFileError struct{ error }

func (e *tokenFileError) Unwrap() error { return e.error }

// errNoToken is a token file with something else in it.
var errNoToken = errors.New("token file holds no token")

// fileCredential is a credential that reads a file for each token. When that
// fails, azidentity gives no more than text.
type fileCredential struct {
	azcore.TokenCredential

	file string
}

// GetToken implements azcore.TokenCredential.
func (c fileCredential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	t, err := c.TokenCredential.GetToken(ctx, o)
	if err == nil {
		return t, nil
	}
	if b, fileErr := os.ReadFile(c.file); fileErr != nil {
		err = errors.Join(err, &tokenFileError{fileErr})
	} else if len(b) == 0 {
		err = errors.Join(err, errNoToken)
	}
	return azcore.AccessToken{}, err
}
