package client_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/client"
)

func TestServerUID(t *testing.T) {
	me := uint32(os.Geteuid())
	for name, c := range map[string]struct {
		opts []client.Option
		ok   bool
	}{
		"default":    {nil, true},
		"named":      {[]client.Option{client.WithServerUID(me+1, me)}, true},
		"another":    {[]client.Option{client.WithServerUID(me + 1)}, false},
		"nobody":     {[]client.Option{client.WithServerUID()}, false},
		"last wins":  {[]client.Option{client.WithServerUID(me), client.WithServerUID(me + 1)}, false},
		"last wins+": {[]client.Option{client.WithServerUID(me + 1), client.WithServerUID(me)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			serve(t, path, answer(echo))
			start := time.Now()
			_, err := dial(t, path, c.opts...).Seal(t.Context(), "acme", []byte("x"), nil)
			if (err == nil) != c.ok {
				t.Fatalf("Seal returned %v", err)
			}
			if c.ok {
				return
			}
			e, ok := errors.AsType[*client.Error](err)
			if !ok || e.Code != codes.Unavailable || !errors.Is(err, client.ErrServerUID) {
				t.Errorf("Seal returned %v, want ErrServerUID", err)
			}
			if took := time.Since(start); took > 500*time.Millisecond {
				t.Errorf("refusing took %v: it was tried again", took)
			}
		})
	}
}
