package config

import _ "embed"

//go:embed reference.config.yaml
var referenceConfig string

//go:embed reference.tenants.yaml
var referenceTenants string

//go:embed reference.policy.yaml
var referencePolicy string

// Reference returns the commented reference of all files. It is meant to be
// read; what the functions below return are files that load together.
func Reference() string {
	return "# config.yaml\n\n" + referenceConfig + "\n# tenants.yaml\n\n" + referenceTenants +
		"\n# policy.yaml\n\n" + referencePolicy
}

// ReferenceConfig returns a config.yaml with every key, its comment, and its
// default or an example.
func ReferenceConfig() string { return referenceConfig }

// ReferenceTenants returns such a tenants.yaml, which ReferenceConfig fits.
func ReferenceTenants() string { return referenceTenants }

// ReferencePolicy returns such a policy.yaml, which ReferenceTenants fits.
func ReferencePolicy() string { return referencePolicy }
