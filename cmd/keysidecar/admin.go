package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
)

const defaultAdminSocket = "/run/keysidecar/admin.sock"

// adminFlags are the flags of the commands that call the admin API.
type adminFlags struct {
	socket    string
	serverUID []uint
	timeout   time.Duration
}

// adminGroup returns a group of commands that call the admin API. Their
// --socket is another than that of the root: another socket, another default.
func adminGroup(use, short string) (*cobra.Command, *adminFlags) {
	var f adminFlags
	group := &cobra.Command{Use: use, Short: short}
	flags := group.PersistentFlags()
	flags.StringVar(&f.socket, "socket", defaultAdminSocket, "Unix `socket` of the sidecar's admin API (listen.admin_socket)")
	flags.UintSliceVar(&f.serverUID, "server-uid", nil, "user `ID` that the sidecar may run as; this user's and 0 if not given")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "longest time for the command")
	return group, &f
}

// callAdmin lets do call the admin API. What do returns besides a client.Error
// is left as it is.
func (a *app) callAdmin(ctx context.Context, f *adminFlags, do func(context.Context, *client.Admin) error) error {
	if f.timeout <= 0 {
		return usage(fmt.Errorf("--timeout is %s, not more than zero", f.timeout))
	}
	options, err := (&dataFlags{serverUID: f.serverUID}).options()
	if err != nil {
		return usage(err)
	}
	admin, err := client.DialAdmin(f.socket, options...)
	if err != nil {
		return usage(fmt.Errorf("--socket: %w", err))
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	err = do(ctx, admin)
	if e, ok := errors.AsType[*client.Error](err); ok {
		return a.adminError(f.socket, e)
	}
	return err
}

// adminError gives a failed call of the admin API its exit code and a hint, and
// names the socket.
func (a *app) adminError(socket string, e *client.Error) error {
	exit := &exitError{code: exitPermanent}
	if known, ok := errors.AsType[*exitError](a.callError(e)); ok {
		exit.code, exit.hint = known.code, known.hint
	}
	exit.err = fmt.Errorf("asking %s: %w", socket, e)
	switch {
	case e.Code == codes.PermissionDenied:
		exit.hint = fmt.Sprintf("the sidecar's policy.yaml does not grant it: keysidecar config explain uid:%d/gid:%d TENANT VERB",
			os.Geteuid(), os.Getegid())
	case e.Reason != "" || e.Unwrap() != nil:
	case e.Code == codes.Unavailable:
		exit.hint = fmt.Sprintf("is a sidecar running, and is its admin socket %s? Its mode (listen.admin_mode) has to let user %d in. "+
			"Name another with --socket", socket, os.Geteuid())
	case e.Code == codes.Unimplemented:
		exit.hint = "is that the admin socket (listen.admin_socket), and not the socket for data?"
	case e.Code == codes.ResourceExhausted:
		exit.hint = "" // callError's is about data
	}
	return exit
}

// oneTenant returns the Args of a command that takes a tenant.
func oneTenant(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return usage(errors.New("TENANT is missing"))
	case 1:
		return nil
	}
	return usage(fmt.Errorf("argument %q is not expected", args[1]))
}

// dataKeys is a number of DEKs in words.
func dataKeys(n uint32) string {
	if n == 1 {
		return "1 data key"
	}
	return fmt.Sprintf("%d data keys", n)
}
