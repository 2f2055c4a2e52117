package sidecar_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/client"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
)

// A piped is a sidecar that runs as a process, and whose audit log is its
// standard output: a pipe with next to no room.
type piped struct {
	t        *testing.T
	cmd      *exec.Cmd
	in       io.WriteCloser
	stderr   *journal
	ended    chan struct{}
	out      *os.File // what it writes
	reading  sync.WaitGroup
	rpc      keysidecarv1.SealServiceClient
	operator *client.Admin
	sealed   map[string][]byte

	mu    sync.Mutex
	text  bytes.Buffer
	pause chan struct{} // not nil: nothing is read until it is closed

	made sums // what calls came to
}

// longest is how long a call waits for its record.
const longest = time.Second

func newPiped(t *testing.T) *piped {
	t.Helper()
	site, dir := newSite(t), shortDir(t)
	site.createOctKEK(t, "shared")
	set := site.sharing("id: plain", "id: listed, audit: full", "id: new")
	set.config = "reload_interval: 0s"
	set.auditToStream("write_timeout: 1s")
	if _, err := set.write(dir, site.Addr(), site.CAFile(), site.TokenFile()); err != nil {
		t.Fatal(err)
	}
	p := &piped{t: t, stderr: &journal{}, ended: make(chan struct{}), sealed: make(map[string][]byte), made: make(sums)}
	p.start(dir)
	t.Cleanup(p.destroy)
	await(t, "the first record", func() bool { return strings.Contains(p.read(), `"kind":"start"`) })
	socket := filepath.Join(dir, "s.sock")
	await(t, "the socket", func() bool { _, err := os.Stat(socket); return err == nil })
	p.rpc = keysidecarv1.NewSealServiceClient(connect(t, socket))
	var err error
	if p.operator, err = client.DialAdmin(filepath.Join(dir, "admin.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.operator.Close() })
	for _, tenant := range []string{"plain", "listed"} {
		p.seal(tenant, "OK")
	}
	return p
}

func (p *piped) start(dir string) {
	p.t.Helper()
	p.cmd = exec.Command(must(os.Executable()))
	p.cmd.Env = append(os.Environ(), processKind+"="+auditedProcess, processDir+"="+dir)
	p.cmd.Stderr = p.stderr
	p.in = must(p.cmd.StdinPipe())
	var w *os.File
	var err error
	if p.out, w, err = os.Pipe(); err != nil {
		p.t.Fatal(err)
	}
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		p.t.Fatal(err)
	}
	p.cmd.Stdout = w
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // its state says how it ended
	}()
	p.reading.Go(p.collect)
}

func (p *piped) destroy() {
	p.hold(false)
	_ = p.cmd.Process.Kill() // if it is not gone
	<-p.ended
	p.out.Close()
	p.reading.Wait()
}

// collect reads what is written, a little at a time, unless it is held.
func (p *piped) collect() {
	buf := make([]byte, 512)
	for {
		p.mu.Lock()
		pause := p.pause
		p.mu.Unlock()
		if pause != nil {
			<-pause
			continue
		}
		n, err := p.out.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.text.Write(buf[:n])
		p.mu.Unlock()
	}
}

// hold stops reading, or goes on.
func (p *piped) hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held == (p.pause != nil) {
		return
	}
	if held {
		p.pause = make(chan struct{})
		return
	}
	close(p.pause)
	p.pause = nil
}

func (p *piped) read() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// reader reads what was read so far.
func (p *piped) reader() io.Reader { return strings.NewReader(p.read()) }

// call makes a call that takes no longer than most, and returns its reason.
func (p *piped) call(what string, most time.Duration, call func(context.Context) error) string {
	p.t.Helper()
	begun := time.Now()
	got := reasonOf(call(p.t.Context()))
	if took := time.Since(begun); took > most {
		p.t.Errorf("%s: %s after %s, want it within %s", what, got, took, most)
	}
	return got
}

// slack is what a call takes besides waiting for its record, on a busy machine.
const slack = 800 * time.Millisecond

func (p *piped) seal(tenant, want string) {
	p.t.Helper()
	got := p.call("Seal for "+tenant, longest+slack, func(ctx context.Context) error {
		r, err := p.rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: tenant, Plaintext: []byte("data")})
		if err == nil {
			p.sealed[tenant] = r.GetSealed()
		}
		return err
	})
	if got != want {
		p.t.Errorf("Seal for %s: %s, want %s", tenant, got, want)
	}
	p.made.add(alike{"me", tenant, "seal", got}, 1, 4)
}

// unseal unseals what is warm, without waiting for anything.
func (p *piped) unseal(tenant string) {
	p.t.Helper()
	got := p.call("Unseal for "+tenant, slack, func(ctx context.Context) error {
		_, err := p.rpc.Unseal(ctx, &keysidecarv1.UnsealRequest{Tenant: tenant, Sealed: p.sealed[tenant]})
		return err
	})
	if got != "OK" {
		p.t.Errorf("Unseal for %s: %s", tenant, got)
	}
	p.made.add(alike{"me", tenant, "unseal", "OK"}, 1, int64(len(p.sealed[tenant])))
}

// failing wants that status says that the log is.
func (p *piped) failing() {
	p.t.Helper()
	if s, err := p.operator.Status(p.t.Context()); err != nil || s.AuditFailingSince.IsZero() {
		p.t.Errorf("status: %+v, %v", s, err)
	}
	p.made.add(alike{"me", "", "admin.status", "OK"}, 1, 0)
}

// fill seals for a tenant with records until there is no room for one.
func (p *piped) fill() {
	p.t.Helper()
	for range 100 {
		got := p.call("Seal for listed", longest+slack, func(ctx context.Context) error {
			_, err := p.rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: "listed", Plaintext: []byte("data")})
			return err
		})
		p.made.add(alike{"me", "listed", "seal", got}, 1, 4)
		if got == "AUDIT_UNAVAILABLE" {
			return
		}
	}
	p.t.Fatal("a pipe that nobody reads is never full")
}

// TestAuditOfSlowReader is about whoever reads standard output, and stops for a
// while: nobody waits for that longer than write_timeout, and who needs no
// record not at all.
func TestAuditOfSlowReader(t *testing.T) {
	t.Parallel()
	p := newPiped(t)
	p.hold(true)
	p.fill()
	for range 50 {
		p.unseal("plain")
	}
	p.seal("listed", "AUDIT_UNAVAILABLE")
	p.seal("nobody", "AUDIT_UNAVAILABLE")
	p.seal("new", "AUDIT_UNAVAILABLE")
	var group sync.WaitGroup
	for range 20 { // who wait together, and not for one another
		group.Go(func() {
			if got := p.call("denials at a time", longest+slack, func(ctx context.Context) error {
				_, err := p.rpc.Seal(ctx, &keysidecarv1.SealRequest{Tenant: "nobody"})
				return err
			}); got != "AUDIT_UNAVAILABLE" {
				t.Errorf("denial: %s", got)
			}
		})
	}
	group.Wait()
	p.made.add(alike{"me", "nobody", "seal", "AUDIT_UNAVAILABLE"}, 20, 0)
	if got := p.call("Evict", slack, func(ctx context.Context) error {
		_, err := p.operator.Evict(ctx, "new")
		return err
	}); got != "OK" {
		t.Errorf("evicting: %s", got)
	}
	p.failing()

	p.hold(false)
	await(t, "a record", func() bool {
		_, err := p.rpc.Seal(t.Context(), &keysidecarv1.SealRequest{Tenant: "listed", Plaintext: []byte("last")})
		p.made.add(alike{"me", "listed", "seal", reasonOf(err)}, 1, 4)
		return err == nil
	})
	p.unseal("plain")
	p.seal("nobody", "UNKNOWN_TENANT")
	p.in.Close()
	<-p.ended
	p.reading.Wait()
	if !p.cmd.ProcessState.Success() {
		t.Errorf("%v: %s", p.cmd.ProcessState, p.stderr)
	}
	p.check()
}

// check wants that the stream is a log in which nothing is wrong, with all that
// was answered. It may have what was being written when its callers gave up, too.
func (p *piped) check() {
	p.t.Helper()
	all := logFrom(p.t, p.reader(), "-")
	got := summed(all)
	for _, a := range []alike{{"me", "listed", "seal", "OK"}, {"me", "nobody", "seal", "UNKNOWN_TENANT"}} {
		if made := p.made[a].count; got[a].count < made || got[a].count > made+2 {
			p.t.Errorf("%d calls recorded of %v, %d were made", got[a].count, a, made)
		}
		delete(got, a)
		delete(p.made, a)
	}
	if diff := gocmp.Diff(p.made, got, gocmp.AllowUnexported(sum{}, alike{})); diff != "" {
		p.t.Errorf("calls (-made +recorded):\n%s", diff)
	}
	requests, evicted := make(map[string]int), 0
	for _, l := range all {
		requests[l.Request]++
		if l.Request != "" && requests[l.Request] > 1 && l.Class != record.Keys {
			p.t.Errorf("recorded twice: %s", l.raw)
		}
		if l.Did == "evict" {
			evicted++
		}
	}
	if evicted != 1 {
		p.t.Errorf("%d evictions are recorded", evicted)
	}
	if logs := verified(p.t, p.reader(), verify.Config{}, "-"); len(logs) != 1 || !logs[0].Stopped {
		p.t.Errorf("audit verify says %+v", logs)
	}
}

// A reader that goes away leaves a sidecar that serves what needs no record.
func TestAuditOfGoneReader(t *testing.T) {
	t.Parallel()
	p := newPiped(t)
	p.out.Close()
	p.reading.Wait() // it is closed when nobody reads it any more
	for range 3 {
		p.seal("listed", "AUDIT_UNAVAILABLE")
		p.seal("nobody", "AUDIT_UNAVAILABLE")
		p.unseal("plain")
	}
	p.failing()
	p.ends()
}

// A reader that stops for good does not keep a sidecar from ending.
func TestAuditOfHangingReader(t *testing.T) {
	t.Parallel()
	p := newPiped(t)
	p.hold(true)
	p.fill()
	p.ends()
}

// ends ends the process, and wants that it says what is not recorded.
func (p *piped) ends() {
	p.t.Helper()
	p.in.Close()
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.t.Fatal("the sidecar does not end")
	}
	if p.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(p.stderr.String(), "the end of audit log") {
		p.t.Errorf("%v: %s", p.cmd.ProcessState, p.stderr)
	}
}
