package client_test

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/keysidecar/keysidecar/client"
)

func Example() {
	keys, err := client.Dial("/run/keysidecar/keysidecar.sock")
	if err != nil {
		slog.Error("preparing the sidecar's client", "error", err)
		return
	}
	defer keys.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	row := map[string]string{"table": "patients", "column": "notes", "id": "4711"}
	sealed, err := keys.Seal(ctx, "clinic-7", []byte("allergic to penicillin"), row)
	if err != nil {
		slog.Error("sealing", "error", err)
		return
	}
	// Store sealed.Bytes. Whoever reads them back needs the same tenant and row.
	opened, err := keys.Unseal(ctx, "clinic-7", sealed.Bytes, row)
	if err != nil {
		slog.Error("unsealing", "error", err)
		return
	}
	slog.Info("unsealed", "bytes", len(opened.Plaintext), "region", opened.KeyInfo.Region)
}

func ExampleReasonOf() {
	unseal := func(keys *client.Client, sealed []byte) ([]byte, error) {
		opened, err := keys.Unseal(context.Background(), "clinic-7", sealed, nil)
		switch client.ReasonOf(err) {
		case "AUTHENTICATION_FAILED":
			return nil, errors.New("this is not what was stored for clinic-7")
		case "KEK_DISABLED":
			return nil, errors.New("the owner of the key has withdrawn it")
		}
		return opened.Plaintext, err
	}
	_ = unseal
}

// In a pod the sidecar's container has a user ID of its own.
func ExampleWithServerUID() {
	keys, err := client.Dial("/run/keysidecar/keysidecar.sock", client.WithServerUID(65532))
	if err != nil {
		slog.Error("preparing the sidecar's client", "error", err)
		return
	}
	defer keys.Close()
}
