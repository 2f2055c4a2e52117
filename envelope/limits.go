package envelope

import "github.com/keysidecar/keysidecar/tenant"

// maxBlock is the size of the largest key block: SPEC.md, key blocks.
const maxBlock = 4 + 16 + 8 + 1 + tenant.MaxID + 1 + MaxKEKRef + 16 + 2 + 512 + 2 + proofSize

// MaxBundleHeader is the most bytes that a bundle has before its envelope:
// four of the largest key blocks.
const MaxBundleHeader = len(bundleMagic) + 2 + MaxBlocks*(2+maxBlock)
