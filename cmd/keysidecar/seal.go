package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
)

// dataFlags are the flags of seal and unseal.
type dataFlags struct {
	tenant  string
	context []string
	in, out string
}

// operation is one call to the sidecar.
type operation func(ctx context.Context, c *client.Client, tenant string, data []byte, pairs map[string]string) ([]byte, client.KeyInfo, error)

func (a *app) seal() *cobra.Command {
	return a.dataCommand("seal", "Seal a file or standard input for a tenant",
		func(ctx context.Context, c *client.Client, tenant string, data []byte, pairs map[string]string) ([]byte, client.KeyInfo, error) {
			res, err := c.Seal(ctx, tenant, data, pairs)
			return res.Bytes, res.KeyInfo, err
		})
}

func (a *app) unseal() *cobra.Command {
	return a.dataCommand("unseal", "Unseal what seal wrote, for the same tenant and context",
		func(ctx context.Context, c *client.Client, tenant string, data []byte, pairs map[string]string) ([]byte, client.KeyInfo, error) {
			res, err := c.Unseal(ctx, tenant, data, pairs)
			return res.Plaintext, res.KeyInfo, err
		})
}

func (a *app) dataCommand(verb, short string, do operation) *cobra.Command {
	var f dataFlags
	c := &cobra.Command{
		Use:     verb + " --tenant ID [--context KEY=VALUE]...",
		Short:   short,
		Example: "  keysidecar " + verb + " --tenant acme --context table=invoices --context id=4711 --in a --out b",
		RunE:    func(c *cobra.Command, _ []string) error { return a.runData(c.Context(), do, &f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.tenant, "tenant", "", "tenant `ID`")
	flags.StringArrayVar(&f.context, "context", nil, "`KEY=VALUE` of the encryption context; repeat for more")
	flags.StringVar(&f.in, "in", "", "`file` to read; standard input if empty")
	flags.StringVar(&f.out, "out", "", "`file` to write, whole or not at all; standard output if empty")
	if err := c.MarkFlagRequired("tenant"); err != nil {
		panic("keysidecar: internal error: " + err.Error())
	}
	return c
}

func (a *app) runData(ctx context.Context, do operation, f *dataFlags) error {
	pairs, err := parsePairs(f.context)
	if err != nil {
		return usage(err)
	}
	data, err := a.readInput(f.in)
	if err != nil {
		return err
	}
	c, err := client.Dial(a.socket)
	if err != nil {
		return permanent(err)
	}
	defer c.Close()
	out, info, err := do(ctx, c, f.tenant, data, pairs)
	if err != nil {
		return a.callError(err)
	}
	if err := a.writeOutput(f.out, out); err != nil {
		return err
	}
	if f.out == "" {
		return nil // standard output has the data, and nothing else
	}
	return a.printKeys(f.out, len(out), info)
}

func (a *app) printKeys(name string, n int, info client.KeyInfo) error {
	return a.print(map[string]any{
		"out": name, "bytes": n, "dek_id": info.DEKID, "kek_ref": info.KEKRef, "kek_version": info.KEKVersion, "region": info.Region,
	}, "%s: %d bytes, DEK %s, KEK %s version %s, region %s\n", name, n, info.DEKID, info.KEKRef, info.KEKVersion, info.Region)
}

// parsePairs parses KEY=VALUE arguments.
func parsePairs(args []string) (map[string]string, error) {
	pairs := make(map[string]string, len(args))
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--context %q is not KEY=VALUE", arg)
		}
		if _, twice := pairs[key]; twice {
			return nil, fmt.Errorf("--context has the key %q twice", key)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// callError gives a failed call its exit code: 1 where trying again may help.
func (a *app) callError(err error) error {
	var e *client.Error
	if !errors.As(err, &e) {
		return tryAgain(err)
	}
	if e.RetryAfter > 0 {
		return tryAgain(err)
	}
	switch e.Code {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		return tryAgain(err)
	}
	return permanent(err)
}
