package devvault

import (
	"crypto/rand"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/route"
	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// FaultKind is what goes wrong.
type FaultKind string

// Faults instead of the operation: the vault's state does not change.
const (
	// FaultStatus answers Fault.Status (429 if zero), with Retry-After if
	// Fault.RetryAfter is set.
	FaultStatus FaultKind = "status"
	// FaultHang answers nothing until the client gives up or Close.
	FaultHang FaultKind = "hang"
	// FaultReset drops the TCP connection, and on HTTP/2 all requests on it.
	FaultReset FaultKind = "reset"
	// FaultGarbage answers 200 with a body that is not JSON.
	FaultGarbage FaultKind = "garbage"
	// FaultUnauthorized answers 401, with a good challenge, to a good token.
	FaultUnauthorized FaultKind = "unauthorized"
	// FaultForbiddenRBAC answers 403 ForbiddenByRbac.
	FaultForbiddenRBAC FaultKind = "forbidden-rbac"
	// FaultForbiddenFirewall answers 403 ForbiddenByFirewall.
	FaultForbiddenFirewall FaultKind = "forbidden-firewall"
)

// Faults after the operation, which takes effect and counts. They leave a
// refusal by the vault as it is.
const (
	// FaultDelay answers properly, after Fault.Delay.
	FaultDelay FaultKind = "delay"
	// FaultNoAnswer drops the connection after the effect.
	FaultNoAnswer FaultKind = "no-answer"
	// FaultTruncated announces the whole answer and sends half of it.
	FaultTruncated FaultKind = "truncated"
	// FaultWrongKID answers with the id of another key.
	FaultWrongKID FaultKind = "wrong-kid"
	// FaultShort answers a result that lacks its last byte.
	FaultShort FaultKind = "short"
	// FaultLong answers a result with a zero byte more.
	FaultLong FaultKind = "long"
	// FaultWrongResult answers random bytes of the result's length.
	FaultWrongResult FaultKind = "wrong-result"
)

// Faults of the challenge, in answers to requests without a good token.
const (
	// FaultChallengeMissing leaves out the WWW-Authenticate header.
	FaultChallengeMissing FaultKind = "challenge-missing"
	// FaultChallengeNoPath names an authority without a path, "https://host",
	// at which azkeys panics.
	FaultChallengeNoPath FaultKind = "challenge-no-path"
	// FaultChallengeNoTenant names an authority with an empty path,
	// "https://host/", at which azkeys asks for a challenge on each call.
	FaultChallengeNoTenant FaultKind = "challenge-no-tenant"
	// FaultChallengeNoSpace has no space after the comma.
	FaultChallengeNoSpace FaultKind = "challenge-no-space"
	// FaultChallengeAuthority names a foreign login host.
	FaultChallengeAuthority FaultKind = "challenge-authority"
	// FaultChallengeTenant names a foreign Entra tenant.
	FaultChallengeTenant FaultKind = "challenge-tenant"
	// FaultChallengeResource names a resource of a foreign domain.
	FaultChallengeResource FaultKind = "challenge-resource"
)

// maxFaults bounds how many faults can be pending.
const maxFaults = 1024

// Fault is one thing to go wrong. It applies to requests with a good token,
// but challenge faults to those without. Of several that match, only the one
// that was injected first applies.
type Fault struct {
	// Kind is what goes wrong. It is required.
	Kind FaultKind
	// Vault, Key and Op narrow it; empty means any. Op is an Op constant.
	Vault, Key, Op string
	// Skip lets that many matching requests pass first.
	Skip int
	// Count is how many requests it then applies to. Zero means until it is
	// cleared.
	Count int
	// Status is the answer of FaultStatus, 400 to 599. Zero means 429.
	Status int
	// RetryAfter is sent with FaultStatus in whole seconds, rounded up. Zero
	// means no header.
	RetryAfter time.Duration
	// Delay is waited before the fault, and so before the operation; with
	// FaultDelay after it. Challenge faults ignore it.
	Delay time.Duration
}

func (f *Fault) check() error {
	switch {
	case f.Kind.when() == never:
		return state.BadParameter("Fault kind %q is unknown.", f.Kind)
	case f.Op != "" && !route.Valid(f.Op):
		return state.BadParameter("Fault op %q is unknown.", f.Op)
	case f.Skip < 0 || f.Count < 0 || f.RetryAfter < 0 || f.Delay < 0:
		return state.BadParameter("A fault has a negative number.")
	case f.Status != 0 && (f.Status < 400 || f.Status > 599 || f.Kind != FaultStatus):
		return state.BadParameter("Fault status %d is not 400 to 599 of kind \"status\".", f.Status)
	case f.Kind == FaultDelay && f.Delay == 0:
		return state.BadParameter("A fault of kind \"delay\" needs a delay.")
	}
	return nil
}

// moment is when a fault strikes.
type moment int

const (
	never       moment = iota // the kind is unknown
	atChallenge               // in a 401, the operation is not reached
	instead                   // of the operation
	after                     // the operation
)

func (k FaultKind) when() moment {
	switch k {
	case FaultStatus, FaultHang, FaultReset, FaultGarbage, FaultUnauthorized, FaultForbiddenRBAC,
		FaultForbiddenFirewall:
		return instead
	case FaultDelay, FaultNoAnswer, FaultTruncated, FaultWrongKID, FaultShort, FaultLong, FaultWrongResult:
		return after
	case FaultChallengeMissing, FaultChallengeNoPath, FaultChallengeNoTenant, FaultChallengeNoSpace,
		FaultChallengeAuthority, FaultChallengeTenant, FaultChallengeResource:
		return atChallenge
	}
	return never
}

// shows reports whether the fault shows in the answer to op.
func (k FaultKind) shows(op string) bool {
	switch k {
	case FaultShort, FaultLong, FaultWrongResult:
		return route.Crypto(op)
	case FaultWrongKID:
		return route.Crypto(op) || slices.Contains([]string{OpGet, OpCreate, OpRotate, OpUpdate, OpRecover}, op)
	}
	return true
}

func (f *Fault) matches(c *call, challenge bool) bool {
	return (f.Kind.when() == atChallenge) == challenge &&
		(f.Vault == "" || strings.EqualFold(f.Vault, c.vault)) &&
		(f.Key == "" || strings.EqualFold(f.Key, c.route.Name)) &&
		(f.Op == "" || f.Op == c.route.Op) &&
		f.Kind.shows(c.route.Op)
}

// faults are the pending faults, in the order of their injection.
type faults struct {
	mu   sync.Mutex
	last int
	list []*pending
}

type pending struct {
	id    int
	fault Fault
	skip  int
	left  int // -1: until cleared
}

func (fs *faults) add(f Fault) (int, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.list) >= maxFaults {
		return 0, state.BadParameter("There are %d faults already.", maxFaults)
	}
	fs.last++
	p := &pending{id: fs.last, fault: f, skip: f.Skip, left: f.Count}
	if f.Count == 0 {
		p.left = -1
	}
	fs.list = append(fs.list, p)
	return p.id, nil
}

// take returns the fault for a request, or nil, and uses one up. challenge
// says that the request has no good token.
func (fs *faults) take(c *call, challenge bool) *Fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for i, p := range fs.list {
		if !p.fault.matches(c, challenge) {
			continue
		}
		if p.skip > 0 {
			p.skip--
			continue
		}
		if p.left > 0 {
			p.left--
		}
		if p.left == 0 {
			fs.list = slices.Delete(fs.list, i, i+1)
		}
		return &p.fault
	}
	return nil
}

// remove drops the fault with that id, or all if id is zero.
func (fs *faults) remove(id int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.list = slices.DeleteFunc(fs.list, func(p *pending) bool { return id == 0 || p.id == id })
}

func (fs *faults) snapshot() []pending {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	out := make([]pending, len(fs.list))
	for i, p := range fs.list {
		out[i] = *p
	}
	return out
}

// Inject makes a fault pending and returns its id.
func (s *Server) Inject(f Fault) (int, error) { return s.faults.add(f) }

// ClearFault drops one pending fault; an unknown id is fine. A request that
// already hangs goes on hanging.
func (s *Server) ClearFault(id int) {
	if id != 0 {
		s.faults.remove(id)
	}
}

// ClearFaults drops all pending faults.
func (s *Server) ClearFaults() { s.faults.remove(0) }

// serveFaulty answers a request that a fault applies to. err is what is wrong
// with the request itself.
func (s *Server) serveFaulty(w http.ResponseWriter, c *call, f *Fault, err error) {
	s.countFault(f)
	if f.Kind != FaultDelay && !s.wait(c.r, f.Delay) {
		return
	}
	if f.Kind.when() == instead {
		s.faultInstead(w, c, f)
		return
	}
	var reply any
	if err == nil {
		reply, err = s.dispatch(c)
	}
	if f.Kind == FaultDelay && !s.wait(c.r, f.Delay) {
		return
	}
	switch {
	case f.Kind == FaultNoAnswer:
		reset(c.r)
	case err != nil:
		s.finish(w, c, nil, err)
	case f.Kind == FaultTruncated:
		truncated(w, reply)
	default:
		s.finish(w, c, spoil(f.Kind, c, reply), nil)
	}
}

func (s *Server) countFault(f *Fault) {
	if f.Kind == FaultStatus && f.status() == http.StatusTooManyRequests {
		s.counters.add(CountThrottled)
		return
	}
	s.counters.add(CountFaulted)
}

// wait waits for d and reports whether the request is still wanted. A hang
// waits for ever.
func (s *Server) wait(r *http.Request, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-s.closing:
		reset(r)
	}
	return false
}

// faultInstead answers without running the operation.
func (s *Server) faultInstead(w http.ResponseWriter, c *call, f *Fault) {
	switch f.Kind {
	case FaultHang:
		s.wait(c.r, math.MaxInt64)
	case FaultReset:
		reset(c.r)
	case FaultGarbage:
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<html><body>Our services aren't available right now</body></html>"))
	case FaultUnauthorized:
		w.Header().Set("WWW-Authenticate", s.challengeHeader(c.port, ""))
		fail(w, &Error{
			Status: http.StatusUnauthorized, Code: "Unauthorized",
			Message: "AKV10046: Unable to validate the token.",
		})
	case FaultForbiddenRBAC:
		fail(w, state.Forbidden("ForbiddenByRbac", "Caller is not authorized to perform action on resource."))
	case FaultForbiddenFirewall:
		fail(w, state.Forbidden("ForbiddenByFirewall",
			"Client address is not authorized and caller is not a trusted service."))
	case FaultStatus:
		if f.RetryAfter > 0 {
			seconds := (f.RetryAfter + time.Second - 1) / time.Second
			w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
		}
		fail(w, f.statusError())
	}
}

func (f *Fault) status() int {
	if f.Status == 0 {
		return http.StatusTooManyRequests
	}
	return f.Status
}

func (f *Fault) statusError() *Error {
	e := &Error{Status: f.status()}
	switch e.Status {
	case http.StatusTooManyRequests:
		e.Code = "Throttled"
		e.Message = "Request was not processed because too many requests were received. " +
			"Reason: VaultRequestTypeLimitReached"
	case http.StatusInternalServerError:
		e.Code, e.Message = "InternalServerError", "An internal error occurred."
	default:
		e.Code = strings.ReplaceAll(http.StatusText(e.Status), " ", "")
		e.Message = fmt.Sprintf("Injected fault: status %d.", e.Status)
	}
	return e
}

// spoil changes an answer.
func spoil(kind FaultKind, c *call, reply any) any {
	switch r := reply.(type) {
	case *cryptoReply:
		switch kind {
		case FaultWrongKID:
			r.KID = otherKID(c)
		case FaultShort:
			r.Value = r.Value[:max(0, len(r.Value)-1)]
		case FaultLong:
			r.Value = append(r.Value, 0)
		case FaultWrongResult:
			_, _ = rand.Read(r.Value)
		}
	case *bundleReply:
		if kind == FaultWrongKID {
			r.Key.KID = otherKID(c)
		}
	}
	return reply
}

// otherKID is the id of a key that was not asked for.
func otherKID(c *call) string { return kid(c.base, c.route.Name+"-other", state.NewVersionID()) }

// truncated announces an answer and sends half of it.
func truncated(w http.ResponseWriter, reply any) {
	half := &halfWriter{ResponseWriter: w}
	writeReply(half, reply)
}

// halfWriter passes half of each write on.
type halfWriter struct{ http.ResponseWriter }

// Write sends the first half of p and claims all of it.
func (h *halfWriter) Write(p []byte) (int, error) {
	if n, err := h.ResponseWriter.Write(p[:len(p)/2]); err != nil {
		return n, err
	}
	return len(p), nil
}
