package policy_test

import (
	"strings"
	"testing"

	"github.com/keysidecar/keysidecar/policy"
)

// spiffeOf returns a valid SPIFFE ID of n bytes.
func spiffeOf(n int) string {
	const head = "spiffe://example.org/"
	return head + strings.Repeat("a", n-len(head))
}

// dnsOf returns a valid DNS name of 253 bytes, and with more after it.
func dnsOf(more string) string {
	return strings.Repeat(strings.Repeat("a", 62)+".", 4)[:252] + "b" + more
}

func TestParseCaller(t *testing.T) {
	long := dnsOf("")
	for text, want := range map[string]policy.Caller{
		"uid:0":                    {Source: policy.Peer},
		"uid:10001":                {Source: policy.Peer, UID: 10001},
		"uid:10001/gid:0":          {Source: policy.Peer, UID: 10001, HasGID: true},
		"uid:4294967294/gid:20000": {Source: policy.Peer, UID: 4294967294, GID: 20000, HasGID: true},
		"spiffe://example.org/a":   {Source: policy.SPIFFE},
		"spiffe://e_x-1.org/Az09._-/...": {
			Source: policy.SPIFFE,
		},
		spiffeOf(2048): {Source: policy.SPIFFE},
		"spiffe://" + strings.Repeat("t", 255) + "/a": {Source: policy.SPIFFE},
		"dns:batch.internal":                          {Source: policy.DNS},
		"dns:localhost":                               {Source: policy.DNS},
		"dns:1.a-b--c.x1":                             {Source: policy.DNS},
		"dns:" + long:                                 {Source: policy.DNS},
		"dns:" + strings.Repeat("a", 63):              {Source: policy.DNS},
		"":                                            {},
		"*":                                           {},
		"billing":                                     {},
		"uid:":                                        {},
		"uid:01":                                      {},
		"uid:+1":                                      {},
		"uid:-1":                                      {},
		"uid: 1":                                      {},
		"uid:1 ":                                      {},
		"uid:1_0":                                     {},
		"uid:0x1":                                     {},
		"UID:1":                                       {},
		"uid:4294967295":                              {},
		"uid:4294967296":                              {},
		"uid:1/":                                      {},
		"uid:1/gid:":                                  {},
		"uid:1/gid:01":                                {},
		"uid:1/gid:4294967295":                        {},
		"uid:4294967295/gid:1":                        {},
		"uid:1/gid:2/":                                {},
		"uid:1/gid:2/gid:3":                           {},
		"uid:1/uid:2":                                 {},
		"gid:2":                                       {},
		"gid:2/uid:1":                                 {},
		"spiffe://":                                   {},
		"spiffe://example.org":                        {},
		"spiffe://example.org/":                       {},
		"spiffe:///a":                                 {},
		"SPIFFE://example.org/a":                      {},
		"spiffe://Example.org/a":                      {},
		"spiffe://example.org:443/a":                  {},
		"spiffe://user@example.org/a":                 {},
		"spiffe://example.org/a//b":                   {},
		"spiffe://example.org/a/./b":                  {},
		"spiffe://example.org/a/../b":                 {},
		"spiffe://example.org/..":                     {},
		"spiffe://example.org/a?b":                    {},
		"spiffe://example.org/a#b":                    {},
		"spiffe://example.org/a%41":                   {},
		"spiffe://example.org/a b":                    {},
		"spiffe://example.org/\u00e4":                 {},
		"spiffe://example.org/a\x00":                  {},
		spiffeOf(2049):                                {},
		"spiffe://" + strings.Repeat("t", 256) + "/a": {},
		"dns:":                           {},
		"dns:.":                          {},
		"dns:a.":                         {},
		"dns:.a":                         {},
		"dns:a..b":                       {},
		"dns:A.b":                        {},
		"dns:a_b":                        {},
		"dns:*.b":                        {},
		"dns:-a":                         {},
		"dns:a-.b":                       {},
		"dns:10.0.0.1":                   {},
		"dns:1":                          {},
		"dns:::1":                        {},
		"dns:a b":                        {},
		"dns:\u00e4":                     {},
		"dns:" + strings.Repeat("a", 64): {},
		"dns:" + dnsOf("b"):              {},
		"spiffe://example.org/a\n":       {},
		"dns:spiffe://example.org/a":     {},
		"spiffe://" + strings.Repeat("a/", 20) + "\xff\xfe": {},
	} {
		if want.Source != 0 {
			want.Name = text
		}
		got, err := policy.ParseCaller(text)
		if got != want || (err == nil) != (want.Source != 0) {
			t.Errorf("ParseCaller(%q) = %+v, %v, want %+v", text, got, err, want)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("ParseCaller(%.20q...): the error has %d bytes", text, len(err.Error()))
		}
	}
}

func TestPeerCaller(t *testing.T) {
	got := policy.PeerCaller(10001, 20000, 77)
	want := policy.Caller{Name: "uid:10001/gid:20000", Source: policy.Peer, UID: 10001, GID: 20000, HasGID: true, PID: 77}
	if got != want {
		t.Errorf("PeerCaller = %+v, want %+v", got, want)
	}
	const none = 1<<32 - 1 // what SO_PEERCRED says of a peer that it does not know
	for _, c := range []policy.Caller{policy.PeerCaller(none, none, 0), policy.PeerCaller(none, 1, 2), policy.PeerCaller(1, none, 2)} {
		if c != (policy.Caller{}) {
			t.Errorf("PeerCaller of an unknown ID = %+v, want nobody", c)
		}
	}
}

func TestCallersOfCertificates(t *testing.T) {
	if c, err := policy.DNSCaller("batch.internal"); err != nil || c != (policy.Caller{Name: "dns:batch.internal", Source: policy.DNS}) {
		t.Errorf("DNSCaller = %+v, %v", c, err)
	}
	if c, err := policy.DNSCaller("dns:batch.internal"); err == nil {
		t.Errorf("DNSCaller takes a prefix: %+v", c)
	}
	if c, err := policy.SPIFFECaller("spiffe://a/b"); err != nil || c != (policy.Caller{Name: "spiffe://a/b", Source: policy.SPIFFE}) {
		t.Errorf("SPIFFECaller = %+v, %v", c, err)
	}
	if c, err := policy.SPIFFECaller("https://a/b"); err == nil || c != (policy.Caller{}) {
		t.Errorf("SPIFFECaller takes another scheme: %+v", c)
	}
}

func TestEveryByteOfACaller(t *testing.T) {
	const lower, rest = "abcdefghijklmnopqrstuvwxyz0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for b := range 256 {
		s := string([]byte{byte(b)})
		for text, legal := range map[string]string{
			"dns:a" + s + "b":          lower + "-.",
			"spiffe://a" + s + "b/c":   lower + "-._/",
			"spiffe://a/b" + s + "c":   lower + rest + "-._/",
			"uid:1" + s + "0":          "0123456789",
			"uid:1/gid:1" + s + "0":    "0123456789",
			"uid:1" + s + "gid:1":      "/",
			"spiffe:/" + s + "a/b":     "/",
			"dns" + s + "batch.server": ":",
		} {
			if _, err := policy.ParseCaller(text); (err == nil) != strings.Contains(legal, s) {
				t.Errorf("ParseCaller(%q): %v", text, err)
			}
		}
	}
}

func FuzzParseCaller(f *testing.F) {
	for _, s := range []string{
		"uid:1", "uid:0", "uid:4294967294/gid:2", "uid:4294967295", "uid:01/gid:1", "spiffe://example.org/ns/a/sa/b", "spiffe://a/..",
		"dns:batch.internal", "dns:10.0.0.1", "dns:*.internal",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := policy.ParseCaller(text)
		if err != nil {
			if c != (policy.Caller{}) {
				t.Errorf("ParseCaller(%q) = %+v with %v", text, c, err)
			}
			return
		}
		if c.Name != text || c.PID != 0 {
			t.Errorf("ParseCaller(%q) = %+v", text, c)
		}
		if c.Source == policy.Peer && c.HasGID && c != policy.PeerCaller(c.UID, c.GID, 0) {
			t.Errorf("ParseCaller(%q) is not what PeerCaller makes: %+v", text, c)
		}
		if len(text) > 2048 {
			t.Errorf("ParseCaller takes %d bytes", len(text))
		}
	})
}
