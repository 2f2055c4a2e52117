package sidecar_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek/devvault"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/tenant"
)

// inputTenants are the tenants of the tests of bad input: acme and globex have
// a KEK each, hooli and initech one together, those of a prefix each their own
// by a template.
func inputTenants(s *site) settings {
	return settings{
		keks: []string{
			s.kek("acme", "acme", "RSA-OAEP-256"), s.kek("globex", "globex", "RSA-OAEP-256"),
			s.kek("shared", "shared", "RSA-OAEP-256"), s.kek("own", "t-{tenant}", "RSA-OAEP-256"),
		},
		tenants: []string{
			"{id: acme, kek: acme}", "{id: globex, kek: globex}", "{id: hooli, kek: shared}", "{id: initech, kek: shared}",
			"{id: sleepy, kek: acme, state: suspended}", `{prefix: "c", kek: own}`,
		},
	}
}

// An input is a call with something wrong in it.
type input struct {
	unseal  bool
	tenant  string
	data    []byte
	context map[string]string
	want    sealer.Reason
	// unwraps is how often the vault is asked: for everything that can be seen
	// without it, not at all.
	unwraps int64
}

// requestInputs are wrong whatever is sealed.
func requestInputs() map[string]input {
	all := map[string]input{
		"unknown tenant":   {tenant: "nobody", want: sealer.UnknownTenant},
		"suspended tenant": {tenant: "sleepy", want: sealer.TenantSuspended},
		"over the limit":   {tenant: "acme", data: make([]byte, 4097), want: sealer.TooLarge},
		"sealed over the limit": {unseal: true, tenant: "acme", data: make([]byte, sealer.MaxSealed(4096)+1),
			want: sealer.TooLarge},
		"empty":    {unseal: true, tenant: "acme", want: sealer.MalformedEnvelope},
		"not ours": {unseal: true, tenant: "acme", data: []byte("hello, world"), want: sealer.MalformedEnvelope},
	}
	for name, id := range map[string]string{
		"empty": "", "two dots": "a..b", "a space": "a b", "a slash": "a/b", "first": "-a", "last": "a.", "long": strings.Repeat("a", 129),
		"control": "a\x00b", "not ASCII": "\u00e4cme",
	} {
		all["tenant: "+name] = input{tenant: id, want: sealer.InvalidTenant}
		all["tenant of sealed: "+name] = input{unseal: true, tenant: id, want: sealer.InvalidTenant}
	}
	// The first letter finds the rule, whose template does not take the rest.
	for name, id := range map[string]string{
		"host": "c.example.com", "host and port": "c:8443", "capitals": "cOPY", "two hyphens": "c--d", "underscore": "c_d",
		"long": "c" + strings.Repeat("d", 22), "short": "c",
	} {
		all["template: "+name] = input{tenant: id, want: sealer.InvalidTenant}
		all["template of sealed: "+name] = input{unseal: true, tenant: id, want: sealer.InvalidTenant}
	}
	many, large := make(map[string]string), make(map[string]string)
	for i := range 33 {
		many[fmt.Sprint(i)] = ""
	}
	for i := range 9 {
		large[fmt.Sprint(i)] = strings.Repeat("v", 1000)
	}
	for name, pairs := range map[string]map[string]string{
		"pairs": many, "all": large, "no key": {"": "v"}, "key": {strings.Repeat("k", 256): ""}, "value": {"k": strings.Repeat("v", 1025)},
		"reserved": {"keysidecar.x": "v"},
	} {
		all["context: "+name] = input{tenant: "acme", context: pairs, want: sealer.InvalidContext}
		all["context of sealed: "+name] = input{unseal: true, tenant: "acme", context: pairs, want: sealer.InvalidContext}
	}
	return all
}

// sealedInputs are made of data that opens as it is.
func sealedInputs(t *testing.T, maker *node) map[string]input {
	acme, globex := maker.seal(t, "acme", "data").Bytes, maker.seal(t, "globex", "data").Bytes
	hooli, initech := maker.seal(t, "hooli", "data").Bytes, maker.seal(t, "initech", "data").Bytes
	own, env := firstBlock(t, acme)
	other, otherEnv := firstBlock(t, globex)
	shared, _ := firstBlock(t, initech)
	acmeBlock := func(change func(*envelope.Block)) []byte { return reblock(t, acme, change) }
	hooliBlock := func(change func(*envelope.Block)) []byte { return reblock(t, hooli, change) }
	return map[string]input{
		"of another tenant":             {true, "globex", acme, nil, sealer.AuthenticationFailed, 0},
		"of another tenant of this KEK": {true, "initech", hooli, nil, sealer.AuthenticationFailed, 0},
		"renamed to this tenant": {true, "initech", hooliBlock(func(b *envelope.Block) { b.Tenant = []byte("initech") }), nil,
			sealer.AuthenticationFailed, 1},
		"of another context":     {true, "acme", acme, map[string]string{"k": "v"}, sealer.AuthenticationFailed, 1},
		"foreign block":          {true, "acme", bundle(t, other, env), nil, sealer.AuthenticationFailed, 0},
		"foreign envelope":       {true, "acme", bundle(t, own, otherEnv), nil, sealer.AuthenticationFailed, 0},
		"foreign DEK ID":         {true, "acme", acmeBlock(func(b *envelope.Block) { b.KeyID[0] ^= 1 }), nil, sealer.AuthenticationFailed, 0},
		"foreign DEK":            {true, "hooli", hooliBlock(func(b *envelope.Block) { b.Wrapped = shared.Wrapped }), nil, sealer.AuthenticationFailed, 1},
		"another's KEK":          {true, "acme", acmeBlock(func(b *envelope.Block) { b.KEKRef = []byte("globex") }), nil, sealer.KEKNotAllowed, 0},
		"unknown KEK":            {true, "acme", acmeBlock(func(b *envelope.Block) { b.KEKRef = []byte("nowhere") }), nil, sealer.KEKNotAllowed, 0},
		"another algorithm":      {true, "acme", acmeBlock(func(b *envelope.Block) { b.Alg, b.Wrapped = envelope.AlgA256KW, make([]byte, 40) }), nil, sealer.KEKNotAllowed, 0},
		"proof of nobody":        {true, "acme", acmeBlock(func(b *envelope.Block) { b.Proof = append([]byte{1}, make([]byte, 80)...) }), nil, sealer.AuthenticationFailed, 0},
		"version not there":      {true, "acme", acmeBlock(func(b *envelope.Block) { b.Parent[5] ^= 1 }), nil, sealer.KEKNotFound, 1},
		"version of another KEK": {true, "acme", acmeBlock(func(b *envelope.Block) { b.Parent = other.Parent }), nil, sealer.KEKNotFound, 1},
		"envelope alone":         {true, "acme", env, nil, sealer.NeedsRegistry, 0},
		"later version":          {true, "acme", append([]byte("KSB\x02"), acme[4:]...), nil, sealer.UnsupportedFormat, 0},
		"nothing wrong":          {true, "acme", acme, nil, sealer.OK, 1},
	}
}

// asked is what the vaults have been asked, by kind.
func (s *site) asked() map[string]int64 { return s.Counters().Kinds }

func TestBadInput(t *testing.T) {
	site := newSite(t, "acme", "globex", "shared")
	set := inputTenants(site)
	all := requestInputs()
	maps.Copy(all, sealedInputs(t, site.start(t, set)))
	for name, in := range all {
		t.Run(name, func(t *testing.T) {
			cold := site.start(t, set)
			want := site.asked()
			if in.unwraps > 0 {
				want[devvault.OpUnwrap] += in.unwraps
				want[devvault.CountChallenge]++ // for the first request to a vault
			}
			var err error
			if in.unseal {
				_, err = cold.client.Unseal(t.Context(), in.tenant, in.data, in.context)
			} else {
				_, err = cold.client.Seal(t.Context(), in.tenant, in.data, in.context)
			}
			if got := client.ReasonOf(err); got != in.want.String() && (err != nil || in.want != sealer.OK) {
				t.Errorf("%v, want %s", err, in.want)
			}
			got := site.asked()
			if in.unwraps > 0 { // the vault may be who refuses it
				delete(want, devvault.CountRejected)
				delete(got, devvault.CountRejected)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Key Vault was asked (-want +got):\n%s", diff)
			}
			// A wrong context is found with the right DEK.
			if n := cold.Stats().Cached; n != 0 && in.want != sealer.OK && name != "of another context" {
				t.Errorf("%d DEKs are cached", n)
			}
		})
	}
}

// The template takes what it can take: the host is the tenant's vault.
func TestTemplateTenant(t *testing.T) {
	site := newSite(t, "t-cde")
	n := site.start(t, inputTenants(site))
	before := site.Counters().Key("t-cde", kekName).Unwrapped
	sealed := n.seal(t, "cde", "data")
	n.mustOpen(t, "cde", sealed.Bytes, "data")
	if got := site.Counters().Key("t-cde", kekName).Unwrapped - before; got != 1 || sealed.KeyInfo.KEKRef != "own" {
		t.Errorf("sealed with %+v, %d unwraps in the tenant's vault", sealed.KeyInfo, got)
	}
}

// publicKey fetches the public key of the newest version of a vault's KEK, as
// anybody with read access can.
func (s *site) publicKey(t *testing.T, vault string) *rsa.PublicKey {
	t.Helper()
	token, err := os.ReadFile(s.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL(vault)+"/keys/"+kekName+"?api-version=7.6", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	c := s.Client()
	t.Cleanup(c.CloseIdleConnections)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Key struct{ N, E string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	number := func(s string) *big.Int {
		raw, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(raw) == 0 {
			t.Fatalf("decoding the public key %q: %v", s, err)
		}
		return new(big.Int).SetBytes(raw)
	}
	return &rsa.PublicKey{N: number(answer.Key.N), E: int(number(answer.Key.E).Int64())}
}

// plant makes what somebody can make who has the public key alone: a DEK of
// their own, data under it, and the DEK wrapped their way.
func (s *site) plant(t *testing.T, template envelope.Block, wrap func(*rsa.PublicKey, []byte) ([]byte, error)) []byte {
	t.Helper()
	id, err := tenant.Parse("acme")
	if err != nil {
		t.Fatal(err)
	}
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer slab.Close()
	raw := bytes.Repeat([]byte{0x17}, secret.Size)
	key, err := slab.Put((*[secret.Size]byte)(bytes.Clone(raw)))
	if err != nil {
		t.Fatal(err)
	}
	template.KeyID = envelope.DEKID(key, envelope.PurposeSeal, id)
	if template.Wrapped, err = wrap(s.publicKey(t, "acme"), raw); err != nil {
		t.Fatal(err)
	}
	return bundle(t, template, envelope.Seal(nil, key, template.KeyID, id, envelope.Context{}, []byte("planted")))
}

func oaep(h hash.Hash, label string, change func([]byte) []byte) func(*rsa.PublicKey, []byte) ([]byte, error) {
	return func(pub *rsa.PublicKey, dek []byte) ([]byte, error) {
		return rsa.EncryptOAEP(h, rand.Reader, pub, change(dek), []byte(label))
	}
}

// Only RSA-OAEP with SHA-256 and no label, over 32 bytes, is a wrapped DEK. The
// last one is a control, and SPEC.md, 13.2: RSA wrapping authenticates nobody.
func TestPlantedDEK(t *testing.T) {
	same := func(dek []byte) []byte { return dek }
	site := newSite(t, "acme")
	template, _ := firstBlock(t, site.start(t, settings{}).seal(t, "acme", "data").Bytes)
	for name, c := range map[string]struct {
		wrap func(*rsa.PublicKey, []byte) ([]byte, error)
		want string
	}{
		"RSA1_5": {func(pub *rsa.PublicKey, dek []byte) ([]byte, error) {
			return rsa.EncryptPKCS1v15(rand.Reader, pub, dek) //nolint:staticcheck // what is to be refused
		}, "AUTHENTICATION_FAILED"},
		"RSA-OAEP with SHA-1": {oaep(sha1.New(), "", same), "AUTHENTICATION_FAILED"},
		"RSA-OAEP with label": {oaep(sha256.New(), "label", same), "AUTHENTICATION_FAILED"},
		"31 bytes":            {oaep(sha256.New(), "", func(dek []byte) []byte { return dek[:31] }), "AUTHENTICATION_FAILED"},
		"33 bytes":            {oaep(sha256.New(), "", func(dek []byte) []byte { return append(dek, 0) }), "AUTHENTICATION_FAILED"},
		"no bytes":            {oaep(sha256.New(), "", func([]byte) []byte { return nil }), "AUTHENTICATION_FAILED"},
		"RSA-OAEP-256":        {oaep(sha256.New(), "", same), ""},
	} {
		t.Run(name, func(t *testing.T) {
			cold := site.start(t, settings{})
			planted := site.plant(t, template, c.wrap)
			before := site.Counters().Key("acme", kekName).Unwraps
			got, err := cold.client.Unseal(t.Context(), "acme", planted, nil)
			if client.ReasonOf(err) != c.want || (err == nil) != (c.want == "") || (err == nil) != (string(got.Plaintext) == "planted") {
				t.Errorf("%q, %v, want %q", got.Plaintext, err, c.want)
			}
			if n := site.Counters().Key("acme", kekName).Unwraps - before; n != 1 {
				t.Errorf("%d unwraps, want 1", n)
			}
			if n := cold.Stats().Cached; (n != 0) != (err == nil) {
				t.Errorf("%d DEKs are cached", n)
			}
		})
	}
}

// rawBytes is a gRPC codec for messages that are bytes already.
type rawBytes struct{}

// Name is what the server knows the encoding by.
func (rawBytes) Name() string { return "proto" }

// Marshal sends a []byte as it is.
func (rawBytes) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

// Unmarshal drops the answer.
func (rawBytes) Unmarshal(mem.BufferSlice, any) error { return nil }

// Strings that are not UTF-8 are refused by gRPC itself, at either end.
func TestNotUTF8(t *testing.T) {
	site := newSite(t, "acme")
	n := site.start(t, settings{})
	n.seal(t, "acme", "data") // warm: the next mint is not asked for
	before := site.asked()
	conn := n.connect(t)
	field := func(num protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), value)
	}
	const bad = "acme\xff"
	for name, c := range map[string]struct {
		message []byte
		tenant  string
		context map[string]string
	}{
		"tenant":        {field(1, bad), bad, nil},
		"context key":   {append(field(1, "acme"), field(3, string(field(1, bad)))...), "acme", map[string]string{bad: ""}},
		"context value": {append(field(1, "acme"), field(3, string(append(field(1, "k"), field(2, bad)...)))...), "acme", map[string]string{"k": bad}},
	} {
		for method, call := range map[string]func() error{
			"Seal": func() error {
				_, err := n.client.Seal(t.Context(), c.tenant, nil, c.context)
				return err
			},
			"Unseal": func() error {
				_, err := n.client.Unseal(t.Context(), c.tenant, nil, c.context)
				return err
			},
		} {
			var trailer metadata.MD
			err := conn.Invoke(t.Context(), "/"+keysidecarv1.SealService_ServiceDesc.ServiceName+"/"+method, c.message, nil,
				grpc.ForceCodecV2(rawBytes{}), grpc.Trailer(&trailer))
			if got, _, _ := answerOf(err, trailer); got.Code != codes.Internal || got.Reason != "" || !strings.Contains(got.Text, "UTF-8") {
				t.Errorf("%s, %s: the server answers %+v, want gRPC's own INTERNAL", method, name, got)
			}
			if err := call(); err == nil || client.ReasonOf(err) != "" {
				t.Errorf("%s, %s: the client returns %v", method, name, err)
			}
		}
	}
	control := func() error {
		return conn.Invoke(context.WithoutCancel(t.Context()), keysidecarv1.SealService_Seal_FullMethodName, field(1, "acme"), nil, grpc.ForceCodecV2(rawBytes{}))
	}
	if err := control(); err != nil {
		t.Errorf("the same message with a good tenant: %v", err)
	}
	if diff := cmp.Diff(before, site.asked()); diff != "" {
		t.Errorf("Key Vault was asked (-want +got):\n%s", diff)
	}
}
