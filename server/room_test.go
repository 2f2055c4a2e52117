package server_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/keysidecar/keysidecar/internal/limit"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

// roomUnary is the unary limit of these tests.
const roomUnary = 64 << 10

// callRoom is what a call with n bytes of data, and nothing else, takes once it
// has been read.
func callRoom(n int) int64 {
	length := proto.Size(&keysidecarv1.SealRequest{Plaintext: make([]byte, n)})
	return server.RoomForCall(roomUnary) - 2*int64(server.MaxRequest(roomUnary)) + 2*int64(length)
}

// withBytes gives a caller so many bytes of a total.
func withBytes(t *testing.T, total int64, share float64, bytes **limit.Bytes) func(*server.Config) {
	t.Helper()
	b, err := limit.NewBytes(limit.BytesConfig{Total: total, Share: share})
	if err != nil {
		t.Fatal(err)
	}
	*bytes = b
	return func(c *server.Config) { c.MaxUnary, c.Limits.Bytes = roomUnary, b }
}

// TestRoomByActualLength shows that calls take what they need and no more, that
// one too many is refused soon, and that room comes back.
func TestRoomByActualLength(t *testing.T) {
	total := server.RoomForCall(roomUnary) + 3*callRoom(roomUnary)
	for _, size := range []int{roomUnary, 10_000, 0} {
		var room *limit.Bytes
		stop := newStopper()
		s := start(t, answer(stop.answer), withBytes(t, total, 1, &room))
		want := 1 + int((total-server.RoomForCall(roomUnary))/callRoom(size))
		var inside []chan error
		for {
			began := time.Now()
			result, ok := stop.begin(t, s.rpc, make([]byte, size))
			if !ok {
				if err := <-result; reasonOf(err) != "OVERLOADED" {
					t.Errorf("%d bytes: call %d got %v", size, len(inside), err)
				}
				if d := time.Since(began); d < 200*time.Millisecond || d > 2*time.Second {
					t.Errorf("%d bytes: the answer took %v, want about 250ms", size, d)
				}
				break
			}
			inside = append(inside, result)
		}
		if got := room.InUse(); len(inside) != want || got != int64(want)*callRoom(size) {
			t.Errorf("%d bytes: %d calls came in and take %d, want %d and %d",
				size, len(inside), got, want, int64(want)*callRoom(size))
		}
		close(stop.leave)
		for _, result := range inside {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if got := room.InUse(); got != 0 {
			t.Errorf("%d bytes are in use after all answers", got)
		}
		if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: make([]byte, roomUnary)}); err != nil {
			t.Errorf("call when all have ended got %v", err)
		}
	}
}

// TestWaitForRoom shows that a call waits a moment for room.
func TestWaitForRoom(t *testing.T) {
	var room *limit.Bytes
	stop := newStopper()
	s := start(t, answer(stop.answer), withBytes(t, server.RoomForCall(roomUnary), 1, &room))
	for range 50 { // on a busy machine the moment may be over too soon
		stop.leave = make(chan struct{})
		first, _ := stop.begin(t, s.rpc, nil)
		second := make(chan error, 1)
		go func() {
			_, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{})
			second <- err
		}()
		<-time.After(20 * time.Millisecond)
		waited := len(second) == 0 && len(stop.entered) == 0
		close(stop.leave)
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		if err := <-second; err == nil && waited {
			return
		}
		if len(stop.entered) > 0 {
			<-stop.entered
		}
	}
	t.Error("no call got the room that it waited for")
}

// TestRoomOfOthers shows that a caller at its share keeps nobody else out.
func TestRoomOfOthers(t *testing.T) {
	var room *limit.Bytes
	stop := newStopper()
	withRoom := withBytes(t, 2*server.RoomForCall(roomUnary)+callRoom(0), 0.5, &room)
	s := start(t, answer(stop.answer), func(c *server.Config) {
		withRoom(c)
		asNamed(t, c)
	})
	greedy := keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:greedy.test"))
	other := keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:other.test"))
	if _, ok := stop.begin(t, greedy, make([]byte, roomUnary)); !ok {
		t.Fatal("the first call did not come in")
	}
	if result, ok := stop.begin(t, greedy, nil); ok || reasonOf(<-result) != "OVERLOADED" {
		t.Error("a caller got more than its share")
	}
	result, ok := stop.begin(t, other, make([]byte, roomUnary))
	if !ok {
		t.Errorf("another caller got %v", <-result)
	}
}

// TestRoomComesBack ends calls in every way that there is, more often than
// there are places, and finds everything given back.
func TestRoomComesBack(t *testing.T) {
	const calls, rounds = 4, 6
	var room *limit.Bytes
	entered := make(chan struct{}, 1)
	withRoom := withBytes(t, calls*server.RoomForCall(roomUnary), 1, &room)
	s := start(t, answer(func(ctx context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		switch string(r.Data) {
		case "error":
			return sealer.Result{}, errors.New("no")
		case "panic":
			panic("no")
		case "wait":
			entered <- struct{}{}
			<-ctx.Done()
			return sealer.Result{}, ctx.Err()
		}
		return sealer.Result{Data: r.Data}, nil
	}), func(c *server.Config) {
		withRoom(c)
		c.Limits.Caller = limit.Limit{Calls: calls}
	})
	request := func(data string) []byte { return message(t, &keysidecarv1.SealRequest{Plaintext: []byte(data)}) }
	taken := func() bool { return room.InUse() > 0 }
	for name, end := range map[string]func(p *wirePeer){
		"answer": func(p *wirePeer) { p.send(request("x"), true); p.wait(p.lastStream()) },
		"error":  func(p *wirePeer) { p.send(request("error"), true); p.wait(p.lastStream()) },
		"panic":  func(p *wirePeer) { p.send(request("panic"), true); p.wait(p.lastStream()) },
		"cancelled inside": func(p *wirePeer) {
			p.send(request("wait"), true)
			<-entered
			p.reset()
		},
		"deadline inside": func(p *wirePeer) {
			p.send(request("wait"), true)
			<-entered
			p.wait(p.lastStream())
		},
		"gone inside": func(p *wirePeer) {
			p.send(request("wait"), true)
			<-entered
			p.Close()
		},
		"cancelled half-sent": func(p *wirePeer) {
			p.send(request("x")[:6], false)
			eventually(t, "room taken", taken)
			p.reset()
		},
		"gone half-sent": func(p *wirePeer) {
			p.send(request("x")[:6], false)
			eventually(t, "room taken", taken)
			p.Close()
		},
		"deadline half-sent": func(p *wirePeer) {
			p.send(request("x")[:6], false)
			p.wait(p.lastStream())
		},
		"ended half-sent": func(p *wirePeer) { p.send(request("x")[:6], true); p.wait(p.lastStream()) },
		"no message":      func(p *wirePeer) { p.send(nil, true); p.wait(p.lastStream()) },
		"two messages":    func(p *wirePeer) { p.send(append(request("x"), request("x")...), true); p.wait(p.lastStream()) },
		"no proto":        func(p *wirePeer) { p.send(append(prefix(3), "\xff\xff\xff"...), true); p.wait(p.lastStream()) },
		"too long":        func(p *wirePeer) { p.send(prefix(server.MaxRequest(roomUnary)+1), false); p.wait(p.lastStream()) },
		"compressed":      func(p *wirePeer) { p.send([]byte{1, 0, 0, 0, 1, 'x'}, true); p.wait(p.lastStream()) },
	} {
		t.Run(name, func(t *testing.T) {
			for range rounds {
				p := s.speak(t, "")
				if strings.HasPrefix(name, "deadline") {
					p.open(sealMethod, hpack.HeaderField{Name: "grpc-timeout", Value: "20m"})
				} else {
					p.open(sealMethod)
				}
				end(p)
				eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
			}
			eventually(t, "a place for a call", func() bool { // the answer comes a little before the place
				_, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}, grpc.WaitForReady(true))
				return err == nil
			})
		})
	}
}

// TestRefusedForRoomGivesBackItsPlace shows it of calls that found no room.
func TestRefusedForRoomGivesBackItsPlace(t *testing.T) {
	var room *limit.Bytes
	withRoom := withBytes(t, server.RoomForCall(roomUnary), 1, &room)
	s := start(t, answer(echo), func(c *server.Config) {
		withRoom(c)
		c.Limits.Caller = limit.Limit{Calls: 2}
	})
	hold, _ := room.TryAcquire("me", server.RoomForCall(roomUnary))
	p := s.speak(t, "")
	for range 3 {
		if got := wireOf(p.wait(p.open(sealMethod)).status(t)); got.Reason != "OVERLOADED" {
			t.Errorf("call without room got %+v", got)
		}
	}
	p.open(sealMethod) // waits for room
	p.reset()
	hold.Release()
	eventually(t, "a place for a call", func() bool {
		_, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{})
		return err == nil
	})
	if got := room.InUse(); got != 0 {
		t.Errorf("%d bytes are in use", got)
	}
}

// TestUnsealCountsItsData shows that sealed data counts as plaintext does.
func TestUnsealCountsItsData(t *testing.T) {
	var room *limit.Bytes
	var got int64
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		got = room.InUse()
		return sealer.Result{}, nil
	}), withBytes(t, 1<<30, 1, &room))
	data := bytes.Repeat([]byte("x"), 5000)
	for name, m := range map[string]proto.Message{
		keysidecarv1.SealService_Unseal_FullMethodName: &keysidecarv1.UnsealRequest{Sealed: data},
		sealMethod: &keysidecarv1.SealRequest{Plaintext: data},
	} {
		if err := s.conn.Invoke(t.Context(), name, m, &keysidecarv1.UnsealResponse{}); err != nil {
			t.Fatal(err)
		}
		if want := callRoom(len(data)); got != want {
			t.Errorf("%s: a call of %d bytes takes %d, want %d", name, len(data), got, want)
		}
	}
}
