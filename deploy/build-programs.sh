#!/bin/bash
# Builds what goes into the images of agent and controller: static programs, each with its bill of materials. The
# same sources and toolchain give the same bytes, wherever this runs.
#
#   OUT/impound-agent OUT/impound-controller
#   OUT/impound-agent.cdx.json OUT/impound-controller.cdx.json    CycloneDX 1.5
#
# The programs also carry what they are made of themselves (cargo auditable), so that `cargo audit bin` and image
# scanners see it. Ends with an error if a program is not static, or does not say the same as its bill of materials.
# deploy/build-images.sh and deploy/Dockerfile both call this.
#
# Names are looked up in /etc/hosts and with DNS, as /etc/resolv.conf says: both are in the static glibc (since 2.34),
# so that an image FROM scratch needs no library and no nsswitch.conf for it.
#
# Usage: deploy/build-programs.sh OUT
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$HERE")
. "$HERE/machine.sh"
OUT=$(realpath -m "${1:?the directory to write to}")
cd "$REPOSITORY"

AUDITABLE=0.7.7

need_packages jq=jq readelf=binutils
need_rust "$REPOSITORY"
if ! cargo auditable --version >/dev/null 2>&1; then
    say "Installing cargo-auditable"
    cargo install --locked -q "cargo-auditable@$AUDITABLE"
fi
HOST=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$OUT"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

say "Building static programs for $HOST"
# With a target named, the flags are for the programs alone and not for what builds them.
RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$REPOSITORY=/src --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    cargo auditable build -q --release --locked --target "$HOST" --target-dir "$REPOSITORY/target/static" \
    -p impound-agent -p impound-controller
cargo metadata --format-version 1 --locked --filter-platform "$HOST" >"$SCRATCH/metadata"
CHECKSUMS=$(awk '/^name = /{n=$3} /^version = /{v=$3} /^checksum = /{print n, v, $3}' Cargo.lock |
    jq -cRn '[inputs | gsub("\""; "") | split(" ") | {key: "\(.[0]) \(.[1])", value: .[2]}] | from_entries')

# What a program says that it is made of, one "name version" a line, without what only its build needed.
carried() {
    objcopy -O binary --only-section=.dep-v0 --set-section-flags .dep-v0=alloc "$1" "$SCRATCH/section"
    [ -s "$SCRATCH/section" ] || fail "$(basename "$1") carries no list of what it is made of (cargo auditable)"
    # zlib's stream is gzip's without its header; its end is another, which gzip complains of after it wrote everything.
    { printf '\x1f\x8b\x08\0\0\0\0\0\0\0' && tail -c +3 "$SCRATCH/section"; } | gzip -dc 2>/dev/null >"$SCRATCH/list" || true
    jq -r '.packages[] | select((.kind // "runtime") == "runtime" and .root != true) | "\(.name) \(.version)"' "$SCRATCH/list" | sort -u
}

for program in impound-agent impound-controller; do
    built=$REPOSITORY/target/static/$HOST/release/$program
    # A program that needs a loader would not start FROM scratch.
    if readelf -lW "$built" | grep -q INTERP; then fail "$program is not static"; fi
    install -m 0555 "$built" "$OUT/$program"
    # Cargo leaves the symbols of a package that has a profile of its own.
    strip --strip-all "$OUT/$program"
    carried "$OUT/$program" >"$SCRATCH/carried"
    jq --arg package "$program" --argjson checksums "$CHECKSUMS" --rawfile carried "$SCRATCH/carried" \
        -f "$HERE/sbom.jq" "$SCRATCH/metadata" >"$OUT/$program.cdx.json" || fail "$program has no bill of materials"
    jq -r '.components[] | "\(.name) \(.version)"' "$OUT/$program.cdx.json" | sort -u >"$SCRATCH/listed"
    diff "$SCRATCH/carried" "$SCRATCH/listed" >"$SCRATCH/difference" ||
        fail "$program carries (<) another list than its bill of materials (>)" "$(cat "$SCRATCH/difference")"
    say "$program: $(stat -c %s "$OUT/$program" | numfmt --to=si --suffix=B), made of $(wc -l <"$SCRATCH/listed") packages"
done
exit 0
}
