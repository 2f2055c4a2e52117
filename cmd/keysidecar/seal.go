package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keysidecar/keysidecar/client"
)

// dataFlags are the flags of seal and unseal.
type dataFlags struct {
	tenant    string
	context   []string
	in, out   string
	serverUID []uint
	timeout   time.Duration
}

// request is what the sidecar is asked to seal or unseal.
type request struct {
	tenant string
	data   []byte
	pairs  map[string]string
}

// operation is one call to the sidecar.
type operation func(context.Context, *client.Client, request) ([]byte, client.KeyInfo, error)

func (a *app) seal() *cobra.Command {
	c, f := a.dataCommand("seal", "Seal a file or standard input for a tenant",
		func(ctx context.Context, c *client.Client, r request) ([]byte, client.KeyInfo, error) {
			res, err := c.Seal(ctx, r.tenant, r.data, r.pairs)
			return res.Bytes, res.KeyInfo, err
		})
	c.PreRunE = func(*cobra.Command, []string) error {
		if f.out == "" && isTerminal(a.out) {
			return usage(errors.New("sealed data is not for a terminal: name a file with --out, or redirect standard output"))
		}
		return nil
	}
	return c
}

func (a *app) unseal() *cobra.Command {
	c, _ := a.dataCommand("unseal", "Unseal what seal wrote, for the same tenant and context",
		func(ctx context.Context, c *client.Client, r request) ([]byte, client.KeyInfo, error) {
			res, err := c.Unseal(ctx, r.tenant, r.data, r.pairs)
			return res.Plaintext, res.KeyInfo, err
		})
	return c
}

func (a *app) dataCommand(verb, short string, do operation) (*cobra.Command, *dataFlags) {
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
	flags.UintSliceVar(&f.serverUID, "server-uid", nil, "user `ID` that the sidecar may run as; this user's and 0 if not given")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "longest time for the call, retries included")
	if err := c.MarkFlagRequired("tenant"); err != nil {
		panic("keysidecar: internal error: " + err.Error())
	}
	return c, &f
}

func (a *app) runData(ctx context.Context, do operation, f *dataFlags) error {
	if err := checkEnvironment(os.Getenv); err != nil {
		return err
	}
	pairs, err := parsePairs(f.context)
	if err != nil {
		return usage(err)
	}
	if f.timeout <= 0 {
		return usage(fmt.Errorf("--timeout is %s, not more than zero", f.timeout))
	}
	options, err := f.options()
	if err != nil {
		return usage(err)
	}
	data, err := a.readInput(ctx, f.in)
	if err != nil {
		return err
	}
	c, err := client.Dial(a.socket, options...)
	if err != nil {
		return usage(fmt.Errorf("--socket: %w", err))
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	out, info, err := do(ctx, c, request{f.tenant, data, pairs})
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

func (f *dataFlags) options() ([]client.Option, error) {
	if len(f.serverUID) == 0 {
		return nil, nil
	}
	var uids []uint32
	for _, uid := range f.serverUID {
		if uid > math.MaxUint32 {
			return nil, fmt.Errorf("--server-uid %d is no user ID", uid)
		}
		uids = append(uids, uint32(uid))
	}
	return []client.Option{client.WithServerUID(uids...)}, nil
}

func (a *app) printKeys(name string, n int, info client.KeyInfo) error {
	region := ""
	if info.Region != "" {
		region = ", region " + info.Region
	}
	return a.print(map[string]any{
		"out": name, "bytes": n, "dek_id": info.DEKID,
		"kek_ref": info.KEKRef, "kek_version": info.KEKVersion, "region": info.Region,
	}, "%s: %d bytes, DEK %s, KEK %s version %s%s\n", name, n, info.DEKID, info.KEKRef, info.KEKVersion, region)
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
