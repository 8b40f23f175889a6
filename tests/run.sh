#!/bin/bash
# Every check of this repository in one command, from a clean clone on a Debian machine, as root:
# formatting, lints, dependencies, all tests, and the demo as end-to-end test.
#
# It installs what it needs from Debian (Docker among it), starts a Docker Engine if none answers and
# stops what it started. Each runner prints its own summary line; the last lines repeat what passed.
# It ends with 0 only if everything passed.
#
# Usage: tests/run.sh
#   IMPOUND_CACHE=DIR           where packages and images are kept between runs (default ~/.cache/impound)
#   IMPOUND_REAL_CLUSTER=FILE   a kubeconfig: the containment tests run against that cluster too. It must be one
#                               to throw away (README, Development). KUBECONFIG alone is not followed here.
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first, so that a change of the file
# meanwhile (an update of the working tree) is not run from its middle.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$HERE")
cd "$REPOSITORY"
. deploy/machine.sh

SUMMARY=() FAILED=
# Whoever works with a cluster has it set, and means nothing by it here.
unset KUBECONFIG

# Runs one check; the others go on when it fails.
run() {
    local name=$1 start=$SECONDS
    shift
    step "$name: $*"
    if "$@"; then
        SUMMARY+=("ok      $name ($((SECONDS - start)) s)")
    else
        SUMMARY+=("FAILED  $name ($((SECONDS - start)) s)")
        FAILED=yes
    fi
}

skipped() {
    step "$1: skipped"
    say "$2"
    SUMMARY+=("skipped $1: $2")
}

# The advisory database comes over the network; licences, bans and sources are in the lock file.
advisories() {
    local log
    log=$(mktemp)
    if cargo deny check advisories >"$log" 2>&1; then
        cat "$log"
    elif grep -q "failed to fetch advisory database" "$log"; then
        say "advisories: not checked, the advisory database could not be fetched"
    else
        cat "$log"
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

scripts() {
    local script
    for script in deploy/*.sh tests/*.sh .ci/run; do bash -n "$script" || return 1; done
    say "$(ls deploy/*.sh tests/*.sh .ci/run | wc -l) scripts parse"
}

# SECURITY.md names a test for each claim; each must exist.
claims() {
    local name count=0
    while read -r name; do
        grep -rq --include=*.rs "fn $name(" agent cli controller evidence proto tests || { say "SECURITY.md names $name, and there is no such test"; return 1; }
        count=$((count + 1))
    done < <(grep -oE '`[a-z0-9_]+`' SECURITY.md | tr -d '`' | grep -E '_.*_.*_' | sort -u)
    say "$count tests that SECURITY.md names exist"
    [ "$count" -gt 0 ]
}

# Every parser of foreign bytes against a minute of damage to its seeds, all at once. Tests run them too, for a second.
fuzzing() {
    local log
    log=$(mktemp)
    # The whole workspace: with one package the dependencies would be built again with other features.
    IMPOUND_FUZZ_SECONDS=${IMPOUND_FUZZ_SECONDS:-60} cargo test --quiet --workspace --lib --bins --tests --locked fuzz_ \
        -- --nocapture --test-threads 32 >"$log" 2>&1 || { cat "$log"; rm -f "$log"; return 1; }
    grep "^fuzz " "$log"
    say "$(grep -c "^fuzz .* inputs in " "$log") parsers, $(awk '/^fuzz .* inputs in / { n += $3 } END { print n }' "$log") inputs, none that panics or breaks a rule"
    rm -f "$log"
}

step "Preparing the machine"
need_root "tests/run.sh (it starts containers and reads what belongs to them)"
OBJECTS=$(mktemp -d "${TMPDIR:-/tmp}/impound-objects.XXXXXX")
stop_all() {
    deploy/object-store.sh stop "$OBJECTS" || true
    rm -rf "$OBJECTS"
    stop_docker
}
trap stop_all EXIT
need_packages jq=jq openssl=openssl curl=curl kubectl=kubernetes-client setpriv=util-linux busybox=busybox-static \
    nft=nftables ip=iproute2 chromium=chromium pdftotext=poppler-utils mactime=sleuthkit age=age node=nodejs npm=npm python3=python3-venv
need_docker
need_rust "$REPOSITORY"
deploy/images.sh
deploy/object-store.sh start "$OBJECTS"
deploy/object-store.sh bucket "$OBJECTS" evidence
deploy/object-store.sh bucket "$OBJECTS" plain plain
eval "$(deploy/object-store.sh env "$OBJECTS")"

# What the controller calls in the Kubernetes API, in the tests and in the demo.
KUBE_MEMORY_AUDIT_DIR=$(mktemp -d)
export KUBE_MEMORY_AUDIT_DIR

run "format" cargo fmt --all --check
run "scripts" scripts
run "security claims" claims
if command -v cargo-deny >/dev/null; then
    run "licences, bans, sources" cargo deny --offline check licenses bans sources
    run "advisories" advisories
else
    skipped "dependencies" "cargo-deny is not installed (cargo install --locked cargo-deny); deny.toml is not checked here"
fi
run "lints" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
if command -v cargo-nextest >/dev/null; then
    run "tests" cargo nextest run --workspace --locked --no-fail-fast
else
    say "cargo-nextest is not installed: cargo test runs the same tests"
    run "tests" cargo test --workspace --locked --no-fail-fast
fi
run "containment through a real kubeconfig" env IMPOUND_BIN="${CARGO_TARGET_DIR:-target}/debug" tests/containment.sh
if [ -n "${IMPOUND_REAL_CLUSTER:-}" ]; then
    # With the whole workspace's features, as they are built already.
    run "containment in a real cluster" env KUBECONFIG="$IMPOUND_REAL_CLUSTER" \
        cargo test --workspace --locked --test containment -- --test-threads 1
else
    skipped "containment in a real cluster" "IMPOUND_REAL_CLUSTER names no kubeconfig"
fi
run "fuzzing" fuzzing
run "independent tools" tests/independent.sh
# With the programs that the tests were built with: a second build would double the time.
PROGRAMS=${CARGO_TARGET_DIR:-target}/debug
run "demo" env IMPOUND_BIN="$PROGRAMS" INDEPENDENT=yes deploy/demo.sh
run "demo into an object store" env IMPOUND_BIN="$PROGRAMS" deploy/demo.sh --s3

run "manifests" env IMPOUND_BIN="${CARGO_TARGET_DIR:-target}/debug" tests/manifests.sh
# Of the tests and both demos: what is called and not granted, and what is granted and never called.
run "the controller's role and its calls" tests/manifests.sh --calls "$KUBE_MEMORY_AUDIT_DIR"
rm -rf "$KUBE_MEMORY_AUDIT_DIR"

step "Summary"
printf '%s\n' "${SUMMARY[@]}"
[ -z "$FAILED" ] || exit 1
exit 0
}
