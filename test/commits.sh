#!/bin/sh
# Checks the commit subjects of a range: `make commits`. A subject is
# "package: lower-case imperative", at most 60 characters (CONTRIBUTING.md).
set -eu

subjects=$(git log --no-merges --format=%s "$1")
wrong=$(printf '%s\n' "$subjects" | grep -vE '^[a-z0-9_./-]+(, [a-z0-9_./-]+)*: [a-z].*$|^$' || true)
long=$(printf '%s\n' "$subjects" | grep -E '^.{61}' || true)
[ -z "$wrong" ] || printf 'not "package: lower-case imperative": %s\n' "$wrong" >&2
[ -z "$long" ] || printf 'over 60 characters: %s\n' "$long" >&2
echo "$(printf '%s' "$subjects" | grep -c . || true) commit subjects checked in $1"
[ -z "$wrong$long" ]
