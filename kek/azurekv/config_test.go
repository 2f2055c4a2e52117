package azurekv_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/kek/azurekv"
)

func TestNew(t *testing.T) {
	ca := writeFile(t, pemOf(t, certificate(t, "x")))
	token := writeFile(t, "token")
	absent := filepath.Join(t.TempDir(), "absent")
	dev := func(suffix, address, ca, token string) azurekv.Config {
		return azurekv.Config{DevVault: &azurekv.DevVault{Suffix: suffix, Address: address, CAFile: ca, TokenFile: token}}
	}
	for _, test := range []struct {
		name string
		cfg  azurekv.Config
		want string // part of the error; empty: none
	}{
		{"zero", azurekv.Config{}, ""},
		{"clouds", azurekv.Config{Cloud: azurekv.CloudChina}, ""},
		{"embedded", dev("vault.localhost", "127.0.0.1:1", ca, token), ""},
		{"hosts", azurekv.Config{Hosts: []string{"kv.example.com", "kv.example.com:8443"}}, ""},
		{"cloud", azurekv.Config{Cloud: "Public"}, `cloud "Public"`},
		{"host with scheme", azurekv.Config{Hosts: []string{"https://kv.example.com"}}, "vault host"},
		{"host with path", azurekv.Config{Hosts: []string{"kv.example.com/x"}}, "vault host"},
		{"host with user", azurekv.Config{Hosts: []string{"u@kv.example.com"}}, "vault host"},
		{"host in capitals", azurekv.Config{Hosts: []string{"KV.example.com"}}, "vault host"},
		{"no host", azurekv.Config{Hosts: []string{""}}, "vault host"},
		{"clients", azurekv.Config{MaxClients: -1}, "negative"},
		{"nil credential", azurekv.Config{Credentials: map[string]azcore.TokenCredential{"c": nil}}, `credential "c" is nil`},
		{"suffix", dev("", "127.0.0.1:1", ca, token), "suffix"},
		{"suffix in capitals", dev("Vault.localhost", "127.0.0.1:1", ca, token), "suffix"},
		{"suffix of Azure", dev("vault.azure.net", "127.0.0.1:1", ca, token), "overlaps"},
		{"suffix above Azure", dev("azure.net", "127.0.0.1:1", ca, token), "overlaps"},
		{"suffix below Azure", dev("x.vault.azure.net", "127.0.0.1:1", ca, token), "overlaps"},
		{"address", dev("vault.localhost", "", ca, token), "address"},
		{"no CA file", dev("vault.localhost", "127.0.0.1:1", absent, token), "reading CA file"},
		{"CA file without certificate", dev("vault.localhost", "127.0.0.1:1", token, token), "holds no certificate"},
		{"no token file", dev("vault.localhost", "127.0.0.1:1", ca, absent), "reading token file"},
		{"token file is a directory", dev("vault.localhost", "127.0.0.1:1", ca, t.TempDir()), "regular file"},
		{"empty token file", dev("vault.localhost", "127.0.0.1:1", ca, writeFile(t, "\n")), "holds no token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, err := azurekv.New(test.cfg)
			checkText(t, err, test.want)
			if err == nil {
				v.Close()
			}
		})
	}
}

func checkText(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestCheck(t *testing.T) {
	cfg := azurekv.Config{
		Hosts:       []string{"kv.example.com:8443", "kv.example.com"},
		Credentials: map[string]azcore.TokenCredential{"c": &credential{}},
		DevVault: &azurekv.DevVault{
			Suffix: "vault.localhost", Address: "127.0.0.1:1",
			CAFile: writeFile(t, pemOf(t, certificate(t, "x"))), TokenFile: writeFile(t, "token"),
		},
	}
	key := func(change func(*kek.Key)) kek.Key {
		k := kek.Key{Ref: "main", Vault: "https://" + hostileHost, Name: "kek", Alg: kek.A256KW, Credential: "c", EntraTenant: entraTenant}
		change(&k)
		return k
	}
	at := func(vault string) kek.Key { return key(func(k *kek.Key) { k.Vault = vault }) }
	for _, test := range []struct {
		name, cloud string
		key         kek.Key
		want        string
	}{
		{"vault", "", at("https://tenants.vault.azure.net"), ""},
		{"managed HSM", "public", at("https://tenants.managedhsm.azure.net"), ""},
		{"US government", "us_government", at("https://tenants.vault.usgovcloudapi.net"), ""},
		{"China", "china", at("https://tenants.managedhsm.azure.cn"), ""},
		{"listed host", "", at("https://kv.example.com"), ""},
		{"listed host and port", "", at("https://kv.example.com:8443"), ""},
		{"embedded", "", at("https://a.vault.localhost:1234"), ""},
		{"embedded, no credential or tenant", "", key(func(k *kek.Key) {
			k.Vault, k.Credential, k.EntraTenant = "https://a.vault.localhost", "", ""
		}), ""},

		{"another cloud's vault", "china", at("https://tenants.vault.azure.net"), "not in the configured cloud"},
		{"port", "", at("https://tenants.vault.azure.net:444"), "not in the configured cloud"},
		{"two labels", "", at("https://a.b.vault.azure.net"), "not in the configured cloud"},
		{"no label", "", at("https://vault.azure.net"), "not in the configured cloud"},
		{"empty label", "", at("https://.vault.azure.net"), "not in the configured cloud"},
		{"label with a hyphen first", "", at("https://-a.vault.azure.net"), "not in the configured cloud"},
		{"illegal label", "", at("https://a_b.vault.azure.net"), "not in the configured cloud"},
		{"long label", "", at("https://" + strings.Repeat("a", 64) + ".vault.azure.net"), "not in the configured cloud"},
		{"foreign suffix", "", at("https://tenants.vault.azure.net.attacker.example"), "not in the configured cloud"},
		{"listed host, other port", "", at("https://kv.example.com:443"), "not in the configured cloud"},
		{"child of a listed host", "", at("https://a.kv.example.com"), "not in the configured cloud"},
		{"user", "", at("https://x@tenants.vault.azure.net"), "is not https://"},
		{"path", "", at("https://tenants.vault.azure.net/"), "is not https://"},
		{"query", "", at("https://tenants.vault.azure.net?x"), "is not https://"},
		{"http", "", at("http://tenants.vault.azure.net"), "is not https://"},
		{"capitals", "", at("https://Tenants.vault.azure.net"), "is not https://"},
		{"empty", "", at(""), "is not https://"},
		{"no host", "", at("https://:443"), "is not https://"},
		{"name", "", key(func(k *kek.Key) { k.Name = "a/b" }), "key name"},
		{"no name", "", key(func(k *kek.Key) { k.Name = "" }), "key name"},
		{"long name", "", key(func(k *kek.Key) { k.Name = strings.Repeat("a", 128) }), "key name"},
		{"algorithm", "", key(func(k *kek.Key) { k.Alg = 9 }), "algorithm"},
		{"key that signs", "", key(func(k *kek.Key) { k.Alg = 0 }), "algorithm"},
		{"credential", "", key(func(k *kek.Key) { k.Credential = "d" }), `credential "d"`},
		{"no credential", "", key(func(k *kek.Key) { k.Credential = "" }), `credential ""`},
		{"no tenant", "", key(func(k *kek.Key) { k.EntraTenant = "" }), "GUID"},
		{"tenant by domain", "", key(func(k *kek.Key) { k.EntraTenant = "example.com" }), "GUID"},
		{"tenant with other hyphens", "", key(func(k *kek.Key) { k.EntraTenant = strings.ReplaceAll(entraTenant, "-", "0") }), "GUID"},
		{"tenant not hex", "", key(func(k *kek.Key) { k.EntraTenant = "g" + entraTenant[1:] }), "GUID"},
		{"listed host without tenant", "", key(func(k *kek.Key) { k.Vault, k.EntraTenant = "https://kv.example.com", "" }), "GUID"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := cfg
			c.Cloud = test.cloud
			v := newVaults(t, c)
			checkText(t, v.Check(test.key), test.want)
			if test.want == "" {
				return
			}
			_, newestErr := v.Newest(t.Context(), test.key)
			_, wrapErr := v.Wrap(t.Context(), test.key, parse(t, hostileVersion), new([kek.Size]byte))
			unwrapErr := v.Unwrap(t.Context(), test.key, parse(t, hostileVersion), nil, new([kek.Size]byte))
			for _, err := range []error{newestErr, wrapErr, unwrapErr} {
				if !failed(err, kek.Unusable) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}
