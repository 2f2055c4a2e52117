package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// respond answers a call of the AdminService, whatever it is.
type respond func(ctx context.Context, req proto.Message) (proto.Message, error)

// serveAdmin serves the AdminService on path and returns how to stop it.
func serveAdmin(t *testing.T, path string, r respond) (stop func()) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			return r(ctx, req.(proto.Message))
		}))
	keysidecarv1.RegisterAdminServiceServer(srv, keysidecarv1.UnimplementedAdminServiceServer{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	stop = func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

func dialAdmin(t *testing.T, path string, opts ...client.Option) *client.Admin {
	t.Helper()
	a, err := client.DialAdmin(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// at is a moment in UTC, and stamp the same as the API has it.
func at(n int64) time.Time                 { return time.Unix(1_800_000_000+n, 0).UTC() }
func stamp(n int64) *timestamppb.Timestamp { return timestamppb.New(at(n)) }

// unset returns the fields of m, and of the messages in it, that are not set:
// a field that is new in the API has to get a place in the client.
func unset(m protoreflect.Message) []protoreflect.FullName {
	var names []protoreflect.FullName
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case !m.Has(f):
			names = append(names, f.FullName())
		case f.IsList() && f.Message() != nil:
			names = append(names, unset(m.Get(f).List().Get(0).Message())...)
		case f.Message() != nil && f.Message().FullName() != "google.protobuf.Timestamp":
			names = append(names, unset(m.Get(f).Message())...)
		}
	}
	return names
}

// fullTenant is a tenant with all that there is, as the API and as the client
// have it. It cannot be: an ID excludes a prefix.
func fullTenant() (*keysidecarv1.Tenant, client.Tenant) {
	return &keysidecarv1.Tenant{
			Id: "acme", Prefix: "c-*", Kek: "eu", AlsoOpens: []string{"eu-2024"}, Regions: []string{"westeurope"},
			State: "suspended", Suspension: &keysidecarv1.Suspension{By: "uid:7/gid:8", Reason: "leak", At: stamp(3)},
		}, client.Tenant{
			ID: "acme", Prefix: "c-*", KEK: "eu", AlsoOpens: []string{"eu-2024"}, Regions: []string{"westeurope"},
			State: "suspended", Suspension: &client.Suspension{By: "uid:7/gid:8", Reason: "leak", At: at(3)},
		}
}

// adminCase is a method, what it asks, and what it makes of a full answer and
// of an empty one.
type adminCase struct {
	call        func(context.Context, *client.Admin) (any, error)
	request     proto.Message
	answer      proto.Message
	want, empty any
	json        string
}

func adminCases() map[string]adminCase {
	apiTenant, tenant := fullTenant()
	const tenantJSON = `{"id":"acme","prefix":"c-*","kek":"eu","also_opens":["eu-2024"],"regions":["westeurope"],"state":"suspended",` +
		`"suspension":{"by":"uid:7/gid:8","reason":"leak","at":"2027-01-15T08:00:03Z"}}`
	return map[string]adminCase{
		"status": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.Status(ctx) },
			&keysidecarv1.GetStatusRequest{},
			&keysidecarv1.GetStatusResponse{
				Version: "v1", Started: stamp(1), Region: "westeurope", KeyMemory: "memfd_secret",
				Listeners:  []*keysidecarv1.Listener{{Name: "unix", Address: "/s", Connections: 2, Refused: 3}, {Name: "tcp"}},
				DeksCached: 4, DeksActive: 5, DeksLimit: 6, BytesInFlight: 7, BytesLimit: 8, FilesLoaded: stamp(9),
				FileProblems: []string{"p"}, PolicyRules: 10, TenantRules: 11, Keks: 12, TenantsSuspended: 13,
				AuditLog: "keysidecar/a/1", AuditKey: "keysidecar/a/1+00+k", AuditRecords: 14, AuditFailingSince: stamp(15),
			},
			client.Status{
				Version: "v1", Started: at(1), Region: "westeurope", KeyMemory: "memfd_secret",
				Listeners:  []client.Listener{{Name: "unix", Address: "/s", Connections: 2, Refused: 3}, {Name: "tcp"}},
				DEKsCached: 4, DEKsActive: 5, DEKsLimit: 6, BytesInFlight: 7, BytesLimit: 8, FilesLoaded: at(9),
				FileProblems: []string{"p"}, PolicyRules: 10, TenantRules: 11, KEKs: 12, TenantsSuspended: 13,
				AuditLog: "keysidecar/a/1", AuditKey: "keysidecar/a/1+00+k", AuditRecords: 14, AuditFailingSince: at(15),
			},
			client.Status{},
			`{"version":"v1","started":"2027-01-15T08:00:01Z","region":"westeurope","key_memory":"memfd_secret",` +
				`"listeners":[{"name":"unix","address":"/s","connections":2,"refused":3},` +
				`{"name":"tcp","address":"","connections":0,"refused":0}],` +
				`"deks_cached":4,"deks_active":5,"deks_limit":6,"bytes_in_flight":7,"bytes_limit":8,` +
				`"files_loaded":"2027-01-15T08:00:09Z","file_problems":["p"],` +
				`"policy_rules":10,"tenant_rules":11,"keks":12,"tenants_suspended":13,` +
				`"audit_log":"keysidecar/a/1","audit_key":"keysidecar/a/1+00+k","audit_records":14,"audit_failing_since":"2027-01-15T08:00:15Z"}`,
		},
		"reload": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.Reload(ctx) },
			&keysidecarv1.ReloadRequest{},
			&keysidecarv1.ReloadResponse{Reloaded: true, Problems: []string{"p"}, Warnings: []string{"w"}},
			client.Reloaded{OK: true, Problems: []string{"p"}, Warnings: []string{"w"}}, client.Reloaded{},
			`{"reloaded":true,"problems":["p"],"warnings":["w"]}`,
		},
		"evict": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.Evict(ctx, "acme") },
			&keysidecarv1.EvictRequest{Tenant: "acme"}, &keysidecarv1.EvictResponse{Deks: 3}, uint32(3), uint32(0), "3",
		},
		"evict all": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.EvictAll(ctx) },
			&keysidecarv1.EvictRequest{All: true}, &keysidecarv1.EvictResponse{Deks: 4}, uint32(4), uint32(0), "4",
		},
		"policy": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.Policy(ctx) },
			&keysidecarv1.GetPolicyRequest{},
			&keysidecarv1.GetPolicyResponse{
				Path: "/p", Loaded: stamp(2), Callers: []*keysidecarv1.PolicyCaller{{Name: "web", Identity: "uid:7"}},
				Rules: []*keysidecarv1.PolicyRule{
					{
						Callers: []string{"web"}, Tenants: []string{"eu-*"}, Verbs: []string{"seal"},
						NotAfter: stamp(5), Ticket: "T-1", Expired: true,
					},
					{Callers: []string{"*"}},
				},
			},
			client.Policy{
				Path: "/p", Loaded: at(2), Callers: []client.PolicyCaller{{Name: "web", Identity: "uid:7"}},
				Rules: []client.PolicyRule{
					{
						Callers: []string{"web"}, Tenants: []string{"eu-*"}, Verbs: []string{"seal"},
						NotAfter: at(5), Ticket: "T-1", Expired: true,
					},
					{Callers: []string{"*"}},
				},
			},
			client.Policy{},
			`{"path":"/p","loaded":"2027-01-15T08:00:02Z","callers":[{"name":"web","identity":"uid:7"}],"rules":[` +
				`{"callers":["web"],"tenants":["eu-*"],"verbs":["seal"],"not_after":"2027-01-15T08:00:05Z","ticket":"T-1","expired":true},` +
				`{"callers":["*"],"tenants":null,"verbs":null,"expired":false}]}`,
		},
		"tenants": {
			func(ctx context.Context, a *client.Admin) (any, error) { return collect(a.Tenants(ctx)) },
			&keysidecarv1.ListTenantsRequest{},
			&keysidecarv1.ListTenantsResponse{Tenants: []*keysidecarv1.Tenant{apiTenant, {State: "active"}}},
			[]client.Tenant{tenant, {State: "active"}}, []client.Tenant(nil), "[" + tenantJSON + `,{"state":"active"}]`,
		},
		"suspend": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.Suspend(ctx, "acme", "leak") },
			&keysidecarv1.SuspendTenantRequest{Tenant: "acme", Reason: "leak"},
			&keysidecarv1.SuspendTenantResponse{Tenant: apiTenant, Deks: 2},
			client.Suspended{Tenant: tenant, DEKs: 2}, client.Suspended{}, `{"tenant":` + tenantJSON + `,"deks":2}`,
		},
		"resume": {
			func(ctx context.Context, a *client.Admin) (any, error) { return a.Resume(ctx, "acme") },
			&keysidecarv1.ResumeTenantRequest{Tenant: "acme"},
			&keysidecarv1.ResumeTenantResponse{Tenant: apiTenant, WasSuspended: true},
			client.Resumed{Tenant: tenant, WasSuspended: true}, client.Resumed{}, `{"tenant":` + tenantJSON + `,"was_suspended":true}`,
		},
	}
}

// collect returns what a sequence has before its error.
func collect(tenants func(func(client.Tenant, error) bool)) ([]client.Tenant, error) {
	var all []client.Tenant
	for tenant, err := range tenants {
		if err != nil {
			return all, err
		}
		all = append(all, tenant)
	}
	return all, nil
}

func TestAdmin(t *testing.T) {
	for name, c := range adminCases() {
		t.Run(name, func(t *testing.T) {
			optional := []protoreflect.FullName{"keysidecar.v1.ListTenantsResponse.next_page_token"} // TestTenantPages
			for _, field := range unset(c.answer.ProtoReflect()) {
				if !slices.Contains(optional, field) {
					t.Errorf("%s is not set: no test of it", field)
				}
			}
			var asked proto.Message
			answer := c.answer
			path := socketPath(t)
			serveAdmin(t, path, func(_ context.Context, req proto.Message) (proto.Message, error) {
				asked = req
				return answer, nil
			})
			a := dialAdmin(t, "unix://"+path)
			got, err := c.call(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.request, asked, protocmp.Transform()); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if text, err := json.Marshal(got); string(text) != c.json || err != nil {
				t.Errorf("as JSON it is\n%s, want\n%s, %v", text, c.json, err)
			}
			answer = answer.ProtoReflect().New().Interface()
			if got, err = c.call(t.Context(), a); err != nil || !cmp.Equal(c.empty, got) {
				t.Errorf("of an empty answer it makes %+v, %v", got, err)
			}
		})
	}
}

// pages serves the tenants a to e by twos; the token is the next tenant.
func pages(asked *[]string, fail string) respond {
	return func(_ context.Context, req proto.Message) (proto.Message, error) {
		token := req.(*keysidecarv1.ListTenantsRequest).GetPageToken()
		*asked = append(*asked, token)
		if fail != "" && token == fail {
			return nil, status.Error(codes.InvalidArgument, "no")
		}
		all := "abcde"
		rest := all[strings.Index(all, token):]
		page := rest[:min(2, len(rest))]
		res := &keysidecarv1.ListTenantsResponse{}
		for _, id := range page {
			res.Tenants = append(res.Tenants, &keysidecarv1.Tenant{Id: string(id)})
		}
		if len(rest) > len(page) {
			res.NextPageToken = rest[2:3]
		}
		return res, nil
	}
}

func TestTenantPages(t *testing.T) {
	for name, c := range map[string]struct {
		fail  string // the page that fails
		stop  string // the tenant at which the caller has enough
		want  string
		asked []string
	}{
		"all":      {"", "", "abcde", []string{"", "c", "e"}},
		"some":     {"", "c", "abc", []string{"", "c"}},
		"one page": {"", "b", "ab", []string{""}},
		"failing":  {"c", "", "ab", []string{"", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			path := socketPath(t)
			serveAdmin(t, path, pages(&asked, c.fail))
			var got string
			var failed int
			for tenant, err := range dialAdmin(t, path).Tenants(t.Context()) {
				if err != nil {
					if _, ok := errors.AsType[*client.Error](err); !ok {
						t.Error(err)
					}
					failed++
					continue
				}
				if got += tenant.ID; tenant.ID == c.stop {
					break
				}
			}
			if got != c.want || !slices.Equal(asked, c.asked) || (failed == 1) != (c.fail != "") {
				t.Errorf("tenants are %q after the pages %q and %d errors, want %q, %q", got, asked, failed, c.want, c.asked)
			}
		})
	}
}

// TestAdminErrors shows that every method maps errors as Client does, and that
// no call is repeated.
func TestAdminErrors(t *testing.T) {
	refusal, err := status.New(codes.ResourceExhausted, "retry later").WithDetails(
		&errdetails.ErrorInfo{Domain: "keysidecar", Reason: "RATE_LIMITED", Metadata: map[string]string{"request_id": "r1"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	path := socketPath(t)
	stop := serveAdmin(t, path, func(context.Context, proto.Message) (proto.Message, error) {
		made++
		return nil, refusal.Err()
	})
	a, another := dialAdmin(t, path), dialAdmin(t, path, client.WithServerUID())
	want := &client.Error{
		Reason: "RATE_LIMITED", Code: codes.ResourceExhausted, Message: "retry later", RetryAfter: time.Millisecond, RequestID: "r1",
	}
	for name, c := range adminCases() {
		made = 0
		_, err := c.call(t.Context(), a)
		e, _ := errors.AsType[*client.Error](err)
		if diff := cmp.Diff(want, e, cmpopts.IgnoreUnexported(client.Error{})); diff != "" || made != 1 {
			t.Errorf("%s: error after %d calls (-want +got):\n%s", name, made, diff)
		}
		if _, err := c.call(t.Context(), another); !errors.Is(err, client.ErrServerUID) || made != 1 {
			t.Errorf("%s to a server that is not accepted returned %v after %d calls", name, err, made)
		}
	}
	stop()
	for name, c := range adminCases() {
		start := time.Now()
		_, err := c.call(t.Context(), a)
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.Unavailable || e.Reason != "" {
			t.Errorf("%s without a server returned %v", name, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s without a server took %v", name, took)
		}
	}
}

func TestAdminContext(t *testing.T) {
	path := socketPath(t)
	serveAdmin(t, path, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	a := dialAdmin(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Status over its deadline returned %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Status(t.Context()); err == nil {
		t.Error("Status after Close succeeded")
	}
}

func TestDialAdminEmpty(t *testing.T) {
	for _, socket := range []string{"", "unix:", "unix://"} {
		if a, err := client.DialAdmin(socket); err == nil {
			a.Close()
			t.Errorf("DialAdmin(%q) succeeded", socket)
		}
	}
}
