package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/server"
)

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// eventually waits until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s does not come true", what)
		}
	}
}

// asNamed makes a server's Source naming. Everybody may make all calls, and
// these callers have names.
func asNamed(t *testing.T, c *server.Config, callers ...policy.CallerRule) {
	t.Helper()
	p, err := policy.New(policy.Config{Callers: callers, Rules: []policy.Rule{{
		Callers: []string{"*"}, Tenants: []string{"*"}, Verbs: []string{"seal", "unseal"}, Acknowledge: "grants-everything",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	c.Source, c.Policy = newNaming(), func() *policy.Policy { return p }
}

// naming is a Source for which the address that a peer has given its own end
// of the connection says who it is.
type naming struct {
	credentials.TransportCredentials
}

func newNaming() naming { return naming{insecure.NewCredentials()} }

type namingInfo struct {
	credentials.CommonAuthInfo
	caller policy.Caller
}

func (namingInfo) AuthType() string        { return "naming" }
func (i namingInfo) Caller() policy.Caller { return i.caller }

func (n naming) Credentials() credentials.TransportCredentials { return n }

func (naming) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, name, _ := strings.Cut(conn.RemoteAddr().String(), "|")
	caller, err := policy.ParseCaller(name)
	return conn, namingInfo{caller: caller}, err
}

func (naming) Caller(ctx context.Context) (policy.Caller, error) {
	p, _ := peer.FromContext(ctx)
	return p.AuthInfo.(interface{ Unwrap() credentials.AuthInfo }).Unwrap().(namingInfo).caller, nil
}

var dialled atomic.Uint64

// netDial connects; as is the caller that a naming Source finds, "" if there
// is another Source.
func (r *running) netDial(ctx context.Context, as string) (net.Conn, error) {
	var d net.Dialer
	if as != "" {
		d.LocalAddr = &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@ks-%d-%d|%s", os.Getpid(), dialled.Add(1), as)}
	}
	return d.DialContext(ctx, "unix", r.path)
}

// dialAs is dial, for a server with a naming Source.
func (r *running) dialAs(t *testing.T, as string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.netDial(ctx, as) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// wirePeer speaks HTTP/2 a frame at a time: it does what no client of gRPC's
// would. Its methods are not for concurrent use, but for ended.
type wirePeer struct {
	net.Conn
	t     *testing.T
	frame *http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
	last  uint32

	mu      sync.Mutex // guards what follows, and writing
	streams map[uint32]*wireStream
	gone    chan struct{} // closed with the connection
}

// wireStream is what came back on a stream.
type wireStream struct {
	fields map[string]string // of headers and trailers
	data   []byte
	reset  *http2.ErrCode
	end    time.Time
	ended  chan struct{}
}

// speak connects and says hello. What the server sends is read at once, and
// there is no bound on it but for what hello says.
func (r *running) speak(t *testing.T, as string, hello ...http2.Setting) *wirePeer {
	t.Helper()
	p := r.deaf(t, as, hello...)
	t.Cleanup(func() {
		p.Close()
		<-p.gone
	})
	go p.read()
	return p
}

// deaf is speak, but that nothing is read.
func (r *running) deaf(t *testing.T, as string, hello ...http2.Setting) *wirePeer {
	t.Helper()
	conn, err := r.netDial(t.Context(), as)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &wirePeer{
		Conn: conn, t: t, frame: http2.NewFramer(conn, conn),
		streams: make(map[uint32]*wireStream), gone: make(chan struct{}),
	}
	p.enc = hpack.NewEncoder(&p.block)
	p.frame.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err = conn.Write([]byte(http2.ClientPreface))
	p.must(errors.Join(err,
		p.frame.WriteSettings(append([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 30}}, hello...)...),
		p.frame.WriteWindowUpdate(0, 1<<30)))
	return p
}

func (p *wirePeer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *wirePeer) read() {
	defer close(p.gone)
	for {
		f, err := p.frame.ReadFrame()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.take(f)
		p.mu.Unlock()
	}
}

func (p *wirePeer) take(f http2.Frame) {
	s := p.streams[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			_ = p.frame.WriteSettingsAck() // the test finds out that the connection is gone
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			_ = p.frame.WritePing(true, f.Data)
		}
	case *http2.MetaHeadersFrame:
		for _, field := range f.Fields {
			s.fields[field.Name] = field.Value
		}
		s.finish(f.StreamEnded(), nil)
	case *http2.DataFrame:
		s.data = append(s.data, f.Data()...)
		s.finish(f.StreamEnded(), nil)
	case *http2.RSTStreamFrame:
		s.finish(true, &f.ErrCode)
	}
}

func (s *wireStream) finish(ended bool, code *http2.ErrCode) {
	if ended && s.end.IsZero() { // gRPC resets streams after it has ended them
		s.reset, s.end = code, time.Now()
		close(s.ended)
	}
}

// open begins a call with its headers alone.
func (p *wirePeer) open(method string, extra ...hpack.HeaderField) *wireStream {
	p.t.Helper()
	return p.openWith(false, append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "localhost"}, {Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}, extra...))
}

func (p *wirePeer) openWith(end bool, fields []hpack.HeaderField) *wireStream {
	p.t.Helper()
	const longest = 16 << 10
	p.mu.Lock()
	defer p.mu.Unlock()
	p.block.Reset()
	for _, f := range fields {
		p.must(p.enc.WriteField(f))
	}
	p.last += 2
	id := p.last - 1
	s := &wireStream{fields: make(map[string]string), ended: make(chan struct{})}
	p.streams[id] = s
	// Whoever sends too much may be cut off before the end: wait says so.
	err := p.frame.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, EndStream: end, EndHeaders: p.block.Len() <= longest, BlockFragment: p.block.Next(longest),
	})
	for p.block.Len() > 0 && err == nil {
		more := p.block.Next(longest)
		err = p.frame.WriteContinuation(id, p.block.Len() == 0, more)
	}
	return s
}

// lastStream returns the stream that was opened last.
func (p *wirePeer) lastStream() *wireStream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.streams[p.last-1]
}

// send sends data on the stream that was opened last.
func (p *wirePeer) send(data []byte, end bool) {
	p.t.Helper()
	p.must(p.trySend(data, end))
}

// trySend is send, a frame at a time.
func (p *wirePeer) trySend(data []byte, end bool) (err error) {
	const longest = 16 << 10
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(data) > longest && err == nil {
		err = p.frame.WriteData(p.last-1, false, data[:longest])
		data = data[longest:]
	}
	return errors.Join(err, p.frame.WriteData(p.last-1, end, data))
}

// call makes a whole call.
func (p *wirePeer) call(method string, m proto.Message, extra ...hpack.HeaderField) *wireStream {
	p.t.Helper()
	s := p.open(method, extra...)
	p.send(message(p.t, m), true)
	return s
}

// reset cancels the stream that was opened last.
func (p *wirePeer) reset() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.must(p.frame.WriteRSTStream(p.last-1, http2.ErrCodeCancel))
}

// message returns m as gRPC sends it.
func message(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(prefix(len(data)), data...)
}

// prefix is what comes before a message of n bytes.
func prefix(n int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(n)) }

// wait returns s when it has ended.
func (p *wirePeer) wait(s *wireStream) *wireStream {
	p.t.Helper()
	select {
	case <-s.ended:
	case <-p.gone:
		p.t.Fatal("connection was closed")
	case <-time.After(patience):
		p.t.Fatal("stream does not end")
	}
	return s
}

// status returns how s ended.
func (s *wireStream) status(t *testing.T) *status.Status {
	t.Helper()
	if s.reset != nil {
		t.Fatalf("stream was reset with %v", *s.reset)
	}
	code, err := strconv.Atoi(s.fields["grpc-status"])
	if err != nil {
		t.Fatalf("stream ended with %v", s.fields)
	}
	details, err := base64.RawStdEncoding.DecodeString(s.fields["grpc-status-details-bin"])
	if err != nil || len(details) == 0 {
		return status.New(codes.Code(code), s.fields["grpc-message"])
	}
	var st spb.Status
	if err := proto.Unmarshal(details, &st); err != nil {
		t.Fatal(err)
	}
	return status.FromProto(&st)
}

// wireOf returns what a caller can see of st.
func wireOf(st *status.Status) wire {
	w := wire{Code: st.Code(), Text: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			w.Reason, w.RequestID = d.GetReason(), d.GetMetadata()["request_id"]
		case *errdetails.RetryInfo:
			w.Retry = d.GetRetryDelay().AsDuration()
		}
	}
	return w
}

// reasonOf returns the reason of a call's error, or its code if it has none.
func reasonOf(err error) string {
	w := wireOf(status.Convert(err))
	if w.Reason == "" {
		return w.Code.String()
	}
	return w.Reason
}
