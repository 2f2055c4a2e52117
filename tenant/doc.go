// Package tenant holds tenant IDs and the tenant directory: which KEKs a
// tenant has, where its data may be processed, and in what state it is.
package tenant
