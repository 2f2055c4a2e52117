#!/bin/sh
# Socket paths on which no sidecar may listen, for data and for admin.
#
# Usage: sockets.sh KEYSIDECAR
set -eu

[ $# -eq 1 ] || { echo "usage: sockets.sh KEYSIDECAR" >&2; exit 2; }
keysidecar=$1
. "$(dirname "$0")/lib.sh"

refused() { # refused CODE PATTERN: the sidecar "other" does not start, and leaves no socket behind
  expect "$1" "$2" timeout 30 "$keysidecar" serve --config "$dir/other/config.yaml"
  checks=$((checks + 1))
  left=$(find "$dir/other" "$dir/shared" -type s -o -name '.ks*')
  [ -z "$left" ] || die "left behind: $left"
}

vault acme
configure main 0600 acme
configure other 0600 acme
for name in main other; do
  echo '  - {id: acme, kek: acme}' >>"$dir/$name/tenants.yaml"
  echo 'rules: [{callers: ["*"], tenants: [acme], verbs: [seal]}]' >>"$dir/$name/policy.yaml"
done
cp "$dir/other/config.yaml" "$dir/config"
mkdir "$dir/shared"
start main

for key in socket admin_socket; do
  at() { # at PATH: the sidecar "other" is to listen there
    { grep -v " $key: " "$dir/config" | sed "s|^listen:|&\\n  $key: $1|"; } >"$dir/other/config.yaml"
  }
  case $key in
    socket) live=$dir/main/s which='' ;;
    admin_socket) live=$dir/main/admin.sock which='admin socket: ' ;;
  esac

  at "$dir/other/link"
  ln -s "$live" "$dir/other/link"
  refused 42 "^keysidecar: ${which}socket path $dir/other/link is taken by something that is no socket"
  rm "$dir/other/link"

  at "$dir/shared/new"
  chmod 0775 "$dir/shared"
  refused 42 "^keysidecar: ${which}directory $dir/shared, on the way to the socket, is writable by others"
  chmod 0755 "$dir/shared"

  at "$live"
  refused 1 "^keysidecar: ${which}socket path $live: another process listens on the socket$"
done
expect 0 '^serving$' timeout 30 "$keysidecar" probe --socket "$dir/main/s"

# What was wrong is all that was wrong.
at "$dir/shared/new"
start other
expect 0 '^serving$' timeout 30 "$keysidecar" probe --socket "$dir/shared/new"

echo "  $checks checks of socket paths"
