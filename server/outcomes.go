package server

//go:generate go test -run TestErrorsDocIsCurrent -update .

import (
	"google.golang.org/grpc/codes"

	"github.com/keysidecar/keysidecar/sealer"
)

// outcome is a line of the one table from reasons to codes. docs/errors.md is
// generated from it.
type outcome struct {
	code codes.Code
	// retry says whether repeating the call can help, next what an operator
	// does about it.
	retry, next string
}

// What the retry column says.
const (
	never    = "no"
	afterFix = "after the fix"
	onInfo   = "yes, when RetryInfo says"
)

// outcomes has an entry for every reason of sealer.Reasons.
var outcomes = [...]outcome{
	sealer.Unauthenticated: {codes.Unauthenticated, afterFix,
		"The log says why. A certificate has expired, its authority left `listen.tcp.client_ca_file`, or the connection " +
			"is older than an identity lasts: the caller connects again with a certificate of now."},
	sealer.PermissionDenied: {codes.PermissionDenied, afterFix,
		"`keysidecar config explain CALLER TENANT VERB` says what policy.yaml lacks; the log names the caller. The answer " +
			"is the same whether or not the tenant exists."},
	sealer.InvalidTenant: {codes.InvalidArgument, never,
		"Fix the caller: 1 to 128 bytes of `[A-Za-z0-9._:-]`, first and last alphanumeric, no `..`. A tenant of a " +
			"template has to match `[a-z][a-z0-9-]{1,22}[a-z0-9]` without `--`, and to give a vault name of 3 to 24 characters."},
	sealer.UnknownTenant: {codes.NotFound, afterFix,
		"Add the tenant to tenants.yaml, or correct the tenant that the caller sends."},
	sealer.InvalidContext: {codes.InvalidArgument, never,
		"Fix the caller: at most 32 pairs, keys 1 to 255 bytes, values at most 1,024 bytes, 8,192 bytes in all, no " +
			"key that begins `keysidecar.`."},
	sealer.MalformedEnvelope: {codes.InvalidArgument, never,
		"The data was cut, re-encoded or never sealed. Compare its length and first bytes (`KSB` or `KSE`) with what " +
			"was stored: text columns, base64 and size limits are the usual causes. `keysidecar inspect` shows the rest."},
	sealer.UnsupportedFormat: {codes.FailedPrecondition, afterFix,
		"A newer release sealed this. Upgrade this sidecar."},
	sealer.AuthenticationFailed: {codes.InvalidArgument, never,
		"Tenant and encryption context have to be those given to Seal, byte for byte; a row that was copied or renamed " +
			"does not open. If they are right, the data was altered. Nothing more is told, on purpose."},
	sealer.UnknownDEK: {codes.NotFound, afterFix,
		"Reserved: this release does not give it."},
	sealer.KEKNotAllowed: {codes.FailedPrecondition, afterFix,
		"The data names a KEK (or algorithm) that tenants.yaml does not list for the tenant. A KEK is never removed " +
			"while data names it: put it back with `retired: true`, and into the tenant's `also_opens`. If it was " +
			"never the tenant's, treat the data as planted."},
	sealer.KEKDisabled: {codes.FailedPrecondition, afterFix,
		"Somebody disabled the KEK version, or it is not yet or no longer valid. If that was not meant, enable it in " +
			"the vault; data opens again by itself. `keysidecar inspect` shows the version that the data needs."},
	sealer.KEKNotFound: {codes.FailedPrecondition, afterFix,
		"Check the key's URL in the configuration. If the key was deleted, recover it in the vault before its " +
			"retention ends: without it the data is lost."},
	sealer.KEKForbidden: {codes.FailedPrecondition, onInfo,
		"Give the sidecar's identity the role `Key Vault Crypto Service Encryption User` on the key's vault; a new role " +
			"assignment takes Azure about ten minutes. If the log says `unusable`, the key's type or its permitted " +
			"operations do not fit: it has to be RSA or oct as `alg` says, with wrapKey and unwrapKey."},
	sealer.Residency: {codes.FailedPrecondition, never,
		"Call a sidecar in one of the tenant's regions, or correct the tenant's regions in tenants.yaml."},
	sealer.KeyVaultThrottled: {codes.Unavailable, onInfo,
		"The vault answers 429. Look at its metrics and at what else uses it."},
	sealer.KeyVaultUnreachable: {codes.Unavailable, onInfo,
		"The log names the vault and the cause: DNS, firewall, private endpoint, token, TLS, 5xx. Tenants whose keys " +
			"are cached go on."},
	sealer.OutageGraceOver: {codes.Unavailable, onInfo,
		"Reserved: this release does not give it."},
	sealer.RegistryUnreachable: {codes.Unavailable, onInfo,
		"Reserved: this release does not give it."},
	sealer.NeedsRegistry: {codes.FailedPrecondition, afterFix,
		"The data is a bare envelope, without key blocks. This release writes and opens bundles: check that the " +
			"whole of what Seal returned was stored."},
	sealer.AuditUnavailable: {codes.Unavailable, onInfo,
		"Reserved: this release does not give it."},
	sealer.TenantSuspended: {codes.FailedPrecondition, afterFix,
		"tenants.yaml suspends the tenant, or an operator did with `keysidecar tenant suspend`: `keysidecar tenant list` " +
			"says which, who and why."},
	sealer.TenantShredded: {codes.FailedPrecondition, never,
		"Reserved: this release does not give it."},
	sealer.StateUnavailable: {codes.FailedPrecondition, afterFix,
		"`tenant suspend` and `tenant resume` need `state_dir`: a directory of the sidecar's own, not full, on a disk that " +
			"outlives a restart. Or set the tenant's `state` in tenants.yaml and reload."},
	sealer.InvalidRequest: {codes.InvalidArgument, never,
		"An operator's call: a reason has at most 256 bytes of printable text, and a page token is the one of the last page. " +
			"The log says what is wrong."},
	sealer.TooLarge: {codes.ResourceExhausted, never,
		"Split the data, or raise the unary limit together with the memory for it."},
	sealer.RateLimited: {codes.ResourceExhausted, onInfo,
		"The log says whose rate it is: the caller's, the tenant's, or the caller's of data keys that are not in memory. " +
			"Raise it in `limits`, policy.yaml or tenants.yaml if the load is meant; else find out who sends it."},
	sealer.Overloaded: {codes.ResourceExhausted, onInfo,
		"The log says what is full: calls or bytes in flight of the caller, operations of the tenant, or protected memory " +
			"for keys. Spread the load, or raise that limit together with the memory for it."},
	sealer.Draining: {codes.Unavailable, onInfo,
		"The sidecar is stopping. Nothing to do, unless none comes back."},
}
