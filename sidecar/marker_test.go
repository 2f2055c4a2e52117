package sidecar_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"

	"github.com/keysidecar/keysidecar/audit/verify"
	"github.com/keysidecar/keysidecar/envelope"
	"github.com/keysidecar/keysidecar/internal/secret"
	"github.com/keysidecar/keysidecar/kek/devvault"
	"github.com/keysidecar/keysidecar/tenant"
)

// A hunted is a sidecar that runs as a process, and what is collected of it.
type hunted struct {
	site      *site
	echo      *echo
	user      user
	pki       *pki
	dir       string // of its files, and of the directories in which it works
	web       string // where it serves metrics
	tcp       string
	token     []byte
	untouched string // when the directories were made in which it works
	// written are files with secrets that the test writes.
	written map[string]string
	// marker is what is sealed, pairs is what it is sealed with.
	marker []byte
	pairs  map[string]string
	// said is what a caller gets back that it said itself, and nobody else;
	// listed is what only the audit log has of the context.
	said, listed string

	search, echoed, recorded search
	places                   places
	answer                   *journal // every error that a caller saw, and every answer to an operator

	mu    sync.Mutex
	ways  map[string]int      // calls, by what they got
	kept  map[string][][]byte // bundles, by tenant
	plain *grpc.ClientConn
	admin *grpc.ClientConn
}

// newHunted makes the vaults and the files of a sidecar.
func newHunted(t *testing.T) *hunted {
	t.Helper()
	h := &hunted{
		site: newSite(t, "acme"), user: otherUser(), pki: newPKI(t), dir: shortDir(t), web: freeAddress(t),
		marker: random(t, 64), said: hex.EncodeToString(random(t, 32)),
		places: make(places), answer: &journal{}, ways: make(map[string]int), kept: make(map[string][][]byte),
	}
	h.echo = openEcho(t, h.site, h.pki)
	hidden := random(t, 48)
	h.listed = hex.EncodeToString(random(t, 32))
	h.pairs = map[string]string{"row": base64.StdEncoding.EncodeToString(hidden), "listed": h.listed}
	set := settings{
		keks: []string{
			h.site.kek("acme", "acme", "RSA-OAEP-256"), h.site.kek("globex", "globex", "A256KW"), h.site.kek("own", "{tenant}", "A256KW"),
		},
		tenants: []string{
			"{id: acme, kek: acme}", "{id: globex, kek: globex}", "{id: denied, kek: acme}", "{id: sleepy, kek: acme, state: suspended}",
			"{id: busy, kek: acme, rate: 0.01, burst: 1}", "{prefix: v-, kek: own}",
		},
		policy: strings.Replace(callersPolicy(batch), `tenants: ["*"], verbs: [seal, unseal]`,
			"tenants: [acme, globex, sleepy, busy, v-*], verbs: [seal, unseal]", 1),
		load: "1s", maxMessages: 50,
		config: "server: {reflection: true}\nlog: {level: debug, format: json}\nmetrics: {listen: '" + h.web + "'}\n" +
			"audit: {sink: dir, dir: " + h.socket(auditDir) + ", data: full, context: [listed], interval: 1s, checkpoint_interval: 100ms}\n",
	}
	set.secure(t, h.pki, "", "")
	h.tcp = strings.Split(set.listen, "'")[1]
	var files map[string]string
	files, h.token = h.echo.files(t, h.site, h.pki)
	maps.Copy(set.files, files)
	h.written = map[string]string{"token": set.files["token"], "tls.key": set.files["tls.key"]}
	if _, err := set.write(h.dir, h.echo.Listener.Addr().String(), "ca.pem", "token"); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(workDirs(), auditDir) {
		if err := os.Mkdir(filepath.Join(h.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.user.give(t, h.dir)
	h.untouched = h.changed(t)
	h.echoed.add("name of a method", []byte(h.said))
	h.recorded.add("listed context", []byte(h.listed))
	h.search.add("plaintext", h.marker)
	h.search.add("context", hidden)
	h.search.add("context", []byte(h.pairs["row"]))
	h.search.add("token", h.token)
	h.search.add("private key", privateKey(t, set.files["tls.key"]))
	for _, name := range append(h.faulty(), "globex") {
		if _, err := h.site.CreateKey(name, kekName, devvault.KeySpec{Type: "oct-HSM"}); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// workDirs are where a process works: its directory, and that for temporary
// files.
func workDirs() []string { return []string{"work", "tmp"} }

// auditDir is where the audit log is.
const auditDir = "audit"

// changed says when an entry of these directories was made or removed last.
func (h *hunted) changed(t *testing.T) (times string) {
	t.Helper()
	for _, name := range workDirs() {
		info, err := os.Stat(filepath.Join(h.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		times += info.ModTime().String() + " "
	}
	return times
}

// privateKey returns the secret number of a key file.
func privateKey(t *testing.T, file string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(file))
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	number, err := parsed.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// faulty are the tenants, and vaults, of which something goes wrong: what, and
// at which operation.
func (h *hunted) faulty() []string {
	var all []string
	for kind := range damages() {
		for _, op := range operations() {
			all = append(all, "v-"+kind+"-"+op)
		}
	}
	for kind := range vaultFaults() {
		for _, op := range operations() {
			all = append(all, fmt.Sprintf("v-f%d-%s", kind, op))
		}
	}
	return all
}

func operations() []string { return []string{devvault.OpGet, devvault.OpWrap, devvault.OpUnwrap} }

func vaultFaults() []devvault.Fault {
	return []devvault.Fault{
		{Kind: devvault.FaultStatus, Status: 500}, {Kind: devvault.FaultUnauthorized}, {Kind: devvault.FaultGarbage},
		{Kind: devvault.FaultHang}, {Kind: devvault.FaultReset}, {Kind: devvault.FaultNoAnswer}, {Kind: devvault.FaultTruncated},
		{Kind: devvault.FaultWrongKID}, {Kind: devvault.FaultForbiddenRBAC},
	}
}

func (h *hunted) socket(name string) string { return filepath.Join(h.dir, name) }

// begin starts a sidecar that works in dir, and connects to it.
func (h *hunted) begin(t *testing.T, dir string, env ...string) *life {
	t.Helper()
	l := h.user.begin(t, servedProcess, dir, append(env, processDir+"="+h.dir, "TMPDIR="+filepath.Join(h.dir, "tmp"))...)
	l.says(t, "ready")
	h.plain, h.admin = connect(t, h.socket("s.sock")), connect(t, h.socket("admin.sock"))
	return l
}

// knowDEKs makes every DEK that a vault has seen a secret, and wants that they
// are those of the bundles.
func (h *hunted) knowDEKs(t *testing.T) {
	t.Helper()
	slab, err := secret.New(secret.Config{Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer slab.Close()
	deks, _ := h.echo.seen()
	known := make(map[envelope.ID]bool)
	for dek := range deks {
		h.search.addDEK("DEK", dek)
		copied := dek
		key, err := slab.Put(&copied)
		if err != nil {
			t.Fatal(err)
		}
		for name := range h.kept {
			known[envelope.DEKID(key, envelope.PurposeSeal, must(tenant.Parse(name)))] = true
		}
		key.Wipe()
	}
	used := make(map[envelope.ID]bool)
	for name, all := range h.kept {
		for _, sealed := range all {
			block, _ := firstBlock(t, sealed)
			used[block.KeyID] = true
			if !known[block.KeyID] {
				t.Fatalf("the DEK of a bundle of %s was not seen", name)
			}
		}
	}
	t.Logf("%d DEKs seen, those of all %d under which something is kept among them", len(deks), len(used))
}

// wantCalls fails unless each kind of call was made, and the log tells of each
// way to fail.
func (h *hunted) wantCalls(t *testing.T, log string) {
	t.Helper()
	_, damaged := h.echo.seen()
	for kind := range damages() {
		for _, op := range operations() {
			if name := "v-" + kind + "-" + op; damaged[name] == 0 {
				t.Errorf("no answer for %s was damaged", name)
			}
		}
	}
	for reason := range h.ways {
		if reason == strings.ToUpper(reason) && reason != "OK" && !strings.Contains(log, `"reason":"`+reason+`"`) {
			t.Errorf("the log does not tell of %s", reason)
		}
	}
	t.Logf("calls: %v", h.ways)
	if got := h.answer.String(); !strings.Contains(got, "request_id:[") {
		t.Error("what callers got has no trailers")
	}
	if n := strings.Count(log, `"msg":"call finished"`); n < 2*fullLoad {
		t.Errorf("the log has %d calls, more than %d were made: it is not at level debug", n, 2*fullLoad)
	}
}

// A way to end a sidecar while calls wait for a vault, and what it has in its
// environment.
type ending struct {
	name string
	env  []string
	end  func(*testing.T, *life)
}

func endings() []ending {
	return []ending{
		// The loudest that "keysidecar serve" accepts, and more.
		{"that drained", []string{
			"GRPC_GO_LOG_SEVERITY_LEVEL=error", "GRPC_GO_LOG_VERBOSITY_LEVEL=99", "GRPC_BINARY_LOG_FILTER=*",
			"AZURE_SDK_GO_LOGGING=yes", "GOTRACEBACK=system",
		}, func(t *testing.T, l *life) {
			l.in.Close()
			l.says(t, "stopping")
		}},
		{"that crashed", []string{"GOTRACEBACK=crash"}, func(t *testing.T, l *life) { l.signal(t, syscall.SIGQUIT) }},
		{"that was killed", nil, func(t *testing.T, l *life) { l.signal(t, syscall.SIGKILL) }},
	}
}

// fullLoad is how often the marker is sealed, and unsealed.
const fullLoad = 400

// TestPlaintextIsNowhere runs a sidecar as "keysidecar serve" does, calls it in
// every way that works and that fails, and ends it in every way there is. Then
// it looks for what was sealed, for the keys, and for the token, in all that is
// left. There are no traces to look at: nothing that makes them is linked.
func TestPlaintextIsNowhere(t *testing.T) {
	t.Parallel()
	h := newHunted(t)
	for i, e := range endings() {
		l := h.begin(t, filepath.Join(h.dir, "work"), e.env...)
		h.load(t, fullLoad/4)
		if i == 0 {
			h.load(t, fullLoad)
			h.mistaken(t)
			h.suffer(t)
			h.wantHardened(t, l)
		}
		h.reopen(t)
		h.scrape(t, e.name)
		wait := h.hang(t, 5)
		e.end(t, l)
		if status := l.end(t); status.CoreDump() {
			t.Errorf("the sidecar %s has dumped core", e.name)
		}
		wait()
		h.places["standard error of the sidecar "+e.name] = []byte(l.stderr.String())
		h.places["standard output of the sidecar "+e.name] = []byte(l.stdout.String())
	}
	if dump := h.places["standard error of the sidecar that crashed"]; !bytes.Contains(dump, []byte("sidecar.(*Sidecar).Run")) {
		t.Errorf("a crash shows no goroutines:\n%s", dump)
	}
	h.knowDEKs(t)
	h.wantCalls(t, string(h.places["standard error of the sidecar that drained"]))
	h.collectFiles(t)
	h.places.wantNothing(t, &h.echoed)
	h.places["what callers got"] = []byte(h.answer.String())
	h.places.wantNothing(t, &h.search)
	h.wantRecorded(t)
	h.wantSearched(t)
	h.wantOpen(t)
	wantNoTracing(t)
}

// wantOpen is the control of wantHardened, and of the core that is not dumped:
// a sidecar that does not harden itself.
func (h *hunted) wantOpen(t *testing.T) {
	t.Helper()
	dir := shortDir(t)
	h.user.give(t, dir)
	l := h.begin(t, dir, processOpen+"=yes", "GOTRACEBACK=crash")
	h.load(t, 20)
	// A process that is not its parent's may be kept out of its memory anyway.
	if refused := l.peek(t, h.user, dir); len(slices.DeleteFunc(refused, func(name string) bool { return name == "mem" })) > 0 {
		t.Errorf("another process of the same user is refused %q of one that is not hardened", refused)
	}
	l.signal(t, syscall.SIGQUIT)
	dumped := l.end(t).CoreDump()
	files, err := os.ReadDir(dir)
	t.Logf("a sidecar that is not hardened: core dumped here %v, and left are %v, %v", dumped, files, err)
}

// collectFiles takes every file that is left. The token and the private key
// are in files that the test itself wrote.
func (h *hunted) collectFiles(t *testing.T) {
	t.Helper()
	files := make(places)
	files.addDir(t, h.dir)
	for name, want := range h.written {
		path := filepath.Join(h.dir, name)
		if got := string(files[path]); got != path+"\n"+want {
			t.Errorf("%s was changed to %q", name, got)
		}
		delete(files, path)
	}
	maps.Copy(h.places, files)
	if got := h.changed(t); got != h.untouched {
		t.Errorf("a file was made, or removed, in the working or the temporary directory: changed at %s, not %s", got, h.untouched)
	}
}

// wantRecorded wants that the audit log has each call, with that of its context
// which is listed, which nothing else has.
func (h *hunted) wantRecorded(t *testing.T) {
	t.Helper()
	calls := 0
	for name, text := range h.places {
		found := len(h.recorded.in(text)) > 0
		if logged := filepath.Dir(name) == h.socket(auditDir) && filepath.Ext(name) == ".jsonl"; found != logged {
			t.Errorf("%s has the part of the context that is recorded: %v", name, found)
		}
		calls += bytes.Count(text, []byte(`"kind":"call"`))
	}
	if calls < 2*fullLoad {
		t.Errorf("%d calls are recorded, and more than %d were made", calls, 2*fullLoad)
	}
	verified(t, nil, verify.Config{}, h.socket(auditDir))
}

// wantSearched wants that each place is one in which secrets would be found.
func (h *hunted) wantSearched(t *testing.T) {
	t.Helper()
	size := 0
	for name, text := range h.places {
		size += len(text)
		text = fmt.Appendf(bytes.Clone(text), "%q", h.marker)
		if found := h.search.in(text); !slices.Contains(found, "plaintext (Go string)") {
			t.Errorf("%s: the plaintext at its end is not found: %q", name, found)
		}
	}
	t.Logf("%d places with %d bytes were searched", len(h.places), size)
}

// wantHardened wants that the process is closed to others, and what it knows of
// itself: what is in its environment, and what it has open.
func (h *hunted) wantHardened(t *testing.T, l *life) {
	t.Helper()
	dir := filepath.Join(h.dir, "work")
	if core := strings.TrimSpace(l.says(t, "ready")); core == "0" {
		t.Log("this process may have no core file whatever it does")
	}
	if refused := l.peek(t, h.user, dir); !slices.Equal(refused, []string{"mem", "maps", "environ", "fd"}) {
		t.Errorf("another process of the same user is refused only %q", refused)
	}
	if limits := string(l.proc(t, "limits")); !strings.Contains(limits, "Max core file size        0                    0") {
		t.Errorf("core files are not forbidden:\n%s", limits)
	}
	h.places["command line"] = l.proc(t, "cmdline")
	h.places["status"] = l.proc(t, "status")
	l.signal(t, lookSignal)
	text := l.says(t, "inside")
	h.places["seen from inside"] = []byte(text)
	var in inside
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	for _, file := range in.Files {
		state := h.socket("state")
		if strings.HasPrefix(file, "/") && !strings.HasPrefix(file, "/sys/") && !strings.HasPrefix(file, "/proc/") &&
			file != "/dev/null" && file != state && file != filepath.Join(state, "suspensions.lock") &&
			file != h.socket(auditDir) && filepath.Dir(file) != h.socket(auditDir) {
			t.Errorf("the file %s is open", file)
		}
	}
	locked := !strings.Contains(l.stderr.String(), `"key_memory":"heap"`)
	if locked && in.LockedKB < 1000*secret.Size>>10 || in.SwappedKB > 0 || len(in.Files) == 0 {
		t.Errorf("%d KiB are locked and not dumped, %d KiB of it are swapped", in.LockedKB, in.SwappedKB)
	}
}

// wantNoTracing looks for the packages that this binary is made of, which are
// those of the sidecar and more.
func wantNoTracing(t *testing.T) {
	t.Helper()
	name, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, []byte("google.golang.org/grpc.(*Server).Serve")) {
		t.Fatal("this binary does not tell what it is made of")
	}
	// Not as they are here, for this is in the binary too.
	for _, words := range [][]string{{"go", "opentelemetry", "io/otel"}, {"go", "opencensus", "io/trace"}} {
		if name := strings.Join(words, "."); bytes.Contains(file, []byte(name)) {
			t.Errorf("%s is linked: its traces have to be searched too", name)
		}
	}
}
