package main

import (
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keysidecar/keysidecar/envelope"
)

// TestInspectVectors inspects whatever the format allows.
func TestInspectVectors(t *testing.T) {
	data, err := os.ReadFile("../../test/vectors/open.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name, Sealed string
			Steps        struct {
				DEKID  string `json:"dek_id"`
				Blocks []struct {
					KeyID   string `json:"key_id"`
					Created string
					Tenant  string
					KEKRef  string `json:"kek_ref"`
					Parent  string
					Wrapped string
				}
			}
		}
	}
	if err := json.Unmarshal(data, &file); err != nil || len(file.Vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(file.Vectors), err)
	}
	for _, v := range file.Vectors {
		sealed, err := hex.DecodeString(v.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		want := inspected{Bytes: len(sealed), DEKID: v.Steps.DEKID, Blocks: []inspectedBlock{}}
		for _, b := range v.Steps.Blocks {
			created, err := strconv.ParseUint(b.Created, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			want.Blocks = append(want.Blocks, inspectedBlock{
				KeyID: b.KeyID, Created: time.Unix(int64(min(created, maxCreated)), 0).UTC(), Tenant: b.Tenant, KEKRef: b.KEKRef,
				Parent: b.Parent, Wrapped: len(b.Wrapped) / 2,
			})
		}
		var out strings.Builder
		a := &app{output: "json", stdio: stdio{out: &out}}
		var got inspected
		if err := a.inspectData(sealed); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		} else if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		ignored := cmp.Options{cmpopts.IgnoreFields(inspected{}, "Body"), cmpopts.IgnoreFields(inspectedBlock{}, "Kind", "Alg", "Proof")}
		if diff := cmp.Diff(want, got, ignored); diff != "" {
			t.Errorf("%s (-want +got):\n%s", v.Name, diff)
		}
		out.Reset()
		a.output = "text"
		if err := a.inspectData(sealed); err != nil || strings.Count(out.String(), "\nblock ") != len(want.Blocks) {
			t.Errorf("%s as text: %q, %v", v.Name, out.String(), err)
		}
	}
}

func TestInspectBlock(t *testing.T) {
	id := strings.Repeat("0", 32)
	for want, b := range map[string]envelope.Block{
		"DEK RSA-OAEP-256, tenant acme, KEK eu, parent " + id + ", created 2026-11-22T00:00:00Z, 256 bytes wrapped": {
			Kind: envelope.KindDEK, Alg: envelope.AlgRSAOAEP256, Tenant: []byte("acme"), KEKRef: []byte("eu"),
			Created: 1795305600, Wrapped: make([]byte, 256),
		},
		"branch A256KW, KEK eu, parent " + id + ", created 9999-12-31T23:59:59Z, 40 bytes wrapped, with a proof": {
			Kind: envelope.KindBranch, Alg: envelope.AlgA256KW, KEKRef: []byte("eu"),
			Created: math.MaxUint64, Wrapped: make([]byte, 40), Proof: append([]byte{1}, make([]byte, 80)...),
		},
	} {
		if got := inspectBlock(&b).String(); got != want {
			t.Errorf("block is shown as\n%s, want\n%s", got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	for want, b := range map[string]build{
		"keysidecar devel go1.26.8":                 {Version: "devel", Go: "go1.26.8"},
		"keysidecar v1.2.3 abc (modified) go1.26.8": {Version: "v1.2.3", Revision: "abc", Modified: true, Go: "go1.26.8"},
	} {
		if got := b.String(); got != want {
			t.Errorf("version is %q, want %q", got, want)
		}
	}
}
