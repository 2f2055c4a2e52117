# Sourced by the scripts beside it: a Key Vault, sidecars, and checks of what
# processes say. Needs $keysidecar, the program's path; makes $dir.

umask 022
dir=$(mktemp -d)
chmod 0755 "$dir" # for other users
pids=
checks=0

clean() {
  touch "$dir/stop"
  for file in "$dir"/*/pid; do
    if [ -e "$file" ]; then kill -KILL "$(cat "$file")" 2>/dev/null || true; fi
  done
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

vault() { # vault TENANT...: an embedded Key Vault with a KEK for each
  mkdir "$dir/vault"
  for tenant; do shift; set -- "$@" --key "$tenant/kek"; done
  "$keysidecar" devvault --dir "$dir/vault" --output json "$@" >"$dir/vault.json" 2>"$dir/vault.log" &
  pids="$pids $!"
  tries=200
  until grep -qs address "$dir/vault.json"; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ] || ! kill -0 "$!" 2>/dev/null; then die "no Key Vault: $(cat "$dir/vault.log")"; fi
    sleep 0.1
  done
}
told() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$dir/vault.json"; }

# Each sidecar has a directory of its name: config.yaml, tenants.yaml,
# policy.yaml, log, and the sockets s and admin.sock.
configure() { # configure NAME MODE KEK...: tenants.yaml and policy.yaml are to be completed
  name=$1 mode=$2
  shift 2
  mkdir "$dir/$name"
  cat >"$dir/$name/config.yaml" <<END
apiVersion: keysidecar/v1
listen:
  socket: $dir/$name/s
  mode: "$mode"
key_vault:
  cloud: devvault
  devvault:
    address: $(told address)
    suffix: vault.localhost
    ca_file: $(told ca_file)
    token_file: $(told token_file)
  credentials:
    - name: dev
      type: devvault
END
  printf 'apiVersion: keysidecar/v1\nkeks:\n' >"$dir/$name/tenants.yaml"
  for kek; do
    cat >>"$dir/$name/tenants.yaml" <<END
  - ref: $kek
    url: https://$kek.vault.localhost/keys/kek
    alg: RSA-OAEP-256
    credential: dev
    entra_tenant: $(told entra_tenant)
END
  done
  echo 'tenants:' >>"$dir/$name/tenants.yaml"
  echo 'apiVersion: keysidecar/v1' >"$dir/$name/policy.yaml"
}

start() { # start NAME [COMMAND...]: serves, as COMMAND runs it
  name=$1
  shift
  "$@" "$keysidecar" serve --config "$dir/$name/config.yaml" >"$dir/$name/log" 2>&1 &
  pids="$pids $!"
  wait_for "$name" "$!"
}

wait_for() { # wait_for NAME PID: until the sidecar serves
  tries=100
  until "$keysidecar" probe --socket "$dir/$1/s" --wait 200ms >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ] || ! kill -0 "$2" 2>/dev/null; then die "sidecar $1 does not start: $(tail -n 5 "$dir/$1/log")"; fi
  done
}

expect() { # expect CODE PATTERN COMMAND...: its exit code, and a line of what it prints
  code=$1 pattern=$2 got=0
  shift 2
  output=$("$@" 2>&1) || got=$?
  checks=$((checks + 1))
  [ "$got" -eq "$code" ] || die "exit code $got, not $code, of: $*
$output"
  printf '%s\n' "$output" | grep -Eq -e "$pattern" || die "no line with $pattern from: $*
$output"
}
