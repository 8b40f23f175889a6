# Brings up a whole installation on one machine, for the demo, the end-to-end tests and the benchmark:
# the in-memory Kubernetes API with three nodes, a kubelet on Docker, an agent for each node and the
# controller, all over mutual TLS. Sourced by other scripts, after machine.sh.
#
#   cluster_build              builds the programs, unless IMPOUND_BIN names a directory that has them; sets BIN
#   cluster_start DIR [keep]   starts everything; keys, store, kubeconfig and logs are in DIR; with CLUSTER_S3 set
#                              the evidence goes to a bucket of an object store that is started too
#   cluster_to_s3              afterwards: goes on with an object store instead of the directory
#   cluster_stop               stops what cluster_start started
#   cluster_stop_kept DIR      stops what `cluster_start DIR keep` left running
# After cluster_start: NODES, NODE_ADDRESS[node], CONTROLLER, STORE, CLUSTER_ID, KUBECONFIG (exported).

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NODES=(k8s-worker1 k8s-worker2 k8s-worker3)
declare -A NODE_ADDRESS=()
CLUSTER_PIDS=()
AGENT_PORT=7443

cluster_build() {
    if [ -n "${IMPOUND_BIN:-}" ]; then
        BIN=$(cd "$IMPOUND_BIN" && pwd)
        say "Using the programs in $BIN"
        return 0
    fi
    local profile=${IMPOUND_PROFILE:-release} target=${CARGO_TARGET_DIR:-$REPOSITORY/target} flags=(--release)
    [ "$profile" = release ] || flags=(--profile "$profile")
    say "Building (cargo build ${flags[*]}); the first time this takes some minutes"
    local quiet=-q
    [ ! -t 2 ] || quiet=
    # shellcheck disable=SC2086
    (cd "$REPOSITORY" && cargo build $quiet --locked "${flags[@]}" \
        -p impound-agent -p impound-controller -p impound-cli -p kube-memory -p docker-kubelet) ||
        fail "the build did not work (above is what cargo said)"
    [ "$profile" != dev ] || profile=debug
    BIN=$(cd "$REPOSITORY" && cd "$target" && pwd)/$profile
}

# Everything listens on loopback addresses 127.0.K.x. K is the first number that no other cluster on this
# machine uses: the lock lives as long as any process of that cluster, since they all inherit it.
cluster_number() {
    local number node=11
    for number in $(seq 0 99); do
        exec {CLUSTER_LOCK}>"/tmp/impound-cluster-$number.lock"
        if flock -n "$CLUSTER_LOCK" && ! port_taken "127.0.$number.10" 6443 && ! port_taken "127.0.$number.10" 8443 &&
            ! port_taken "127.0.$number.11" $AGENT_PORT && ! port_taken "127.0.$number.12" $AGENT_PORT && ! port_taken "127.0.$number.13" $AGENT_PORT; then
            CLUSTER_ID=impound-$number
            API=127.0.$number.10:6443
            CONTROLLER=127.0.$number.10:8443
            for name in "${NODES[@]}"; do
                NODE_ADDRESS[$name]=127.0.$number.$node
                node=$((node + 1))
            done
            return 0
        fi
        exec {CLUSTER_LOCK}>&-
    done
    fail "no free loopback addresses: 100 clusters of this kind seem to run" "deploy/demo.sh --stop DIR stops one that was kept."
}

port_taken() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# Starts a program in the background with its output in $DIR/logs. Unless it is to be kept, it ends with this
# script whatever way that ends; setpriv asks the kernel for that.
launch() {
    local name=$1
    shift
    local run=(setpriv --pdeathsig TERM --)
    [ -z "$CLUSTER_KEEP" ] || run=(setsid --)
    "${run[@]}" "$@" >>"$CLUSTER_DIR/logs/$name.log" 2>&1 </dev/null &
    CLUSTER_PIDS+=("$!")
    # With its start time a number names one process for ever; numbers alone are used again.
    printf '%s %s %s\n' "$!" "$(start_time "$!")" "$name" >>"$CLUSTER_DIR/processes"
}

start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# Waits for a condition (a command) that the named program brings about.
await() {
    local what=$1 name=$2 deadline=$((SECONDS + ${AWAIT_SECONDS:-60}))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! alive "$name" || [ $SECONDS -ge $deadline ]; then
            tail -n 15 "$CLUSTER_DIR/logs/$name.log" | sed 's/^/        /' >&2
            alive "$name" && fail "$what: not within ${AWAIT_SECONDS:-60} seconds" "Log: $CLUSTER_DIR/logs/$name.log"
            fail "$what: $name has ended (above is the end of its log)" "Log: $CLUSTER_DIR/logs/$name.log"
        fi
        sleep 0.05
    done
}

alive() {
    local pid started name
    while read -r pid started name; do
        [ "$name" != "$1" ] || [ "$(start_time "$pid")" != "$started" ] || return 0
    done <"$CLUSTER_DIR/processes"
    return 1
}

cluster_start() {
    CLUSTER_DIR=$1 CLUSTER_KEEP=${2:-}
    mkdir -p "$CLUSTER_DIR/logs"
    CLUSTER_DIR=$(cd "$CLUSTER_DIR" && pwd)
    exec {DIR_LOCK}>"$CLUSTER_DIR/lock"
    flock -n "$DIR_LOCK" || fail "a cluster is running in $CLUSTER_DIR" "deploy/demo.sh --stop $CLUSTER_DIR stops it; or give another DEMO_DIR."
    cluster_number
    # Settings of somebody's own installation must not reach the programs of this one; the scripts' cache is no such.
    local cache=${IMPOUND_CACHE:-}
    unset "${!IMPOUND_@}"
    [ -z "$cache" ] || export IMPOUND_CACHE=$cache
    STORE=$CLUSTER_DIR/store
    KEYS=$CLUSTER_DIR/keys
    export KUBECONFIG=$CLUSTER_DIR/kubeconfig
    rm -f "$KUBECONFIG" "$CLUSTER_DIR/processes" "$CLUSTER_DIR/audit.jsonl"
    : >"$CLUSTER_DIR/processes"
    mkdir -p "$STORE"

    local node nodes=() flags=()
    for node in "${NODES[@]}"; do
        nodes+=("$node=${NODE_ADDRESS[$node]}")
        flags+=(--node "$node")
    done
    # What is there from an earlier run in the same directory stays: nothing is overwritten.
    "$BIN/impound" pki init "$KEYS" "${flags[@]}" --controller-address "${CONTROLLER%:*}" \
        --responder responder:responder --responder custodian:custodian --responder viewer:viewer >"$CLUSTER_DIR/logs/pki.log" 2>&1 ||
        fail "impound pki init did not work" "Log: $CLUSTER_DIR/logs/pki.log"

    launch kube-memory "$BIN/kube-memory" serve --dir "$CLUSTER_DIR" --listen "$API" \
        --nodes "$(IFS=,; echo "${nodes[*]}")" --audit "$CLUSTER_DIR/audit.jsonl" \
        --service-account impound:impound-controller
    await "the Kubernetes API at $API" kube-memory test -s "$KUBECONFIG"
    kubectl apply --validate=false -f "$REPOSITORY/deploy/crds" >"$CLUSTER_DIR/logs/crds.log" 2>&1 ||
        fail "the custom resources could not be created" "Log: $CLUSTER_DIR/logs/crds.log"

    launch docker-kubelet "$BIN/docker-kubelet" --kubeconfig "$KUBECONFIG" "${flags[@]}" --cluster "$CLUSTER_ID" \
        --volumes "$CLUSTER_DIR/volumes"
    start_agents
    start_controller
    for node in "${NODES[@]}"; do
        await "the agent of $node" "agent-$node" port_taken "${NODE_ADDRESS[$node]}" $AGENT_PORT
    done
    await_controller
    export IMPOUND_CONTROLLER=$CONTROLLER IMPOUND_TLS_DIR=$KEYS/responders/responder
}

# With the directory, or with a bucket if CLUSTER_S3 is set.
start_controller() {
    local store=(--store "$CLUSTER_DIR/store") run=() objects=$CLUSTER_DIR/object-store
    if [ -n "${CLUSTER_S3:-}" ]; then
        "$REPOSITORY/deploy/object-store.sh" start "$objects"
        "$REPOSITORY/deploy/object-store.sh" bucket "$objects" evidence
        store=(--store s3://evidence/impound --store-lock compliance --store-retain-days 1
            --store-endpoint "$("$REPOSITORY/deploy/object-store.sh" env "$objects" | sed -n 's/.*IMPOUND_TEST_S3_TLS=//p')"
            --store-ca "$objects/tls.crt")
        # Only the controller gets the credential, as a file.
        run=(env AWS_SHARED_CREDENTIALS_FILE="$objects/credentials")
    fi
    # As its own service account, so that the log of the API tells its calls from others.
    KUBECONFIG=$CLUSTER_DIR/kubeconfig-impound-controller launch controller "${run[@]}" "$BIN/impound-controller" \
        --listen "$CONTROLLER" --tls-dir "$KEYS/controller" "${store[@]}" --signing-key "$KEYS/signing/evidence.key" --agent-port "$AGENT_PORT"
}

await_controller() { await "the controller at $CONTROLLER" controller port_taken "${CONTROLLER%:*}" "${CONTROLLER#*:}"; }

# Another controller for the same cluster, which keeps its evidence in a bucket.
cluster_to_s3() {
    grep ' controller$' "$CLUSTER_DIR/processes" >"$CLUSTER_DIR/processes.controller"
    sed -i '/ controller$/d' "$CLUSTER_DIR/processes"
    stop_processes "$CLUSTER_DIR/processes.controller"
    CLUSTER_S3=yes
    start_controller
    await_controller
}

# Each agent split as on a real node, and with those privileges (agent/PRIVILEGES.md): the front as a user without
# any, the collector as root with two, to read writable layers, the isolator as root with three. Their files are where that user
# can reach them.
start_agents() {
    local node own sockets two=+sys_ptrace,+dac_read_search three=+sys_admin,+net_admin,+sys_ptrace
    local powerless=(--clear-groups --inh-caps=-all --ambient-caps=-all --no-new-privs --pdeathsig keep)
    RUN_DIR=/run/$CLUSTER_ID
    rm -rf "$RUN_DIR"
    install -d -m 0755 "$RUN_DIR"
    echo "$RUN_DIR" >"$CLUSTER_DIR/processes.run"
    install -m 0755 "$BIN/impound-agent" "$RUN_DIR/impound-agent"
    for node in "${NODES[@]}"; do
        own=$RUN_DIR/$node sockets=$RUN_DIR/$node/sockets
        install -d -m 0755 "$own"
        install -d -o 65532 -g 65532 -m 0500 "$own/tls"
        install -o 65532 -g 65532 -m 0400 -t "$own/tls" "$KEYS/agents/$node"/*
        # As the kubelet makes it with fsGroup: what is made in it belongs to the front's group.
        install -d -g 65532 -m 2770 "$sockets"
        # The reserve keeps a real kubelet from evicting pods; this one evicts nobody.
        launch "collector-$node" setpriv --regid 65532 "${powerless[@]}" --bounding-set="-all,$two" \
            "$RUN_DIR/impound-agent" collector --node "$node" --listen "unix:$sockets/collector.sock" \
            --disk-reserve-percent 1 --state-dir "$own/state"
        launch "isolator-$node" setpriv --regid 65532 "${powerless[@]}" --bounding-set="-all,$three" \
            "$RUN_DIR/impound-agent" isolator --node "$node" --listen "unix:$sockets/isolator.sock"
        launch "agent-$node" setpriv --reuid 65532 --regid 65532 "${powerless[@]}" --bounding-set=-all \
            "$RUN_DIR/impound-agent" front --node "$node" --listen "${NODE_ADDRESS[$node]}:$AGENT_PORT" --tls-dir "$own/tls" \
            --collector "unix:$sockets/collector.sock" --isolator "unix:$sockets/isolator.sock"
    done
}

cluster_stop() {
    [ ${#CLUSTER_PIDS[@]} -gt 0 ] || return 0
    stop_processes "$CLUSTER_DIR/processes"
    wait "${CLUSTER_PIDS[@]}" 2>/dev/null || true
    [ ! -e "$CLUSTER_DIR/object-store" ] || "$REPOSITORY/deploy/object-store.sh" stop "$CLUSTER_DIR/object-store"
    CLUSTER_PIDS=()
    # For `tests/manifests.sh --calls`.
    [ -z "${KUBE_MEMORY_AUDIT_DIR:-}" ] || cp "$CLUSTER_DIR/audit.jsonl" "$KUBE_MEMORY_AUDIT_DIR/${CLUSTER_DIR##*/}.jsonl"
}

cluster_stop_kept() {
    [ -s "$1/processes" ] || fail "no cluster was left running in $1"
    stop_processes "$1/processes"
    [ ! -e "$1/object-store" ] || "$REPOSITORY/deploy/object-store.sh" stop "$1/object-store"
}

# The kubelet first, which removes the containers it made; the API, which all others talk to, last.
stop_processes() {
    local pid started name run
    while read -r name pid started; do
        [ "$(start_time "$pid")" = "$started" ] || continue
        kill "$pid" 2>/dev/null || continue
        local tries=0
        while [ "$(start_time "$pid")" = "$started" ] && [ "$(state_of "$pid")" != Z ] && [ $tries -lt 200 ]; do
            sleep 0.05
            tries=$((tries + 1))
        done
        [ $tries -lt 200 ] || { say "$name (pid $pid) did not end within 10 seconds of SIGTERM: killed"; kill -9 "$pid" 2>/dev/null || true; }
    done < <(awk '{ print ($3 == "docker-kubelet" ? 0 : $3 == "kube-memory" ? 2 : 1), $3, $1, $2 }' "$1" | sort -s -k1,1n | cut -d' ' -f2-)
    rm -f "$1"
    run=$(cat "$1.run" 2>/dev/null || true)
    [ -z "$run" ] || rm -rf "$run" "$1.run"
}

state_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f1; }
