package azurekv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/keysidecar/keysidecar/kek/azurekv/challenge"
)

const (
	// maxBody bounds the body of an answer, in bytes. The largest honest one
	// is a page of 25 versions.
	maxBody   = 256 << 10
	maxHeader = 32 << 10
)

// A refusal is an answer, or a request, that must go no further. azkeys does
// not retry it.
type refusal struct{ why error }

func (r *refusal) Error() string { return r.why.Error() }
func (r *refusal) Unwrap() error { return r.why }

func refuse(format string, args ...any) error {
	return &refusal{fmt.Errorf(format, args...)}
}

// NonRetriable marks the error for azcore.
func (r *refusal) NonRetriable() {}

// guard is the last station before the network, one per vault client.
type guard struct {
	host   string // the only host that requests may go to
	vet    challenge.Vetter
	client *http.Client
}

// Do implements azcore's policy.Transporter.
//
// azkeys follows a version list's nextLink, with the token, to wherever it
// points; and it takes a vault's answer to the request without token and body
// that it sends to provoke a challenge as the answer to the operation. Neither
// gets past here.
func (g *guard) Do(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" || req.URL.Host != g.host {
		return nil, refuse("request would have gone to another host than the vault")
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := g.check(resp, req.Header.Get("Authorization") != ""); err != nil {
		_ = resp.Body.Close()
		return nil, &refusal{err}
	}
	resp.Body = &boundedBody{body: resp.Body, left: maxBody}
	return resp, nil
}

// check vets the answer's challenge, in place.
func (g *guard) check(resp *http.Response, authorised bool) error {
	challenges := resp.Header.Values("WWW-Authenticate")
	switch status := resp.StatusCode; {
	case status == http.StatusUnauthorized && (len(challenges) > 0 || !authorised):
		vetted, err := g.vet.Vet(challenges, authorised)
		if err != nil {
			return err
		}
		resp.Header.Set("WWW-Authenticate", vetted)
	case !authorised && status != http.StatusTooManyRequests && status < 500:
		return fmt.Errorf("vault answered status %d without asking for a token", status)
	}
	return nil
}

// boundedBody fails a read past the bound, instead of cutting off.
type boundedBody struct {
	body io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, refuse("answer is longer than %d bytes", maxBody)
	}
	return n, err
}

func (b *boundedBody) Close() error { return b.body.Close() }

// newHTTPClient returns a client for vaults, or for Entra. address, if not
// empty, is dialled whatever the host; roots nil are the system's.
//
// No redirects: the SDK would carry a token along. Proxies only if configured:
// the environment is not ours. Pings find a dead HTTP/2 connection, which all
// calls to a vault share, within seconds.
func newHTTPClient(roots *x509.CertPool, address string, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	dialer := &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: proxy,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if address != "" {
					addr = address
				}
				return dialer.DialContext(ctx, network, addr)
			},
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSHandshakeTimeout:    3 * time.Second,
			ResponseHeaderTimeout:  5 * time.Second,
			IdleConnTimeout:        90 * time.Second,
			MaxIdleConns:           256,
			MaxIdleConnsPerHost:    32,
			MaxResponseHeaderBytes: maxHeader,
			ForceAttemptHTTP2:      true,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 2 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
