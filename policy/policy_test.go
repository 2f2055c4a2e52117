package policy_test

import (
	"testing"

	"github.com/keysidecar/keysidecar/policy"
	"github.com/keysidecar/keysidecar/tenant"
)

func TestAllow(t *testing.T) {
	acme, err := tenant.Parse("acme")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		policy *policy.Policy
		caller policy.Caller
		verb   policy.Verb
		tenant tenant.ID
		want   bool
	}{
		"socket":        {policy.AdmitSocket(), policy.SocketCaller(), policy.Seal, acme, true},
		"zero policy":   {&policy.Policy{}, policy.SocketCaller(), policy.Seal, acme, false},
		"nobody":        {policy.AdmitSocket(), policy.Caller{}, policy.Seal, acme, false},
		"other caller":  {policy.AdmitSocket(), policy.Caller{Name: "uid:0"}, policy.Unseal, acme, false},
		"no verb":       {policy.AdmitSocket(), policy.SocketCaller(), 0, acme, false},
		"no tenant":     {policy.AdmitSocket(), policy.SocketCaller(), policy.Unseal, tenant.ID{}, false},
		"unseal socket": {policy.AdmitSocket(), policy.SocketCaller(), policy.Unseal, acme, true},
	} {
		if got := c.policy.Allow(c.caller, c.verb, c.tenant); got != c.want {
			t.Errorf("%s: Allow = %v, want %v", name, got, c.want)
		}
	}
}
