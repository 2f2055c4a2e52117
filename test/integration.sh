#!/bin/sh
# Tests that need more than Go: `make test-integration`. What they need is
# installed as root on Debian and its like; elsewhere its absence is an error.
set -eu

need() { # need COMMAND PACKAGE
  if command -v "$1" >/dev/null; then return; fi
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "make test-integration: no $1 here, and no way to install it: install the package $2" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "$2" >/dev/null 2>&1 || {
    apt-get update >/dev/null
    apt-get install -y --no-install-recommends "$2"
  }
}

# Another language opens the vectors with SPEC.md alone.
need node nodejs
node test/vectors/open.mjs test/vectors/*.json
