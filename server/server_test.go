package server_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

func TestSealAndUnseal(t *testing.T) {
	type asked struct {
		Verb policy.Verb
		sealer.Request
	}
	var got asked
	key := dek.Info{ID: envelope.ID{1, 15: 16}, KEKRef: "eu", KEKVersion: kek.Version{0xab}, Region: "westeurope"}
	s := start(t, answer(func(_ context.Context, v policy.Verb, r sealer.Request) (sealer.Result, error) {
		got = asked{v, r}
		return sealer.Result{Data: []byte("answer"), Key: key}, nil
	}), nil)
	pairs := map[string]string{"table": "users", "empty": ""}
	wantInfo := &keysidecarv1.KeyInfo{
		DekId: key.ID[:], KekRef: "eu", KekVersion: "ab" + strings.Repeat("0", 30), Region: "westeurope",
	}

	var trailer metadata.MD
	sealed, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{
		Tenant: "acme", Plaintext: []byte("data"), EncryptionContext: pairs,
	}, grpc.Trailer(&trailer))
	if err != nil {
		t.Fatal(err)
	}
	want := asked{policy.Seal, sealer.Request{
		Caller: me(), CallerName: "me", Tenant: "acme", Context: pairs, Data: []byte("data"),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("sealer was asked (-want +got):\n", diff)
	}
	wantSealed := &keysidecarv1.SealResponse{Sealed: []byte("answer"), KeyInfo: wantInfo}
	if diff := cmp.Diff(wantSealed, sealed, protocmp.Transform()); diff != "" {
		t.Error("Seal answered (-want +got):\n", diff)
	}
	if len(trailer) != 0 {
		t.Errorf("trailer of a call that succeeded is %v", trailer)
	}

	unsealed, err := s.rpc.Unseal(t.Context(), &keysidecarv1.UnsealRequest{
		Tenant: "acme", Sealed: []byte("KSB"), EncryptionContext: pairs,
	})
	if err != nil {
		t.Fatal(err)
	}
	want.Verb, want.Data = policy.Unseal, []byte("KSB")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("sealer was asked (-want +got):\n", diff)
	}
	wantUnsealed := &keysidecarv1.UnsealResponse{Plaintext: []byte("answer"), KeyInfo: wantInfo}
	if diff := cmp.Diff(wantUnsealed, unsealed, protocmp.Transform()); diff != "" {
		t.Error("Unseal answered (-want +got):\n", diff)
	}
}

func TestNew(t *testing.T) {
	good := config(t, answer(echo), io.Discard)
	for name, c := range map[string]struct {
		change func(*server.Config)
		want   string
	}{
		"good":        {func(*server.Config) {}, ""},
		"largest":     {func(c *server.Config) { c.MaxUnary = 64 << 20 }, ""},
		"admin":       {func(c *server.Config) { c.Sealer, c.Admin = nil, keysidecarv1.UnimplementedAdminServiceServer{} }, ""},
		"neither":     {func(c *server.Config) { c.Sealer = nil }, "either a Sealer or an Admin"},
		"both":        {func(c *server.Config) { c.Admin = keysidecarv1.UnimplementedAdminServiceServer{} }, "either a Sealer or an Admin"},
		"no source":   {func(c *server.Config) { c.Source = nil }, "needs a Source"},
		"no policy":   {func(c *server.Config) { c.Policy = nil }, "needs a Source"},
		"no logger":   {func(c *server.Config) { c.Logger = nil }, "needs a Source"},
		"no limits":   {func(c *server.Config) { c.Limits = nil }, "needs Limits"},
		"no table":    {func(c *server.Config) { c.Limits = &server.Limits{Bytes: c.Limits.Bytes} }, "needs Limits"},
		"no bytes":    {func(c *server.Config) { c.Limits = &server.Limits{Callers: c.Limits.Callers} }, "needs Limits"},
		"per caller":  {func(c *server.Config) { c.ConnectionsPerCaller = -1 }, "connection limit"},
		"timeout":     {func(c *server.Config) { c.CallTimeout = -1 }, "call timeout"},
		"age":         {func(c *server.Config) { c.MaxConnectionAge = -1 }, "connection age"},
		"too large":   {func(c *server.Config) { c.MaxUnary = 64<<20 + 1 }, "unary limit"},
		"negative":    {func(c *server.Config) { c.MaxUnary = -1 }, "unary limit"},
		"connections": {func(c *server.Config) { c.Connections = -1 }, "connection limit"},
	} {
		cfg := good
		c.change(&cfg)
		s, err := server.New(cfg)
		if err == nil {
			s.Close()
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: New returned error %v, want %q", name, err, c.want)
		}
	}
}

// wire is what a caller can see of a failed call.
type wire struct {
	Code      codes.Code
	Text      string
	Reason    string
	Retry     time.Duration
	RequestID string
}

var requestIDs = regexp.MustCompile(`^[A-Z2-7]{10}-[0-9a-z]{1,13}$`)

func isRequestID(s string) bool { return requestIDs.MatchString(s) }

// seen asks s once and takes the error apart. It fails the test if the call
// succeeds, or if details or trailers are more than they should be.
func seen(t *testing.T, s *running, req *keysidecarv1.UnsealRequest) wire {
	t.Helper()
	var header, trailer metadata.MD
	_, err := s.rpc.Unseal(t.Context(), req, grpc.Header(&header), grpc.Trailer(&trailer))
	st, ok := status.FromError(err)
	if !ok || err == nil {
		t.Fatalf("Unseal returned error %v", err)
	}
	w := wire{Code: st.Code(), Text: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() != "keysidecar" || len(d.GetMetadata()) != 1 {
				t.Errorf("ErrorInfo is %v", d)
			}
			w.Reason, w.RequestID = d.GetReason(), d.GetMetadata()["request_id"]
		case *errdetails.RetryInfo:
			w.Retry = d.GetRetryDelay().AsDuration()
		default:
			t.Errorf("unexpected detail %v", d)
		}
	}
	if ids := trailer.Get("request_id"); w.RequestID != "" && !slices.Equal(ids, []string{w.RequestID}) {
		t.Errorf("trailer has request ids %q, ErrorInfo %q", ids, w.RequestID)
	}
	for _, md := range []metadata.MD{header, trailer} {
		for _, k := range slices.Sorted(maps.Keys(md)) {
			if k == "grpc-retry-pushback-ms" && w.Code == codes.ResourceExhausted && w.Retry > 0 && slices.Equal(md[k], []string{"-1"}) {
				continue
			}
			if !slices.Contains([]string{"content-type", "request_id", "grpc-status-details-bin"}, k) {
				t.Errorf("unexpected metadata %s: %q", k, md[k])
			}
		}
	}
	return w
}

func TestReasonsOnTheWire(t *testing.T) {
	var err error
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		return sealer.Result{}, err
	}), nil)
	for _, r := range sealer.Reasons() {
		for _, retry := range []time.Duration{0, 1500 * time.Millisecond} {
			err = &sealer.Error{Reason: r, RetryAfter: retry}
			got := seen(t, s, &keysidecarv1.UnsealRequest{})
			if !isRequestID(got.RequestID) {
				t.Errorf("%s: request id is %q", r, got.RequestID)
			}
			got.RequestID = ""
			want := wire{Code: server.OutcomeOf(r).Code, Text: r.Text(), Reason: r.String(), Retry: retry}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", r, diff)
			}
		}
	}
}

const marker = "MARKER-d41d8cd9"

type opaque struct{ secret string }

// TestCausesStayInside puts a marker into everything that can go wrong.
func TestCausesStayInside(t *testing.T) {
	cause := errors.New("reading " + marker)
	nobody := func(c *server.Config) { c.Source = noCaller{c.Source, cause} }
	intercept := func(f grpc.UnaryServerInterceptor) func(*server.Config) {
		return func(c *server.Config) { c.Unary = []grpc.UnaryServerInterceptor{f} }
	}
	panicking := func(v any) answer {
		return func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) { panic(v) }
	}
	wrapping := intercept(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		resp, err := h(ctx, req)
		return resp, errors.Join(err, cause)
	})
	internal := wire{Code: codes.Internal, Text: "internal error", Reason: "INTERNAL"}
	for name, c := range map[string]struct {
		sealer  answer
		change  func(*server.Config)
		want    wire
		inLog   bool
		without string
	}{
		"reason": {failing(sealerError(sealer.KEKDisabled, cause)), nil,
			wire{codes.FailedPrecondition, sealer.KEKDisabled.Text(), "KEK_DISABLED", 0, ""}, true, ""},
		"unknown error":  {failing(cause), nil, internal, true, ""},
		"status":         {failing(status.Error(codes.NotFound, marker)), nil, internal, true, ""},
		"unknown reason": {failing(&sealer.Error{Reason: 255}), nil, internal, false, ""},
		"OK as an error": {failing(&sealer.Error{Reason: sealer.OK}), nil, internal, false, ""},
		"deadline": {failing(errors.Join(cause, context.DeadlineExceeded)), nil,
			wire{codes.DeadlineExceeded, "the call's deadline passed", "DEADLINE_EXCEEDED", 0, ""}, false, ""},
		"cancelled": {failing(errors.Join(cause, context.Canceled)), nil,
			wire{codes.Canceled, "the caller gave the call up", "CANCELLED", 0, ""}, false, ""},
		"caller": {echo, nobody,
			wire{codes.Unauthenticated, sealer.Unauthenticated.Text(), "UNAUTHENTICATED", 0, ""}, true, ""},
		"panic with a string": {panicking(marker), nil, internal, true, ""},
		"panic with an error": {panicking(cause), nil, internal, false, marker},
		"panic with a value":  {panicking(opaque{marker}), nil, internal, false, marker},
		"wrapped on its way": {failing(sealerError(sealer.UnknownTenant, cause)), wrapping,
			wire{codes.NotFound, sealer.UnknownTenant.Text(), "UNKNOWN_TENANT", 0, ""}, true, ""},
		"made on its way": {echo, wrapping, internal, false, ""},
		"panic on its way": {echo, intercept(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
			panic(cause)
		}), internal, false, marker},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, c.sealer, c.change)
			got := seen(t, s, &keysidecarv1.UnsealRequest{})
			id := got.RequestID
			got.RequestID = ""
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("on the wire (-want +got):\n%s", diff)
			}
			log := s.log.String()
			if c.inLog && (!strings.Contains(log, marker) || !strings.Contains(log, id)) {
				t.Errorf("log lacks the cause or the request id %s:\n%s", id, log)
			}
			if c.without != "" && strings.Contains(log, c.without) {
				t.Errorf("log has the panic's value:\n%s", log)
			}
			if strings.HasPrefix(name, "panic") && !strings.Contains(log, "server_test.go:") {
				t.Errorf("log does not say where it panicked:\n%s", log)
			}
		})
	}
}

// sealerError returns an error as the sealer makes it, with a cause.
func sealerError(r sealer.Reason, cause error) error {
	return errors.Join(&sealer.Error{Reason: r}, cause)
}

func TestContextEnds(t *testing.T) {
	entered := make(chan struct{}, 1)
	s := start(t, answer(func(ctx context.Context, _ policy.Verb, _ sealer.Request) (sealer.Result, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return sealer.Result{}, ctx.Err()
	}), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.rpc.Seal(ctx, &keysidecarv1.SealRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Seal over its deadline returned %v", err)
	}
	<-entered
	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := s.rpc.Seal(ctx, &keysidecarv1.SealRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled Seal returned %v", err)
	}
}

// raw sends bytes as they are.
type raw struct{ encoding.CodecV2 }

func (raw) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { return proto.Unmarshal(data, v.(proto.Message)) }
func (raw) Name() string                       { return "proto" }

// TestNotUTF8 shows that gRPC itself answers what cannot be decoded.
func TestNotUTF8(t *testing.T) {
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		t.Error("a handler was called")
		return sealer.Result{}, nil
	}), nil)
	for name, msg := range map[string][]byte{
		"tenant":        {1<<3 | 2, 2, 0xc3, 0x28},
		"context key":   {3<<3 | 2, 4, 1<<3 | 2, 2, 0xc3, 0x28},
		"context value": {3<<3 | 2, 4, 2<<3 | 2, 2, 0xc3, 0x28},
		"truncated":     {2<<3 | 2, 100, 'x'},
	} {
		var resp keysidecarv1.SealResponse
		err := s.conn.Invoke(t.Context(), keysidecarv1.SealService_Seal_FullMethodName, msg, &resp, grpc.ForceCodec(raw{}))
		if st := status.Convert(err); st.Code() != codes.Internal || len(st.Details()) != 0 {
			t.Errorf("%s: answer is %v %v, want INTERNAL of gRPC", name, err, st.Details())
		}
	}
	s.Close() // gRPC answers before the line is written
	// A caller's mistake is no error of the sidecar's, whatever gRPC calls it.
	if got := records(t, s); len(got) != 4 || slices.ContainsFunc(got, func(r record) bool { return r.Level != "INFO" }) {
		t.Errorf("the log has %+v, want 4 records at INFO", got)
	}
}

func TestSizes(t *testing.T) {
	const limit = 100 << 10
	s := start(t, answer(echo), func(c *server.Config) { c.MaxUnary = limit })
	// The largest request that can be valid.
	pairs := map[string]string{}
	for i := range 32 {
		pairs[strings.Repeat("k", 127)+string(rune('a'+i))] = strings.Repeat("v", 128)
	}
	largest := &keysidecarv1.UnsealRequest{
		Tenant: strings.Repeat("t", 128), Sealed: make([]byte, sealer.MaxSealed(limit)), EncryptionContext: pairs,
	}
	if _, err := s.rpc.Unseal(t.Context(), largest); err != nil {
		t.Errorf("the largest request returned %v", err)
	}
	over := &keysidecarv1.UnsealRequest{Sealed: make([]byte, server.MaxRequest(limit))}
	if got := seen(t, s, over); got.Code != codes.ResourceExhausted || got.Reason != "" {
		t.Errorf("too large a request is answered with %+v, want RESOURCE_EXHAUSTED of gRPC", got)
	}
}

func TestCallsPerConnection(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		entered <- struct{}{}
		<-leave
		return sealer.Result{}, nil
	}), func(c *server.Config) { c.CallsPerConnection = 2 })
	// A connection learns of the limit with the first answer.
	go func() { <-entered; leave <- struct{}{} }()
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for range 3 {
		go func() {
			_, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{})
			done <- err
		}()
	}
	<-entered
	<-entered
	select {
	case <-entered:
		t.Fatal("a third call entered")
	case <-time.After(50 * time.Millisecond):
	}
	leave <- struct{}{}
	<-entered
	leave <- struct{}{}
	leave <- struct{}{}
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestConnections(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) { c.Connections = 1 })
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Fatal(err)
	}
	second := keysidecarv1.NewSealServiceClient(s.dial(t))
	if _, err := second.Seal(t.Context(), &keysidecarv1.SealRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("call on a second connection returned %v", err)
	}
	if open, refused := s.Connections(); open != 1 || refused == 0 {
		t.Errorf("%d connections are open and %d were refused, want 1 and more than 0", open, refused)
	}
	if err := s.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Seal(t.Context(), &keysidecarv1.SealRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("call after the first connection closed returned %v", err)
	}
}

func TestReflection(t *testing.T) {
	for _, on := range []bool{false, true} {
		s := start(t, answer(echo), func(c *server.Config) { c.Reflection = on })
		stream, err := grpc_reflection_v1.NewServerReflectionClient(s.conn).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		request := &grpc_reflection_v1.ServerReflectionRequest{
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
		}
		if err := stream.Send(request); err != nil && err != io.EOF { // the answer is there already
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		listed := strings.Contains(resp.String(), "keysidecar.v1.SealService")
		if on != listed || !on && status.Code(err) != codes.Unimplemented {
			t.Errorf("reflection %v: answer is %v, %v", on, resp, err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Error(err)
		}
	}
}

func TestHealth(t *testing.T) {
	s := start(t, answer(echo), nil)
	health := grpc_health_v1.NewHealthClient(s.conn)
	check := func(name string) string {
		resp, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil {
			return status.Code(err).String()
		}
		return resp.GetStatus().String()
	}
	s.SetServing("vault/eu", false)
	for name, want := range map[string]string{
		"": "SERVING", "keysidecar.v1.SealService": "SERVING", "vault/eu": "NOT_SERVING", "other": "NotFound",
	} {
		if got := check(name); got != want {
			t.Errorf("health of %q is %s, want %s", name, got, want)
		}
	}
	s.SetServing("vault/eu", true)
	if got := check("vault/eu"); got != "SERVING" {
		t.Errorf("health of a service that recovered is %s", got)
	}
}

// TestInterceptorsSeeFinalCodes shows that metrics and the log count panics too.
func TestInterceptorsSeeFinalCodes(t *testing.T) {
	var got []codes.Code
	panics := false
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		if panics {
			panic("defect")
		}
		return sealer.Result{}, &sealer.Error{Reason: sealer.Residency}
	}), func(c *server.Config) {
		c.Unary = []grpc.UnaryServerInterceptor{
			func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
				resp, err := h(ctx, req)
				got = append(got, status.Code(err))
				return resp, err
			},
		}
	})
	seen(t, s, &keysidecarv1.UnsealRequest{})
	panics = true
	seen(t, s, &keysidecarv1.UnsealRequest{})
	if want := []codes.Code{codes.FailedPrecondition, codes.Internal}; !slices.Equal(got, want) {
		t.Errorf("interceptor saw %v, want %v", got, want)
	}
	if n := strings.Count(s.log.String(), `"msg":"call finished"`); n != 2 {
		t.Errorf("%d calls were logged, want 2:\n%s", n, s.log)
	}
}
