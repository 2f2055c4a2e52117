#!/bin/sh
# Fuzzes every Fuzz target of this module, one after the other: `make fuzz`.
# FUZZTIME is for each (10s); FUZZBUDGET, if set, is seconds for all together.
set -eu

log=$(mktemp)
trap 'rm -f "$log"' EXIT

go test -list '^Fuzz' ./... >"$log" || { cat "$log" >&2; exit 1; }
targets=$(awk '/^Fuzz/ { name[n++] = $1 } $1 == "ok" { for (i = 0; i < n; i++) print $2, name[i]; n = 0 }' "$log")
count=$(printf '%s' "$targets" | grep -c .) || { echo "fuzz: no targets" >&2; exit 1; }
time=${FUZZTIME:-10s}
if [ -n "${FUZZBUDGET:-}" ]; then time=$((FUZZBUDGET / count))s; fi
[ "$time" != 0s ] || time=1s

failed=0
while read -r package target; do
  if go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" >"$log" 2>&1 </dev/null; then
    verdict=ok
  elif grep -q 'Failing input' "$log" || ! grep -qx '    context deadline exceeded' "$log"; then
    verdict=FAIL
  else
    verdict="ok (stopped by its deadline)" # go.dev/issue/75804: no input failed
  fi
  inputs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
  echo "$verdict  $package $target $time, ${inputs:-0} inputs"
  if [ "$verdict" = FAIL ]; then failed=$((failed + 1)); cat "$log"; fi
done <<END
$targets
END
echo "$((count - failed)) passed, $failed failed (fuzz targets)"
[ "$failed" -eq 0 ]
