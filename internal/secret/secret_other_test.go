//go:build !linux

package secret_test

import (
	"testing"

	"github.com/keysidecar/keysidecar/internal/secret"
)

func levels(*testing.T) []secret.Level { return []secret.Level{secret.Heap} }

func TestHardenProcess(t *testing.T) {
	if err := secret.HardenProcess(); err != nil {
		t.Error(err)
	}
}
