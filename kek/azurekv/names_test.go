package azurekv_test

// What a vault of the public cloud says of itself, in these tests.
const (
	entraTenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	authority   = "https://login.microsoftonline.com"
	vaultNet    = "https://vault.azure.net"
	claims      = "eyJhY2Nlc3NfdG9rZW4iOnt9fQ==" // {"access_token":{}}
	good        = `Bearer authorization="` + authority + "/" + entraTenant + `", resource="` + vaultNet + `"`
)
