//go:build !linux

package flood

import (
	"os"
	"os/exec"
)

func ownProgram() (string, error) { return os.Executable() }

func setUser(*exec.Cmd, uint32) {}
