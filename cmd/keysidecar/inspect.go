package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/envelope"
)

// inspected is what inspect tells of sealed data. None of it is verified.
type inspected struct {
	Bytes  int              `json:"bytes"`
	DEKID  string           `json:"dek_id"`
	Body   int              `json:"body_bytes"`
	Blocks []inspectedBlock `json:"blocks"`
}

type inspectedBlock struct {
	Kind    string    `json:"kind"`
	Alg     string    `json:"alg"`
	KeyID   string    `json:"key_id"`
	Created time.Time `json:"created"`
	Tenant  string    `json:"tenant,omitempty"`
	KEKRef  string    `json:"kek_ref,omitempty"`
	Parent  string    `json:"parent"`
	Wrapped int       `json:"wrapped_bytes"`
	Proof   bool      `json:"proof"`
}

func (a *app) inspect() *cobra.Command {
	var in string
	c := &cobra.Command{
		Use:   "inspect [--in FILE]",
		Short: "Tell, offline, which keys sealed data names; nothing is verified",
		RunE: func(c *cobra.Command, _ []string) error {
			data, err := a.readInput(c.Context(), in)
			if err != nil {
				return err
			}
			return a.inspectData(data)
		},
	}
	c.Flags().StringVar(&in, "in", "", "`file` to read; standard input if empty")
	return c
}

func (a *app) inspectData(data []byte) error {
	sealed, err := envelope.Parse(data)
	if err != nil {
		reason := "MALFORMED_ENVELOPE"
		if errors.Is(err, envelope.ErrUnsupported) {
			reason = "UNSUPPORTED_FORMAT"
		}
		return refused(reason, err)
	}
	v := inspected{
		Bytes: len(data), DEKID: sealed.DEKID.String(),
		Body: len(sealed.Envelope) - envelope.HeaderSize, Blocks: []inspectedBlock{},
	}
	var text strings.Builder
	fmt.Fprintf(&text, "DEK      %s\nbody     %d bytes of %d\n", v.DEKID, v.Body, v.Bytes)
	for i := range sealed.Blocks() {
		b := inspectBlock(&sealed.Blocks()[i])
		v.Blocks = append(v.Blocks, b)
		fmt.Fprintf(&text, "block    %s\n", b)
	}
	return a.print(v, "%s", text.String())
}

// String returns b in one line, without what it has not.
func (b inspectedBlock) String() string {
	parts := []string{b.Kind + " " + b.Alg}
	if b.Tenant != "" {
		parts = append(parts, "tenant "+b.Tenant)
	}
	if b.KEKRef != "" {
		parts = append(parts, "KEK "+b.KEKRef)
	}
	parts = append(parts, "parent "+b.Parent, "created "+b.Created.Format(time.RFC3339), fmt.Sprintf("%d bytes wrapped", b.Wrapped))
	if b.Proof {
		parts = append(parts, "with a proof")
	}
	return strings.Join(parts, ", ")
}

func inspectBlock(b *envelope.Block) inspectedBlock {
	_, proved := b.Signer()
	return inspectedBlock{
		Kind: b.Kind.String(), Alg: b.Alg.String(), KeyID: b.KeyID.String(),
		Created: time.Unix(int64(min(b.Created, maxCreated)), 0).UTC(),
		Tenant:  string(b.Tenant), KEKRef: string(b.KEKRef), Parent: hex.EncodeToString(b.Parent[:]),
		Wrapped: len(b.Wrapped), Proof: proved,
	}
}

// maxCreated is the last second of the year 9999: a block can hold any number.
const maxCreated = 253402300799
