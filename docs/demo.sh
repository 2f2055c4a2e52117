#!/bin/sh
# The main job, end to end, with separate processes: `make run`.
#
#   keysidecar dev   an embedded Key Vault that speaks the real protocol over
#                    TLS, and a sidecar beside it
#   keysidecar seal  a client process of its own for every file
#
# Usage: docs/demo.sh PATH-TO-KEYSIDECAR
set -eu

keysidecar=$1
here=$(dirname "$0")
dir=$(mktemp -d)
pid=
stop() {
  if [ -n "$pid" ]; then kill "$pid" 2>/dev/null && wait "$pid" || true; pid=; fi
}
trap 'stop; rm -rf "$dir"' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
start() {
  "$keysidecar" dev --dir "$dir/dev" --tenant acme --tenant globex >"$dir/log" 2>&1 &
  pid=$!
  "$keysidecar" probe --socket "$dir/dev/keysidecar.sock" --wait 10s >/dev/null || { tail -n 20 "$dir/log"; exit 1; }
}
ks() { verb=$1; shift; "$keysidecar" "$verb" --socket "$dir/dev/keysidecar.sock" "$@"; }
refused() { # runs a command that has to fail with exit code 42, and shows why
  if out=$("$@" 2>&1); then echo "NOT refused: $*"; exit 1; else code=$?; fi
  [ "$code" -eq 42 ] || { echo "exit code $code, not 42: $out"; exit 1; }
  echo "  refused: $out" | cut -c1-150
}

say "A sidecar and its Key Vault (RSA keys, TLS, a bearer token for every call)"
start
sed -n '/^  /p' "$dir/log"

say "Seal real files of two tenants, each with the row that it belongs to"
cp "$here/../LICENSE" "$dir/acme-contract"
cp "$keysidecar" "$dir/program"
head -c 1000000 "$dir/program" >"$dir/globex-image"
: >"$dir/acme-empty"
for file in acme-contract acme-empty globex-image; do
  ks seal --tenant "${file%%-*}" --context table=files --context "name=$file" --in "$dir/$file" --out "$dir/$file.sealed" |
    sed "s|$dir/|  |"
done
echo "  a sealed file names its keys, and nothing of its content:"
ks inspect --in "$dir/acme-contract.sealed" | sed 's/^/    /'

say "Restart the sidecar: its data keys are gone from memory; the Key Vault has its keys on disk"
stop
grep 'Key Vault was asked' "$dir/log" | sed 's/^/  /'
start

say "Unseal everything, byte for byte"
for file in acme-contract acme-empty globex-image; do
  ks unseal --tenant "${file%%-*}" --context "name=$file" --context table=files --in "$dir/$file.sealed" --out "$dir/$file.again" >/dev/null
  cmp "$dir/$file" "$dir/$file.again"
  echo "  $file: $(wc -c <"$dir/$file") bytes, identical"
done

say "What does not open"
echo "  acme's file as globex:"
refused ks unseal --tenant globex --context table=files --context name=acme-contract --in "$dir/acme-contract.sealed"
echo "  acme's file with another row's context:"
refused ks unseal --tenant acme --context table=files --context name=acme-other --in "$dir/acme-contract.sealed"
echo "  acme's file without its last byte:"
head -c "$(($(wc -c <"$dir/acme-contract.sealed") - 1))" "$dir/acme-contract.sealed" >"$dir/cut"
refused ks unseal --tenant acme --context table=files --context name=acme-contract --in "$dir/cut"
echo "  a tenant that nobody configured:"
refused ks seal --tenant initech --in "$dir/acme-contract"

say "What the Key Vault was asked since the restart"
stop
grep 'Key Vault was asked' "$dir/log" | sed 's/^/  /'
echo "  (one unwrap per data key, however many files; refusals cost none)"
