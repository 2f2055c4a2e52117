package keysidecartest_test

import (
	"testing"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/keysidecartest"
)

// Invoices is the code under test: it keeps what it is given sealed.
type Invoices struct {
	Keys *client.Client
	rows map[string][]byte
}

func (v *Invoices) Put(t *testing.T, tenant, id string, invoice []byte) {
	sealed, err := v.Keys.Seal(t.Context(), tenant, invoice, map[string]string{"table": "invoices", "id": id})
	if err != nil {
		t.Fatal(err)
	}
	v.rows[id] = sealed.Bytes
}

func Example() {
	var t *testing.T // the test's own

	sidecar := keysidecartest.Start(t, keysidecartest.Config{Tenants: []string{"acme", "globex"}})
	invoices := &Invoices{Keys: sidecar.Client(), rows: map[string][]byte{}}
	invoices.Put(t, "acme", "4711", []byte("due in May"))

	// A row that was copied to another place, or to another tenant, does not open.
	_, err := sidecar.Client().Unseal(t.Context(), "globex", invoices.rows["4711"], map[string]string{"table": "invoices", "id": "4711"})
	if client.ReasonOf(err) != "AUTHENTICATION_FAILED" {
		t.Errorf("Unseal for globex returned %v", err)
	}

	// What was sealed under a KEK opens after it was rotated, by a sidecar that
	// has no key in memory.
	if _, err := sidecar.Vault().Rotate("acme", keysidecartest.KEK); err != nil {
		t.Fatal(err)
	}
	sidecar.Restart(t)
	_, err = sidecar.Client().Unseal(t.Context(), "acme", invoices.rows["4711"], map[string]string{"table": "invoices", "id": "4711"})
	if err != nil {
		t.Error(err)
	}
}
