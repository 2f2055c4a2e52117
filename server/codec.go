package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
)

// codec is gRPC's own for protobuf, but for messages that the server wants to
// look at before they are taken apart, and for answers whose end it wants to
// know.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(encodingproto.Name)} }

// Unmarshal leaves a *received as it came.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*received); ok {
		m.buffer = data.MaterializeToBuffer(mem.DefaultBufferPool())
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Marshal encodes an *answer so that it hears when gRPC is done with it.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if a, ok := v.(*answer); ok {
		return a.marshal()
	}
	return c.CodecV2.Marshal(v)
}

// received is a message as it came.
type received struct{ buffer mem.Buffer }

// maxFields is how many fields a message of SealService may have: 34 are the
// most that a valid one has. A field takes thirty times its length in memory
// and in time once it is taken apart.
const maxFields = 128

// checkShape refuses what would cost more to take apart than it weighs. What it
// lets through gets its exact reason later.
func checkShape(raw []byte, req any) error {
	switch req.(type) {
	case *keysidecarv1.SealRequest, *keysidecarv1.UnsealRequest:
	default:
		return nil
	}
	const data, pairs = 2, 3 // the fields' numbers
	fields, pairFields, inPairs, inOthers := 0, 0, 0, 0
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil // no protobuf: Unmarshal says so
		}
		m := protowire.ConsumeFieldValue(number, kind, raw[n:])
		if m < 0 {
			return nil
		}
		fields++
		switch {
		case number == data && kind == protowire.BytesType:
		case number == pairs:
			pairFields++
			inPairs += n + m
		default:
			inOthers += n + m
		}
		if pairFields > maxFields || inPairs > requestSlack {
			return sealer.NewError(sealer.InvalidContext, errFields)
		}
		if fields > maxFields || inOthers > requestSlack {
			return sealer.NewError(sealer.InvalidRequest, errFields)
		}
		raw = raw[n+m:]
	}
	return nil
}

var errFields = errors.New("request has more or longer fields than any valid one")

// smallAnswer is up to how many bytes an answer is not followed until it has
// left: MaxConcurrentStreams of them are little.
const smallAnswer = 1 << 10

// answer is an answer on its way to the peer. The call keeps its room until
// gRPC has written it. A peer that does not take it within the time of a call
// loses its connection: gRPC would keep the answer for as long as that lasts.
type answer struct {
	call    *Call
	message proto.Message
	size    int
	timer   *time.Timer
}

var _ mem.BufferPool = (*answer)(nil)

// send sends what a handler returned.
func (s *Server) send(stream grpc.ServerStream, c *Call, reply any) error {
	message, ok := reply.(proto.Message)
	if !ok || proto.Size(message) <= smallAnswer {
		return stream.SendMsg(reply)
	}
	a := &answer{call: c, message: message, size: proto.Size(message)}
	c.leaving = true
	cut := connOf(stream.Context())
	a.timer = time.AfterFunc(s.callTimeout, func() {
		if cut != nil {
			_ = cut.Close() // the peer is being cut off
		}
		c.leave()
	})
	err := stream.SendMsg(a)
	if err != nil {
		a.left()
	}
	return err
}

func (a *answer) marshal() (mem.BufferSlice, error) {
	buffer := mem.DefaultBufferPool().Get(a.size)
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buffer)[:0], a.message)
	if err != nil {
		mem.DefaultBufferPool().Put(buffer)
		return nil, err
	}
	*buffer = out
	return mem.BufferSlice{mem.NewBuffer(buffer, a)}, nil
}

func (a *answer) left() {
	a.timer.Stop()
	a.call.leave()
}

// Get is not called: an answer is a pool for what it has taken from gRPC's.
func (*answer) Get(n int) *[]byte { return mem.DefaultBufferPool().Get(n) }

// Put is called when gRPC has written the answer, or given it up.
func (a *answer) Put(buffer *[]byte) {
	mem.DefaultBufferPool().Put(buffer)
	a.left()
}

// connOf returns the connection of a call, nil if it is not one of ours.
func connOf(ctx context.Context) *conn {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, _ := p.AuthInfo.(owned)
	return info.conn
}
