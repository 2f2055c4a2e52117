package config

import _ "embed"

//go:embed reference.config.yaml
var referenceConfig string

//go:embed reference.tenants.yaml
var referenceTenants string

// Reference returns the commented reference of both files. It is meant to be
// read; ReferenceConfig and ReferenceTenants are files that load.
func Reference() string {
	return "# config.yaml\n\n" + referenceConfig + "\n# tenants.yaml\n\n" + referenceTenants
}

// ReferenceConfig returns a config.yaml with every key, its comment, and its
// default or an example.
func ReferenceConfig() string { return referenceConfig }

// ReferenceTenants returns such a tenants.yaml, which ReferenceConfig fits.
func ReferenceTenants() string { return referenceTenants }
