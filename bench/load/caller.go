package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// callTime is what the documentation tells callers to give a call.
const callTime = 6 * time.Second

// Target says how to reach a sidecar, and what to ask it.
type Target struct {
	// Socket is the path of its Unix socket, or Address its TCP address, with the PEM files
	// of its authority and of the certificate and key to show it.
	Socket                             string
	Address, CAFile, CertFile, KeyFile string
	// Connections is how many connections are made.
	Connections int
	// Every call seals Bytes bytes for Tenant.
	Tenant string
	Bytes  int
}

// Caller is a caller's connections.
type Caller struct {
	conns   []*grpc.ClientConn
	request []byte
	answer  int // bytes that an answer has at least
}

// Dial connects, and makes a first call on every connection, which may be refused for its
// rate. Close the Caller.
func Dial(ctx context.Context, t Target) (_ *Caller, err error) {
	request, err := proto.Marshal(&keysidecarv1.SealRequest{
		Tenant: t.Tenant, Plaintext: make([]byte, t.Bytes), EncryptionContext: map[string]string{"row": "billing.invoices.40211"},
	})
	if err != nil {
		return nil, err
	}
	c := &Caller{request: request, answer: t.Bytes}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	address, shown, err := t.credentials()
	if err != nil {
		return nil, err
	}
	for i := range t.Connections {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(shown))
		if err != nil {
			return nil, err
		}
		c.conns = append(c.conns, conn)
		if err := c.call(ctx, i, grpc.WaitForReady(true)); err != nil && !rateLimited(err) {
			return nil, fmt.Errorf("first call of connection %d: %w", i, err)
		}
	}
	return c, nil
}

func (t *Target) credentials() (address string, shown credentials.TransportCredentials, err error) {
	if t.Socket != "" {
		return "unix:" + t.Socket, insecure.NewCredentials(), nil
	}
	own, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return "", nil, fmt.Errorf("reading certificate and key: %w", err)
	}
	text, err := os.ReadFile(t.CAFile)
	if err != nil {
		return "", nil, fmt.Errorf("reading authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return "", nil, fmt.Errorf("%s has no certificate", t.CAFile)
	}
	return "passthrough:///" + t.Address, credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, RootCAs: roots, ServerName: "127.0.0.1",
	}), nil
}

// Close closes the connections.
func (c *Caller) Close() error {
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// call makes a call on the i-th connection.
func (c *Caller) call(ctx context.Context, i int, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var answer int
	opts = append(opts, grpc.ForceCodecV2(raw{}))
	err := c.conns[i%len(c.conns)].Invoke(ctx, keysidecarv1.SealService_Seal_FullMethodName, c.request, &answer, opts...)
	if err == nil && answer < c.answer {
		return fmt.Errorf("answer has %d bytes", answer)
	}
	return err
}

// raw sends a message that is encoded already, and tells how long the answer is: what a
// caller costs is the machine's, not the sidecar's.
type raw struct{}

var _ encoding.CodecV2 = raw{}

// Marshal returns v, the bytes of a message.
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	message, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("message is %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(message)}, nil
}

// Unmarshal puts the length of data into v, a *int.
func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	length, ok := v.(*int)
	if !ok {
		return fmt.Errorf("answer goes to %T", v)
	}
	*length = data.Len()
	return nil
}

// Name is that of the usual codec, which wrote the message.
func (raw) Name() string { return "proto" }

// rateLimited reports whether a call was refused for its caller's rate.
func rateLimited(err error) bool {
	s := status.Convert(err)
	if s.Code() != codes.ResourceExhausted {
		return false
	}
	for _, detail := range s.Proto().GetDetails() {
		if bytes.Contains(detail.GetValue(), []byte("RATE_LIMITED")) {
			return true
		}
	}
	return false
}
