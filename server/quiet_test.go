package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
)

// TestLinesAreBounded offers 10,000 lines a second for ten seconds.
func TestLinesAreBounded(t *testing.T) {
	const perSecond, seconds = 10_000, 10
	synctest.Test(t, func(t *testing.T) {
		next := server.NewQuiet()
		var lines, left, debug, errs uint64
		for range perSecond * seconds {
			<-time.After(time.Second / perSecond)
			if n, ok := next(slog.LevelInfo); ok {
				lines++
				left += n
			}
			if n, ok := next(slog.LevelDebug); ok && n == 0 {
				debug++
			}
			if n, ok := next(slog.LevelError); ok && n == 0 {
				errs++
			}
		}
		if most := uint64(server.LinesAtOnce + server.LinesPerSecond*seconds); lines > most || lines < most-1 {
			t.Errorf("%d lines were written, want %d", lines, most)
		}
		if debug != perSecond*seconds || errs != perSecond*seconds {
			t.Errorf("%d lines of debugging and %d errors were written, want all %d", debug, errs, perSecond*seconds)
		}
		<-time.After(time.Hour)
		n, ok := next(slog.LevelWarn)
		if left += n; !ok || lines+left != perSecond*seconds {
			t.Errorf("%d lines were written and %d said to be left out, want %d in all", lines, left, perSecond*seconds)
		}
		if n, ok := next(slog.LevelWarn); !ok || n != 0 {
			t.Errorf("the line after that: %d left out, written: %v", n, ok)
		}
	})
}

// TestFloodOfRefusals is about calls, and what their lines say.
func TestFloodOfRefusals(t *testing.T) {
	const calls, at = 4_000, 16
	s := start(t, answer(func(_ context.Context, _ policy.Verb, r sealer.Request) (sealer.Result, error) {
		if r.CallerName == "bad" {
			return sealer.Result{}, &sealer.Error{Reason: sealer.InvalidTenant}
		}
		return sealer.Result{}, errors.New("vault is on fire")
	}), func(c *server.Config) { asNamed(t, c, policy.CallerRule{Name: "bad", DNS: "bad.test"}) })
	good := keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:good.test"))
	bad := keysidecarv1.NewSealServiceClient(s.dialAs(t, "dns:bad.test"))
	began := time.Now()
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for range calls / at {
				if _, err := bad.Seal(t.Context(), &keysidecarv1.SealRequest{}); reasonOf(err) != "INVALID_TENANT" {
					t.Errorf("call got %v", err)
				}
			}
		})
	}
	wg.Wait()
	for range 3 {
		if _, err := good.Seal(t.Context(), &keysidecarv1.SealRequest{}); reasonOf(err) != "INTERNAL" {
			t.Errorf("call got %v", err)
		}
	}
	most := server.LinesAtOnce + int(server.LinesPerSecond*time.Since(began).Seconds()) + 1
	checkFloodLog(t, s, calls, most)
}

func checkFloodLog(t *testing.T, s *running, calls, most int) {
	t.Helper()
	var refused, errs, left int
	for line := range strings.Lines(s.log.String()) {
		var r struct {
			Level, Caller string
			PID           *int64
			Left          int `json:"lines_left_out"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		left += r.Left
		switch {
		case r.PID == nil:
			t.Fatalf("line has no pid: %s", line)
		case r.Level == "ERROR" && r.Caller == "dns:good.test":
			errs++
		case r.Level == "INFO" && r.Caller == "bad":
			refused++
		default:
			t.Fatalf("unexpected line: %s", line)
		}
	}
	if errs != 3 {
		t.Errorf("%d lines are errors, want 3", errs)
	}
	if refused > most || refused < server.LinesAtOnce || refused+left > calls || left == 0 {
		t.Errorf("%d lines of %d refused calls, %d said to be left out; want at most %d lines", refused, calls, left, most)
	}
}

// TestLineNamesTheProcess shows whose process a line is about.
func TestLineNamesTheProcess(t *testing.T) {
	s := start(t, failing(errors.New("no")), nil)
	if _, err := s.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{}); err == nil {
		t.Error("the call was answered")
	}
	var r struct {
		Caller string
		PID    int
	}
	if err := json.Unmarshal([]byte(s.log.String()), &r); err != nil {
		t.Fatal(err)
	}
	if r.Caller != "me" || r.PID != os.Getpid() {
		t.Errorf("line is about %q, process %d; want %q, %d", r.Caller, r.PID, "me", os.Getpid())
	}
}
