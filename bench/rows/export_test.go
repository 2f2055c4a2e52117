package rows

import (
	"fmt"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/bench/floor"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/cobblestone"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/tenant"
)

// EnvelopeChunk returns the only chunk of a short message as the floor beside an envelope
// makes it and as the envelope has it.
func EnvelopeChunk(plaintext []byte) (got, want string, err error) {
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		return "", "", err
	}
	defer slab.Close()
	key, err := slab.Put(testKey())
	if err != nil {
		return "", "", err
	}
	t, err := tenant.Parse(benchTenant)
	if err != nil {
		return "", "", err
	}
	c, err := envelope.ParseContext(map[string]string{pairKey: pairValue})
	if err != nil {
		return "", "", err
	}
	env := envelope.Seal(nil, key, envelope.DEKID(key, envelope.PurposeSeal, t), t, c, plaintext)
	header, body := env[:envelope.HeaderSize], env[envelope.HeaderSize:]
	chunk := floor.New(info(body, boundContext(header))).Seal(nil, testKey(), plaintext)
	return fmt.Sprintf("chunk %x", chunk), fmt.Sprintf("chunk %x", body[cobblestone.PrefixSize:]), nil
}

// Decisions returns how many decisions of some kind a row takes, and how many
// of them have another answer or are about other patterns than the row says.
func Decisions(t *testing.T, prefix, allowed bool) (n, wrong int) {
	t.Helper()
	r, err := newPolicy(10, 1000)
	if err != nil {
		t.Fatal(err)
	}
	all := r.decisions(prefix, allowed)
	for _, d := range all {
		why := r.policy.Explain(d.caller, d.verb, d.tenant, time.Unix(1, 0))
		if why.Allowed != allowed {
			wrong++
		}
	}
	return len(all), wrong
}
