package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

// TestContextsComeInWhole shows that what is valid, or a little over, is left
// for the sealer to judge.
func TestContextsComeInWhole(t *testing.T) {
	var got sealer.Request
	s := start(t, answer(func(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		got = r
		return sealer.Result{}, nil
	}), nil)
	for pairs, long := range map[int]int{1: 8192, 32: 8192 / 32, 33: 300, 64: 300, 120: 20} {
		want := make(map[string]string)
		for i := range pairs {
			want[fmt.Sprintf("key-%03d", i)] = strings.Repeat("v", long-len("key-000"))
		}
		data := bytes.Repeat([]byte("x"), 1<<20)
		req := &keysidecarv1.SealRequest{Tenant: "acme", Plaintext: data, EncryptionContext: want}
		if _, err := s.rpc.Seal(t.Context(), req); err != nil {
			t.Errorf("%d pairs: call got %v", pairs, err)
		} else if diff := cmp.Diff(want, got.Context); diff != "" || got.Tenant != "acme" || !bytes.Equal(got.Data, data) {
			t.Errorf("%d pairs: sealer got tenant %q, %d bytes and other pairs:\n%s", pairs, got.Tenant, len(got.Data), diff)
		}
	}
}

// TestUnreadAnswersKeepTheirSlots is about calls at a time, as unread_test.go
// is about room.
func TestUnreadAnswersKeepTheirSlots(t *testing.T) {
	var room *limit.Bytes
	withRoom := withBytes(t, 1<<30, 1, &room)
	s := start(t, answer(echo), func(c *server.Config) {
		withRoom(c)
		c.Limits.Caller = limit.Limit{Calls: 2}
		c.CallTimeout = time.Second
	})
	p := s.speak(t, "", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range int64(2) {
		p.open(sealMethod)
		p.send(longest(t), true)
		eventually(t, "answer waits", func() bool { return room.InUse() == (i+1)*callRoom(60<<10) })
	}
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); reasonOf(err) != "OVERLOADED" {
		t.Errorf("a third call, on another connection, got %v", err)
	}
	select {
	case <-p.gone:
	case <-time.After(patience):
		t.Fatal("connection stays")
	}
	eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
	again := s.speak(t, "") // nothing was given back twice
	for i := range int64(2) {
		again.open(sealMethod)
		eventually(t, "call comes in", func() bool { return room.InUse() == (i+1)*server.RoomForCall(roomUnary) })
	}
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); reasonOf(err) != "OVERLOADED" {
		t.Errorf("a third call afterwards got %v", err)
	}
}

// TestReadAnswersGiveBack shows that what is read keeps nothing, however long
// a call may take, and that nothing is given back twice.
func TestReadAnswersGiveBack(t *testing.T) {
	var room *limit.Bytes
	withRoom := withBytes(t, 1<<30, 1, &room)
	stop := newStopper()
	s := start(t, answer(func(ctx context.Context, v policy.Verb, r sealer.Request) (sealer.Result, error) {
		if len(r.Data) == 1 {
			return stop.answer(ctx, v, r)
		}
		return echo(ctx, v, r)
	}), func(c *server.Config) {
		withRoom(c)
		c.Limits.Caller = limit.Limit{Calls: 2}
		c.CallTimeout = time.Hour
	})
	held, ok := stop.begin(t, s.rpc, []byte("x")) // one of the two for all the time
	if !ok {
		t.Fatal(<-held)
	}
	taken := room.InUse()
	for i, size := range []int{60 << 10, 0, 1000, 1 << 10, 1 << 11, roomUnary, 60 << 10, 60 << 10} {
		resp, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: make([]byte, size)})
		if err != nil || len(resp.GetSealed()) != size {
			t.Errorf("call %d: %d bytes and %v, want %d", i, len(resp.GetSealed()), err, size)
		}
		eventually(t, "room given back", func() bool { return room.InUse() == taken })
	}
	second, ok := stop.begin(t, s.rpc, []byte("x"))
	if !ok {
		t.Errorf("second call got %v", <-second)
	}
	if third, ok := stop.begin(t, s.rpc, []byte("x")); ok || reasonOf(<-third) != "OVERLOADED" {
		t.Error("a third call came in")
	}
}

// TestHealthWithoutRoom shows that callers who take all bytes in flight keep
// neither probes out, nor calls of a server with Limits of its own.
func TestHealthWithoutRoom(t *testing.T) {
	s := start(t, answer(echo), func(c *server.Config) { c.Limits.Bytes.TryAcquire("other", 1<<30) })
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); reasonOf(err) != "OVERLOADED" {
		t.Errorf("call got %v", err)
	}
	for range 20 {
		if _, err := grpc_health_v1.NewHealthClient(s.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Errorf("probe got %v", err)
		}
	}
	if _, err := start(t, answer(echo), nil).rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Errorf("call of another server got %v", err)
	}
}

// TestHalfSentProbes shows that they end soon, and keep out nobody else's.
func TestHalfSentProbes(t *testing.T) {
	t.Parallel()
	s := start(t, answer(echo), func(c *server.Config) { asNamed(t, c) })
	p := s.speak(t, "dns:greedy.test")
	began := time.Now()
	var streams []*wireStream
	for range 30 {
		streams = append(streams, p.open(checkMethod))
		p.send(append(prefix(1<<10), 'x'), false)
	}
	other := grpc_health_v1.NewHealthClient(s.dialAs(t, "dns:other.test"))
	for range 50 { // within its rate
		if _, err := other.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatalf("another caller's probe got %v", err)
		}
	}
	ends := make(map[string]int)
	for _, stream := range streams {
		reason := reasonOf(p.wait(stream).status(t).Err())
		ends[reason]++
		if d := stream.end.Sub(began); reason != "OVERLOADED" && (d < server.OpenTimeout || d > server.OpenTimeout+3*time.Second) {
			t.Errorf("half-sent probe ended after %v, want %v", d, server.OpenTimeout)
		}
	}
	if diff := cmp.Diff(map[string]int{"DeadlineExceeded": 1, "OVERLOADED": 29}, ends); diff != "" {
		t.Errorf("half-sent probes of one caller (-want +got):\n%s", diff)
	}
	mine := grpc_health_v1.NewHealthClient(s.dialAs(t, "dns:greedy.test"))
	if _, err := mine.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("probe afterwards got %v", err)
	}
}

// TestHalfSentWatch shows that one costs the connection, while those that are
// whole last.
func TestHalfSentWatch(t *testing.T) {
	t.Parallel()
	s := start(t, answer(echo), nil)
	watch, err := grpc_health_v1.NewHealthClient(s.conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() grpc_health_v1.HealthCheckResponse_ServingStatus {
		got, err := watch.Recv()
		if err != nil {
			t.Errorf("watch ended with %v", err)
		}
		return got.GetStatus()
	}
	if got := next(); got != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("first status is %v", got)
	}
	p := s.speak(t, "")
	began := time.Now()
	p.open(grpc_health_v1.Health_Watch_FullMethodName)
	p.send(append(prefix(100), 'x'), false)
	select {
	case <-p.gone:
	case <-time.After(patience):
		t.Fatal("connection with a half-sent message stays")
	}
	if d := time.Since(began); d < server.OpenTimeout || d > server.OpenTimeout+3*time.Second {
		t.Errorf("connection was closed after %v, want %v", d, server.OpenTimeout)
	}
	s.SetServing("", false)
	s.SetServing("", true)
	drained := make(chan error)
	go func() { drained <- s.Drain(t.Context()) }()
	got := next()
	for got == grpc_health_v1.HealthCheckResponse_SERVING {
		got = next()
	}
	if got != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("status while draining is %v", got)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestDeniedBeforeTheMessage is about callers who may do nothing. They get what
// the sealer says to those who may do something else, at no cost.
func TestDeniedBeforeTheMessage(t *testing.T) {
	granted, err := policy.New(policy.Config{
		Callers: []policy.CallerRule{{Name: "reader", DNS: "reader.test"}, {Name: "both", DNS: "both.test"}},
		Rules: []policy.Rule{
			{Callers: []string{"reader", "both"}, Tenants: []string{"acme"}, Verbs: []string{"unseal"}},
			{Callers: []string{"both"}, Tenants: []string{"acme"}, Verbs: []string{"seal"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var room *limit.Bytes
	withRoom := withBytes(t, 1<<30, 1, &room)
	s := start(t, failing(sealer.NewError(sealer.PermissionDenied, nil)), func(c *server.Config) {
		withRoom(c)
		c.Source, c.Policy = newNaming(), func() *policy.Policy { return granted }
	})
	denied := func(st *status.Status) wire {
		w := wireOf(st)
		w.RequestID = ""
		return w
	}
	_, err = keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:both.test")).Seal(t.Context(), &keysidecarv1.SealRequest{Tenant: "eu-1"})
	want := denied(status.Convert(err))
	if want.Reason != "PERMISSION_DENIED" {
		t.Fatalf("the sealer's answer came as %+v", want)
	}
	hold, _ := room.TryAcquire("other", 1<<30) // whoever needs room gets another answer
	defer hold.Release()
	for _, caller := range []string{"dns:reader.test", "dns:stranger.test", "uid:7/gid:7"} {
		p := s.speak(t, caller)
		half := p.open(sealMethod)
		p.send(append(prefix(1000), 'x'), false)
		if diff := cmp.Diff(want, denied(p.wait(half).status(t))); diff != "" {
			t.Errorf("%s: answer to half a message (-want +got):\n%s", caller, diff)
		}
		for _, tenant := range []string{"acme", "eu-1", "", "no tenant"} {
			_, err := keysidecarv1.NewSealServiceClient(s.dialAs(t, caller)).Seal(t.Context(), &keysidecarv1.SealRequest{Tenant: tenant})
			if diff := cmp.Diff(want, denied(status.Convert(err))); diff != "" {
				t.Errorf("%s: answer about tenant %q (-want +got):\n%s", caller, tenant, diff)
			}
		}
	}
	_, err = keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:reader.test")).Unseal(t.Context(), &keysidecarv1.UnsealRequest{})
	if reasonOf(err) != "OVERLOADED" {
		t.Errorf("a caller with the verb got %v, want that it needs room", err)
	}
}

// TestUnknownMethods shows that they are answered by their headers, and take
// nothing from calls.
func TestUnknownMethods(t *testing.T) {
	var room *limit.Bytes
	withRoom := withBytes(t, 1<<30, 1, &room)
	s := start(t, answer(echo), func(c *server.Config) {
		withRoom(c)
		c.Limits.Caller = once()
	})
	p := s.speak(t, "")
	hold, _ := room.TryAcquire("me", 1<<30)
	for i := range 30 {
		for _, name := range []string{"/keysidecar.v1.SealService/No", "/keysidecar.v1.AdminService/Status", "/a/b"} {
			if st := p.wait(p.open(name)).status(t); st.Code() != codes.Unimplemented {
				t.Fatalf("unknown method %d got %v", i, st)
			}
		}
	}
	hold.Release()
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err != nil {
		t.Errorf("call got %v", err)
	}
}

// TestFloodHidesNoOtherCode makes calls that are denied amid many that are not
// valid.
func TestFloodHidesNoOtherCode(t *testing.T) {
	const each = 10
	s := start(t, answer(func(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		if r.Tenant == "victim" {
			return sealer.Result{}, sealer.NewError(sealer.PermissionDenied, nil)
		}
		return sealer.Result{}, sealer.NewError(sealer.InvalidTenant, nil)
	}), nil)
	for i := range server.LinesAtOnce + 100*each {
		req := &keysidecarv1.SealRequest{}
		if i >= server.LinesAtOnce && i%each == 0 {
			req.Tenant = "victim"
		}
		if _, err := s.rpc.Seal(t.Context(), req); err == nil {
			t.Fatal("call was answered")
		}
	}
	lines := strings.Count(s.log.String(), `"code":"PermissionDenied"`)
	if others := strings.Count(s.log.String(), `"code":"InvalidArgument"`); lines != 100 || others >= 100*(each-1) {
		t.Errorf("%d of 100 denied calls are in the log, and %d others", lines, others)
	}
}

// TestRefusedConnectionsAreLogged shows who was refused and why, and that many
// of them do not fill the log.
func TestRefusedConnectionsAreLogged(t *testing.T) {
	const many = 200
	s := start(t, answer(echo), func(c *server.Config) {
		asNamed(t, c)
		c.ConnectionsPerCaller = 1
	})
	began := time.Now()
	first := s.knock(t, "dns:greedy.test")
	defer first.Close()
	if !opened(t, first) {
		t.Error("the first connection was refused")
	}
	for range many {
		conn := s.knock(t, "dns:greedy.test")
		if opened(t, conn) {
			t.Error("a connection too many was served")
		}
		conn.Close()
	}
	n := 0
	for line := range strings.Lines(s.log.String()) {
		var got struct{ Level, Msg, Why, Identity string }
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if got.Level != "WARN" || got.Msg != "connection refused" || got.Identity != "dns:greedy.test" ||
			!strings.Contains(got.Why, "limits.connections_per_caller") {
			t.Fatalf("unexpected line: %s", line)
		}
		n++
	}
	if most := 20 + 1 + int(time.Since(began).Seconds()); n < 20 || n > most {
		t.Errorf("%d refused connections made %d lines, want 20 to %d", many, n, most)
	}
}
