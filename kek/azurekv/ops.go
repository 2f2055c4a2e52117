package azurekv

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/keysidecar/keysidecar/kek"
)

const (
	opNewest = "newest"
	opWrap   = "wrap"
	opUnwrap = "unwrap"
	opGet    = "get" // a request of Sign that asks for its key

	// maxPages bounds the pages of a list of versions, of 25 each in Azure.
	maxPages = 40
	// a256kwSize is the length of a wrapped 32-byte key (RFC 3394), in bytes.
	a256kwSize = kek.Size + 8
)

// Newest implements kek.Wrapper. It takes one request if the latest version is
// usable, else it lists the versions and fetches the newest usable one. The
// version's public key and attributes are remembered for Wrap for 10 minutes.
func (v *Vaults) Newest(ctx context.Context, k kek.Key) (kek.Version, error) {
	ctx, tr, err := begin(ctx, opNewest, k)
	if err != nil {
		return kek.Version{}, v.fail(ctx, tr, k, kek.Version{}, err)
	}
	s, err := v.findNewest(ctx, k)
	if err != nil {
		return kek.Version{}, v.fail(ctx, tr, k, kek.Version{}, err)
	}
	return s.version, nil
}

// begin begins a call of a method. Its context and trace are good with an
// error too.
func begin(ctx context.Context, op string, k kek.Key) (context.Context, *trace, error) {
	ctx, tr := withTrace(ctx, op, k)
	if err := ctx.Err(); err != nil {
		return ctx, tr, err
	}
	if err := checkAlg(op, k.Alg); err != nil {
		return ctx, tr, &kek.Error{Reason: kek.Unusable, Err: err}
	}
	return ctx, tr, nil
}

// findNewest runs newest until ctx ends.
func (v *Vaults) findNewest(ctx context.Context, k kek.Key) (*versionSnapshot, error) {
	var found *versionSnapshot
	err := v.run(ctx, func() (err error) {
		found, err = v.newest(ctx, k)
		return err
	}, func() {})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (v *Vaults) newest(ctx context.Context, k kek.Key) (*versionSnapshot, error) {
	s, err := v.fetch(ctx, k, "")
	if err == nil && s.wrapsAt(v.cfg.Now()) {
		return s, nil
	}
	if err != nil && reasonOf(err) != kek.Disabled {
		return nil, err
	}
	version, err := v.search(ctx, k)
	if err != nil {
		return nil, err
	}
	if s, err = v.fetch(ctx, k, version.String()); err != nil {
		return nil, err
	}
	if !s.wrapsAt(v.cfg.Now()) {
		return nil, &kek.Error{Reason: kek.Disabled, Expired: s.enabled}
	}
	return s, nil
}

// search lists all versions of k and returns the newest usable one. The list
// is in no order.
func (v *Vaults) search(ctx context.Context, k kek.Key) (kek.Version, error) {
	client, err := v.vault(k)
	if err != nil {
		return kek.Version{}, err
	}
	var newest kek.Version
	var newestCreated time.Time
	enabled := false
	pager := client.NewListKeyPropertiesVersionsPager(k.Name, nil)
	for pages := 0; pager.More(); pages++ {
		if pages == maxPages {
			return kek.Version{}, refuse("key has more than %d pages of versions", maxPages)
		}
		page, err := pager.NextPage(ctx)
		if err != nil {
			return kek.Version{}, err
		}
		for _, item := range page.Value {
			s, created, err := listed(k, item)
			if err != nil {
				return kek.Version{}, err
			}
			enabled = enabled || s.enabled
			if s.wrapsAt(v.cfg.Now()) && (newest.IsZero() || created.After(newestCreated)) {
				newest, newestCreated = s.version, created
			}
		}
	}
	if newest.IsZero() {
		return kek.Version{}, &kek.Error{Reason: kek.Disabled, Expired: enabled}
	}
	return newest, nil
}

func listed(k kek.Key, item *azkeys.KeyProperties) (*versionSnapshot, time.Time, error) {
	if item == nil {
		return nil, time.Time{}, errOtherKey
	}
	s, err := newAttributes(k, item.KID, item.Attributes)
	if err != nil {
		return nil, time.Time{}, err
	}
	if item.Attributes.Created == nil {
		return nil, time.Time{}, refuse("version %s has no time of creation", s.version)
	}
	return s, *item.Attributes.Created, nil
}

// fetch gets a version of k, or with an empty version the latest, and
// remembers it.
func (v *Vaults) fetch(ctx context.Context, k kek.Key, version string) (*versionSnapshot, error) {
	client, err := v.vault(k)
	if err != nil {
		return nil, err
	}
	start := v.cfg.Now()
	resp, err := client.GetKey(ctx, k.Name, version, nil)
	if err != nil {
		return nil, err
	}
	s, err := newSnapshot(k, resp.KeyBundle, start)
	if err != nil {
		return nil, err
	}
	if version != "" && s.version.String() != version {
		return nil, errOtherKey
	}
	v.remember(k, s)
	return s, nil
}

// Wrap implements kek.Wrapper. RSA is local, with the public key of exactly
// that version, and asks the vault only if it is not remembered. A256KW is
// remote: the DEK travels to the vault. Both refuse a version that is known to
// be disabled or outside its validity.
func (v *Vaults) Wrap(ctx context.Context, k kek.Key, version kek.Version, dek *[kek.Size]byte) ([]byte, error) {
	ctx, tr, err := begin(ctx, opWrap, k)
	if err != nil {
		return nil, v.fail(ctx, tr, k, version, err)
	}
	wrap := v.wrapRemote
	if k.Alg == kek.RSAOAEP256 {
		wrap = v.wrapLocal
	}
	wrapped, err := wrap(ctx, k, version, dek)
	if err != nil {
		return nil, v.fail(ctx, tr, k, version, err)
	}
	return wrapped, nil
}

func (v *Vaults) wrapLocal(ctx context.Context, k kek.Key, version kek.Version, dek *[kek.Size]byte) ([]byte, error) {
	if _, err := v.usable(k); err != nil {
		return nil, err
	}
	s := v.recall(k, version)
	if s == nil {
		var fetched *versionSnapshot
		err := v.run(ctx, func() (err error) {
			fetched, err = v.fetch(ctx, k, version.String())
			return err
		}, func() {})
		if err != nil {
			return nil, err
		}
		s = fetched
	}
	if !s.wrapsAt(v.cfg.Now()) {
		return nil, &kek.Error{Reason: kek.Disabled}
	}
	var wrapped []byte
	var err error
	v.cfg.Do(func() { wrapped, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, s.public, dek[:], nil) })
	return wrapped, err
}

func (v *Vaults) wrapRemote(ctx context.Context, k kek.Key, version kek.Version, dek *[kek.Size]byte) ([]byte, error) {
	if s := v.recall(k, version); s != nil && !s.wrapsAt(v.cfg.Now()) {
		return nil, &kek.Error{Reason: kek.Disabled}
	}
	client, err := v.vault(k)
	if err != nil {
		return nil, err
	}
	in := *dek // the SDK may outlive this call; its JSON of it is out of reach
	var out []byte
	err = v.run(ctx, func() error {
		defer clear(in[:])
		resp, err := client.WrapKey(ctx, k.Name, version.String(), parameters(k.Alg, in[:]), nil)
		if err != nil {
			return err
		}
		if got, err := versionOf(k, resp.KID); err != nil || got != version {
			return errOtherKey
		}
		if len(resp.Result) != a256kwSize {
			return refuse("answer holds %d wrapped bytes, not %d", len(resp.Result), a256kwSize)
		}
		out = resp.Result
		return nil
	}, func() {})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Unwrap implements kek.Wrapper. It asks the vault each time, naming the
// version: without one, Key Vault takes the latest. Wrapped bytes of a length
// that the algorithm cannot have are Rejected without asking.
func (v *Vaults) Unwrap(ctx context.Context, k kek.Key, version kek.Version, wrapped []byte, dek *[kek.Size]byte) error {
	clear(dek[:])
	ctx, tr, err := begin(ctx, opUnwrap, k)
	if err != nil {
		return v.fail(ctx, tr, k, version, err)
	}
	if err := v.unwrap(ctx, k, version, wrapped, dek); err != nil {
		return v.fail(ctx, tr, k, version, err)
	}
	return nil
}

func (v *Vaults) unwrap(ctx context.Context, k kek.Key, version kek.Version, wrapped []byte, dek *[kek.Size]byte) error {
	client, err := v.vault(k)
	if err != nil {
		return err
	}
	if !hasWrappedSize(k.Alg, len(wrapped)) {
		return &kek.Error{Reason: kek.Rejected, Err: fmt.Errorf("%d bytes are not the length of a wrapped key", len(wrapped))}
	}
	in, out := append([]byte(nil), wrapped...), new([kek.Size]byte)
	wipe := func() { clear(out[:]) }
	if err := v.run(ctx, func() error { return unwrapRemote(ctx, client, k, version, in, out) }, wipe); err != nil {
		return err
	}
	*dek = *out
	wipe()
	return nil
}

// unwrapRemote asks the vault and wipes what it can of the answer. The SDK's
// JSON decoder and the connection keep copies that nobody can reach.
func unwrapRemote(
	ctx context.Context, client *azkeys.Client, k kek.Key, version kek.Version, wrapped []byte, dek *[kek.Size]byte,
) error {
	var raw *http.Response
	ctx = policy.WithCaptureResponse(ctx, &raw)
	resp, err := client.UnwrapKey(ctx, k.Name, version.String(), parameters(k.Alg, wrapped), nil)
	defer clear(resp.Result)
	if raw != nil && raw.StatusCode == http.StatusOK {
		if body, err := runtime.Payload(raw); err == nil {
			clear(body)
		}
	}
	if err != nil {
		return err
	}
	if got, err := versionOf(k, resp.KID); err != nil || got != version {
		return errOtherKey
	}
	if len(resp.Result) != len(dek) {
		return &kek.Error{Reason: kek.Rejected, Err: fmt.Errorf("unwrapped to %d bytes, not %d", len(resp.Result), len(dek))}
	}
	copy(dek[:], resp.Result)
	return nil
}

func hasWrappedSize(alg kek.Alg, n int) bool {
	if alg == kek.A256KW {
		return n == a256kwSize
	}
	return n == 256 || n == 384 || n == 512
}

func parameters(alg kek.Alg, value []byte) azkeys.KeyOperationParameters {
	return azkeys.KeyOperationParameters{Algorithm: new(azkeys.EncryptionAlgorithm(alg.String())), Value: value}
}
