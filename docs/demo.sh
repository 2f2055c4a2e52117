#!/bin/sh
# The main job, end to end, with separate processes: `make run`.
#
#   keysidecar dev   an embedded Key Vault that speaks the real protocol over
#                    TLS, and a sidecar beside it
#   keysidecar seal  a client process of its own for every file
#
# Usage: docs/demo.sh PATH-TO-KEYSIDECAR
set -eu

[ $# -eq 1 ] || { echo "usage: docs/demo.sh PATH-TO-KEYSIDECAR" >&2; exit 2; }
keysidecar=$1
here=$(dirname "$0")
dir=$(mktemp -d)
socket=$dir/dev/keysidecar.sock
pid=
bold='' plain=''
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi

clean() {
  if [ -n "$pid" ]; then kill "$pid" 2>/dev/null && wait "$pid" || true; fi
  rm -rf "$dir"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
die() { echo "demo: $*" >&2; exit 1; }
start() { # waits until the sidecar serves, at most as long as it lives and 20 s
  "$keysidecar" dev --dir "$dir/dev" --tenant acme --tenant globex >"$dir/log" 2>&1 &
  pid=$!
  tries=100
  until "$keysidecar" probe --socket "$socket" --wait 200ms >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ] || ! kill -0 "$pid" 2>/dev/null; then
      die "the sidecar does not start: $(tail -n 20 "$dir/log")"
    fi
  done
}
stop() {
  kill "$pid"
  wait "$pid" || die "the sidecar ends with exit code $?: $(tail -n 20 "$dir/log")"
  pid=
}
ks() { verb=$1; shift; "$keysidecar" "$verb" --socket "$socket" "$@"; }
refused() { # runs a command that has to fail with exit code 42, and shows why
  if out=$("$@" 2>&1); then die "NOT refused: $*"; else code=$?; fi
  [ "$code" -eq 42 ] || die "exit code $code, not 42: $out"
  printf '%s\n' "$out" | sed 's/^keysidecar:/    refused:/; s/ (request .*//'
}
asked() { sed -n 's/^Key Vault was asked/  &/p' "$dir/log"; }

say "A sidecar and its Key Vault (RSA keys, TLS, a bearer token for every call)"
start
sed -n '/^  /p' "$dir/log"

say "Seal real files of two tenants, each with the row that it belongs to"
cp "$here/../LICENSE" "$dir/acme-contract"
: >"$dir/acme-empty"
head -c 1000000 "$keysidecar" >"$dir/globex-image"
for file in acme-contract acme-empty globex-image; do
  ks seal --tenant "${file%%-*}" --context table=files --context "name=$file" --in "$dir/$file" --out "$dir/$file.sealed" |
    sed "s|^$dir/|  |"
done
echo "  A sealed file names its keys, and nothing of its content:"
ks inspect --in "$dir/acme-contract.sealed" | sed 's/^/    /'

say "Restart the sidecar: its data keys are gone from memory; the Key Vault has its keys on disk"
stop
asked
start

say "Unseal everything, byte for byte"
for file in acme-contract acme-empty globex-image; do
  ks unseal --tenant "${file%%-*}" --context "name=$file" --context table=files --in "$dir/$file.sealed" --out "$dir/$file.again" >/dev/null
  cmp "$dir/$file" "$dir/$file.again" || die "$file differs"
  echo "  $file: $(($(wc -c <"$dir/$file"))) bytes, identical"
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

say "Who did what: the audit log"
"$keysidecar" audit export --format jsonl --kind denied "$dir/dev/audit" |
  sed -n 's/.*"caller":"\([^"]*\)".*"verb":"\([^"]*\)","result":"\([^"]*\)".*/    \1 was denied \2: \3/p'

say "What the Key Vault was asked since the restart"
stop
asked
echo "  (one unwrap per data key, however many files; refusals cost none)"

say "Nobody has edited the audit log of either run, as its own checkpoints go"
"$keysidecar" audit verify "$dir/dev/audit" >"$dir/verified" || die "the audit log is not right: $(cat "$dir/verified")"
sed 's/^/  /' "$dir/verified"
