package devvault

import (
	"encoding/base64"
	"encoding/json"
	"errors"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// recoverableDays is Azure's default retention of deleted keys.
const recoverableDays = 90

// octets travel as base64url without padding; padding is refused.
type octets []byte

// MarshalText encodes o.
func (o octets) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, o), nil
}

// UnmarshalText decodes into o, strictly.
func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	return err
}

// optionalTime is nil if it was absent, and 0 if it was null: remove it.
type optionalTime struct{ unix *int64 }

// UnmarshalJSON takes null or positive whole seconds.
func (t *optionalTime) UnmarshalJSON(raw []byte) error {
	t.unix = new(int64)
	if string(raw) == "null" {
		return nil
	}
	if err := json.Unmarshal(raw, t.unix); err != nil {
		return err
	}
	if *t.unix <= 0 {
		return errors.New("time is not positive")
	}
	return nil
}

// orZero returns the seconds, or 0.
func (t optionalTime) orZero() int64 {
	if t.unix == nil {
		return 0
	}
	return *t.unix
}

// What clients send. Unknown members are ignored, as Azure does.
type (
	keyRequest struct {
		Kty      string            `json:"kty"`
		Size     int               `json:"key_size"`
		Exponent int               `json:"public_exponent"`
		Curve    string            `json:"crv"`
		Ops      []string          `json:"key_ops"`
		Attrs    attributesRequest `json:"attributes"`
		Tags     map[string]string `json:"tags"`
	}
	attributesRequest struct {
		Enabled *bool        `json:"enabled"`
		NBF     optionalTime `json:"nbf"`
		EXP     optionalTime `json:"exp"`
	}
	cryptoRequest struct {
		Alg   string `json:"alg"`
		Value octets `json:"value"`
	}
)

// What they get.
type (
	attributesReply struct {
		Enabled         bool   `json:"enabled"`
		NBF             int64  `json:"nbf,omitempty"`
		EXP             int64  `json:"exp,omitempty"`
		Created         int64  `json:"created"`
		Updated         int64  `json:"updated"`
		RecoveryLevel   string `json:"recoveryLevel"`
		RecoverableDays int    `json:"recoverableDays"`
		Exportable      bool   `json:"exportable"`
	}
	jwk struct {
		KID string   `json:"kid"`
		Kty string   `json:"kty"`
		Ops []string `json:"key_ops"`
		N   octets   `json:"n,omitempty"`
		E   octets   `json:"e,omitempty"`
		Crv string   `json:"crv,omitempty"`
		X   octets   `json:"x,omitempty"`
		Y   octets   `json:"y,omitempty"`
	}
	bundleReply struct {
		Key   jwk               `json:"key"`
		Attrs attributesReply   `json:"attributes"`
		Tags  map[string]string `json:"tags,omitempty"`
		*deletion
	}
	itemReply struct {
		KID   string            `json:"kid"`
		Attrs attributesReply   `json:"attributes"`
		Tags  map[string]string `json:"tags,omitempty"`
		*deletion
	}
	deletion struct {
		RecoveryID string `json:"recoveryId"`
		Deleted    int64  `json:"deletedDate"`
		Purge      int64  `json:"scheduledPurgeDate"`
	}
	listReply struct {
		Value    []itemReply `json:"value"`
		NextLink *string     `json:"nextLink"`
	}
	cryptoReply struct {
		KID   string `json:"kid"`
		Value octets `json:"value"`
	}
	errorReply struct {
		Error errorBody `json:"error"`
	}
	errorBody struct {
		Code    string      `json:"code"`
		Message string      `json:"message"`
		Inner   *innerError `json:"innererror,omitempty"`
	}
	innerError struct {
		Code string `json:"code"`
	}
)

func errorReplyOf(e *Error) errorReply {
	b := errorBody{Code: e.Code, Message: e.Message}
	if e.InnerCode != "" {
		b.Inner = &innerError{e.InnerCode}
	}
	return errorReply{b}
}

func attributesOf(v *state.Version) attributesReply {
	return attributesReply{
		Enabled: v.Enabled, NBF: v.NotBefore, EXP: v.Expires, Created: v.Created, Updated: v.Updated,
		RecoveryLevel: "Recoverable+Purgeable", RecoverableDays: recoverableDays,
	}
}

// bundleOf describes a version: never more than its public half.
func bundleOf(v *state.Version, base, name string) *bundleReply {
	key := jwk{KID: kid(base, name, v.ID), Kty: v.Type(), Ops: v.Ops}
	key.N, key.E = v.Public()
	key.Crv, key.X, key.Y = v.Point()
	return &bundleReply{Key: key, Attrs: attributesOf(v), Tags: v.Tags}
}

func deletionOf(k *state.Key, base string) *deletion {
	return &deletion{
		RecoveryID: base + "/deletedkeys/" + k.Name,
		Deleted:    k.Deleted,
		Purge:      k.Deleted + recoverableDays*24*60*60,
	}
}

func kid(base, name, version string) string {
	id := base + "/keys/" + name
	if version != "" {
		id += "/" + version
	}
	return id
}
