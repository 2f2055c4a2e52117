// Package reconcile compares what sidecars say that they did with KEKs, in
// their audit logs, with what Azure Key Vault says was done with them, in its
// AuditEvent logs.
//
// # What is accepted of Key Vault's logs
//
// JSON, in any of these layouts: one object a line (a storage account's blobs,
// PT1H.json, and a workspace's data export), {"records":[...]} (event hubs, and
// the examples of the documentation), an array (az monitor log-analytics
// query), or objects one after another, on one line each or on several. Not
// CSV, and not compressed.
//
// An object is one of these; names are compared without regard to case, and a
// value may be text where a number is expected:
//
//   - A resource log (Azure Monitor, "Azure Key Vault logging"): time, category
//     AuditEvent, operationName, resultType, resultSignature, callerIpAddress,
//     correlationId, identity.claim, and properties with id, requestUri,
//     httpStatusCode. Managed HSM writes the same.
//   - A row of the table AZKVAuditLogs: TimeGenerated, OperationName,
//     ResultType, ResultSignature, HttpStatusCode, CallerIpAddress,
//     CorrelationId, Identity, Id, RequestUri. Identity and Properties may be
//     objects, or JSON in a string.
//   - A row of the table AzureDiagnostics: TimeGenerated, Category,
//     ResourceProvider, OperationName, ResultType, ResultSignature,
//     httpStatusCode_d, CallerIPAddress, CorrelationId, identity_claim_*, id_s,
//     requestUri_s.
//
// Whether a request succeeded, its HTTP status says; only where there is none,
// resultSignature and then resultType do: Key Vault writes "Success" as the
// resultType of requests that it refused. A use of a key of which none of them says
// it in words that are known is reported as unreadable.
//
// # What is compared
//
// One successful KeyWrap for each record of a key that was wrapped, one
// KeyUnwrap for each that was proved, unwrapped, rejected or renewed, one KeySign
// for each certified log. A sidecar never encrypts, decrypts or releases: whoever does
// that with a KEK is not a sidecar. A KEK has a logical name in an audit log and
// a URL in Key Vault's; what they share is the version.
//
// # Memory
//
// About 80 bytes for each key event of the audit logs and 300 for each
// successful use of any key in Key Vault's, as far as they lie between
// Config.From and Config.To; nothing for all other lines.
package reconcile
