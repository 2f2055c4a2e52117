#!/bin/sh
# Tests that need more than Go: `make test-integration`. What they need is
# installed: as root on Debian and its like by apt-get, elsewhere its absence
# is an error; packages of Python and Node into .tmp/clients, and nowhere else.
set -eu

die() { echo "make test-integration: $*" >&2; exit 1; }

need() { # need PACKAGE COMMAND...: of the package, if the command does not work
  package=$1
  shift
  if "$@" >/dev/null 2>&1; then return; fi
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    die "'$*' does not work here, and there is no way to install it: install the package $package"
  fi
  export DEBIAN_FRONTEND=noninteractive
  timeout 600 apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 || {
    timeout 300 apt-get update >/dev/null
    timeout 600 apt-get install -y --no-install-recommends "$package"
  }
}

part() { # part FUNCTION WORDS: runs it, and tells how long it took
  start=$(date +%s)
  "$1"
  echo "ok  $2, $(($(date +%s) - start)) s"
}

# Another language opens the vectors with SPEC.md alone.
vectors() { timeout 300 node test/vectors/open.mjs test/vectors/*.json; }

# The packages that test/clients pins, again only where those have changed.
packages() {
  pins=$(cat test/clients/requirements.txt test/clients/package-lock.json | cksum)
  mkdir -p "$clients"
  if [ "$(cat "$clients/pins" 2>/dev/null)" != "$pins" ]; then
    rm -rf "$clients/python" "$clients/node_modules" "$clients/pins"
    python3 -m venv "$clients/python"
    timeout 600 "$clients/python/bin/pip" install --quiet --only-binary=:all: --disable-pip-version-check --no-cache-dir \
      --requirement test/clients/requirements.txt
    cp test/clients/package.json test/clients/package-lock.json "$clients"
    timeout 600 npm ci --prefix "$clients" --cache "$clients/npm" --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null
    printf '%s\n' "$pins" >"$clients/pins"
  fi
  cp test/clients/client.py test/clients/users.py test/clients/client.mjs "$clients"
  "$clients/python/bin/python" -m grpc_tools.protoc -I proto --python_out="$clients" --grpc_python_out="$clients" "$proto"
}

clients() { timeout 600 sh test/clients/clients.sh "$keysidecar" "$proto" "$clients/python/bin/python" "$clients"; }

other_users() {
  [ "$(id -u)" -eq 0 ] || die "not root: the tests of other users' processes cannot be those users"
  timeout 300 sh test/clients/users.sh "$keysidecar" "$clients/python/bin/python" "$clients"
}

sockets() { timeout 120 sh test/clients/sockets.sh "$keysidecar"; }

clients=.tmp/clients keysidecar=.tmp/bin/keysidecar proto=proto/keysidecar/v1/seal.proto
need nodejs node --version
need npm npm --version
need python3 python3 --version
need python3-venv python3 -c 'import venv, ensurepip'
need util-linux setpriv --version

part vectors "the test vectors in Node"
part packages "packages of Python and Node"
go build -trimpath -o "$keysidecar" ./cmd/keysidecar
part clients "clients in Python and Node"
part sockets "socket paths"
part other_users "other users' processes"
