package sidecar_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keysidecar/keysidecar/client"
	"github.com/keysidecar/keysidecar/envelope"
)

// freeAddress returns an address that a vault can have again after each kill:
// its port is none of those that the system gives to outgoing connections.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.N(20_000)))
		if err != nil {
			continue
		}
		defer ln.Close()
		return ln.Addr().String()
	}
	t.Fatal("no free port")
	return ""
}

// A received is what a client sealed and was given.
type received struct {
	tenant    string
	context   map[string]string
	plaintext []byte
	sealed    []byte
}

// crash is the state of the test.
type crash struct {
	dir, listen string
	client      *client.Client
	vault       *process

	mu                sync.Mutex
	received          []received
	failed, reopened  int
	kills             map[string]int
	vaultKills, stale int
}

func (c *crash) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.received)
}

// any returns something that was received, some time ago as a rule.
func (c *crash) any() (received, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.received) == 0 {
		return received{}, false
	}
	return c.received[rand.IntN(len(c.received))], true
}

func (c *crash) add(n *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

// work seals, and opens now and then what was received before, until ctx ends.
// A call that fails is one during which something was killed: nothing is done
// about it, but for what the client does by itself.
func (c *crash) work(ctx context.Context, t *testing.T, worker int) {
	tenants := []string{"acme", "globex", "hooli", "initech"}
	for i := 0; ctx.Err() == nil; i++ {
		err := c.seal(ctx, t, received{
			tenant: tenants[i%len(tenants)], context: map[string]string{"id": fmt.Sprint(worker, "/", i)},
			plaintext: fmt.Appendf(nil, "message %d of worker %d%s", i, worker, strings.Repeat(".", i%100)),
		})
		if old, ok := c.any(); ok && i%4 == 0 {
			err = errors.Join(err, c.reopen(ctx, t, old))
		}
		if err != nil {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// callTime is too short for the client to wait for as long as RetryInfo says.
const callTime = 1900 * time.Millisecond

func (c *crash) seal(ctx context.Context, t *testing.T, r received) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	sealed, err := c.client.Seal(ctx, r.tenant, r.plaintext, r.context)
	if err != nil {
		return c.excuse(t, "Seal", r, err)
	}
	r.sealed = sealed.Bytes
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received = append(c.received, r)
	return nil
}

func (c *crash) reopen(ctx context.Context, t *testing.T, r received) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := c.client.Unseal(ctx, r.tenant, r.sealed, r.context)
	if err != nil {
		return c.excuse(t, "Unseal", r, err)
	}
	if !bytes.Equal(got.Plaintext, r.plaintext) {
		t.Errorf("%s, %v: opened as %q", r.tenant, r.context, got.Plaintext)
	}
	c.add(&c.reopened)
	return nil
}

// excuse returns err if it is what a kill explains.
func (c *crash) excuse(t *testing.T, verb string, r received, err error) error {
	switch client.ReasonOf(err) {
	case "", "KEY_VAULT_UNREACHABLE", "DEADLINE_EXCEEDED", "CANCELLED":
		c.add(&c.failed)
	default:
		t.Errorf("%s for %s, %v: %v", verb, r.tenant, r.context, err)
	}
	return err
}

// openVault starts the vault, with a new version of a KEK if rotate names its
// vault.
func (c *crash) openVault(t *testing.T, rotate string) (said []string) {
	t.Helper()
	c.vault, said = spawn(t, vaultProcess, processDir+"="+c.dir, processListen+"="+c.listen, processRotate+"="+rotate)
	return said
}

func (c *crash) openSidecar(t *testing.T, point string, nth int) *process {
	t.Helper()
	p, _ := spawn(t, sidecarProcess, processDir+"="+c.dir, processPoint+"="+point, fmt.Sprintf("%s=%d", processNth, nth))
	return p
}

func newCrash(t *testing.T) *crash {
	t.Helper()
	c := &crash{dir: shortDir(t), listen: freeAddress(t), kills: make(map[string]int)}
	said := c.openVault(t, "")
	if len(said) != 3 {
		t.Fatalf("the vault said %q", said)
	}
	set := settings{
		keks: []string{
			kekLine(said[0], "acme", "acme", "RSA-OAEP-256"), kekLine(said[0], "globex", "globex", "A256KW"),
			kekLine(said[0], "shared", "shared", "RSA-OAEP-256"),
		},
		tenants: []string{"{id: acme, kek: acme}", "{id: globex, kek: globex}", "{id: hooli, kek: shared}", "{id: initech, kek: shared}"},
		poll:    "1s", load: "2s", maxMessages: 4, // a mint now and then
	}
	if _, err := set.write(c.dir, c.listen, said[1], said[2]); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.client, err = client.Dial(c.socket()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.client.Close() })
	return c
}

func (c *crash) socket() string { return filepath.Join(c.dir, "s.sock") }

// progress waits until n more have been received, or the sidecar is gone.
func (c *crash) progress(t *testing.T, p *process, n int) {
	t.Helper()
	goal := c.count() + n
	await(t, "more is sealed", func() bool {
		select {
		case <-p.ended:
			return true
		default:
			return c.count() >= goal
		}
	})
}

// live is the life of one sidecar, from its start to its death at point.
func (c *crash) live(t *testing.T, point string, nth int, rotate string) {
	t.Helper()
	p := c.openSidecar(t, point, nth)
	if rotate != "" {
		c.progress(t, p, rand.IntN(20))
		c.vault.kill(t)
		c.openVault(t, rotate)
		c.vaultKills++
	}
	if point == anywhere {
		c.progress(t, p, nth)
		p.kill(t)
	} else if said := p.killed(t); said != "killed "+point {
		t.Errorf("sidecar said %q, and was to be killed %s", said, point)
	}
	c.kills[point]++
	if _, err := os.Lstat(c.socket()); err == nil {
		c.stale++
	}
}

// How many seals the test receives, and the sidecars that die at each point.
const crashSeals, crashKills = 2000, 4

// Sidecar and vault are killed again and again; what a client has been given
// opens.
func TestKillPoints(t *testing.T) {
	t.Parallel()
	c := newCrash(t)
	ctx, stop := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	for i := range 4 {
		workers.Go(func() { c.work(ctx, t, i) })
	}
	// On average, a sidecar seals about as many before any of them.
	nth := map[string]int{afterUse: 120, anywhere: 120, afterUnwrap: 15}
	vaults := []string{"acme", "shared", "globex"}
	points := killPoints()
	for life := 0; (life < crashKills*len(points) || c.count() < crashSeals) && !t.Failed(); life++ {
		point, rotate := points[life%len(points)], ""
		if life%4 == 3 {
			rotate = vaults[life/4%len(vaults)]
		}
		c.live(t, point, 1+rand.IntN(max(nth[point], 30)), rotate)
	}
	stop()
	workers.Wait()
	c.finish(t)
}

// finish opens all that was received with a vault and a sidecar that know
// nothing but what is on disk.
func (c *crash) finish(t *testing.T) {
	t.Helper()
	c.vault.kill(t)
	c.openVault(t, "")
	p := c.openSidecar(t, "", 0)
	var group sync.WaitGroup
	next := make(chan received)
	for range 4 {
		group.Go(func() {
			for r := range next {
				got, err := c.client.Unseal(t.Context(), r.tenant, r.sealed, r.context)
				if err != nil || !bytes.Equal(got.Plaintext, r.plaintext) {
					t.Errorf("%s, %v: %q, %v", r.tenant, r.context, got.Plaintext, err)
				}
			}
		})
	}
	deks, versions := make(map[envelope.ID]bool), make(map[envelope.ID]bool)
	for _, r := range c.received {
		block, _ := firstBlock(t, r.sealed)
		deks[block.KeyID], versions[block.Parent] = true, true
		next <- r
	}
	close(next)
	group.Wait()
	p.leave(t)
	c.vault.leave(t)
	c.report(t, len(deks), len(versions))
	c.leftovers(t)
}

func (c *crash) report(t *testing.T, deks, versions int) {
	lives := 0
	for _, point := range killPoints() {
		t.Logf("sidecar killed %2d times %s", c.kills[point], point)
		lives += c.kills[point]
	}
	t.Logf("vault killed %d times, a KEK rotated each time", c.vaultKills)
	t.Logf("%d seals received, under %d DEKs and %d KEK versions: all open; %d opened before; %d calls failed; %d sockets left by the %d dead were replaced",
		len(c.received), deks, versions, c.reopened, c.failed, c.stale, lives)
	if c.stale != lives || len(c.received) < crashSeals {
		t.Errorf("%d dead sidecars of %d left a socket, %d seals were received", c.stale, lives, len(c.received))
	}
}

// leftovers wants that the last sidecar has left nothing.
func (c *crash) leftovers(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.Contains("config.yaml tenants.yaml policy.yaml state vault", e.Name()) {
			t.Errorf("%s is left over", e.Name())
		}
	}
}
