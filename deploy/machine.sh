# Makes a Debian machine ready for the demo and the tests: packages, a Docker Engine, Rust.
#
# Sourced by other scripts, which get:
#   say, step, fail           output; fail ends the script
#   need_packages CMD=PKG...  installs the Debian packages whose commands are missing
#   need_docker [LOG]         a Docker Engine that answers; starts one if none does
#   stop_docker               stops the engine that need_docker started, if nothing runs in it
#   need_rust                 the toolchain that rust-toolchain.toml names, and a C compiler
# Nothing is installed or started that is there already.

# The agents read this socket, so every docker command here must mean the same engine.
export DOCKER_HOST=unix:///var/run/docker.sock
unset DOCKER_CONTEXT

DOCKERD_PID=

if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'; else BOLD='' DIM='' RED='' GREEN='' PLAIN=''; fi

say() { printf '%s\n' "$*"; }
step() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
fail() {
    printf '%sfailed: %s%s\n' "$RED" "$1" "$PLAIN" >&2
    shift
    local line
    for line in "$@"; do printf '        %s\n' "$line" >&2; done
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "$1 needs root, and this is user $(id -un)" "Run this script again with sudo."
}

APT_UPDATED=
apt_update() {
    [ -z "$APT_UPDATED" ] || return 0
    say "Reading the package lists (apt-get update)"
    local log
    log=$(mktemp)
    if ! apt-get update -q >"$log" 2>&1; then
        sed 's/^/        /' "$log" >&2
        rm -f "$log"
        fail "apt-get update did not work (above is what it said)" "Check the machine's network and /etc/apt/sources.list.d."
    fi
    rm -f "$log"
    APT_UPDATED=yes
}

apt_install() {
    command -v apt-get >/dev/null || fail "this is not a Debian machine (no apt-get); missing: $*" "Install them with this system's own package manager and run this script again."
    need_root "Installing the Debian packages $*"
    local log
    log=$(mktemp)
    say "Installing the Debian packages: $*"
    # Old package lists name versions that the mirror no longer has, so a failure is tried again after an update.
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1; then
        apt_update
        if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1; then
            tail -n 20 "$log" | sed 's/^/        /' >&2
            rm -f "$log"
            fail "apt-get install $* did not work (above is the end of what it said)"
        fi
    fi
    rm -f "$log"
}

need_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

docker_answers() { docker info >/dev/null 2>&1; }

need_docker() {
    local log=${1:-/var/log/impound-dockerd.log} packages=(docker.io) waited=0
    if ! command -v docker >/dev/null || { ! command -v dockerd >/dev/null && ! docker_answers; }; then
        [ -n "$(apt-cache search --names-only '^docker\.io$' 2>/dev/null)" ] || apt_update
        # From Debian 13 on the command is a package of its own.
        [ -z "$(apt-cache search --names-only '^docker-cli$' 2>/dev/null)" ] || packages+=(docker-cli)
        apt_install "${packages[@]}"
    fi
    if ! docker_answers; then
        need_root "Starting Docker"
        if [ -d /run/systemd/system ]; then
            say "No Docker Engine answers at $DOCKER_HOST: starting the docker service"
            systemctl start docker || fail "systemctl start docker did not work" "journalctl -u docker tells why."
        else
            say "No Docker Engine answers at $DOCKER_HOST: starting dockerd (log: $log)"
            # Its own session, so that Ctrl-C in this terminal reaches the script and not the engine under it.
            setsid dockerd >>"$log" 2>&1 </dev/null &
            DOCKERD_PID=$!
        fi
        until docker_answers; do
            # Somebody else may have started an engine in the same moment; then ours ends and theirs soon answers.
            if [ -n "$DOCKERD_PID" ] && ! kill -0 "$DOCKERD_PID" 2>/dev/null; then
                DOCKERD_PID=
                waited=$((waited < 275 ? 275 : waited))
            fi
            waited=$((waited + 1))
            if [ "$waited" -ge 300 ]; then
                tail -n 5 "$log" 2>/dev/null | sed 's/^/        /' >&2 || true
                fail "no Docker Engine answers at $DOCKER_HOST, though one was started (above is the end of its log)" "Log: $log"
            fi
            sleep 0.2
        done
    fi
    local os
    os=$(docker info --format '{{.OSType}} {{.ServerVersion}}, storage {{.Driver}}')
    case $os in
        linux*) say "Docker Engine ${os#linux } answers at $DOCKER_HOST" ;;
        *) fail "the Docker Engine at $DOCKER_HOST runs $os containers; Linux is needed" ;;
    esac
}

stop_docker() {
    [ -n "$DOCKERD_PID" ] || return 0
    if [ -n "$(docker ps -q 2>/dev/null)" ]; then
        say "dockerd (pid $DOCKERD_PID) was started by this script and is left running: it has containers that this script did not start"
        return 0
    fi
    kill "$DOCKERD_PID" 2>/dev/null || true
    while kill -0 "$DOCKERD_PID" 2>/dev/null; do sleep 0.1; done
    say "Stopped dockerd (pid $DOCKERD_PID), which this script had started"
    DOCKERD_PID=
}

# From Debian where it has the package (13 and later), else as https://rustup.rs says.
install_rustup() {
    if apt-cache madison rustup 2>/dev/null | grep -q .; then
        apt_install rustup
    else
        say "No cargo here: installing rustup from https://sh.rustup.rs"
        need_packages curl=curl
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -q -y --profile minimal --default-toolchain none --no-modify-path
    fi
}

need_rust() {
    local wanted=$1/rust-toolchain.toml channel found
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$wanted")
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || install_rustup || true
    command -v cargo >/dev/null || fail "cargo is not installed (Rust $channel is needed to build)" \
        "With rustup, which installs exactly that version for this directory:" \
        "    Debian 13 and later:  apt-get install rustup" \
        "    elsewhere:            curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal" \
        "Then run this script again."
    # Under rustup this also installs the toolchain, when it is not there yet.
    found=$(cd "$1" && cargo --version) || fail "cargo does not work in $1" "rustup toolchain install $channel   installs what $wanted names."
    found=${found#cargo }
    found=${found%% *}
    [ "$(printf '%s\n%s\n' "$channel" "$found" | sort -V | head -n 1)" = "$channel" ] ||
        fail "this cargo is $found; at least $channel is needed" "Debian's own cargo is too old; use rustup: https://rustup.rs"
    need_packages cc=gcc
    echo 'int main(void){return 0;}' | cc -x c - -o /dev/null -include stdlib.h 2>/dev/null || apt_install libc6-dev
    say "Rust $found"
}
