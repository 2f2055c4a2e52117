package identity_test

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRefusalsAreSampled makes 10,000 bad handshakes.
func TestRefusalsAreSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "")
		creds := s.open().Credentials()
		refuse := func() {
			server, client := net.Pipe()
			_ = client.Close()
			if conn, info, err := creds.ServerHandshake(server); err == nil || conn != nil || info != nil {
				t.Fatalf("got %v, %v, %v", conn, info, err)
			}
		}
		for range 10_000 {
			refuse()
		}
		if n := len(s.log); n != 10 {
			t.Fatalf("10,000 handshakes were logged in %d lines", n)
		}
		for range 10 {
			if line := <-s.log; !strings.Contains(line, "suppressed=0") {
				t.Errorf("line: %s", line)
			}
		}
		<-time.After(2 * time.Second) // of the bubble's time
		refuse()
		refuse()
		for _, want := range []string{"suppressed=9990", "suppressed=0"} {
			if line := <-s.log; !strings.Contains(line, want) {
				t.Errorf("line has no %s: %s", want, line)
			}
		}
	})
}
