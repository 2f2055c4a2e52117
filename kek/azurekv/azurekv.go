// Package azurekv wraps keys, and signs, with Azure Key Vault and Managed HSM,
// through azkeys.
//
// What the SDK leaves open is closed here: challenges are vetted before it
// reads them, requests leave only for the vault that was meant, answers are
// bounded and must name the key and version that were asked for, calls return
// when their context ends, and nothing of an SDK error's text, which quotes
// URLs and bodies, gets into ours.
//
// Tokens are fetched on first use, once per vault for all callers that wait,
// and refreshed by the SDK before they expire; nothing is fetched ahead.
package azurekv

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv/challenge"
)

const (
	defaultMaxClients = 64
	// maxVersions bounds the remembered versions of keys, each a few hundred
	// bytes.
	maxVersions = 4096
)

// Config says which vaults may be asked, as whom.
type Config struct {
	// Cloud is "public", "us_government" or "china"; empty is "public". Vaults
	// are then the children of that cloud's domains, such as
	// NAME.vault.azure.net and NAME.managedhsm.azure.net.
	Cloud string
	// Hosts are further hosts, "host" or "host:port" in lower case, that may
	// be asked although they are not in the cloud. They are compared exactly,
	// port included. Empty: none.
	Hosts []string
	// DevVault is the embedded vault; nil: there is none.
	DevVault *DevVault
	// Credentials are the credentials that keys name. Empty: only keys of the
	// embedded vault are usable.
	Credentials map[string]azcore.TokenCredential
	// MaxClients bounds the vault clients, each with its token, that are kept;
	// zero is 64.
	MaxClients int
	// Proxy, as in http.Transport, is for vaults but not for the embedded one;
	// nil is no proxy, whatever the environment says.
	Proxy func(*http.Request) (*url.URL, error)
	// Do runs each piece of work that touches a DEK in the clear, on the
	// goroutine that does it: the place for runtime/secret. Wrapping a
	// Wrapper's methods would miss it, for they work on goroutines of their
	// own. Nil is a plain call.
	Do func(func())
	// Now is the clock that validity and the age of public keys are judged by;
	// nil is time.Now.
	Now func() time.Time
	// Logger gets refused challenges and panics of the SDK; nil discards them.
	Logger *slog.Logger
	// Observe is called after each HTTP request, from any goroutine, and must
	// be quick; nil is not called.
	Observe func(Call)
}

// DevVault describes the embedded Key Vault (package devvault), which has
// certificate roots, a token and an address of its own.
type DevVault struct {
	// Suffix is the parent domain of its vaults, such as "vault.localhost".
	// It may not overlap with a cloud's.
	Suffix string
	// Address is the host:port to dial for all of them; required.
	Address string
	// CAFile holds, in PEM, the only certificate roots trusted for it.
	CAFile string
	// TokenFile holds its static token, for keys that name no credential.
	TokenFile string
}

// Call is one HTTP request to a vault, as it ended.
type Call struct {
	// Vault and Ref are those of the kek.Key; Op is "newest", "wrap",
	// "unwrap", or for Sign "get" and "sign".
	Vault, Ref, Op string
	// Status is the HTTP status; zero if there was no answer.
	Status int
	// Code is the innermost error code of the answer; empty if it has none.
	Code string
	// Duration is how long the request took.
	Duration time.Duration
	// Attempt counts the requests of one call of a method, from 1. The first
	// call to a vault takes two: a challenge and the answer.
	Attempt int
}

// Vaults is a kek.Wrapper and a kek.Signer for all vaults of a configuration.
type Vaults struct {
	cfg      Config
	cloud    cloudSpec
	client   *http.Client
	dev      *http.Client // nil without an embedded vault
	devToken azcore.TokenCredential
	closed   atomic.Bool

	mu       sync.Mutex
	clients  *simplelru.LRU[clientKey, *azkeys.Client]    // guarded by mu
	versions *simplelru.LRU[versionKey, *versionSnapshot] // guarded by mu
}

var (
	_ kek.Wrapper = (*Vaults)(nil)
	_ kek.Signer  = (*Vaults)(nil)
)

// clientKey says what an SDK client is bound to: its token is for one
// credential and Entra tenant, its challenges are vetted for one tenant.
type clientKey struct{ vault, credential, entraTenant string }

// New returns Vaults. It reads the embedded vault's files and asks nobody.
func New(cfg Config) (*Vaults, error) {
	spec, err := findCloud(cfg.Cloud)
	if err != nil {
		return nil, err
	}
	for _, host := range cfg.Hosts {
		if !isHost(host) {
			return nil, fmt.Errorf("vault host %q is not host or host:port in lower case", host)
		}
	}
	for name, c := range cfg.Credentials {
		if c == nil {
			return nil, fmt.Errorf("credential %q is nil", name)
		}
	}
	if cfg.MaxClients < 0 {
		return nil, fmt.Errorf("%d vault clients is negative", cfg.MaxClients)
	}
	v := &Vaults{cfg: withDefaults(cfg), cloud: spec, client: newHTTPClient(nil, "", cfg.Proxy)}
	if v.clients, err = simplelru.NewLRU[clientKey, *azkeys.Client](v.cfg.MaxClients, nil); err != nil {
		return nil, err
	}
	if v.versions, err = simplelru.NewLRU[versionKey, *versionSnapshot](maxVersions, nil); err != nil {
		return nil, err
	}
	if cfg.DevVault != nil {
		if err := v.openDevVault(*cfg.DevVault); err != nil {
			return nil, fmt.Errorf("embedded vault: %w", err)
		}
	}
	return v, nil
}

func withDefaults(cfg Config) Config {
	cfg.Hosts = slices.Clone(cfg.Hosts)
	cfg.Credentials = maps.Clone(cfg.Credentials)
	if cfg.MaxClients == 0 {
		cfg.MaxClients = defaultMaxClients
	}
	if cfg.Do == nil {
		cfg.Do = func(f func()) { f() }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Call) {}
	}
	return cfg
}

func (v *Vaults) openDevVault(d DevVault) error {
	for label := range strings.SplitSeq(d.Suffix, ".") {
		if !isLabel(label) {
			return fmt.Errorf("suffix %q is not a domain in lower case", d.Suffix)
		}
	}
	for _, suffix := range v.cloud.suffixes {
		if d.Suffix == suffix || strings.HasSuffix(d.Suffix, "."+suffix) || strings.HasSuffix(suffix, "."+d.Suffix) {
			return fmt.Errorf("suffix %q overlaps with the cloud's %s", d.Suffix, suffix)
		}
	}
	if d.Address == "" {
		return errors.New("address is missing")
	}
	pem, err := readSecretFile(d.CAFile)
	if err != nil {
		return fmt.Errorf("reading CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("CA file %s holds no certificate", d.CAFile)
	}
	if v.devToken, err = newStaticToken(d.TokenFile); err != nil {
		return err
	}
	v.dev = newHTTPClient(roots, d.Address, nil)
	v.cfg.DevVault = &d
	return nil
}

// Close drops idle connections, tokens and public keys. Later calls fail.
// Calls under way are not interrupted and not waited for: end their contexts.
func (v *Vaults) Close() error {
	v.closed.Store(true)
	v.mu.Lock()
	v.clients.Purge()
	v.versions.Purge()
	v.mu.Unlock()
	v.client.CloseIdleConnections()
	if v.dev != nil {
		v.dev.CloseIdleConnections()
	}
	return nil
}

// credential finds the credential for a key at p. The embedded vault's token
// stays there.
func (v *Vaults) credential(p place, name string) (azcore.TokenCredential, error) {
	if p.dev && name == "" {
		return v.devToken, nil
	}
	c, ok := v.cfg.Credentials[name]
	if !ok {
		return nil, fmt.Errorf("credential %q is not configured", name)
	}
	if _, static := c.(*staticToken); static && !p.dev {
		return nil, fmt.Errorf("credential %q is for the embedded vault only", name)
	}
	return c, nil
}

// usable is resolve for a call.
func (v *Vaults) usable(k kek.Key) (place, error) {
	p, err := v.resolve(k)
	if err != nil {
		return place{}, &kek.Error{Reason: kek.Unusable, Err: err}
	}
	if v.closed.Load() {
		return place{}, &kek.Error{Reason: kek.Unreachable, Err: errors.New("closed")}
	}
	return p, nil
}

// vault returns the SDK client for k.
func (v *Vaults) vault(k kek.Key) (*azkeys.Client, error) {
	p, err := v.usable(k)
	if err != nil {
		return nil, err
	}
	id := clientKey{vault: k.Vault, credential: k.Credential, entraTenant: strings.ToLower(k.EntraTenant)}
	v.mu.Lock()
	defer v.mu.Unlock()
	if c, ok := v.clients.Get(id); ok {
		return c, nil
	}
	c, err := v.newClient(p, id)
	if err != nil {
		return nil, &kek.Error{Reason: kek.Unusable, Err: err}
	}
	v.clients.Add(id, c)
	return c, nil
}

func (v *Vaults) newClient(p place, id clientKey) (*azkeys.Client, error) {
	cred, err := v.credential(p, id.credential)
	if err != nil {
		return nil, err
	}
	g := &guard{
		host:   p.host,
		client: v.client,
		vet:    challenge.Vetter{Tenant: id.entraTenant, Authorities: p.authorities, Resources: p.resources},
	}
	if p.dev {
		g.client = v.dev
	}
	c, err := azkeys.NewClient(id.vault, patientCredential{cred}, &azkeys.ClientOptions{ClientOptions: azcore.ClientOptions{
		Cloud:            v.cloud.entra,
		Telemetry:        policy.TelemetryOptions{ApplicationID: "keysidecar"},
		PerRetryPolicies: []policy.Policy{recorder{v}},
		// One layer of retries per hop. A Retry-After beyond MaxRetryDelay
		// comes back at once, for the pacer to decide on.
		Retry:     policy.RetryOptions{MaxRetries: 1, TryTimeout: 1500 * time.Millisecond, MaxRetryDelay: 500 * time.Millisecond},
		Transport: g,
	}})
	if err != nil {
		return nil, fmt.Errorf("making the vault client: %w", err)
	}
	return c, nil
}

// run runs call on a goroutine of its own, because the SDK does not always
// return when its context ends. When run returns an error because ctx ended,
// call goes on, and abandoned runs after it instead of the caller's code.
func (v *Vaults) run(ctx context.Context, call func() error, abandoned func()) error {
	done := make(chan error)
	go func() {
		var err error
		v.cfg.Do(func() { err = v.recovered(call) })
		select {
		case done <- err:
		case <-ctx.Done():
			abandoned()
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errPanic = errors.New("panic in the Azure SDK")

// recovered turns a panic into errPanic. Its value is not logged: it may
// quote what the SDK was working on.
func (v *Vaults) recovered(call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			v.cfg.Logger.Error("panic in the Azure SDK", slog.String("type", fmt.Sprintf("%T", p)))
			err = errPanic
		}
	}()
	return call()
}
