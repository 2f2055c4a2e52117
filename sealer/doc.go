// Package sealer is one operation on a tenant's data: authorise, take a ref
// on a DEK, seal or open, and report the outcome. It knows no gRPC.
//
// SPEC.md gives the order of its checks. Before the step "cache or unwrap"
// nothing it does costs a Key Vault call.
package sealer
