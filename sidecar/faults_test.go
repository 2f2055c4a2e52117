package sidecar_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/kek/devvault"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

func codeOf(err error) codes.Code { return status.Code(err) }

// An answer is all that a refused caller sees, less the request id.
type answer struct {
	Code   codes.Code
	Text   string
	Reason string
	Retry  time.Duration
}

// refused is the answer for a reason.
func refused(code codes.Code, r sealer.Reason, retry time.Duration) answer {
	return answer{Code: code, Text: r.Text(), Reason: r.String(), Retry: retry}
}

// answerOf takes an answer apart, and says what is in it that should not be.
func answerOf(err error, trailer metadata.MD) (a answer, requestID, excess string) {
	st := status.Convert(err)
	a = answer{Code: st.Code(), Text: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			a.Reason, requestID = d.GetReason(), d.GetMetadata()["request_id"]
			if d.GetDomain() != "keysidecar" || len(d.GetMetadata()) != 1 {
				excess += fmt.Sprint(d)
			}
		case *errdetails.RetryInfo:
			a.Retry = d.GetRetryDelay().AsDuration()
		default:
			excess += fmt.Sprint(d)
		}
	}
	for name, values := range trailer {
		switch text := strings.Join(values, ","); {
		case name == "request_id" && text == requestID, name == "content-type" && text == "application/grpc", name == "grpc-status-details-bin":
		default:
			excess += fmt.Sprint(name, values)
		}
	}
	return a, requestID, excess
}

// A misbehaviour is what a vault does, and what callers get for it.
type misbehaviour struct {
	// fault strikes the requests of op, and with none every request.
	fault devvault.Fault
	op    string
	// start and end are for what is no fault.
	start, end func(*site, string) error
	// load is the sidecar's own patience.
	load string
	// seal and unseal are the answers, the zero answer if it works.
	seal, unseal answer
}

func misbehaviours() map[string]misbehaviour {
	unreachable := refused(codes.Unavailable, sealer.KeyVaultUnreachable, 2*time.Second)
	forbidden := refused(codes.FailedPrecondition, sealer.KEKForbidden, 15*time.Second)
	notAuthentic := refused(codes.InvalidArgument, sealer.AuthenticationFailed, 0)
	notFound := refused(codes.FailedPrecondition, sealer.KEKNotFound, 0)
	throttled := refused(codes.Unavailable, sealer.KeyVaultThrottled, 3*time.Second)
	all := map[string]misbehaviour{
		"429":                {fault: devvault.Fault{Kind: devvault.FaultStatus, RetryAfter: 3 * time.Second}, seal: throttled, unseal: throttled},
		"hang":               {fault: devvault.Fault{Kind: devvault.FaultHang}, load: "300ms", seal: unreachable, unseal: unreachable},
		"deleted key":        {start: deleteKEK, end: recoverKEK, seal: notFound, unseal: notFound},
		"challenge no space": {fault: devvault.Fault{Kind: devvault.FaultChallengeNoSpace}},
		// A proof that fails is the vault's failure; a DEK that does not open is
		// the data's.
		"31 bytes":       {fault: devvault.Fault{Kind: devvault.FaultShort}, op: devvault.OpUnwrap, seal: unreachable, unseal: notAuthentic},
		"33 bytes":       {fault: devvault.Fault{Kind: devvault.FaultLong}, op: devvault.OpUnwrap, seal: unreachable, unseal: notAuthentic},
		"wrong 32 bytes": {fault: devvault.Fault{Kind: devvault.FaultWrongResult}, op: devvault.OpUnwrap, seal: unreachable, unseal: notAuthentic},
	}
	for kind, want := range map[devvault.FaultKind]answer{
		devvault.FaultGarbage: unreachable, devvault.FaultTruncated: unreachable, devvault.FaultReset: unreachable,
		devvault.FaultNoAnswer: unreachable, devvault.FaultWrongKID: unreachable, devvault.FaultForbiddenFirewall: unreachable,
		devvault.FaultForbiddenRBAC: forbidden, devvault.FaultUnauthorized: forbidden,
	} {
		for _, op := range []string{devvault.OpGet, devvault.OpUnwrap} {
			m := misbehaviour{fault: devvault.Fault{Kind: kind}, op: op, seal: want}
			if op == devvault.OpUnwrap {
				m.unseal = want
			}
			all[fmt.Sprint(kind, " ", op)] = m
		}
	}
	for _, code := range []int{500, 502, 503} {
		all[fmt.Sprint(code)] = misbehaviour{fault: devvault.Fault{Kind: devvault.FaultStatus, Status: code}, seal: unreachable, unseal: unreachable}
	}
	for _, kind := range []devvault.FaultKind{
		devvault.FaultChallengeMissing, devvault.FaultChallengeNoPath, devvault.FaultChallengeNoTenant,
		devvault.FaultChallengeAuthority, devvault.FaultChallengeTenant, devvault.FaultChallengeResource,
	} {
		all[string(kind)] = misbehaviour{fault: devvault.Fault{Kind: kind}, seal: unreachable, unseal: unreachable}
	}
	return all
}

func deleteKEK(s *site, vault string) error  { return s.Delete(vault, kekName) }
func recoverKEK(s *site, vault string) error { return s.Recover(vault, kekName) }

// begin makes a vault misbehave, and returns how to end that.
func (m misbehaviour) begin(t *testing.T, s *site, vault string) (end func()) {
	t.Helper()
	if m.start != nil {
		if err := m.start(s, vault); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := m.end(s, vault); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.fault.Vault, m.fault.Op = vault, m.op
	id, err := s.Inject(m.fault)
	if err != nil {
		t.Fatal(err)
	}
	return func() { s.ClearFault(id) }
}

// call is one call of a sidecar.
type call func(context.Context, ...grpc.CallOption) error

// check makes a call, and wants that answer; the zero answer is success.
func (n *node) check(t *testing.T, name string, want answer, do call) {
	t.Helper()
	var trailer metadata.MD
	err := do(t.Context(), grpc.Trailer(&trailer))
	got, requestID, excess := answerOf(err, trailer)
	if diff := cmp.Diff(want, got); diff != "" || excess != "" {
		t.Errorf("%s answered (-want +got):\n%s and more than that: %q", name, diff, excess)
	}
	if err == nil {
		return
	}
	if c := n.Stats().Cached; c != 0 {
		t.Errorf("%s: %d DEKs are cached", name, c)
	}
	if requestID == "" || !strings.Contains(n.log.String(), `"request_id":"`+requestID+`"`) {
		t.Errorf("%s: the log does not have request id %q", name, requestID)
	}
}

// Whatever a vault does, the callers get the reason and nothing of the cause,
// nothing is kept, and afterwards all is well.
func TestVaultMisbehaves(t *testing.T) {
	site := newSite(t)
	maker := site.start(t, settings{})
	i := 0
	for name, m := range misbehaviours() {
		vault := fmt.Sprintf("v-%02d", i)
		i++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			site.createKEK(t, vault)
			sealed := maker.seal(t, vault, "payload").Bytes
			n := site.start(t, settings{load: m.load})
			unseal := func(ctx context.Context, o ...grpc.CallOption) error {
				_, err := n.rpc.Unseal(ctx, &keysidecarv1.UnsealRequest{Tenant: vault, Sealed: sealed}, o...)
				return err
			}
			end := m.begin(t, site, vault)
			n.check(t, "Seal", m.seal, func(ctx context.Context, o ...grpc.CallOption) error {
				_, err := n.rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: vault, Plaintext: []byte("payload")}, o...)
				return err
			})
			n.check(t, "Unseal", m.unseal, unseal)
			end()
			await(t, "the vault works again", func() bool { return unseal(t.Context()) == nil })
			again := n.seal(t, vault, "again").Bytes
			maker.mustOpen(t, vault, again, "again")
		})
	}
}

// A caller waits for a vault no longer than its own deadline.
func TestDeadlineWhileTheVaultHangs(t *testing.T) {
	t.Parallel()
	site := newSite(t, "acme")
	n := site.start(t, settings{})
	site.inject(t, devvault.Fault{Kind: devvault.FaultHang})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := n.rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: "acme"}); codeOf(err) != codes.DeadlineExceeded {
		t.Errorf("Seal: %v, want DEADLINE_EXCEEDED", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("answered after %s, the deadline was 100ms", took)
	}
	if s := n.Stats(); s.Cached != 0 {
		t.Errorf("%d DEKs are cached", s.Cached)
	}
	site.ClearFaults()
	maker := site.start(t, settings{})
	maker.mustOpen(t, "acme", n.seal(t, "acme", "afterwards").Bytes, "afterwards")
}
