#!/bin/sh
# Python and Node clients of a sidecar, with seal.proto and its Unix socket.
#
# Usage: clients.sh KEYSIDECAR SEAL.PROTO PYTHON CLIENTS, the directory of
# client.py with its generated code, and of client.mjs with node_modules
set -eu

[ $# -eq 4 ] || { echo "usage: clients.sh KEYSIDECAR SEAL.PROTO PYTHON CLIENTS" >&2; exit 2; }
keysidecar=$1 proto=$2 python=$3 clients=$4
. "$(dirname "$0")/lib.sh"

supervise() { # restarts a sidecar whenever it ends, as Kubernetes does
  (
    while [ ! -e "$dir/stop" ]; do
      "$keysidecar" serve --config "$dir/$1/config.yaml" >>"$dir/$1/log" 2>&1 &
      echo "$!" >"$dir/$1/pid.new"
      mv "$dir/$1/pid.new" "$dir/$1/pid"
      wait "$!" || true
    done
  ) 2>/dev/null & # where the shell tells that one was killed
  pids="$pids $!"
  wait_for "$1" "$!"
}

policy() { # policy NAME: this user may use every tenant but "denied"
  cat >>"$dir/$1/policy.yaml" <<END
callers:
  - {name: me, uid: $(id -u)}
rules:
  - {callers: [me], tenants: [acme, "slow-*"], verbs: [seal, unseal]}
END
}

vault acme
configure main 0600 acme
cat >>"$dir/main/tenants.yaml" <<END
  - {id: acme, kek: acme}
  - {id: denied, kek: acme}
  - {prefix: slow-, kek: acme, rate: 0.01, burst: 1}
END
policy main
supervise main

configure limited 0600 acme
printf 'limits:\n  caller: {rate: 0.01, burst: 1}\n' >>"$dir/limited/config.yaml"
cp "$dir/main/tenants.yaml" "$dir/main/policy.yaml" "$dir/limited"
start limited

go_client() { # go_client VERB IN OUT
  timeout 60 "$keysidecar" "$1" --socket "$dir/main/s" --tenant acme --context 'Straße=Größe 12 µm' --context '名前=値' \
    --context 'key=🔑' --context 'empty=' --in "$dir/data/$2" --out "$dir/data/$3" >/dev/null
}

mkdir "$dir/data"
sizes='0 1 65536 1048576'
for size in $sizes; do
  head -c "$size" /dev/urandom >"$dir/data/plain-$size"
  go_client seal "plain-$size" "go-$size"
done
timeout 120 "$python" "$clients/client.py" "$dir" go
timeout 120 node "$clients/client.mjs" "$proto" "$dir" go python
timeout 120 "$python" "$clients/client.py" --open "$dir" node
for peer in python node; do
  for size in $sizes; do
    go_client unseal "$peer-$size" opened
    cmp "$dir/data/opened" "$dir/data/plain-$size" || die "Go does not open $peer's $size B"
    checks=$((checks + 1))
  done
done
echo "  Go: $checks checks: sealed data of python and node"
