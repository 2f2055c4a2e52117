package config_test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keysidecar/keysidecar/config"
)

func TestAdminSocket(t *testing.T) {
	for text, want := range map[string]string{
		"{}": "/run/keysidecar/admin.sock", "{socket: a/b.sock}": "dir/a/admin.sock", "{admin_socket: x.sock}": "dir/x.sock",
		`{admin_socket: ""}`: "/run/keysidecar/admin.sock", "{socket: /a.sock}": "/admin.sock",
	} {
		c, err := config.Decode("dir/f", []byte("apiVersion: keysidecar/v1\nlisten: "+text+"\n"))
		if err != nil || c.Listen.AdminSocket != want {
			t.Errorf("%s: %s, %v, want %s", text, c.Listen.AdminSocket, err, want)
		}
	}
}

func TestTCP(t *testing.T) {
	const head = "apiVersion: keysidecar/v1\nlisten: {tcp: {cert_file: c.pem, key_file: k.pem, client_ca_file: /a/ca.pem, "
	c, err := config.Decode("dir/f", []byte(head+"address: \"[::1]:9440\", allow: [10.1.0.0/16, \"fd00::/8\", 0.0.0.0/0, 192.0.2.1/32], trust_domain: t.example}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.1/32")}
	if diff := cmp.Diff(want, c.Listen.TCP.Prefixes(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("prefixes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"dir/tenants.yaml", "dir/policy.yaml", "dir/c.pem", "dir/k.pem", "/a/ca.pem"}, c.Files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, address := range []string{"127.0.0.1:9440", "0.0.0.0:1", "[fe80::1%eth0]:65535"} {
		if _, err := config.Decode("f", []byte(head+"address: \""+address+"\"}}\n")); err != nil {
			t.Error(err)
		}
	}
	for _, address := range []string{":9440", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:http", "::1:9440", "127.1:80", "*:80"} {
		if _, err := config.Decode("f", []byte(head+"address: \""+address+"\"}}\n")); err == nil {
			t.Errorf("address %s is taken", address)
		}
	}
	for _, domain := range []string{"A", "a/b", "a:1", "a@b", "é", "a b", "/", "?a"} {
		if _, err := config.Decode("f", []byte(head+"address: \"127.0.0.1:1\", trust_domain: \""+domain+"\"}}\n")); err == nil {
			t.Errorf("trust domain %s is taken", domain)
		}
	}
}

func TestFiles(t *testing.T) {
	c := mustLoad(t, "testdata/minimal.yaml")
	if diff := cmp.Diff([]string{filepath.Join("testdata", "minimal.tenants.yaml"), filepath.Join("testdata", "minimal.policy.yaml")}, c.Files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestLimitsThatGoTogether(t *testing.T) {
	for text, want := range map[string]bool{
		"connections: 128": true, "connections: 1, connections_per_caller: 1": true, "connections: 5, connections_per_caller: 6": false,
		"bytes_in_flight: 0B, unary_bytes: 64MiB": true, "bytes_in_flight: 10MiB": true, "bytes_in_flight: 9MiB": false, "bytes_in_flight: 4194303B": false, "bytes_in_flight: 1B": false,
		"bytes_in_flight: 25MiB, bytes_share: 0.1": true, "bytes_in_flight: 24MiB, bytes_share: 0.1": false, "bytes_share: 0.1": true,
	} {
		if _, err := config.Decode("f", []byte("apiVersion: keysidecar/v1\nlimits: {"+text+"}\n")); (err == nil) != want {
			t.Errorf("%s: %v, want ok %t", text, err, want)
		}
	}
	for text, want := range map[string]bool{"0s": true, "10ms": true, "1h": true, "9999us": false, "1ns": false} {
		if _, err := config.Decode("f", []byte("apiVersion: keysidecar/v1\nreload_interval: "+text+"\n")); (err == nil) != want {
			t.Errorf("reload_interval %s: %v, want ok %t", text, err, want)
		}
	}
}
