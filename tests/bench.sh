#!/bin/bash
# Measures what the design promises, on real containers over mutual TLS; medians, each side in turn:
#   idle         what an agent (all its processes together) takes while nothing is asked of it: resident size, and
#                processor time over two minutes (limits 20 MiB, 0.5 % of a core)
#   memory       the highest resident size of agent (front and collector together) and controller while a
#                container of 2 GiB is collected (limit 64 MiB each)
#   speed        wall time of the export into the store against `docker export CONTAINER > file && sync file`
#                (limit 1.25); the export is listed while it comes, so what listings slow it down is in this
#   job          from the request to the sealed collection, against what `docker diff`, export, commit and save take
#                one after another (limit 1.5)
#   listings     how much later than the last tar the last listing is stored, as a share of the export's time
#                (limit 0.15), and how many tars were read again for listings that were given up (limit 0)
#   store        the same container into a bucket of a real S3 server over TLS, against what is done without us:
#                `docker export > file && sha256sum file`, and an upload over the same TLS (limit 0.6); into the
#                directory, up to the last byte received, against `docker export > /dev/null` (limit 1.25); the layer
#                against GNU tar of the same directory (limit 1.2); bytes that agent and controller each carry in a
#                second of processor time; how soon the first evidence and the seal come
#   containment  from the request to policy, strip and label in place (limit 150 ms, and faster than a script of
#                kubectl calls that does the same three), and until the status says so (limit 300 ms)
#
# Ends with 1 if any limit is missed, and says which, with what was measured.
# Usage: tests/bench.sh [ROUNDS]     as root on Debian; default 5 rounds
#        tests/bench.sh --idle       the first of these alone; needs no disk
# Needs about 40 GiB of disk: the container, its image, for each round a copy that is removed after, and what the
# rounds with the S3 server leave there until the end.
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first, so that a change of the file
# meanwhile (an update of the working tree) is not run from its middle.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/../deploy/machine.sh"
. "$HERE/../deploy/cluster.sh"

IDLE_ONLY=
[ "${1:-}" != --idle ] || { IDLE_ONLY=yes && shift; }
ROUNDS=${1:-5}
# What is in the bucket stays there until the end.
BUCKET_ROUNDS=$((ROUNDS < 2 ? ROUNDS : 2))
SIZE_MIB=2048
MEMORY_LIMIT_KIB=$((64 * 1024)) BUCKET_MEMORY_LIMIT_KIB=$((132 * 1024))
IDLE_LIMIT_KIB=$((20 * 1024)) IDLE_SECONDS=120 IDLE_LIMIT_PERCENT=0.5
RATIO_LIMIT=1.25 JOB_LIMIT=1.5 LISTINGS_LIMIT=0.15
RECEIVED_LIMIT=1.25 BUCKET_LIMIT=0.6 LAYER_LIMIT=1.2
CONTAINED_LIMIT_MS=150 TOLD_LIMIT_MS=300
SUSPECT_NODE=k8s-worker2

on_exit() {
    local status=$?
    trap - EXIT
    set +e
    cluster_stop
    for round in $(seq "$ROUNDS"); do
        docker image ls -q --filter "label=dev.impound.case=BENCH-$round" | xargs -r docker image rm -f >/dev/null
    done
    stop_docker
    if [ $status = 0 ]; then rm -rf "$DIR"; else say "Kept: ${DIR:-}"; fi
    exit $status
}

now() { echo $((${EPOCHREALTIME/./} / 1000)); }
median() { sort -n "$1" | sed -n "$((($(wc -l <"$1") + 1) / 2))p"; }
peak_kib() { awk '/^VmHWM/ { print $2 }' "/proc/$1/status"; }
pid_of() { awk -v name="$1" '$3 == name { print $1 }' "$CLUSTER_DIR/processes"; }

step "Preparing"
need_root "The benchmark"
need_packages kubectl=kubernetes-client jq=jq setpriv=util-linux curl=curl
need_docker
trap on_exit EXIT
trap 'exit 130' INT TERM
need_rust "$REPOSITORY"
"$REPOSITORY/deploy/images.sh" pause
cluster_build
DIR=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/impound-bench.XXXXXX")
[ -n "$IDLE_ONLY" ] || [ "$(df --output=avail -k "$DIR" | tail -n 1)" -gt $((40 * 1024 * 1024)) ] || fail "$DIR has less than 40 GiB free" "Give another place with BENCH_DIR."
cluster_start "$DIR"
PATH=$BIN:$PATH

step "An idle agent, $IDLE_SECONDS s"
# The processes of one node's agent.
agent_pids() { awk -v node="$SUSPECT_NODE" '$3 ~ "^(agent|collector|isolator)-" node "$" { print $1 }' "$CLUSTER_DIR/processes"; }
# Ticks of processor time of all of them so far.
ticks_of() { for pid in "$@"; do sed 's/.*) //' "/proc/$pid/stat"; done | awk '{ n += $12 + $13 } END { print n }'; }
# shellcheck disable=SC2046 # numbers, one argument each
ticks() { ticks_of $(agent_pids); }
# MiB of tar that were carried in a second of a core.
per_core_second() { jq -n "$1 / 1048576 / ($2 / $(getconf CLK_TCK)) | round"; }
# KiB that they keep in memory, what they share (one program) counted once, however many other nodes' agents run here.
resident_kib() {
    for pid in $(agent_pids); do
        awk '/^Private_/ { own += $2 } /^Shared_/ { shared += $2 } END { print own, shared }' "/proc/$pid/smaps_rollup"
    done | awk '{ own += $1; if ($2 > shared) shared = $2 } END { print own + shared }'
}
# What starting costs is no idling.
sleep 10
before=$(ticks)
sleep $IDLE_SECONDS
IDLE_PERCENT=$(jq -n "($(ticks) - $before) / $(getconf CLK_TCK) / $IDLE_SECONDS * 10000 | round / 100")
IDLE_KIB=$(resident_kib)
say "  $(agent_pids | wc -l) processes: $IDLE_KIB KiB resident together, $IDLE_PERCENT % of a core"
idle_within_limits() {
    [ "$IDLE_KIB" -le $IDLE_LIMIT_KIB ] || fail "an idle agent takes $IDLE_KIB KiB of memory, more than $IDLE_LIMIT_KIB"
    jq -en "$IDLE_PERCENT <= $IDLE_LIMIT_PERCENT" >/dev/null || fail "an idle agent takes $IDLE_PERCENT % of a core, more than $IDLE_LIMIT_PERCENT"
}
if [ -n "$IDLE_ONLY" ]; then
    idle_within_limits
    say "bench: an idle agent is within its limits"
    exit 0
fi

step "A container with $SIZE_MIB MiB of its own data"
kubectl apply --validate=false -f - >/dev/null <<END
apiVersion: v1
kind: Pod
metadata: { name: big }
spec:
  nodeName: $SUSPECT_NODE
  terminationGracePeriodSeconds: 1
  containers: [{ name: big, image: "impound-demo/pause:1" }]
END
running() { [ "$(kubectl get pod big -o 'jsonpath={.status.phase}')" = Running ]; }
await "the pod" docker-kubelet running
CONTAINER=$(kubectl get pod big -o 'jsonpath={.status.containerStatuses[0].containerID}')
CONTAINER=${CONTAINER#docker://}
# Data that neither a disk nor a file system can make smaller, in files of 64 MiB.
docker exec "$CONTAINER" sh -c "mkdir /data && for i in \$(seq $((SIZE_MIB / 64))); do dd if=/dev/urandom of=/data/\$i bs=1M count=64 2>/dev/null; done"
sync

MS='def ms: (.[0:19] + "Z" | fromdate) * 1000 + ("0" + .[19:-1] | tonumber) * 1000;'
# Collects it, with the round's name: from the request to the seal as the API saw both, in milliseconds.
collect_round() {
    local name=$1
    "$BIN/impound" collect big -n default --case "BENCH-$name" --reason benchmark --name "round-$name" --wait >"$DIR/logs/round-$name.log" 2>&1 ||
        fail "collection $name did not work" "Log: $DIR/logs/round-$name.log"
    jq -sr --arg name "round-$name" "$MS"'
        [.[] | select(.status < 300)]
        | (map(select((.method | IN("POST", "PATCH")) and (.path | split("?")[0] | endswith("/collections") or endswith("/collections/" + $name)) and .body.metadata.name == $name)) | first | (.time | ms) - .micros / 1000) as $asked
        | (map(select(.method == "PATCH" and (.path | split("?")[0] | endswith("/collections/" + $name + "/status")) and .body.status.phase == "Sealed")) | first | .time | ms) - $asked | floor' \
        "$CLUSTER_DIR/audit.jsonl"
}
# How long something of an artifact took, by its method: `took FILE METHOD received`, as the manifest has it, or
# `took FILE METHOD stored LOG`, until it had its name in the store, as the custody log has it.
took() {
    local ended
    case $3 in
        received) ended='$record.received_finished' ;;
        stored) ended='([$log[] | select(.event == "stored" and .artifact.method == $method) | .time] | first)' ;;
    esac
    jq -r --arg method "$2" --slurpfile log "${4:-/dev/null}" "$MS"'
        ([.predicate.artifacts[] | select(.method == $method)] | first) as $record
        | (('"$ended"' | ms) - ($record.received_started | ms)) | floor' "$1"
}

step "$ROUNDS rounds"
for round in $(seq "$ROUNDS"); do
    start=$(now)
    docker export "$CONTAINER" >"$DIR/by-hand.tar"
    sync "$DIR/by-hand.tar"
    by_hand=$(($(now) - start))
    rm "$DIR/by-hand.tar"
    sync
    start=$(now)
    docker diff "$CONTAINER" >"$DIR/by-hand.txt"
    docker export "$CONTAINER" >"$DIR/by-hand.tar"
    image=$(docker commit --pause=false "$CONTAINER")
    docker save "$image" >"$DIR/by-hand-image.tar"
    all_by_hand=$(($(now) - start))
    docker image rm "$image" >/dev/null
    rm "$DIR"/by-hand*.t??
    sync

    job=$(collect_round "$round")
    kept=$STORE/BENCH-$round/round-$round
    ours=$(took "$kept/manifest.json" export stored "$kept/custody.jsonl")
    took "$kept/manifest.json" export received >>"$DIR/received"
    took "$kept/manifest.json" layer received >>"$DIR/layer"
    listings=$(jq -sr \
        "$MS"'[.[] | select(.event == "stored") | {time: (.time | ms), tar: (.artifact.method | IN("export", "layer", "commit")), listing: (.artifact.derived_from // [] | any(endswith(".tar")))}]
        | (map(select(.listing) | .time) | max) - (map(select(.tar) | .time) | max) | floor | if . < 0 then 0 else . end' \
        "$kept/custody.jsonl")
    echo "$all_by_hand" >>"$DIR/all-by-hand"
    echo "$job" >>"$DIR/job"
    echo "$by_hand" >>"$DIR/by-hand"
    echo "$ours" >>"$DIR/ours"
    echo "$listings" >>"$DIR/listings"
    say "  round $round: docker export + sync $by_hand ms, into the store $ours ms, the last listing $listings ms after the last tar; all four by hand $all_by_hand ms, request to seal $job ms"
    rm -rf "${STORE:?}/BENCH-$round"
    sync
done

step "The same container read by others' means"
UPPER=$(docker inspect -f '{{ .GraphDriver.Data.UpperDir }}' "$CONTAINER")
for round in $(seq "$ROUNDS"); do
    start=$(now)
    docker export "$CONTAINER" >/dev/null
    echo $(($(now) - start)) >>"$DIR/to-nothing"
    # Into a pipe: GNU tar does not read what it knows to go to /dev/null.
    start=$(now)
    tar -C "$UPPER" --xattrs -cf - . | cat >/dev/null
    echo $(($(now) - start)) >>"$DIR/gnu-tar"
done

step "Into a bucket over TLS, $BUCKET_ROUNDS rounds"
CONTROLLER_PEAK=$(peak_kib "$(pid_of controller)")
cluster_to_s3
eval "$("$REPOSITORY/deploy/object-store.sh" env "$CLUSTER_DIR/object-store")"
"$REPOSITORY/deploy/object-store.sh" bucket "$CLUSTER_DIR/object-store" by-hand plain
s3() {
    # The key goes through a file: arguments of processes can be read by everybody.
    curl -sS --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 --cacert "$IMPOUND_TEST_S3_CA" "$@" \
        --config <(printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY")
}
for round in $(seq "$BUCKET_ROUNDS"); do
    start=$(now)
    docker export "$CONTAINER" >"$DIR/by-hand.tar"
    sha256sum "$DIR/by-hand.tar" >"$DIR/by-hand.sha256"
    s3 -T "$DIR/by-hand.tar" "$IMPOUND_TEST_S3_TLS/by-hand/$round.tar"
    by_hand=$(($(now) - start))
    rm "$DIR/by-hand.tar"
    sync

    agent=$(ticks) controller=$(ticks_of "$(pid_of controller)")
    job=$(collect_round "bucket-$round")
    agent=$(($(ticks) - agent)) controller=$(($(ticks_of "$(pid_of controller)") - controller))
    kept=$DIR/bucket-$round
    "$BIN/impound" evidence get "BENCH-bucket-$round" "round-bucket-$round" manifest.json custody.jsonl --to "$kept" \
        --tls-dir "$KEYS/responders/custodian" >"$DIR/logs/get-$round.log" 2>&1 || fail "the manifest of round $round can't be read" "Log: $DIR/logs/get-$round.log"
    ours=$(took "$kept/manifest.json" export stored "$kept/custody.jsonl")
    first=$(jq -sr "$MS"'(map(select(.event == "requested")) | first | .time | ms) as $asked | (map(select(.event == "stored" and .artifact.method == "layer")) | first | .time | ms) - $asked | floor' "$kept/custody.jsonl")
    bytes=$(jq '[.predicate.artifacts[] | select(.method | IN("export", "layer", "commit")) | .size] | add' "$kept/manifest.json")
    echo "$by_hand" >>"$DIR/bucket-by-hand"
    echo "$ours" >>"$DIR/bucket"
    echo "$job" >>"$DIR/bucket-job"
    echo "$first" >>"$DIR/bucket-first"
    per_core_second "$bytes" "$agent" >>"$DIR/agent-rate"
    per_core_second "$bytes" "$controller" >>"$DIR/controller-rate"
    say "  round $round: docker export, sha256sum and upload $by_hand ms, into the bucket $ours ms; first evidence after $first ms, sealed after $job ms"
done

step "Containment against a script, 10 rounds"
# The request log of the API: when the request for the quarantine came, and when the last of the three was answered.
contained_ms() {
    jq -sr --arg pod "$1" "$MS"'[.[] | select(.status < 300)] as $all
        | ($all | map(select(.method == "POST" and (.path | split("?")[0] | endswith("/quarantines")) and .body.spec.pod == $pod)) | first | (.time | ms) - .micros / 1000) as $asked
        | ($all | map(select(.method == "PATCH" and (.path | split("?")[0] | endswith("/pods/" + $pod)) and (.body | tostring | contains("suspectpod")))) | first | .time | ms) - $asked | floor' \
        "$CLUSTER_DIR/audit.jsonl"
}
# And until the status said so.
told_ms() {
    jq -sr --arg pod "$1" "$MS"'[.[] | select(.status < 300)] as $all
        | ($all | map(select(.method == "POST" and (.path | split("?")[0] | endswith("/quarantines")) and .body.spec.pod == $pod)) | first | (.time | ms) - .micros / 1000) as $asked
        | ($all | map(select((.method | IN("PATCH", "PUT")) and (.path | split("?")[0] | endswith("/quarantines/" + $pod + "/status")) and (.body.status.phase // "" | IN("Contained", "Complete")))) | first | .time | ms) - $asked | floor' \
        "$CLUSTER_DIR/audit.jsonl"
}
pod_of() {
    kubectl apply --validate=false -f - >/dev/null <<END
apiVersion: v1
kind: Pod
metadata: { name: $1, labels: { app: $1 } }
spec:
  nodeName: k8s-worker1
  terminationGracePeriodSeconds: 1
  containers: [{ name: one, image: "impound-demo/pause:1" }]
END
    await "the pod $1" docker-kubelet eval "[ \"\$(kubectl get pod $1 -o 'jsonpath={.status.phase}')\" = Running ]"
}
for round in $(seq 10); do
    pod_of "by-hand-$round"
    start=$(now)
    kubectl apply --validate=false -f - >/dev/null <<END
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: deny-all-suspectpod }
spec: { podSelector: { matchLabels: { status: suspectpod } }, policyTypes: [Ingress, Egress] }
END
    kubectl label pod "by-hand-$round" app- >/dev/null
    kubectl label pod "by-hand-$round" status=suspectpod >/dev/null
    echo $(($(now) - start)) >>"$DIR/script"
    kubectl delete networkpolicy deny-all-suspectpod >/dev/null
    kubectl delete pod "by-hand-$round" --wait=false >/dev/null

    pod_of "ours-$round"
    kubectl apply --validate=false -f - >/dev/null <<END
apiVersion: impound.dev/v1alpha1
kind: Quarantine
metadata: { name: ours-$round }
spec: { pod: ours-$round, case: BENCH-C, reason: benchmark, skipCollection: true, keepNeighbours: true }
END
    await "the quarantine of ours-$round" controller eval "kubectl get quarantine ours-$round -o json | jq -e '.status.phase | IN(\"Complete\", \"Incomplete\", \"Failed\")'"
    contained_ms "ours-$round" >>"$DIR/contained"
    told_ms "ours-$round" >>"$DIR/told"
    kubectl patch quarantine "ours-$round" --type=merge -p '{"spec":{"release":{"reason":"benchmark","force":true}}}' >/dev/null
    await "the release of ours-$round" controller eval "[ \"\$(kubectl get quarantine ours-$round -o 'jsonpath={.status.phase}')\" = Released ]"
    kubectl delete pod "ours-$round" --wait=false >/dev/null
done

step "Result"
BY_HAND=$(median "$DIR/by-hand") OURS=$(median "$DIR/ours")
ALL_BY_HAND=$(median "$DIR/all-by-hand") JOB=$(median "$DIR/job")
LISTINGS=$(median "$DIR/listings")
AGAIN=$(cat "$DIR"/logs/controller* | grep -c "a stored tar is read again for its listings" || true)
AGENT=$(($(peak_kib "$(pid_of agent-$SUSPECT_NODE)") + $(peak_kib "$(pid_of collector-$SUSPECT_NODE)")))
MISSED=()
# row NAME MEASURED UNIT LIMIT: without a limit (-) it is shown alone.
row() {
    local verdict=
    if [ "$4" != - ] && ! jq -en "$2 <= $4" >/dev/null; then
        verdict=MISSED
        MISSED+=("$1: $2 $3, limit $4")
    fi
    printf '  %-46s %10s   limit %-10s %s\n' "$1" "$2 $3" "$4" "$verdict"
}
ratio() { jq -n "$1 / $2 * 100 | round / 100"; }
row "idle agent, resident size" "$IDLE_KIB" KiB $IDLE_LIMIT_KIB
row "idle agent, share of a core" "$IDLE_PERCENT" % $IDLE_LIMIT_PERCENT
row "docker export > file && sync file (median)" "$BY_HAND" ms -
row "export into the store, listed (median)" "$OURS" ms -
row "ratio of the exports" "$(ratio "$OURS" "$BY_HAND")" "" $RATIO_LIMIT
row "docker diff, export, commit, save (median)" "$ALL_BY_HAND" ms -
row "request to the sealed collection (median)" "$JOB" ms -
row "ratio of the jobs" "$(ratio "$JOB" "$ALL_BY_HAND")" "" $JOB_LIMIT
row "last listing after the last tar (median)" "$LISTINGS" ms -
row "listings' share of the export's time" "$(ratio "$LISTINGS" "$OURS")" "" $LISTINGS_LIMIT
row "tars that were read again for listings" "$AGAIN" "" 0
row "docker export > /dev/null (median)" "$(median "$DIR/to-nothing")" ms -
row "export into the directory, received (median)" "$(median "$DIR/received")" ms -
row "ratio: received, to docker export > /dev/null" "$(ratio "$(median "$DIR/received")" "$(median "$DIR/to-nothing")")" "" $RECEIVED_LIMIT
row "GNU tar of the layer, read (median)" "$(median "$DIR/gnu-tar")" ms -
row "layer into the directory, received (median)" "$(median "$DIR/layer")" ms -
row "ratio: layer, to GNU tar of the same" "$(ratio "$(median "$DIR/layer")" "$(median "$DIR/gnu-tar")")" "" $LAYER_LIMIT
row "docker export, sha256sum, upload (median)" "$(median "$DIR/bucket-by-hand")" ms -
row "export into the bucket, listed, verified (median)" "$(median "$DIR/bucket")" ms -
row "ratio: into the bucket, to the same by hand" "$(ratio "$(median "$DIR/bucket")" "$(median "$DIR/bucket-by-hand")")" "" $BUCKET_LIMIT
row "request to the first evidence in the bucket" "$(median "$DIR/bucket-first")" ms -
row "request to the sealed collection in the bucket" "$(median "$DIR/bucket-job")" ms -
row "agent, tar for a second of a core" "$(median "$DIR/agent-rate")" MiB -
row "controller, tar for a second of a core" "$(median "$DIR/controller-rate")" MiB -
row "agent, highest resident size" $AGENT KiB $MEMORY_LIMIT_KIB
row "controller, highest resident size" "$CONTROLLER_PEAK" KiB $MEMORY_LIMIT_KIB
row "controller, the same with a bucket" "$(peak_kib "$(pid_of controller)")" KiB $BUCKET_MEMORY_LIMIT_KIB
row "policy, label and strip by a script (median)" "$(median "$DIR/script")" ms -
row "the same from the request to us (median)" "$(median "$DIR/contained")" ms "$CONTAINED_LIMIT_MS"
row "and faster than the script" "$(median "$DIR/contained")" ms "$(median "$DIR/script")"
row "until the status says so (median)" "$(median "$DIR/told")" ms $TOLD_LIMIT_MS
if [ ${#MISSED[@]} -gt 0 ]; then
    printf '  missed: %s\n' "${MISSED[@]}" >&2
    fail "${#MISSED[@]} limits are missed"
fi
say "bench: within all limits"
exit 0
}
