package secret

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// grades returns what Linux offers above the heap, best first.
func grades() []grade {
	return []grade{{Memfd, allocMemfd}, {Locked, allocLocked}}
}

// allocMemfd maps memfd_secret(2) memory: the kernel takes it out of its own
// page tables, never swaps it and never dumps it. The flag is O_CLOEXEC;
// FD_CLOEXEC, which the manual page names, is EINVAL.
func allocMemfd(size int) (*region, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_secret", err)
	}
	b, err := mapFile(fd, pages(size))
	if closeErr := unix.Close(fd); closeErr != nil && err == nil {
		err = errors.Join(os.NewSyscallError("close", closeErr), unix.Munmap(b))
	}
	if err != nil {
		return nil, err
	}
	clear(b) // Fault every page in now: memory that lacks is better met at the start.
	return &region{b: b, free: unix.Munmap}, nil
}

func mapFile(fd, size int) ([]byte, error) {
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, os.NewSyscallError("ftruncate", err)
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return b, os.NewSyscallError("mmap", err)
}

// allocLocked maps anonymous memory that is locked, not dumped, and zero in a
// forked child.
func allocLocked(size int) (*region, error) {
	b, err := unix.Mmap(-1, 0, pages(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	if err := protect(b); err != nil {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	return &region{b: b, free: unix.Munmap}, nil
}

func protect(b []byte) error {
	if err := unix.Mlock(b); err != nil {
		return os.NewSyscallError("mlock", err)
	}
	if err := unix.Madvise(b, unix.MADV_DONTDUMP); err != nil {
		return os.NewSyscallError("madvise(MADV_DONTDUMP)", err)
	}
	return os.NewSyscallError("madvise(MADV_WIPEONFORK)", unix.Madvise(b, unix.MADV_WIPEONFORK))
}

// pages rounds size up to whole pages, so that no page is shared.
func pages(size int) int {
	p := os.Getpagesize()
	return (size + p - 1) / p * p
}

// HardenProcess forbids core dumps and ptrace by the same user for the whole
// process (PR_SET_DUMPABLE 0, RLIMIT_CORE 0). It makes /proc/PID root's. It
// cannot be undone without privilege. Elsewhere than on Linux it does nothing.
func HardenProcess() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding dumps: %w", os.NewSyscallError("prctl", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core files: %w", os.NewSyscallError("setrlimit", err))
	}
	return nil
}
