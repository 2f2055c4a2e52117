package sidecar_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/keysidecar/keysidecar/kek/devvault"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// note counts a call, and keeps all that its caller got but data.
func (h *hunted) note(way string, err error, header, trailer metadata.MD) string {
	st := status.Convert(err)
	reason := reasonOf(err)
	if err != nil {
		fmt.Fprintf(h.answer, "%s\n%v\n%+v\n%s\n%v\n", way, err, err, prototext.Format(st.Proto()), st.Details())
		for _, d := range st.Proto().GetDetails() {
			fmt.Fprintf(h.answer, "%s\n", d.GetValue())
		}
	}
	// metadata.MD hides what it has from package fmt.
	fmt.Fprintf(h.answer, "%v %v\n", map[string][]string(header), map[string][]string(trailer))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ways[way]++
	h.ways[reason]++
	return reason
}

// call calls a method over a connection and returns the reason of what came.
func (h *hunted) call(ctx context.Context, way string, conn *grpc.ClientConn, method string, req, reply any, opts ...grpc.CallOption) string {
	var header, trailer metadata.MD
	err := conn.Invoke(ctx, method, req, reply, append(opts, grpc.Header(&header), grpc.Trailer(&trailer))...)
	return h.note(way, err, header, trailer)
}

const (
	sealMethod   = keysidecarv1.SealService_Seal_FullMethodName
	unsealMethod = keysidecarv1.SealService_Unseal_FullMethodName
)

func (h *hunted) seal(ctx context.Context, way, tenant string, data []byte, pairs map[string]string) (sealed []byte, reason string) {
	var reply keysidecarv1.SealResponse
	reason = h.call(ctx, way, h.plain, sealMethod, &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: data, EncryptionContext: pairs}, &reply)
	return reply.GetSealed(), reason
}

func (h *hunted) unseal(ctx context.Context, way, tenant string, sealed []byte, pairs map[string]string) (data []byte, reason string) {
	var reply keysidecarv1.UnsealResponse
	reason = h.call(ctx, way, h.plain, unsealMethod, &keysidecarv1.UnsealRequest{Tenant: tenant, Sealed: sealed, EncryptionContext: pairs}, &reply)
	return reply.GetPlaintext(), reason
}

// load seals and unseals the marker, alone and with much of it.
func (h *hunted) load(t *testing.T, calls int) {
	t.Helper()
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range calls / 4 {
				tenant := []string{"acme", "globex"}[i%2]
				data := bytes.Repeat(h.marker, 1+i%8*8)
				sealed, reason := h.seal(t.Context(), "load", tenant, data, h.pairs)
				got, again := h.unseal(t.Context(), "load", tenant, sealed, h.pairs)
				if reason != "OK" || again != "OK" || !bytes.Equal(got, data) {
					t.Errorf("worker %d: Seal for %s: %s; Unseal: %s", worker, tenant, reason, again)
				}
				h.mu.Lock()
				h.kept[tenant] = append(h.kept[tenant], sealed)
				h.mu.Unlock()
			}
		})
	}
	group.Wait()
}

// reopen unseals what was sealed by a sidecar, or by this one, that had DEKs
// which this one no longer has.
func (h *hunted) reopen(t *testing.T) {
	t.Helper()
	for tenant, all := range h.kept {
		if _, reason := h.unseal(t.Context(), "reopen", tenant, all[0], h.pairs); reason != "OK" {
			t.Errorf("Unseal for %s, cold: %s", tenant, reason)
		}
	}
}

// scrape keeps a page of metrics.
func (h *hunted) scrape(t *testing.T, name string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.web+"/metrics?name="+hex.EncodeToString(h.marker), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Cookie", hex.EncodeToString(h.marker))
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(page, []byte("keysidecar_operations_total")) {
		t.Fatalf("metrics: %q, %v", page, err)
	}
	h.places["metrics "+name] = page
}

// operate calls a method of the admin API, and keeps its answer.
func (h *hunted) operate(ctx context.Context, way, method string, req, reply proto.Message) string {
	reason := h.call(ctx, way, h.admin, method, req, reply)
	fmt.Fprintf(h.answer, "%s\n", prototext.Format(reply))
	return reason
}

// A mistake is a call with secrets where they do not belong: what it gets, and
// how it is made, given its name.
type mistake struct {
	want string
	call func(way string) string
}

// sealMistakes are those that package client could make too.
func (h *hunted) sealMistakes(ctx context.Context, text string, sealed []byte) map[string]mistake {
	seal := func(tenant string, data []byte, pairs map[string]string) func(string) string {
		return func(way string) string {
			_, reason := h.seal(ctx, way, tenant, data, pairs)
			return reason
		}
	}
	unseal := func(tenant string, sealed []byte, pairs map[string]string) func(string) string {
		return func(way string) string {
			_, reason := h.unseal(ctx, way, tenant, sealed, pairs)
			return reason
		}
	}
	damaged := bytes.Clone(sealed)
	damaged[len(damaged)-1] ^= 1
	return map[string]mistake{
		"as a tenant":            {"INVALID_TENANT", seal(text[:100]+"/", h.marker, h.pairs)},
		"as a long tenant":       {"INVALID_TENANT", unseal(text+text, sealed, h.pairs)},
		"as a context key":       {"INVALID_CONTEXT", seal("acme", h.marker, map[string]string{text + text + text: ""})},
		"as a reserved key":      {"INVALID_CONTEXT", seal("acme", h.marker, map[string]string{"keysidecar." + text: ""})},
		"context value too long": {"INVALID_CONTEXT", unseal("acme", sealed, map[string]string{"row": strings.Repeat(h.pairs["row"], 20)})},
		"as sealed data":         {"MALFORMED_ENVELOPE", unseal("acme", h.marker, h.pairs)},
		"as a block":             {"MALFORMED_ENVELOPE", unseal("acme", slices.Concat([]byte("KSB\x01\x01"), h.marker), h.pairs)},
		"as an envelope":         {"MALFORMED_ENVELOPE", unseal("acme", slices.Concat([]byte("KSE\x01\x01\x00"), h.marker), h.pairs)},
		"denied":                 {"PERMISSION_DENIED", seal("denied", h.marker, h.pairs)},
		"suspended":              {"TENANT_SUSPENDED", seal("sleepy", h.marker, h.pairs)},
		"too often":              {"RATE_LIMITED", seal("busy", h.marker, h.pairs)},
		"wrong tenant":           {"AUTHENTICATION_FAILED", unseal("globex", sealed, h.pairs)},
		"wrong context":          {"AUTHENTICATION_FAILED", unseal("acme", sealed, map[string]string{"row": text})},
		"damaged":                {"AUTHENTICATION_FAILED", unseal("acme", damaged, h.pairs)},
		"too long":               {"TOO_LARGE", seal("acme", bytes.Repeat(h.marker, 65), h.pairs)},
		"too long for gRPC":      {"ResourceExhausted", seal("acme", bytes.Repeat(h.marker, 1<<14), h.pairs)},
	}
}

// otherMistakes need another client than ours.
func (h *hunted) otherMistakes(ctx context.Context, text string) map[string]mistake {
	raw := func(method string, message []byte) func(string) string {
		return func(way string) string {
			return h.call(ctx, way, h.plain, method, message, nil, grpc.ForceCodecV2(rawBytes{}))
		}
	}
	noText := append([]byte{1<<3 | 2, byte(len(h.marker) + 1), 0xff}, h.marker...)
	return map[string]mistake{
		"as a message":        {"Internal", raw(sealMethod, append([]byte{0xff}, h.marker...))},
		"as a sealed message": {"Internal", raw(unsealMethod, append([]byte{0xff}, h.marker...))},
		"as a bad string":     {"Internal", raw(sealMethod, noText)},
		"as a method":         {"Unimplemented", raw("/keysidecar.v1.SealService/"+h.said, h.marker)},
		"as a service":        {"Unimplemented", raw("/"+h.said+"/Seal", h.marker)},
		"in headers": {"INVALID_TENANT", func(way string) string {
			ctx := metadata.AppendToOutgoingContext(ctx, "x-data", text, "x-data-bin", string(h.marker), "authorization", "Bearer "+string(h.token))
			return h.call(ctx, way, h.plain, sealMethod, &keysidecarv1.SealRequest{Tenant: "/"}, &keysidecarv1.SealResponse{})
		}},
		"as a service's health": {"NotFound", func(way string) string {
			return h.call(ctx, way, h.plain, grpc_health_v1.Health_Check_FullMethodName,
				&grpc_health_v1.HealthCheckRequest{Service: text}, &grpc_health_v1.HealthCheckResponse{})
		}},
		"evict": {"INVALID_TENANT", func(way string) string {
			return h.operate(ctx, way, keysidecarv1.AdminService_Evict_FullMethodName,
				&keysidecarv1.EvictRequest{Tenant: text + "/"}, &keysidecarv1.EvictResponse{})
		}},
		"as a page": {"INVALID_REQUEST", func(way string) string {
			return h.operate(ctx, way, keysidecarv1.AdminService_ListTenants_FullMethodName,
				&keysidecarv1.ListTenantsRequest{PageToken: text}, &keysidecarv1.ListTenantsResponse{})
		}},
	}
}

// mistaken makes every mistake there is to make, and wants that each gets what
// it has to.
func (h *hunted) mistaken(t *testing.T) {
	t.Helper()
	text := hex.EncodeToString(h.marker)
	h.seal(t.Context(), "first", "busy", h.marker, h.pairs)
	for _, all := range []map[string]mistake{
		h.sealMistakes(t.Context(), text, h.kept["acme"][0]), h.otherMistakes(t.Context(), text),
	} {
		for way, m := range all {
			if got := m.call(way); got != m.want {
				t.Errorf("%s: got %s, want %s", way, got, m.want)
			}
		}
	}
	h.overTCP(t)
	h.reflect(t)
	for network, address := range map[string]string{"unix": h.socket("s.sock"), "tcp": h.tcp, "tcp4": h.web} {
		h.write(t, network, address)
	}
}

// overTCP comes with a certificate, and with none that is good.
func (h *hunted) overTCP(t *testing.T) {
	t.Helper()
	n := &node{tcp: h.tcp}
	req := &keysidecarv1.SealRequest{Tenant: "acme", Plaintext: h.marker, EncryptionContext: h.pairs}
	for name, c := range map[string]struct {
		authority *authority
		want      string
	}{batch: {h.pki.callers, "OK"}, hex.EncodeToString(h.marker[:30]): {h.pki.server, "Unavailable"}} {
		conn := n.secured(t, h.pki.trusting(c.authority.issue(t, name)))
		if got := h.call(t.Context(), "over TCP", conn, sealMethod, req, &keysidecarv1.SealResponse{}); got != c.want {
			t.Errorf("over TCP with a certificate of %s: %s, want %s", name, got, c.want)
		}
	}
}

// reflect asks reflection for what it does not know.
func (h *hunted) reflect(t *testing.T) {
	t.Helper()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(h.plain).ServerReflectionInfo(t.Context())
	if err == nil {
		err = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: h.said},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	reply, err := stream.Recv()
	if err != nil || reply.GetErrorResponse() == nil {
		t.Errorf("reflection answers %v, %v", reply, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
}

// write sends the marker as it is to where a protocol is spoken.
func (h *hunted) write(t *testing.T, network, address string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Write(append(bytes.Clone(h.marker), "\r\n\r\n"...))
	if err == nil {
		_, err = io.Copy(h.answer, conn)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s %s does not end a connection that begins with the marker", network, address)
	}
}

// suffer seals and unseals for every tenant whose vault is faulty.
func (h *hunted) suffer(t *testing.T) {
	t.Helper()
	opened := make(map[string][]byte)
	for _, name := range h.faulty() {
		if strings.HasSuffix(name, "-"+devvault.OpUnwrap) {
			sealed, reason := h.seal(t.Context(), "before", name, h.marker, h.pairs)
			if reason != "OK" {
				t.Errorf("Seal for %s before anything is wrong: %s", name, reason)
			}
			opened[name] = sealed
		}
	}
	evict := &keysidecarv1.EvictResponse{}
	if h.operate(t.Context(), "operator", keysidecarv1.AdminService_Evict_FullMethodName, &keysidecarv1.EvictRequest{All: true}, evict); evict.GetDeks() == 0 {
		t.Error("nothing was evicted")
	}
	h.harm(t, true)
	var group sync.WaitGroup
	names := make(chan string)
	for range 16 {
		group.Go(func() {
			for name := range names {
				if sealed := opened[name]; sealed != nil {
					if got, reason := h.unseal(t.Context(), "fault", name, sealed, h.pairs); reason == "OK" {
						t.Errorf("Unseal for %s: %d bytes", name, len(got))
					}
				}
				if _, reason := h.seal(t.Context(), "fault", name, h.marker, h.pairs); reason == "OK" {
					t.Errorf("Seal for %s: %s", name, reason)
				}
			}
		})
	}
	for _, name := range h.faulty() {
		names <- name
	}
	close(names)
	group.Wait()
	h.harm(t, false)
}

// harm makes the vaults faulty, or well again.
func (h *hunted) harm(t *testing.T, faulty bool) {
	t.Helper()
	h.echo.arm(faulty)
	h.site.ClearFaults()
	for kind, f := range vaultFaults() {
		for _, op := range operations() {
			f.Vault, f.Op = fmt.Sprintf("v-f%d-%s", kind, op), op
			if faulty {
				h.site.inject(t, f)
			}
		}
	}
}

// hang leaves n calls waiting for a vault that does not answer; wait waits for
// their end.
func (h *hunted) hang(t *testing.T, n int) (wait func()) {
	t.Helper()
	h.site.inject(t, devvault.Fault{Kind: devvault.FaultHang, Vault: "acme"})
	h.operate(t.Context(), "operator", keysidecarv1.AdminService_Evict_FullMethodName, &keysidecarv1.EvictRequest{All: true}, &keysidecarv1.EvictResponse{})
	faulted := h.site.asked()[devvault.CountFaulted]
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			if _, reason := h.unseal(t.Context(), "under way", "acme", h.kept["acme"][0], h.pairs); reason == "OK" {
				t.Error("a call whose vault hangs has worked")
			}
		})
		group.Go(func() { h.seal(t.Context(), "under way", "acme", h.marker, h.pairs) })
	}
	await(t, "calls wait for a vault", func() bool { return h.site.asked()[devvault.CountFaulted] > faulted })
	return func() {
		group.Wait()
		h.site.ClearFaults()
	}
}
