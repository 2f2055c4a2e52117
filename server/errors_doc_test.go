package server_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

var update = flag.Bool("update", false, "write docs/errors.md")

const errorsPath = "../docs/errors.md"

const errorsHead = `# Errors

<!-- Generated from server/outcomes.go and sealer/reason.go by go generate ./server. Do not edit. -->

Every answer of keysidecar that is not OK is a gRPC status with a constant text and with
` + "`google.rpc.ErrorInfo`" + `: domain ` + "`keysidecar`" + `, a reason that is never renamed, and metadata
` + "`request_id`" + `. Programs decide by the reason, not by the code or the text. The cause is in
the sidecar's log, under the request id, and nowhere else. ` + "`google.rpc.RetryInfo`" + ` is there where
waiting helps; the Go client follows it up to 5 s and 3 attempts. Seal and Unseal may always
be repeated.

## At a glance

| Reason | Code | Text | Retry |
|---|---|---|---|
`

const errorsTail = `
## Answers without a reason of the table

| Code | Reason | When | What to do |
|---|---|---|---|
| INTERNAL | INTERNAL | a defect of keysidecar | Find the request id in the log, at level ERROR, and report it. |
| DEADLINE_EXCEEDED | DEADLINE_EXCEEDED, or none | the call's deadline passed | Give calls 6 s: a key that is not cached may need 5. |
| CANCELLED | CANCELLED, or none | the caller gave up | Nothing. |
| UNAVAILABLE | none | nobody listens on the socket, or the connection was lost | Is the sidecar running? Is it the right path? May this user write to the socket? |
| RESOURCE_EXHAUSTED | none | the message is longer than any valid one; gRPC did not read it | As TOO_LARGE. |
| INTERNAL | none | gRPC could not decode the message, such as a string that is not UTF-8 | Fix the caller. |
| UNIMPLEMENTED | none | the sidecar is older than the caller | Upgrade the sidecar. |
`

// codeNames are the names of google.rpc.Code.
var codeNames = map[codes.Code]string{
	codes.InvalidArgument: "INVALID_ARGUMENT", codes.NotFound: "NOT_FOUND", codes.PermissionDenied: "PERMISSION_DENIED",
	codes.ResourceExhausted: "RESOURCE_EXHAUSTED", codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Unavailable: "UNAVAILABLE", codes.Unauthenticated: "UNAUTHENTICATED",
}

func errorsDoc(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(errorsHead)
	for _, r := range sealer.Reasons() {
		o := server.OutcomeOf(r)
		name, ok := codeNames[o.Code]
		if !ok || o.Retry == "" || o.Next == "" {
			t.Fatalf("%s has no full line in the table: %+v", r, o)
		}
		fmt.Fprintf(&b, "| [%s](#%s) | %s | %s | %s |\n", r, strings.ToLower(r.String()), name, r.Text(), o.Retry)
	}
	b.WriteString("\n## What to do\n")
	for _, r := range sealer.Reasons() {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n", r, server.OutcomeOf(r).Next)
	}
	b.WriteString(errorsTail)
	return b.Bytes()
}

func TestErrorsDocIsCurrent(t *testing.T) {
	want := errorsDoc(t)
	if *update {
		if err := os.WriteFile(errorsPath, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(errorsPath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("docs/errors.md is not what go generate ./server writes (-want +got):\n%s", diff)
	}
}

// TestRetryAgrees keeps the codes and what the table says of retrying together:
// clients and proxies repeat UNAVAILABLE by themselves.
func TestRetryAgrees(t *testing.T) {
	for _, r := range sealer.Reasons() {
		o := server.OutcomeOf(r)
		if o.Code == codes.Unavailable && !strings.HasPrefix(o.Retry, "yes") {
			t.Errorf("%s is UNAVAILABLE, but retry is %q", r, o.Retry)
		}
	}
}
