package devvault

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/keysidecar/keysidecar/kek/devvault/internal/state"
)

// pageSize is small, so that clients that never follow nextLink are found out.
const pageSize = 3

// dispatch runs an operation and returns what to answer; nil means 204.
func (s *Server) dispatch(c *call) (any, error) {
	switch c.route.Op {
	case OpGet:
		return s.getKey(c)
	case OpListKeys:
		return s.listKeys(c)
	case OpListVersions:
		return s.listVersions(c)
	case OpCreate:
		return s.createKey(c)
	case OpRotate:
		return keyReply(c)(s.state.Keys.Rotate(c.vault, c.route.Name))
	case OpUpdate:
		return s.updateKey(c)
	case OpWrap, OpUnwrap, OpEncrypt, OpDecrypt, OpSign:
		return s.crypt(c)
	case OpGetPolicy:
		return s.getPolicy(c)
	case OpSetPolicy:
		return s.setPolicy(c)
	case OpDelete:
		return deletedReply(c)(s.state.Keys.Delete(c.vault, c.route.Name))
	case OpListDeleted:
		return s.listDeleted(c)
	case OpGetDeleted:
		return deletedReply(c)(s.state.Keys.Dead(c.vault, c.route.Name))
	case OpRecover:
		return s.recoverKey(c)
	case OpPurge:
		return nil, s.state.Keys.Purge(c.vault, c.route.Name)
	}
	panic("devvault: internal error: no operation " + c.route.Op)
}

// keyReply turns a key and one of its versions into an answer.
func keyReply(c *call) func(*state.Key, *state.Version, error) (any, error) {
	return func(k *state.Key, v *state.Version, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		return bundleOf(v, c.base, k.Name), nil
	}
}

// deletedReply turns a deleted key into an answer.
func deletedReply(c *call) func(*state.Key, error) (any, error) {
	return func(k *state.Key, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		b := bundleOf(k.Newest(), c.base, k.Name)
		b.deletion = deletionOf(k, c.base)
		return b, nil
	}
}

// lookup finds the version that a request names.
func (s *Server) lookup(c *call) (*state.Key, *state.Version, error) {
	k, err := s.state.Keys.Live(c.vault, c.route.Name)
	if err != nil {
		return nil, nil, err
	}
	v, err := k.Find(c.route.Version)
	return k, v, err
}

// getKey returns a version even if it is disabled, as Azure does for keys.
func (s *Server) getKey(c *call) (any, error) { return keyReply(c)(s.lookup(c)) }

func (s *Server) recoverKey(c *call) (any, error) {
	k, err := s.state.Keys.Recover(c.vault, c.route.Name)
	if err != nil {
		return nil, err
	}
	return bundleOf(k.Newest(), c.base, k.Name), nil
}

func (s *Server) createKey(c *call) (any, error) {
	var req keyRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	if req.Exponent != 0 && req.Exponent != 65537 {
		return nil, state.BadParameter("Property \"public_exponent\" must be 65537.")
	}
	return keyReply(c)(s.state.Keys.Create(c.vault, c.route.Name, state.Spec{
		Type: req.Kty, Bits: req.Size, Disabled: req.Attrs.Enabled != nil && !*req.Attrs.Enabled,
		NotBefore: req.Attrs.NBF.orZero(), Expires: req.Attrs.EXP.orZero(), Ops: req.Ops, Tags: req.Tags, Curve: req.Curve,
	}))
}

func (s *Server) updateKey(c *call) (any, error) {
	var req keyRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	return keyReply(c)(s.state.Keys.Update(c.vault, c.route.Name, c.route.Version, state.Change{
		Enabled: req.Attrs.Enabled, NotBefore: req.Attrs.NBF.unix, Expires: req.Attrs.EXP.unix,
		Ops: req.Ops, Tags: req.Tags,
	}))
}

// crypt wraps, unwraps, encrypts, decrypts or signs.
func (s *Server) crypt(c *call) (any, error) {
	k, v, err := s.lookup(c)
	if err != nil {
		return nil, err
	}
	out, err := s.cryptWith(c, v)
	s.counters.addKey(c.vault, k.Name, v.ID, countOf(c.route.Op, err == nil))
	if err != nil {
		return nil, err
	}
	return &cryptoReply{KID: kid(c.base, k.Name, v.ID), Value: out}, nil
}

func (s *Server) cryptWith(c *call, v *state.Version) ([]byte, error) {
	var req cryptoRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	if len(req.Value) == 0 {
		return nil, state.BadParameter("Property \"value\" is required.")
	}
	now := s.state.Keys.Unix()
	switch c.route.Op {
	case OpWrap:
		return v.Wrap(state.KeyOpWrap, req.Alg, req.Value, now)
	case OpUnwrap:
		return v.Unwrap(state.KeyOpUnwrap, req.Alg, req.Value, now)
	case OpEncrypt:
		return v.Wrap(state.KeyOpEncrypt, req.Alg, req.Value, now)
	case OpDecrypt:
		return v.Unwrap(state.KeyOpDecrypt, req.Alg, req.Value, now)
	}
	return v.Sign(req.Alg, req.Value, now)
}

// countOf is what a version counts for an operation.
func countOf(op string, done bool) KeyCounters {
	switch op {
	case OpWrap, OpEncrypt:
		return KeyCounters{Wraps: 1}
	case OpSign:
		return KeyCounters{Signs: 1}
	}
	if done {
		return KeyCounters{Unwraps: 1, Unwrapped: 1}
	}
	return KeyCounters{Unwraps: 1}
}

// decode reads the body, which must be one JSON object.
func (c *call) decode(v any) error {
	if err := json.Unmarshal(c.body, v); err != nil {
		return state.BadParameter("The request body is not what the operation takes: %v", err)
	}
	return nil
}

// defaultPolicy is the rotation policy of a key that has none: notify 30 days
// before expiry, rotate never.
const defaultPolicy = `{"lifetimeActions":[{"trigger":{"timeBeforeExpiry":"P30D"},` +
	`"action":{"type":"Notify"}}],"attributes":{"expiryTime":null}}`

func (s *Server) getPolicy(c *call) (any, error) {
	k, err := s.state.Keys.Live(c.vault, c.route.Name)
	if err != nil {
		return nil, err
	}
	return policyReply(c, k)
}

// setPolicy keeps the policy; nothing acts on it.
func (s *Server) setPolicy(c *call) (any, error) {
	var policy struct {
		LifetimeActions []json.RawMessage `json:"lifetimeActions"`
	}
	if err := c.decode(&policy); err != nil {
		return nil, err
	}
	if len(policy.LifetimeActions) > 2 {
		return nil, state.BadParameter("A rotation policy has at most two lifetime actions.")
	}
	k, err := s.state.Keys.SetPolicy(c.vault, c.route.Name, slices.Clone(c.body))
	if err != nil {
		return nil, err
	}
	return policyReply(c, k)
}

func policyReply(c *call, k *state.Key) (any, error) {
	raw := k.Policy
	if raw == nil {
		raw = json.RawMessage(defaultPolicy)
	}
	reply := map[string]any{}
	if err := json.Unmarshal(raw, &reply); err != nil {
		return nil, err
	}
	reply["id"] = kid(c.base, k.Name, "") + "/rotationpolicy"
	return reply, nil
}

// listVersions lists in order of creation, oldest first. Azure promises no
// order.
func (s *Server) listVersions(c *call) (any, error) {
	k, err := s.state.Keys.Live(c.vault, c.route.Name)
	if err != nil {
		return nil, err
	}
	page, next, err := c.page(len(k.Versions), func(i int) string { return k.Versions[i].ID })
	if err != nil {
		return nil, err
	}
	reply := &listReply{Value: []itemReply{}, NextLink: next}
	for _, v := range k.Versions[page.from:page.to] {
		reply.Value = append(reply.Value, itemReply{KID: kid(c.base, k.Name, v.ID), Attrs: attributesOf(v), Tags: v.Tags})
	}
	return reply, nil
}

func (s *Server) listKeys(c *call) (any, error) {
	return c.keyPage(s.state.Keys.List(c.vault, false), func(*state.Key) *deletion { return nil })
}

func (s *Server) listDeleted(c *call) (any, error) {
	return c.keyPage(s.state.Keys.List(c.vault, true), func(k *state.Key) *deletion { return deletionOf(k, c.base) })
}

func (c *call) keyPage(keys []*state.Key, deleted func(*state.Key) *deletion) (any, error) {
	page, next, err := c.page(len(keys), func(i int) string { return keys[i].SortName() })
	if err != nil {
		return nil, err
	}
	reply := &listReply{Value: []itemReply{}, NextLink: next}
	for _, k := range keys[page.from:page.to] {
		v := k.Newest()
		reply.Value = append(reply.Value, itemReply{
			KID: kid(c.base, k.Name, ""), Attrs: attributesOf(v), Tags: v.Tags, deletion: deleted(k),
		})
	}
	return reply, nil
}

// span is a range of a list.
type span struct{ from, to int }

// page finds the part of a list of n items that the query asks for, and the
// absolute link to the next one. A token names the last item that was sent, so
// that items added meanwhile are neither skipped nor sent twice.
func (c *call) page(n int, id func(int) string) (span, *string, error) {
	size := pageSize
	if v := c.query.Get("maxresults"); v != "" {
		m, err := strconv.Atoi(v)
		if err != nil || m < 1 || m > 25 {
			return span{}, nil, state.BadParameter("maxresults must be 1 to 25.")
		}
		size = min(size, m)
	}
	p := span{}
	if token := c.query.Get("$skiptoken"); token != "" {
		last, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return span{}, nil, state.BadParameter("The skip token is malformed.")
		}
		p.from = behind(n, id, string(last))
	}
	p.to = min(p.from+size, n)
	if p.to == n {
		return p, nil, nil
	}
	q := url.Values{"api-version": c.query["api-version"]}
	q.Set("$skiptoken", base64.RawURLEncoding.EncodeToString([]byte(id(p.to-1))))
	q.Set("maxresults", strconv.Itoa(size))
	next := c.base + strings.TrimSuffix(c.r.URL.Path, "/") + "?" + q.Encode()
	return p, &next, nil
}

// behind returns the index behind the item named last. A last that is gone
// names the place where it would be in a list in order; versions never go.
func behind(n int, id func(int) string, last string) int {
	for i := range n {
		if id(i) == last {
			return i + 1
		}
	}
	for i := range n {
		if id(i) > last {
			return i
		}
	}
	return n
}
