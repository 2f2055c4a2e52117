package envelope

import "github.com/keysidecar/keysidecar/tenant"

// The sizes of the largest key blocks: SPEC.md, 6.1 and 6.2.
const (
	fixedFields  = 4 + 16 + 8 + 1 + 1 + 16 + 2 + 2 // all but tenant, kek_ref, wrapped and proof
	maxBlock     = fixedFields + tenant.MaxID + MaxKEKRef + 512 + proofSize
	maxAlg3Block = fixedFields + tenant.MaxID + wrappedBranch // a DEK block of AlgBranch
)

// MaxBundleHeader is the most bytes that a bundle has before its envelope:
// two branch blocks need a DEK block of AlgBranch that names them.
const MaxBundleHeader = len(bundleMagic) + 2 + MaxBlocks*2 + 3*maxBlock + maxAlg3Block
