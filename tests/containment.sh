#!/bin/bash
# Containment as it runs against a cluster of somebody else's: through nothing but a kubeconfig. Each cluster here is
# an in-memory API server as a process of its own, whose faults, state and request log the tests can't reach; what
# they inject and read is in the door that they put in front of it. The same tests run against a real one with
# IMPOUND_REAL_CLUSTER=FILE tests/run.sh.
#
# A test has a cluster to itself, so each group of them gets one, and all run at once: the controller killed after each
# of its writes, for the pods of a Deployment and of a StatefulSet; the API's faults at each of its calls; and a pod with
# real containers that its node isolates (as root, with Docker, nftables and the image of `deploy/images.sh pause`).
#
# Usage: tests/containment.sh
#   IMPOUND_BIN=DIR   where kube-memory is (default: target/debug, after building it)
set -Eeuo pipefail
{
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$REPOSITORY"
. deploy/machine.sh

# The whole workspace's features: with one package the dependencies would be built again with others.
TESTS=(cargo test --quiet --workspace --locked --test containment)
"${TESTS[@]}" --no-run
if [ -z "${IMPOUND_BIN:-}" ]; then
    cargo build --quiet --workspace --locked --bin kube-memory
    IMPOUND_BIN=${CARGO_TARGET_DIR:-target}/debug
fi

DIR=$(mktemp -d "${TMPDIR:-/tmp}/impound-containment.XXXXXX")
PIDS=()
end() {
    [ ${#PIDS[@]} = 0 ] || kill "${PIDS[@]}" 2>/dev/null || true
    wait
    rm -rf "$DIR"
}
trap end EXIT

# A cluster; its name, and how it is served.
cluster() {
    local name=$1 tries=0
    shift
    # Unlike this script's own end, that of the terminal reaches it only so.
    setpriv --pdeathsig TERM -- "$IMPOUND_BIN/kube-memory" serve --dir "$DIR/$name" --listen 127.0.0.1:0 "$@" \
        >"$DIR/$name.log" 2>&1 </dev/null &
    PIDS+=("$!")
    until [ -s "$DIR/$name/kubeconfig" ]; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || fail "the API server $name does not answer within 10 seconds" "$(cat "$DIR/$name.log")"
        sleep 0.05
    done
}

declare -A GROUPS_OF=(
    [deployment-contained]=crashes::a_deployments_pod_is_contained_whichever_write
    [deployment-released]=crashes::a_deployments_pod_is_released_whichever_write
    [statefulset-contained]=crashes::a_statefulsets_pod_is_contained_whichever_write
    [statefulset-released]=crashes::a_statefulsets_pod_is_released_whichever_write
    [calls-refused]=faults::every_call_may_be_refused
    [server-failing]=faults::every_call_may_meet_a_server_that_fails
    [answers-lost]=faults::every_call_and_every_answer_may_be_lost
    [watches-cut]=faults::every_call_may_cut_all_watches
    [isolated]=isolation::what_flowed_before_is_dead
)
declare -A RUNS=()
for name in "${!GROUPS_OF[@]}"; do
    # The isolated pod's containers run with Docker, so nobody plays their kubelet.
    played=(--instant-kubelet)
    [ "$name" != isolated ] || played=()
    cluster "$name" "${played[@]}"
    KUBECONFIG=$DIR/$name/kubeconfig "${TESTS[@]}" "${GROUPS_OF[$name]}" -- --test-threads 1 >"$DIR/$name.tests" 2>&1 &
    RUNS[$name]=$!
done
FAILED=
for name in "${!RUNS[@]}"; do
    if wait "${RUNS[$name]}"; then
        # A name that no test has any more is no success.
        if grep -qE '^test result: ok\. [1-9]' "$DIR/$name.tests"; then
            say "ok      $name: $(grep -oE '[0-9]+ passed.*finished in [0-9.]+s' "$DIR/$name.tests" | sed 's/; 0 failed.*;/,/')"
            continue
        fi
        say "FAILED  $name: no test is named ${GROUPS_OF[$name]}"
    else
        say "FAILED  $name"
    fi
    cat "$DIR/$name.tests"
    FAILED=yes
done
[ -z "$FAILED" ] || exit 1
exit 0
}
