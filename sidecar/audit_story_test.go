package sidecar_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"

	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sidecar"
)

// storyFiles are a sidecar's with tenants of all kinds, some of which say how
// they are recorded.
func storyFiles(t *testing.T, s *site, p *pki) settings {
	t.Helper()
	for _, vault := range []string{"shared", "frozen"} {
		s.createOctKEK(t, vault)
	}
	set := s.sharing("id: plain", "id: counted, audit: aggregate", "id: listed, audit: full", "id: slow, rate: 0.001, burst: 1",
		"id: asleep, state: suspended", "id: elsewhere, regions: [east]", "id: other")
	set.keks = append(set.keks, s.kek("frozen", "frozen", "A256KW"), strings.Replace(s.kek("east", "east", "A256KW"), "region: west", "region: east", 1))
	set.tenants[5] = strings.Replace(set.tenants[5], "kek: shared", "kek: east", 1)
	set.tenants = append(set.tenants, "{id: cold-1, kek: frozen}", "{id: cold-2, kek: frozen}")
	set.secure(t, p, "", "")
	set.policy = fmt.Sprintf(`apiVersion: keysidecar/v1
callers: [{name: me, uid: %d}, {name: batch, dns: %s, rate: 0.001, burst: 2}]
rules:
- {callers: [me], tenants: ["*"], verbs: [seal, unseal]}
- {callers: [me], tenants: ["*"], verbs: [admin.status, admin.reload, admin.evict, admin.tenants]}
- {callers: [me], tenants: [plain], verbs: [admin.suspend]}
- {callers: [batch], tenants: [plain], verbs: [seal]}
`, os.Geteuid(), batch)
	set.config = "reload_interval: 0s"
	set.Options = sidecar.Options{Version: "v1.2.3"}
	return set
}

func newStory(t *testing.T, s *site, p *pki, set settings, byDefault bool) *story {
	t.Helper()
	st := &story{
		t: t, node: s.start(t, set), site: s, full: map[string]bool{"": byDefault, "counted": false, "listed": true},
		names: make(aliases), tallies: make(map[string]*tally), sealed: make(map[string][]byte),
	}
	over := func(conn *grpc.ClientConn) keysidecarv1.SealServiceClient {
		return keysidecarv1.NewSealServiceClient(conn)
	}
	const strange = "stranger.internal"
	user := fmt.Sprintf("uid:%d/gid:%d", os.Geteuid(), os.Getegid())
	st.me = &teller{name: "me", identity: user, pid: true, rpc: st.rpc}
	st.batch = &teller{name: "batch", identity: "dns:" + batch, rpc: over(st.secured(t, p.trusting(p.callers.issue(t, batch))))}
	st.stranger = &teller{name: "dns:" + strange, identity: "dns:" + strange, rpc: over(st.secured(t, p.trusting(p.callers.issue(t, strange))))}
	st.operator = st.node.operator(t)
	return st
}
