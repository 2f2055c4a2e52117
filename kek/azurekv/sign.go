package azurekv

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"github.com/keysidecar/keysidecar/kek"
)

// Sign implements kek.Signer. It takes two requests if the latest version is
// usable: one for the public key, one for the signature.
func (v *Vaults) Sign(ctx context.Context, k kek.Key, digest [32]byte) (kek.Signature, error) {
	ctx, tr, err := begin(ctx, kek.OpSign, k)
	if err != nil {
		return kek.Signature{}, v.fail(ctx, tr, k, kek.Version{}, err)
	}
	s, err := v.findNewest(ctx, k)
	if err != nil {
		return kek.Signature{}, v.fail(ctx, tr, k, kek.Version{}, err)
	}
	var signature kek.Signature
	err = v.run(ctx, func() (err error) {
		signature, err = v.signWith(ctx, k, s, digest)
		return err
	}, func() {})
	if err != nil {
		return kek.Signature{}, v.fail(ctx, tr, k, s.version, err)
	}
	return signature, nil
}

// signWith has the vault sign, and believes only what the public key proves.
func (v *Vaults) signWith(ctx context.Context, k kek.Key, s *versionSnapshot, digest [32]byte) (kek.Signature, error) {
	client, err := v.vault(k)
	if err != nil {
		return kek.Signature{}, err
	}
	resp, err := client.Sign(ctx, k.Name, s.version.String(), azkeys.SignParameters{
		Algorithm: new(azkeys.SignatureAlgorithmES256), Value: digest[:],
	}, nil)
	if err != nil {
		return kek.Signature{}, err
	}
	if got, err := versionOf(k, resp.KID); err != nil || got != s.version {
		return kek.Signature{}, errOtherKey
	}
	if len(resp.Result) != kek.SignatureSize {
		return kek.Signature{}, refuse("answer holds %d bytes of signature, not %d", len(resp.Result), kek.SignatureSize)
	}
	signature := kek.Signature{Version: s.version, Name: string(*resp.KID), RS: resp.Result, Public: s.signer}
	if !signature.Verify(digest) {
		return kek.Signature{}, refuse("signature does not verify with the key's public key")
	}
	return signature, nil
}
