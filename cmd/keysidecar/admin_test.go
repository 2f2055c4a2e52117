package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

func TestAdminError(t *testing.T) {
	for name, c := range map[string]struct {
		err  client.Error
		code int
		hint string
	}{
		"nobody there": {client.Error{Code: codes.Unavailable}, 1, "is its admin socket /a/socket? Its mode (listen.admin_mode) has to let user "},
		"denied":       {client.Error{Reason: "PERMISSION_DENIED", Code: codes.PermissionDenied}, 42, "TENANT VERB"},
		"data socket":  {client.Error{Code: codes.Unimplemented}, 42, "is that the admin socket"},
		"too long":     {client.Error{Code: codes.ResourceExhausted}, 42, ""},
		"overloaded":   {client.Error{Reason: "OVERLOADED", Code: codes.ResourceExhausted, RetryAfter: time.Second}, 1, "after 1s"},
		"draining":     {client.Error{Reason: "DRAINING", Code: codes.Unavailable, RetryAfter: time.Second}, 1, "after 1s"},
		"state":        {client.Error{Reason: "STATE_UNAVAILABLE", Code: codes.Unavailable}, 1, ""},
		"unknown":      {client.Error{Reason: "UNKNOWN_TENANT", Code: codes.NotFound}, 42, ""},
		"deadline":     {client.Error{Code: codes.DeadlineExceeded}, 1, ""},
	} {
		exit, _ := errors.AsType[*exitError](new(app).adminError("/a/socket", &c.err))
		if exit == nil || exit.code != c.code || !errors.Is(exit, &c.err) || !strings.HasPrefix(exit.Error(), "asking /a/socket: ") {
			t.Errorf("%s: adminError returned %+v, want exit code %d", name, exit, c.code)
			continue
		}
		if (c.hint == "") != (exit.hint == "") || !strings.Contains(exit.hint, c.hint) {
			t.Errorf("%s: hint is %q, want %q", name, exit.hint, c.hint)
		}
	}
}

// manyTenants lists n tenants, in pages of 700, and fails after the tenant
// before which it breaks.
type manyTenants struct {
	keysidecarv1.UnimplementedAdminServiceServer
	n, breaks int
}

func (m manyTenants) ListTenants(_ context.Context, req *keysidecarv1.ListTenantsRequest) (*keysidecarv1.ListTenantsResponse, error) {
	from, _ := strconv.Atoi(req.GetPageToken()) // "" is 0
	if m.breaks > 0 && from >= m.breaks {
		return nil, status.Error(codes.Internal, "broken")
	}
	to := min(from+700, m.n)
	res := &keysidecarv1.ListTenantsResponse{}
	for i := from; i < to; i++ {
		res.Tenants = append(res.Tenants, &keysidecarv1.Tenant{Id: fmt.Sprintf("t%d", i), State: "active"})
	}
	if to < m.n {
		res.NextPageToken = strconv.Itoa(to)
	}
	return res, nil
}

// serveAdmin serves an AdminService and returns the flags that find it.
func serveAdmin(t *testing.T, service keysidecarv1.AdminServiceServer) *adminFlags {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "admin.sock")
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	keysidecarv1.RegisterAdminServiceServer(srv, service)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
	})
	return &adminFlags{socket: path, timeout: 30 * time.Second}
}

// TestListTenants lists more than a page has and than a table lines up.
func TestListTenants(t *testing.T) {
	f := serveAdmin(t, manyTenants{n: 2500})
	var out strings.Builder
	a := &app{output: "text", stdio: stdio{out: &out}}
	if err := a.callAdmin(t.Context(), f, a.listTenants); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "TENANT ") {
			continue
		}
		if want := fmt.Sprintf("t%d ", rows); !strings.HasPrefix(line, want) || !strings.Contains(line, " active ") {
			t.Fatalf("row %d is %q", rows, line)
		}
		rows++
	}
	if heads := strings.Count(out.String(), "TENANT "); rows != 2500 || heads != 3 {
		t.Errorf("%d rows under %d headings", rows, heads)
	}

	out.Reset()
	a.output = "json"
	if err := a.callAdmin(t.Context(), f, a.listTenants); err != nil {
		t.Fatal(err)
	}
	rows = 0
	for d := json.NewDecoder(strings.NewReader(out.String())); d.More(); rows++ {
		var got client.Tenant
		if err := d.Decode(&got); err != nil || got.ID != fmt.Sprintf("t%d", rows) {
			t.Fatalf("line %d is %+v, %v", rows, got, err)
		}
	}
	if rows != 2500 {
		t.Errorf("%d lines", rows)
	}
}

// TestListTenantsBreaks loses the sidecar, and standard output, on the way.
func TestListTenantsBreaks(t *testing.T) {
	for _, output := range []string{"text", "json"} {
		var out strings.Builder
		a := &app{output: output, stdio: stdio{out: &out}}
		err := a.callAdmin(t.Context(), serveAdmin(t, manyTenants{n: 2500, breaks: 700}), a.listTenants)
		if codeOf(err) != exitPermanent || !strings.Contains(err.Error(), "admin.sock: calling the sidecar: Internal: broken") {
			t.Errorf("%s: a page that fails gives %v", output, err)
		}
		if got := out.String(); !strings.Contains(got, "t699") || strings.Contains(got, "t700") {
			t.Errorf("%s: what came before is not printed: %d bytes", output, len(got))
		}
		a.out = broken{io.ErrClosedPipe}
		err = a.callAdmin(t.Context(), serveAdmin(t, manyTenants{n: 2500}), a.listTenants)
		if codeOf(err) != exitTryAgain || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: an output that is gone gives %v", output, err)
		}
	}
}

func TestTenantRow(t *testing.T) {
	at := time.Date(2026, 11, 22, 7, 0, 0, 5, time.FixedZone("", 3600))
	for want, row := range map[string]client.Tenant{
		"acme|active|eu|-|-|-":                           {ID: "acme", State: "active", KEK: "eu"},
		"c-*|active|eu|a,b|x,y|-":                        {Prefix: "c-*", State: "active", KEK: "eu", AlsoOpens: []string{"a", "b"}, Regions: []string{"x", "y"}},
		"*|suspended|eu|-|-|tenants.yaml":                {Prefix: "*", State: "suspended", KEK: "eu"},
		"c-1|suspended|-|-|-|me at 2026-11-22T06:00:00Z": {ID: "c-1", State: "suspended", Suspension: &client.Suspension{By: "me", At: at}},
		"c-1|suspended|-|-|-|me at -: why": {
			ID: "c-1", State: "suspended", Suspension: &client.Suspension{By: "me", Reason: "why"},
		},
	} {
		if got := strings.ReplaceAll(tenantRow(&row), "\t", "|"); got != want {
			t.Errorf("row is\n%s, want\n%s", got, want)
		}
	}
}

func TestStatusText(t *testing.T) {
	at := time.Date(2026, 11, 22, 7, 0, 0, 5, time.FixedZone("", 3600))
	const full = `version     v1
started     2026-11-22T06:00:00Z
region      eu
key memory  heap
unix        /s: connections 1, refused 2
tcp         :1: connections 3, refused 4
data keys   5 of 7, tenants with an active one 6
in flight   8 of 9 bytes
files       read 2026-11-22T06:00:00Z: policy rules 10, tenant rules 11, KEKs 12
suspended   13 here, by tenant suspend
audit       l, records 14, key k
problem     a
problem     b
            the files are not right: those read before stay in effect
`
	got := statusText(&client.Status{
		Version: "v1", Started: at, Region: "eu", KeyMemory: "heap",
		Listeners: []client.Listener{
			{Name: "unix", Address: "/s", Connections: 1, Refused: 2}, {Name: "tcp", Address: ":1", Connections: 3, Refused: 4},
		},
		DEKsCached: 5, DEKsActive: 6, DEKsLimit: 7, BytesInFlight: 8, BytesLimit: 9, FilesLoaded: at,
		PolicyRules: 10, TenantRules: 11, KEKs: 12, TenantsSuspended: 13, FileProblems: []string{"a", "b"},
		AuditLog: "l", AuditKey: "k", AuditRecords: 14,
	})
	if got != full {
		t.Errorf("status is\n%s, want\n%s", got, full)
	}
	failing := statusText(&client.Status{AuditLog: "l", AuditFailingSince: at})
	if want := "audit       l CANNOT BE WRITTEN since 2026-11-22T06:00:00Z\n"; !strings.Contains(failing, want) {
		t.Errorf("status has no %q:\n%s", want, failing)
	}
	empty := statusText(&client.Status{})
	for _, want := range []string{"version     -\n", "started     -\n", "region      -\n", "files       read -: ", "audit       none: audit.sink\n"} {
		if !strings.Contains(empty, want) {
			t.Errorf("empty status has no %q:\n%s", want, empty)
		}
	}
	if strings.Contains(empty, "problem") || strings.Contains(empty, "not right") {
		t.Errorf("empty status has problems:\n%s", empty)
	}
}

// TestSilent is an error whose result has been printed.
func TestSilent(t *testing.T) {
	var out strings.Builder
	a := &app{stdio: stdio{err: &out}}
	if code := a.printFailure("x", &exitError{code: exitPermanent, err: errors.New("y"), silent: true}); code != exitPermanent || out.Len() > 0 {
		t.Errorf("exit code %d after %q", code, out.String())
	}
}
