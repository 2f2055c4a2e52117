package server_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/internal/limit"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/server"
)

// longest is a request as long as these tests send.
func longest(t *testing.T) []byte {
	t.Helper()
	return message(t, &keysidecarv1.SealRequest{Plaintext: make([]byte, 60<<10)})
}

// TestUnreadAnswersCount is about a peer that asks and does not let the answers
// come. They count as its bytes and its calls, and when the calls have to end so
// does its connection.
func TestUnreadAnswersCount(t *testing.T) {
	const most = 500 * time.Millisecond
	share := server.RoomForCall(roomUnary) + 3*callRoom(60<<10)
	for name, c := range map[string]struct {
		total int64
		calls int
	}{"bytes": {2 * share, 0}, "calls": {1 << 30, 4}} {
		t.Run(name, func(t *testing.T) {
			var room *limit.Bytes
			withRoom := withBytes(t, c.total, 0.5, &room)
			s := start(t, answer(echo), func(cfg *server.Config) {
				withRoom(cfg)
				asNamed(t, cfg)
				cfg.CallTimeout, cfg.Limits.Caller = most, limit.Limit{Calls: c.calls}
			})
			p := s.speak(t, "dns:mute.test", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			for i := range int64(4) {
				p.open(sealMethod)
				p.send(longest(t), true)
				eventually(t, "answer waits", func() bool { return room.InUse() == (i+1)*callRoom(60<<10) })
			}
			if got := wireOf(p.wait(p.open(sealMethod)).status(t)); got.Reason != "OVERLOADED" {
				t.Errorf("one more call got %+v", got)
			}
			other := keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:other.test"))
			if _, err := other.Seal(t.Context(), &keysidecarv1.SealRequest{Plaintext: make([]byte, 60<<10)}); err != nil {
				t.Errorf("another caller got %v", err)
			}
			select {
			case <-p.gone:
			case <-time.After(patience):
				t.Error("a peer that takes no answers was not cut off")
			}
			eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
			again := s.speak(t, "dns:mute.test")
			again.wait(again.call(sealMethod, &keysidecarv1.SealRequest{})).status(t)
		})
	}
}

// TestLateReaders shows that who reads in time gets the answer.
func TestLateReaders(t *testing.T) {
	var room *limit.Bytes
	s := start(t, answer(echo), withBytes(t, 1<<30, 1, &room))
	p := s.speak(t, "", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	stream := p.open(sealMethod)
	p.send(longest(t), true)
	eventually(t, "answer waits", func() bool { return room.InUse() == callRoom(60<<10) })
	p.mu.Lock()
	p.must(p.frame.WriteWindowUpdate(p.last-1, 1<<20))
	p.mu.Unlock()
	if st := p.wait(stream).status(t); st.Code() != codes.OK || !bytes.Contains(stream.data, make([]byte, 60<<10)) {
		t.Errorf("call ended with %v and %d bytes", st, len(stream.data))
	}
	eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
}

// TestDeafPeers is about peers that read nothing at all from the socket, and
// whose deadlines have passed when the kernel's buffer is full.
func TestDeafPeers(t *testing.T) {
	var room *limit.Bytes
	withRoom := withBytes(t, 1<<30, 1, &room)
	s := start(t, answer(echo), func(c *server.Config) {
		withRoom(c)
		c.CallTimeout = 300 * time.Millisecond
	})
	p := s.deaf(t, "")
	p.must(p.SetDeadline(time.Now().Add(patience)))
	request := longest(t)
	var err error
	for err == nil {
		p.open(sealMethod, timeout("100m"))
		err = p.trySend(request, true)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a peer that reads nothing was not cut off")
	}
	eventually(t, "everything given back", func() bool { return room.InUse() == 0 })
}
