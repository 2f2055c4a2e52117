#!/bin/sh
# Processes of several users call sidecars: who is whom, who may what, and that
# nobody keeps another from being served. Needs root, to be those users.
#
# Usage: users.sh KEYSIDECAR PYTHON CLIENTS, the directory of users.py with the
# generated code of seal.proto
set -eu

[ $# -eq 3 ] || { echo "usage: users.sh KEYSIDECAR PYTHON CLIENTS" >&2; exit 2; }
keysidecar=$1 python=$2 clients=$3
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" -eq 0 ] || die "not root: it cannot be other users"

as() { # as UID GID COMMAND...
  uid=$1 gid=$2
  shift 2
  timeout 30 setpriv --reuid "$uid" --regid "$gid" --clear-groups "$@"
}
grouped() { timeout 30 setpriv --reuid 10002 --regid 10002 --groups 20000 "$@"; }
seal() { # seal UID GID TENANT [FLAG...]
  uid=$1 gid=$2 tenant=$3
  shift 3
  as "$uid" "$gid" "$keysidecar" seal --socket "$socket" --tenant "$tenant" --in "$dir/plain" --out "$dir/drop/$uid-$tenant" "$@"
}
logged() { # logged NAME PATTERN: a line of the sidecar's log
  checks=$((checks + 1))
  grep -Eq -e "$2" "$dir/$1/log" || die "no line with $2 in the log of $1"
}
sealed='^[^:]*/drop/[^:]*: [0-9]+ bytes, DEK [0-9a-f]{32}, KEK'
denied='^keysidecar: PERMISSION_DENIED: the caller may not do this for this tenant \(request [^ ]+\)$'

# What the other users need: the program, and somewhere to write.
cp "$keysidecar" "$dir/keysidecar"
keysidecar=$dir/keysidecar
mkdir -m 1777 "$dir/drop"
echo 'what is sealed' >"$dir/plain"
chmod 0644 "$dir/plain"
chmod 0755 "$keysidecar"

vault acme globex
configure open 0666 acme globex
cat >>"$dir/open/tenants.yaml" <<END
  - {id: acme, kek: acme}
  - {id: globex, kek: globex}
  - {id: public, kek: globex}
  - {id: suspended, kek: acme, state: suspended}
END
cat >>"$dir/open/policy.yaml" <<END
callers:
  - {name: billing, uid: 10001}
  - {name: web, uid: 10002, gid: 20000}
  - {name: noisy, uid: 10003, rate: 20, burst: 20}
  - {name: slow, uid: 10007, rate: 0.01, burst: 1}
rules:
  - {callers: [billing, noisy, slow], tenants: [acme], verbs: [seal, unseal]}
  - {callers: [web], tenants: [globex], verbs: [seal, unseal]}
  - {callers: ["*"], tenants: [public], verbs: [seal]}
END
start open
socket=$dir/open/s

# A user by its number, whatever its group, and for its tenant only.
for gid in 10001 555; do expect 0 "$sealed acme" seal 10001 "$gid" acme; done
expect 0 '^what is sealed$' as 10001 10001 "$keysidecar" unseal --socket "$socket" --tenant acme --in "$dir/drop/10001-acme"
expect 42 "$denied" seal 10001 10001 globex

# A user and its primary group: neither alone, nor another group of several.
expect 0 "$sealed globex" seal 10002 20000 globex
expect 42 "$denied" seal 10002 10002 globex
expect 42 "$denied" grouped "$keysidecar" seal --socket "$socket" --tenant globex --in "$dir/plain"
expect 42 "$denied" seal 10006 20000 globex

# Data of a tenant that the caller may not use: not as that tenant, not as its own.
steal() { as 10001 10001 "$keysidecar" unseal --socket "$socket" --tenant "$1" <"$dir/drop/10002-globex"; }
expect 42 "$denied" steal globex
expect 42 '^keysidecar: AUTHENTICATION_FAILED: ' steal acme

# Whoever is denied learns nothing of which tenants there are.
for uid in 10001 10005; do
  for tenant in globex absent suspended; do
    expect 42 "$denied" seal "$uid" "$uid" "$tenant"
    printf '%s\n' "$output" | sed 's/ (request .*//' >>"$dir/denials"
  done
done
expect 0 '^6$' grep -c '' "$dir/denials"
expect 0 '^1$' sh -c "sort -u '$dir/denials' | grep -c ''"

# "*" is everybody but root and nobody, who have to be named.
expect 0 "$sealed globex" seal 10005 10005 public
expect 0 "$sealed globex" seal 10001 10001 public
for uid in 0 65534; do expect 42 "$denied" seal "$uid" "$uid" public; done
expect 42 "$denied" seal 65534 20000 public

# The log says who: by name, or by number.
for caller in billing uid:10005 uid:10002 uid:0 uid:65534; do
  logged open "\"code\":\"PermissionDenied\".*\"caller\":\"$caller\",\"identity\":\"uid:[0-9]+/gid:[0-9]+\",\"pid\":[0-9]+.*\"reason\":\"PERMISSION_DENIED\""
done

# Not a process but a connection is somebody: two of one process are two callers.
attack() { timeout 60 "$python" "$clients/users.py" "$1" "$socket" "$2" "$3"; }
expect 0 '^two: OK PERMISSION_DENIED OK$' attack two 10001 10005

# A user's rate is its own, and the program says when to come back.
expect 0 "$sealed acme" seal 10007 10007 acme
expect 1 '^keysidecar: RATE_LIMITED: ' seal 10007 20000 acme
expect 1 '^the sidecar asks to try again after 1m[0-9.]+s$' seal 10007 10007 acme

# One user's flood, at its rate of 20 a second, while another is served.
attack flood 10003 4 >"$dir/flood" 2>&1 &
flood=$!
expect 0 '^steady: OK 200,' attack steady 10001 200
echo "  $output"
expect 0 "$sealed acme" seal 10001 10001 acme
wait "$flood" || die "the flood ends with exit code $?: $(cat "$dir/flood")"
expect 0 '^flood: OK (1[0-9]|[2-9][0-9]|1[0-4][0-9]), refused [0-9]{3,}, other \{\}$' cat "$dir/flood"
echo "  $output"
logged open '"caller":"noisy".*"reason":"RATE_LIMITED"'

# One user's connections, of which at most 128 stay open, while others are
# served. Those that do not begin to speak HTTP/2 do not stay.
expect 0 '^open 0, shut 300$' attack mute 10004 300 </dev/null
mkfifo "$dir/release"
attack idle 10004 300 <"$dir/release" >"$dir/idle" 2>&1 &
idle=$!
exec 3>"$dir/release"
tries=200
until grep -q . "$dir/idle"; do
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || die "no idle connections"
  sleep 0.1
done
expect 0 '^open 128, shut 172$' cat "$dir/idle"
for uid in 0 10001 10005; do expect 0 '^serving$' as "$uid" "$uid" "$keysidecar" probe --socket "$socket"; done
expect 0 "$sealed acme" seal 10001 10001 acme
expect 1 '^keysidecar: asking ' as 10004 20000 "$keysidecar" probe --socket "$socket"
exec 3>&-
wait "$idle" || die "idle ends with exit code $?: $(cat "$dir/idle")"
expect 0 '^serving$' as 10004 10004 "$keysidecar" probe --socket "$socket" --wait 5s

# A socket's mode keeps others from connecting at all; root is let in by name.
configure private 0600 acme
echo '  - {id: acme, kek: acme}' >>"$dir/private/tenants.yaml"
cat >>"$dir/private/policy.yaml" <<END
callers: [{name: root, uid: 0}, {name: billing, uid: 10001}]
rules: [{callers: [root, billing], tenants: [acme], verbs: [seal]}]
END
start private
socket=$dir/private/s
expect 0 "$sealed acme" seal 0 0 acme
expect 1 'permission denied' seal 10001 10001 acme
expect 1 'permission denied' as 10001 10001 "$keysidecar" sidecar status --socket "$dir/private/admin.sock"
expect 1 'permission denied' as 10001 10001 "$keysidecar" sidecar status --socket "$dir/open/admin.sock"
expect 42 'PERMISSION_DENIED' as 0 0 "$keysidecar" sidecar status --socket "$dir/open/admin.sock"

# The Go client refuses a sidecar that another user runs, unless it is named.
configure other 0666 acme
cp "$dir/private/tenants.yaml" "$dir/private/policy.yaml" "$dir/other"
sed 's/{name: root, uid: 0}/{name: itself, uid: 10005}/; s/\[root,/[itself,/' "$dir/private/policy.yaml" >"$dir/other/policy.yaml"
mkdir "$dir/other/vault"
cp "$(told ca_file)" "$dir/other/vault/ca"
cp "$(told token_file)" "$dir/other/vault/token"
sed -i "s|ca_file: .*|ca_file: $dir/other/vault/ca|; s|token_file: .*|token_file: $dir/other/vault/token|" "$dir/other/config.yaml"
chown -R 10005:10005 "$dir/other"
start other setpriv --reuid 10005 --regid 10005 --clear-groups
socket=$dir/other/s
expect 42 '^keysidecar: calling the sidecar: user 10005 listens on .*: sidecar runs as a user that is not accepted$' seal 10001 10001 acme
expect 42 'not accepted$' seal 10001 10001 acme --server-uid 10001
expect 42 'not accepted$' seal 0 0 acme
expect 0 "$sealed acme" seal 10001 10001 acme --server-uid 10005
expect 0 "$sealed acme" seal 10005 10005 acme

echo "  $checks checks of callers and limits"
