package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/keysidecar/keysidecar/server/identity"
)

// clocks are a machine's clocks, in a test's hand.
type clocks struct {
	mu    sync.Mutex
	wall  time.Time
	since time.Duration
}

func newClocks() *clocks { return &clocks{wall: time.Now()} }

func (c *clocks) read() (time.Time, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.since
}

// pass lets time pass.
func (c *clocks) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.since = c.wall.Add(d), c.since+d
}

// set sets the wall clock ahead, or back.
func (c *clocks) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = c.wall.Add(d)
}

// ageing is a source with clocks of its own, and a caller that is connected.
type ageing struct {
	*clocks
	*site
	source   *identity.Certificates
	listener *listener
	cert     tls.Certificate
	info     identity.Info
}

func newAgeing(t *testing.T, td string, maxAge time.Duration, signer func(*site) *authority, change func(*x509.Certificate)) *ageing {
	t.Helper()
	a := &ageing{clocks: newClocks(), site: newSite(t, td)}
	a.config.MaxAge = maxAge
	source, err := identity.NewCertificatesAt(a.config, a.read)
	if err != nil {
		t.Fatal(err)
	}
	a.source, a.listener = source, serve(t, source, listen(t))
	a.cert = signer(a.site).issue(func(c *x509.Certificate) {
		name(td)(c)
		change(c)
	})
	_, a.info = a.listener.admitted(t, a.listener.dial(t, a.clientConfig(a.cert)))
	return a
}

// holds asks about the live connection.
func (a *ageing) holds(t *testing.T, want bool) {
	t.Helper()
	c, err := a.source.Caller(with(a.info))
	switch {
	case want && (err != nil || c != a.info.Caller()):
		t.Fatalf("identity does not hold: %v, %v", c, err)
	case !want && (err == nil || c.Name != ""):
		t.Fatalf("identity of %v holds", c)
	case !want && !strings.Contains(err.Error(), "connect again") && !strings.Contains(err.Error(), "not valid now"):
		t.Fatalf("error does not say what to do: %v", err)
	}
}

func root(s *site) *authority     { return s.clients }
func unchanged(*x509.Certificate) {}
func until(d time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotAfter = time.Now().Add(d) }
}

func TestIdentityEnds(t *testing.T) {
	for name, test := range map[string]struct {
		maxAge time.Duration
		signer func(*site) *authority
		change func(*x509.Certificate)
		after  time.Duration
	}{
		"an hour after the handshake":  {0, root, unchanged, time.Hour},
		"MaxAge after the handshake":   {10 * time.Minute, root, unchanged, 10 * time.Minute},
		"with the certificate":         {0, root, until(30 * time.Minute), 30 * time.Minute},
		"with the intermediate":        {0, func(s *site) *authority { return s.clients.intermediate(time.Now().Add(20 * time.Minute)) }, unchanged, 20 * time.Minute},
		"with the certificate, MaxAge": {48 * time.Hour, root, until(12 * time.Hour), 12 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgeing(t, "", test.maxAge, test.signer, test.change)
			// Certificates have whole seconds, and some passed since they were made.
			a.pass(test.after - 30*time.Second)
			a.holds(t, true)
			a.pass(time.Minute)
			a.holds(t, false)
		})
		t.Run(name+", by a clock set ahead", func(t *testing.T) {
			a := newAgeing(t, "", test.maxAge, test.signer, test.change)
			a.set(test.after - 30*time.Second)
			a.holds(t, true)
			a.set(time.Minute)
			a.holds(t, false)
			a.set(-48 * time.Hour)
			a.holds(t, false)
			if err := a.source.Reload(); err != nil {
				t.Fatal(err)
			}
			a.holds(t, false)
		})
		t.Run(name+", with a clock set back", func(t *testing.T) {
			a := newAgeing(t, "", test.maxAge, test.signer, test.change)
			a.set(-48 * time.Hour)
			a.holds(t, true)
			a.pass(test.after - 30*time.Second)
			a.holds(t, true)
			a.pass(time.Minute)
			a.holds(t, false)
		})
	}
}

// TestExpiredStaysExpired sets the clock back after a certificate expired: a
// new connection is refused nevertheless, and a reload warns of an own
// certificate that expired.
func TestExpiredStaysExpired(t *testing.T) {
	for _, td := range []string{"", trustDomain} {
		t.Run("trust domain "+td, func(t *testing.T) {
			a := newAgeing(t, td, 0, root, until(30*time.Minute))
			a.writePair(a.root.issue(func(c *x509.Certificate) {
				withNames(serverName)(c)
				c.NotAfter = time.Now().Add(30 * time.Minute)
			}))
			if err := a.source.Reload(); err != nil {
				t.Fatal(err)
			}
			a.pass(31 * time.Minute)
			a.holds(t, false)
			a.set(-time.Hour)
			a.listener.refused(t, a.listener.dial(t, a.clientConfig(a.cert)), codes.Unavailable, "")
			if line := a.log.wait(t); !strings.Contains(line, "not valid now") {
				t.Errorf("log: %s", line)
			}
			if err := a.source.Reload(); err != nil {
				t.Errorf("reload: %v", err)
			}
			if line := a.log.wait(t); !strings.Contains(line, "expired at") {
				t.Errorf("log: %s", line)
			}
		})
	}
}

// TestExpiryWithReload meets the end of a certificate and a reload at once.
func TestExpiryWithReload(t *testing.T) {
	a := newAgeing(t, "", 0, root, until(30*time.Minute))
	a.pass(31 * time.Minute)
	if err := a.source.Reload(); err != nil {
		t.Fatal(err)
	}
	a.holds(t, false)
}

// TestReloadDoesNotProlong reloads before MaxAge: the handshake counts.
func TestReloadDoesNotProlong(t *testing.T) {
	a := newAgeing(t, "", 0, root, unchanged)
	a.pass(50 * time.Minute)
	if err := a.source.Reload(); err != nil {
		t.Fatal(err)
	}
	a.holds(t, true)
	a.pass(11 * time.Minute)
	a.holds(t, false)
}

// TestClockNeverGoesBack sets a wall clock in all ways: time never goes back,
// is never behind the wall clock, and goes on while that is behind.
func TestClockNeverGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClocks()
		now := identity.NewClock(c.read)
		last := now()
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			passed := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "passed"))
			c.pass(passed)
			c.set(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "set")))
			got := now()
			if wall := c.wall.UnixMicro(); got < wall {
				t.Fatalf("time is %d, behind the wall clock's %d", got, wall)
			}
			// The microseconds of two readings are rounded down each.
			if got < last+passed.Microseconds()-1 {
				t.Fatalf("time is %d, %v after %d", got, passed, last)
			}
			last = got
		}
	})
}
