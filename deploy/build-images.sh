#!/bin/bash
# Builds the container images of agent and controller, without Docker and without any registry: static programs in
# images FROM scratch, each with its bill of materials. The same sources, toolchain and certificates give the same
# digests.
#
#   target/images/impound-agent.tar        OCI layout that `docker load` takes too
#   target/images/impound-controller.tar
#   target/images/*.cdx.json               bills of materials (CycloneDX 1.5); also in the images, /sbom.cdx.json
#   target/images/digests                  image digest, one a line
#   target/images/values.yaml              for Helm: -f target/images/values.yaml
#   target/images/kustomization.yaml       for kustomize: components: [.../target/images]
#
# deploy/build-programs.sh says what the programs carry. deploy/Dockerfile builds the same with Docker alone. An image of
# more than 30 MB is an error.
#
# Usage: deploy/build-images.sh [--registry REGISTRY] [--load] [--pin]
#   --registry REGISTRY   name of the images is REGISTRY/agent and REGISTRY/controller (default: impound)
#   --load                load them into the Docker Engine as well
#   --pin                 write names and digests into deploy/chart/values.yaml and the kustomize base
# To publish with the digests unchanged: skopeo copy oci-archive:target/images/impound-agent.tar docker://REGISTRY/agent:VERSION
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$HERE")
. "$HERE/machine.sh"
cd "$REPOSITORY"

REGISTRY=impound LOAD='' PIN=''
while [ $# -gt 0 ]; do
    case $1 in
        --registry) REGISTRY=${2:?--registry needs a name} && shift ;;
        --load) LOAD=yes ;;
        --pin) PIN=yes ;;
        *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2 && fail "unknown argument $1" ;;
    esac
    shift
done

need_packages jq=jq
[ -s /etc/ssl/certs/ca-certificates.crt ] || apt_install ca-certificates
need_rust "$REPOSITORY"

VERSION=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
HOST=$(rustc -vV | sed -n 's/^host: //p')
case $HOST in
    x86_64-*) ARCH=amd64 ;;
    aarch64-*) ARCH=arm64 ;;
    *) fail "images are built on x86_64 and aarch64, this is $HOST" ;;
esac
OUT=$REPOSITORY/target/images
rm -rf "$OUT"
mkdir -p "$OUT"

# What images are made in; gone at the end, also if one is too large.
WORK=$(mktemp -d "$OUT/.work.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

PROGRAMS=$WORK/programs
"$HERE/build-programs.sh" "$PROGRAMS"

# Largest image, in bytes as unpacked: nodes pull the agent's while there is an incident.
LARGEST=$((30 * 1000 * 1000))

sha256() { sha256sum "$1" | cut -d' ' -f1; }
# Adds a file to an OCI layout and prints its descriptor's digest and size as JSON.
blob() {
    local digest
    digest=$(sha256 "$2")
    cp "$2" "$1/blobs/sha256/$digest"
    jq -cn --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$2")" '{digest: $digest, size: $size}'
}
# Everything that could differ from one machine to the next is set.
pack() { tar -c --format=gnu --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 -C "$1" .; }

image() {
    local name=$1 program=impound-$1 root=$WORK/$1.root layout=$WORK/$1.layout layer config manifest image=$REGISTRY/$1:$VERSION
    mkdir -p "$root/etc/ssl/certs" "$layout/blobs/sha256"
    install -m 0555 "$PROGRAMS/$program" "$root/$program"
    install -m 0444 "$PROGRAMS/$program.cdx.json" "$root/sbom.cdx.json"
    cp "$PROGRAMS/$program.cdx.json" "$OUT/"
    if [ "$name" = controller ]; then
        # For an object store whose certificate is a public one.
        install -m 0444 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    else
        rm -r "$root/etc"
    fi
    pack "$root" >"$WORK/layer.tar"
    [ "$(stat -c %s "$WORK/layer.tar")" -le "$LARGEST" ] ||
        fail "the image of $program has $(stat -c %s "$WORK/layer.tar") bytes, more than $LARGEST"
    gzip -n -9 -c "$WORK/layer.tar" >"$WORK/layer.tar.gz"
    layer=$(blob "$layout" "$WORK/layer.tar.gz")
    jq -cn --arg arch "$ARCH" --arg entry "/$program" --arg diff "sha256:$(sha256 "$WORK/layer.tar")" --arg version "$VERSION" --arg name "$program" '{
        architecture: $arch, os: "linux",
        config: {User: "65532:65532", Entrypoint: [$entry], Env: ["PATH=/"], WorkingDir: "/", Labels: {
            "org.opencontainers.image.title": $name, "org.opencontainers.image.version": $version,
            "org.opencontainers.image.licenses": "Apache-2.0"}},
        rootfs: {type: "layers", diff_ids: [$diff]}}' >"$WORK/config"
    config=$(blob "$layout" "$WORK/config")
    jq -cn --argjson config "$config" --argjson layer "$layer" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: ({mediaType: "application/vnd.oci.image.config.v1+json"} + $config),
        layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip"} + $layer]}' >"$WORK/manifest"
    manifest=$(blob "$layout" "$WORK/manifest")
    jq -cn --argjson manifest "$manifest" --arg version "$VERSION" '{schemaVersion: 2,
        mediaType: "application/vnd.oci.image.index.v1+json",
        manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json", annotations: {"org.opencontainers.image.ref.name": $version}} + $manifest]}' >"$layout/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    # What `docker load` reads.
    jq -cn --argjson config "$config" --argjson layer "$layer" --arg image "$image" '
        def path: "blobs/" + (.digest | gsub(":"; "/"));
        [{Config: ($config | path), RepoTags: [$image], Layers: [$layer | path]}]' >"$layout/manifest.json"
    pack "$layout" >"$OUT/$program.tar"
    printf '%s %s@%s\n' "$name" "$REGISTRY/$name:$VERSION" "$(jq -r .digest <<<"$manifest")" >>"$OUT/digests"
    say "$program: image $(stat -c %s "$WORK/layer.tar" | numfmt --to=si --suffix=B), $(stat -c %s "$WORK/layer.tar.gz" | numfmt --to=si --suffix=B) compressed, $(jq -r .digest <<<"$manifest")"
    rm -rf "$root" "$layout"
}

image agent
image controller

digest() { sed -n "s/^$1 .*@//p" "$OUT/digests"; }
{
    echo "images:"
    for name in agent controller; do
        printf '  %s:\n    repository: %s/%s\n    tag: %s\n    digest: %s\n' "$name" "$REGISTRY" "$name" "$VERSION" "$(digest $name)"
    done
} >"$OUT/values.yaml"
{
    printf 'apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages:\n'
    for name in agent controller; do
        printf '  - name: impound/%s\n    newName: %s/%s\n    digest: %s\n' "$name" "$REGISTRY" "$name" "$(digest $name)"
    done
} >"$OUT/kustomization.yaml"

if [ -n "$LOAD" ]; then
    need_docker
    for name in agent controller; do docker load -q -i "$OUT/impound-$name.tar"; done
fi
if [ -n "$PIN" ]; then
    for name in agent controller; do
        sed -i "/^  $name:\$/,/digest:/{s|repository: .*|repository: $REGISTRY/$name|;s|tag: .*|tag: $VERSION|;s|digest: .*|digest: $(digest $name)|}" deploy/chart/values.yaml
    done
    tests/manifests.sh --write
fi
say "In $OUT: $(ls "$OUT" | tr '\n' ' ')"
exit 0
}
