package server_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

// repeated returns what one makes of 0, 1, 2 and so on, as a message of 1 MiB.
func repeated(one func(msg []byte, i int) []byte) []byte {
	var msg []byte
	for i := 0; len(msg) < 1<<20; i++ {
		msg = one(msg, i)
	}
	return msg
}

// field returns a function that appends a field of bytes.
func field(number protowire.Number, value func(i int) []byte) func([]byte, int) []byte {
	return func(msg []byte, i int) []byte {
		return protowire.AppendBytes(protowire.AppendTag(msg, number, protowire.BytesType), value(i))
	}
}

func nothing(int) []byte { return nil }

func hex(i int) []byte { return fmt.Appendf(nil, "%x", i) }

// TestCostlyMessages shows that a message which would cost many times its
// length is refused before it is taken apart.
func TestCostlyMessages(t *testing.T) {
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		t.Error("the message came in")
		return sealer.Result{}, nil
	}), nil)
	for name, c := range map[string]struct {
		msg  []byte
		want string
	}{
		"pairs":          {repeated(field(3, func(i int) []byte { return field(1, hex)(nil, i) })), "INVALID_CONTEXT"},
		"empty pairs":    {repeated(field(3, nothing)), "INVALID_CONTEXT"},
		"a long pair":    {repeated(field(3, func(int) []byte { return bytes.Repeat([]byte{0x0a, 0}, 40<<10) })), "INVALID_CONTEXT"},
		"data":           {repeated(field(2, nothing)), "INVALID_REQUEST"},
		"tenants":        {repeated(field(1, nothing)), "INVALID_REQUEST"},
		"a long tenant":  {repeated(field(1, func(int) []byte { return bytes.Repeat([]byte("x"), 70<<10) })), "INVALID_REQUEST"},
		"unknown":        {repeated(field(99, nothing)), "INVALID_REQUEST"},
		"a long unknown": {repeated(field(99, func(int) []byte { return make([]byte, 1<<20) })), "INVALID_REQUEST"},
		"group as data": {repeated(func(msg []byte, _ int) []byte {
			inner := bytes.Repeat([]byte{0x08, 0}, 512<<10)
			return protowire.AppendGroup(protowire.AppendTag(msg, 2, protowire.StartGroupType), 2, inner)
		}), "INVALID_REQUEST"},
	} {
		for _, method := range []string{sealMethod, keysidecarv1.SealService_Unseal_FullMethodName} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := s.conn.Invoke(t.Context(), method, c.msg, &keysidecarv1.SealResponse{}, grpc.ForceCodec(raw{}))
			runtime.ReadMemStats(&after)
			if got := wireOf(status.Convert(err)); got.Code != codes.InvalidArgument || got.Reason != c.want {
				t.Errorf("%s: %s got %+v, want %s", name, method, got, c.want)
			}
			objects, size := after.Mallocs-before.Mallocs, (after.TotalAlloc-before.TotalAlloc)>>20
			if objects > 10_000 || size > 8 {
				t.Errorf("%s: %s made %d objects of %d MiB", name, method, objects, size)
			}
		}
	}
}

// TestPeersThatReadNothing floods the server on a connection from which nothing
// is read: as soon as answers wait, no more comes in, and then it is cut off.
func TestPeersThatReadNothing(t *testing.T) {
	const after = 2 * time.Second
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		return sealer.Result{Data: make([]byte, 60<<10)}, nil
	}), nil)
	s.CutOffAfter(after)
	p := s.deaf(t, "")
	sent := 0
	p.frame = http2.NewFramer(io.MultiWriter(p.Conn, counting{&sent}), nil)
	p.must(p.SetDeadline(time.Now().Add(patience)))
	flooded := make(chan error)
	before, most := heap(), uint64(0)
	began := time.Now()
	go func() {
		for range 10 { // whose answers fill the socket
			p.call(sealMethod, &keysidecarv1.SealRequest{})
		}
		var err error
		for err == nil {
			p.open("/a/b", hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 1<<10), Sensitive: true})
			p.mu.Lock()
			clear(p.streams)
			err = p.frame.WriteRSTStream(p.last-1, http2.ErrCodeCancel)
			p.mu.Unlock()
		}
		flooded <- err
	}()
	for {
		select {
		case err := <-flooded:
			d := time.Since(began)
			t.Logf("cut off after %v and %d KiB; heap %d KiB, then at most %d", d, sent>>10, before>>10, most>>10)
			if errors.Is(err, os.ErrDeadlineExceeded) || d < after {
				t.Errorf("connection ended after %v with %v, want %v", d, err, after)
			}
			if sent > 4<<20 || most > before+(8<<20) {
				t.Errorf("server read %d KiB; heap was %d KiB, and then %d", sent>>10, before>>10, most>>10)
			}
			return
		default:
			most = max(most, heap())
		}
	}
}

// counting counts what is written.
type counting struct{ n *int }

func (c counting) Write(b []byte) (int, error) {
	*c.n += len(b)
	return len(b), nil
}

// heap returns how many bytes are alive.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSlowReaders shows that who reads slowly is not cut off.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	const after = 500 * time.Millisecond
	long := make([]byte, 1<<20)
	s := start(t, answer(func(context.Context, policy.Verb, sealer.Request) (sealer.Result, error) {
		return sealer.Result{Data: long}, nil
	}), nil)
	s.CutOffAfter(after)
	p := s.deaf(t, "")
	decoder := p.frame.ReadMetaHeaders
	p.frame = http2.NewFramer(p.Conn, bufio.NewReaderSize(slow{p.Conn}, 128<<10))
	p.frame.ReadMetaHeaders = decoder
	p.frame.SetReuseFrames()
	go p.read()
	began := time.Now()
	for range 2 {
		stream := p.wait(p.call(sealMethod, &keysidecarv1.SealRequest{}))
		if st := stream.status(t); st.Code() != codes.OK || len(stream.data) < len(long) {
			t.Errorf("call ended with %v and %d bytes", st, len(stream.data))
		}
	}
	if d := time.Since(began); d < 2*after {
		t.Errorf("the answers took %v: that is not slow", d)
	}
}

// slow reads a little at a time.
type slow struct{ net.Conn }

func (s slow) Read(b []byte) (int, error) {
	<-time.After(100 * time.Millisecond)
	return s.Conn.Read(b)
}
